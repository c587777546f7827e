//! Small values of the state, each with one text form used in the command line,
//! JSON and TOML alike.

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::str::FromStr;

use mgre_common::wire::MacAddr;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Whether a value need not be said.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How programs are to be attached to an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The best one the interface has.
    #[default]
    Auto,
    /// XDP in the driver.
    Native,
    /// XDP after the socket buffer is made.
    Generic,
    /// The traffic control hook alone.
    Tc,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tc => "tc",
        })
    }
}

/// What becomes of GRE for an underlay's address that is no peer's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ForeignGre {
    /// It is dropped, and counted by reason.
    #[default]
    Drop,
    /// The kernel gets it, for tunnels of its own and for other programs.
    Pass,
}

impl fmt::Display for ForeignGre {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drop => "drop",
            Self::Pass => "pass",
        })
    }
}

/// Whether outer packets forbid fragmentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Df {
    /// They do: a frame that does not fit is dropped and counted.
    #[default]
    Set,
    /// They do not: one that does not fit is fragmented.
    Unset,
    /// As the packet inside says.
    Inherit,
}

impl fmt::Display for Df {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Set => "set",
            Self::Unset => "unset",
            Self::Inherit => "inherit",
        })
    }
}

/// What GRE packets are put into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Encap {
    /// IP, as its protocol 47.
    #[default]
    Gre,
    /// UDP, port 4754 (RFC 8086): for NAT, and for equal-cost paths and receive queues.
    GreUdp,
}

impl fmt::Display for Encap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gre => "gre",
            Self::GreUdp => "gre-udp",
        })
    }
}

/// The largest inner packet, without its Ethernet header, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mtu {
    /// What the underlay's MTU leaves.
    #[default]
    Auto,
    /// This many bytes.
    Fixed(u32),
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(bytes) => write!(f, "{bytes}"),
        }
    }
}

/// TOS (IPv4) or traffic class (IPv6) of outer packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tos {
    /// This, whatever is inside: DSCP in the upper six bits, and nothing in those of ECN.
    Fixed(u8),
    /// The DSCP of the packet inside, and back into it at the other end (the uniform model of RFC 2983).
    Inherit,
}

impl Default for Tos {
    fn default() -> Self {
        Self::Fixed(0)
    }
}

impl fmt::Display for Tos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(tos) => write!(f, "{tos}"),
            Self::Inherit => f.write_str("inherit"),
        }
    }
}

/// A text that is not what it should be; says what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub(super) &'static str);

/// A value that is a number or a word.
pub(super) trait NumberOrWord: Copy {
    /// What it should be.
    const WANTED: &'static str;
    /// The word, and its value.
    const WORD: (&'static str, Self);

    fn from_number(number: u64) -> Option<Self>;
    /// None for the word.
    fn number(self) -> Option<u32>;

    fn parse(text: &str) -> Result<Self, ParseError> {
        let number = || text.parse().ok().and_then(Self::from_number).ok_or(ParseError(Self::WANTED));
        if text == Self::WORD.0 { Ok(Self::WORD.1) } else { number() }
    }

    fn write<S: Serializer>(self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.number() {
            Some(number) => serializer.serialize_u32(number),
            None => serializer.serialize_str(Self::WORD.0),
        }
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrWordVisitor(PhantomData))
    }
}

struct NumberOrWordVisitor<T>(PhantomData<T>);

impl<T: NumberOrWord> de::Visitor<'_> for NumberOrWordVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::WANTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        T::parse(text).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        T::from_number(number).ok_or_else(|| E::custom(T::WANTED))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        u64::try_from(number).ok().and_then(T::from_number).ok_or_else(|| E::custom(T::WANTED))
    }
}

impl NumberOrWord for Mtu {
    const WANTED: &'static str = "an MTU is a number of bytes or \"auto\"";
    const WORD: (&'static str, Self) = ("auto", Self::Auto);

    fn from_number(number: u64) -> Option<Self> {
        u32::try_from(number).ok().map(Self::Fixed)
    }

    fn number(self) -> Option<u32> {
        match self {
            Self::Auto => None,
            Self::Fixed(bytes) => Some(bytes),
        }
    }
}

impl NumberOrWord for Tos {
    const WANTED: &'static str = "a TOS is a number from 0 to 255 or \"inherit\"";
    const WORD: (&'static str, Self) = ("inherit", Self::Inherit);

    fn from_number(number: u64) -> Option<Self> {
        u8::try_from(number).ok().map(Self::Fixed)
    }

    fn number(self) -> Option<u32> {
        match self {
            Self::Fixed(tos) => Some(tos.into()),
            Self::Inherit => None,
        }
    }
}

impl FromStr for Mtu {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        NumberOrWord::parse(text)
    }
}

impl Serialize for Mtu {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.write(serializer)
    }
}

impl<'de> Deserialize<'de> for Mtu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(deserializer)
    }
}

impl Serialize for Tos {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.write(serializer)
    }
}

impl<'de> Deserialize<'de> for Tos {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(deserializer)
    }
}

/// An address with its prefix length, such as `10.1.0.1/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    /// The address, host part included.
    pub address: IpAddr,
    /// Length of the network prefix in bits.
    pub prefix: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: ParseError = ParseError("an address with its prefix length, such as 10.1.0.1/24");
        let (address, prefix) = text.split_once('/').ok_or(WANTED)?;
        let address: IpAddr = address.parse().map_err(|_| WANTED)?;
        let prefix = prefix.parse().map_err(|_| WANTED)?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix > longest {
            return Err(ParseError("the prefix is longer than the address"));
        }
        Ok(Self { address, prefix })
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// MAC addresses as text, for `#[serde(with)]`: [`MacAddr`] itself knows no serde.
pub mod mac_text {
    use super::*;

    /// Writes `02:00:5e:10:00:01`.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(mac: &MacAddr, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(mac)
    }

    /// Reads what [`MacAddr`]'s `FromStr` takes.
    ///
    /// # Errors
    /// The text is no MAC address.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MacAddr, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// As [`mac_text`], for an address that may be absent.
pub mod optional_mac_text {
    use super::*;

    /// Writes the address or null.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(mac: &Option<MacAddr>, serializer: S) -> Result<S::Ok, S::Error> {
        match mac {
            Some(mac) => serializer.collect_str(mac),
            None => serializer.serialize_none(),
        }
    }

    /// Reads an address or null.
    ///
    /// # Errors
    /// The text is no MAC address.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<MacAddr>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(de::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtu_text() {
        assert_eq!("auto".parse(), Ok(Mtu::Auto));
        assert_eq!("1400".parse(), Ok(Mtu::Fixed(1400)));
        assert!("-1".parse::<Mtu>().is_err() && "Auto".parse::<Mtu>().is_err());
        for mtu in [Mtu::Auto, Mtu::Fixed(9000)] {
            let json = serde_json::to_string(&mtu).expect("serializes");
            assert_eq!(serde_json::from_str::<Mtu>(&json).expect("parses"), mtu);
        }
        assert!(serde_json::from_str::<Mtu>("4294967296").is_err());
        assert!(serde_json::from_str::<Mtu>("-1").is_err());
    }

    #[test]
    fn tos_text() {
        for (tos, text) in [(Tos::Fixed(184), "184"), (Tos::Inherit, "\"inherit\"")] {
            assert_eq!(serde_json::to_string(&tos).expect("serializes"), text);
            assert_eq!(serde_json::from_str::<Tos>(text).expect("parses"), tos);
        }
        for bad in ["256", "-4", "\"Inherit\"", "null"] {
            assert!(serde_json::from_str::<Tos>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cidr_text() {
        let cidr: Cidr = "10.1.0.1/24".parse().expect("parses");
        assert_eq!((cidr.prefix, cidr.to_string().as_str()), (24, "10.1.0.1/24"));
        assert!("fd00::1/64".parse::<Cidr>().is_ok());
        for bad in ["10.1.0.1", "10.1.0.1/33", "10.1.0/24", "fd00::1/129", "10.1.0.1/", "/24", "10.1.0.1/-1"]
        {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}

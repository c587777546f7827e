//! Small values of the state, each with one text form used in the command line,
//! JSON and TOML alike.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use mgre_common::wire::MacAddr;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

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

/// Whether outer IPv4 packets forbid fragmentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Df {
    /// They do: a frame that does not fit is dropped and counted.
    #[default]
    Set,
    /// They do not: routers on the way may fragment them.
    Unset,
}

impl fmt::Display for Df {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Set => "set",
            Self::Unset => "unset",
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

/// A text that is not what it should be; says what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(&'static str);

impl FromStr for Mtu {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        text.parse().map(Self::Fixed).map_err(|_| ParseError("an MTU is a number of bytes or \"auto\""))
    }
}

impl Serialize for Mtu {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Fixed(bytes) => serializer.serialize_u32(*bytes),
        }
    }
}

impl<'de> Deserialize<'de> for Mtu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Mtu;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes or \"auto\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Mtu, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Mtu, E> {
                u32::try_from(number).map(Mtu::Fixed).map_err(|_| E::custom("the MTU is too large"))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Mtu, E> {
                u32::try_from(number).map(Mtu::Fixed).map_err(|_| E::custom("the MTU is out of range"))
            }
        }
        deserializer.deserialize_any(Visitor)
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

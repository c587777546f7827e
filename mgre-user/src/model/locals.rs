//! Our endpoints on an underlay: one for each IP version.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An IPv4 address, an IPv6 address, or one of each. As text: the address, or a list of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locals {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

/// Not one address for each IP version at most, and one at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocalsError {
    /// There is none.
    #[error("an underlay needs a local address")]
    None,
    /// There are two of one version.
    #[error("an underlay has one local address for each IP version, not both {0} and {1}")]
    Two(IpAddr, IpAddr),
}

impl Locals {
    const NONE: Self = Self { v4: None, v6: None };

    /// The address of the same IP version as another one.
    pub fn like(&self, other: IpAddr) -> Option<IpAddr> {
        match other {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    /// IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }

    /// Whether this is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.like(address) == Some(address)
    }

    /// With one more.
    ///
    /// # Errors
    /// There is one of its IP version.
    pub fn with(mut self, address: IpAddr) -> Result<Self, LocalsError> {
        if let Some(other) = self.like(address) {
            return Err(LocalsError::Two(other, address));
        }
        match address {
            IpAddr::V4(address) => self.v4 = Some(address),
            IpAddr::V6(address) => self.v6 = Some(address),
        }
        Ok(self)
    }

    /// Without this one; none if no other is left.
    pub fn without(self, address: IpAddr) -> Option<Self> {
        Self::new(self.iter().filter(|local| *local != address)).ok()
    }

    /// Of addresses in any order.
    ///
    /// # Errors
    /// There is none, or there are two of one IP version.
    pub fn new(addresses: impl IntoIterator<Item = IpAddr>) -> Result<Self, LocalsError> {
        let locals = addresses.into_iter().try_fold(Self::NONE, Self::with)?;
        if locals == Self::NONE { Err(LocalsError::None) } else { Ok(locals) }
    }
}

impl From<Ipv4Addr> for Locals {
    fn from(address: Ipv4Addr) -> Self {
        Self { v4: Some(address), ..Self::NONE }
    }
}

impl From<Ipv6Addr> for Locals {
    fn from(address: Ipv6Addr) -> Self {
        Self { v6: Some(address), ..Self::NONE }
    }
}

impl From<IpAddr> for Locals {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => address.into(),
        }
    }
}

impl Serialize for Locals {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.v4, self.v6) {
            (Some(_), Some(_)) => serializer.collect_seq(self.iter()),
            _ => self.iter().next().serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Locals {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Locals;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an IP address, or a list of an IPv4 and an IPv6 address")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Locals, E> {
                text.parse::<IpAddr>().map(Locals::from).map_err(E::custom)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Locals, A::Error> {
                let mut addresses = Vec::new();
                while let Some(address) = list.next_element::<IpAddr>()? {
                    addresses.push(address);
                }
                Locals::new(addresses).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locals(json: &str) -> serde_json::Result<Locals> {
        serde_json::from_str(json)
    }

    #[test]
    fn text() {
        for (json, count) in
            [("\"192.0.2.1\"", 1), ("\"2001:db8::1\"", 1), ("[\"192.0.2.1\",\"2001:db8::1\"]", 2)]
        {
            let locals = locals(json).expect("parses");
            assert_eq!(locals.iter().count(), count);
            assert_eq!(serde_json::to_string(&locals).expect("serializes"), json);
        }
        assert_eq!(locals("[\"192.0.2.1\"]").expect("parses"), locals("\"192.0.2.1\"").expect("parses"));
        for bad in ["[]", "7", "\"x\"", "[\"192.0.2.1\",\"192.0.2.2\"]"] {
            assert!(locals(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_for_each_version() {
        let [v4, v6, other]: [IpAddr; 3] =
            ["192.0.2.1", "2001:db8::1", "2001:db8::2"].map(|text| text.parse().expect("an address"));
        let both = Locals::from(v6).with(v4).expect("both");
        assert_eq!(both.iter().collect::<Vec<_>>(), [v4, v6]);
        assert_eq!((both.like(other), both.contains(other)), (Some(v6), false));
        assert_eq!(both.with(other), Err(LocalsError::Two(v6, other)));
        assert_eq!((both.without(v4), both.without(other)), (Some(v6.into()), Some(both)));
        assert_eq!(Locals::from(v4).without(v4), None);
    }
}

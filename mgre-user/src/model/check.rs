//! What a name, an address or a number must look like.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mgre_common::wire::{ETHERNET_LEN, GRE_FIELD_LEN, GRE_LEN, IPV4_LEN, MacAddr};

use super::error::ModelError;
use super::types::{Mtu, Tos};

/// The smallest MTU (RFC 791: every IPv4 link carries 68 bytes).
pub const MTU_MIN: u32 = 68;
/// The largest MTU: what fits into an IPv4 packet after its header, GRE with a key, and the inner Ethernet header.
pub const MTU_MAX: u32 = 65_535 - (IPV4_LEN + GRE_LEN + GRE_FIELD_LEN + ETHERNET_LEN) as u32;
/// The lowest virtual subnet id that is not reserved (RFC 7637 3.4).
pub const VSID_FIRST: u32 = 0x1000;
/// The highest one; 0xffffff is for what vendors agree on.
pub const VSID_LAST: u32 = 0xff_fffe;
/// The longest ageing time in seconds (IEEE 802.1Q table 8-6).
pub const AGING_MAX_SECONDS: u32 = 1_000_000;

/// Checks an interface's name as the kernel does (`dev_valid_name`).
///
/// # Errors
/// Empty, too long, or a character that the kernel refuses.
pub fn interface(name: &str) -> Result<(), ModelError> {
    let why = if name.is_empty() || name.len() > 15 {
        "it must be 1 to 15 bytes long"
    } else if name == "." || name == ".." || name.contains(['/', ':']) || name.contains(char::is_whitespace) {
        "it must have no slash, colon or blank"
    } else if name.contains(|c: char| c.is_control()) {
        "it must have no control character"
    } else {
        return Ok(());
    };
    Err(ModelError::BadName { noun: "an interface", name: name.to_owned(), why })
}

/// Checks the name of a segment or a peer (`noun` with its article).
///
/// # Errors
/// Empty, too long, or other than letters, digits, dots, dashes, underscores.
pub fn name(noun: &'static str, name: &str) -> Result<(), ModelError> {
    let why = if name.is_empty() || name.len() > 63 {
        "it must be 1 to 63 characters long"
    } else if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        "it must begin with a letter or a digit"
    } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        "it may have only ASCII letters, digits, dots, dashes and underscores"
    } else {
        return Ok(());
    };
    Err(ModelError::BadName { noun, name: name.to_owned(), why })
}

/// Checks that an address can be an endpoint.
///
/// # Errors
/// An address that no single host has, or that means one only together with a link.
pub fn endpoint(role: &'static str, address: IpAddr) -> Result<(), ModelError> {
    let why = match address {
        IpAddr::V4(v4) => obstacle_v4(v4),
        IpAddr::V6(v6) => obstacle_v6(v6),
    };
    match why {
        Some(why) => Err(ModelError::BadEndpoint { address: address.to_string(), role, why }),
        None => Ok(()),
    }
}

fn obstacle_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address {
        v4 if v4.is_unspecified() => Some("it is the unspecified address"),
        v4 if v4.is_multicast() => Some("it is a multicast address"),
        v4 if v4.is_broadcast() => Some("it is the broadcast address"),
        v4 if v4.octets()[0] == 0 => Some("it is in 0.0.0.0/8, \"this network\""),
        v4 if v4.octets()[0] >= 240 => Some("it is in 240.0.0.0/4, which is reserved"),
        _ => None,
    }
}

fn obstacle_v6(address: Ipv6Addr) -> Option<&'static str> {
    match address {
        v6 if v6.is_unspecified() => Some("it is the unspecified address"),
        v6 if v6.is_loopback() => Some("it is the loopback address"),
        v6 if v6.is_multicast() => Some("it is a multicast address"),
        v6 if v6.is_unicast_link_local() => Some(
            "it is a link-local address, which is known on one link only; give a global or unique local one",
        ),
        v6 if v6.to_ipv4_mapped().is_some() => {
            Some("it is an IPv4-mapped address, which no packet has; give the IPv4 address")
        }
        _ => None,
    }
}

/// Checks a remote: an address that can be an endpoint, or a DNS name. Gives its
/// canonical form, by which remotes are compared.
///
/// # Errors
/// Neither of the two.
pub fn remote(text: &str) -> Result<String, ModelError> {
    const ROLE: &str = "the remote of a peer";
    if let Ok(address) = text.parse::<IpAddr>() {
        return endpoint(ROLE, address).map(|()| address.to_string());
    }
    let bad = |why| Err(ModelError::BadEndpoint { address: text.to_owned(), role: ROLE, why });
    let host = without_root(text);
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.split_once('%').is_some_and(|(address, _)| address.parse::<Ipv6Addr>().is_ok()) {
        return bad("addresses with a zone are known on one link only; give a global or unique local one");
    }
    if host.len() > 253 || !host.split('.').all(label_ok) {
        return bad("it is neither an IP address nor a DNS name");
    }
    // No top-level domain is all digits (RFC 3696 2), so this is an address gone wrong.
    if host.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit())) {
        return bad("it looks like an IPv4 address but is none");
    }
    Ok(host.to_ascii_lowercase())
}

/// A DNS name without the dot of the root at its end.
fn without_root(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// The form by which remotes that were checked before are compared.
pub fn canonical(remote: &str) -> String {
    match remote.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => without_root(remote).to_ascii_lowercase(),
    }
}

/// Checks an MTU.
///
/// # Errors
/// Out of range.
pub fn mtu(mtu: Mtu) -> Result<(), ModelError> {
    match mtu {
        Mtu::Fixed(bytes) if !(MTU_MIN..=MTU_MAX).contains(&bytes) => {
            Err(ModelError::BadMtu { mtu, lowest: MTU_MIN, highest: MTU_MAX })
        }
        _ => Ok(()),
    }
}

/// Checks an ageing time.
///
/// # Errors
/// Out of range.
pub fn aging(seconds: u32) -> Result<(), ModelError> {
    if (1..=AGING_MAX_SECONDS).contains(&seconds) {
        return Ok(());
    }
    Err(ModelError::BadNumber { what: "ageing time", value: seconds, range: "1 to 1000000 seconds" })
}

/// Checks an outer TTL.
///
/// # Errors
/// Zero.
pub fn ttl(ttl: u8) -> Result<(), ModelError> {
    if ttl > 0 {
        return Ok(());
    }
    Err(ModelError::BadNumber { what: "TTL", value: 0, range: "1 to 255" })
}

/// Checks an outer TOS.
///
/// # Errors
/// It has ECN bits, which belong to the tunnel (RFC 6040 4.1).
pub fn tos(tos: Tos) -> Result<(), ModelError> {
    match tos {
        Tos::Fixed(tos) if tos & 3 != 0 => {
            let range = "a multiple of 4, since the two low bits are for ECN (RFC 6040)";
            Err(ModelError::BadNumber { what: "TOS", value: tos.into(), range })
        }
        _ => Ok(()),
    }
}

/// Checks a virtual subnet id.
///
/// # Errors
/// It has more than 24 bits, or is one that RFC 7637 3.4 reserves.
pub fn vsid(vsid: u32) -> Result<(), ModelError> {
    if (VSID_FIRST..=VSID_LAST).contains(&vsid) {
        return Ok(());
    }
    let range = "4096 (0x1000) to 16777214 (0xfffffe); RFC 7637 reserves those below and 0xffffff";
    Err(ModelError::BadNumber { what: "VSID", value: vsid, range })
}

/// Checks a VLAN id.
///
/// # Errors
/// It is none that a frame's VLAN can have (IEEE 802.1Q table 9-2).
pub fn vlan(vlan: u16) -> Result<(), ModelError> {
    if (1..=4094).contains(&vlan) {
        return Ok(());
    }
    Err(ModelError::BadNumber { what: "VLAN", value: vlan.into(), range: "1 to 4094" })
}

/// Checks that a station may have this address.
///
/// # Errors
/// It is a group address or zero.
pub fn station(mac: MacAddr) -> Result<(), ModelError> {
    if mac.is_station() { Ok(()) } else { Err(ModelError::BadMac(mac)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces() {
        for good in ["a", "eth0", "br-lan.100", "abcdefghijklmno"] {
            assert_eq!(interface(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a:1", "abcdefghijklmnop", "a\tb", "a\u{1}"] {
            assert!(interface(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names() {
        for good in ["lan", "10", "site-b.example_1"] {
            assert_eq!(name("a peer", good), Ok(()), "{good}");
        }
        for bad in ["", "-x", ".", "..", "a/b", "a b", "ä", &"x".repeat(64)] {
            assert!(name("a peer", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn remotes() {
        assert_eq!(remote("192.0.2.1").as_deref(), Ok("192.0.2.1"));
        assert_eq!(remote("Hub.Example.NET.").as_deref(), Ok("hub.example.net"));
        assert_eq!(remote("hub").as_deref(), Ok("hub"));
        assert_eq!(remote("2001:DB8:0::1").as_deref(), Ok("2001:db8::1"));
        assert!(["fd00::1", "64:ff9b::192.0.2.1", "2002::1"].into_iter().all(|text| remote(text).is_ok()));
        for text in ["192.0.2.1", "Hub.Example.NET.", "2001:DB8:0::1"] {
            assert_eq!(remote(text), Ok(canonical(text)));
        }
        for bad in [
            "",
            ".",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "ff02::1",
            "fe80::1",
            "fe80::1%eth0",
            "2001:db8::1%eth0",
            "[2001:db8::1]",
            "2001:db8:::1",
            "::ffff:192.0.2.1",
            "10.0.0.256",
            "10.0.0",
            "a..b",
            "-a.b",
            "a b",
            "a/b",
            "10.0.0.1/24",
        ] {
            assert!(remote(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn numbers() {
        assert!(ttl(0).is_err() && ttl(1).is_ok());
        let fixed = |number| tos(Tos::Fixed(number));
        assert!(fixed(1).is_err() && fixed(2).is_err() && fixed(0xb8).is_ok() && tos(Tos::Inherit).is_ok());
        assert!([0, 0xfff, 0xff_ffff, 0x100_0000].into_iter().all(|reserved| vsid(reserved).is_err()));
        assert!([0x1000, 0xff_fffe].into_iter().all(|free| vsid(free).is_ok()));
        assert!(vlan(0).is_err() && vlan(1).is_ok() && vlan(4094).is_ok() && vlan(4095).is_err());
        assert!(aging(0).is_err() && aging(1).is_ok() && aging(1_000_001).is_err());
        assert!(
            mtu(Mtu::Fixed(67)).is_err() && mtu(Mtu::Fixed(1400)).is_ok() && mtu(Mtu::Fixed(65_535)).is_err()
        );
    }
}

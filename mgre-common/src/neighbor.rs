//! Addresses of hosts and the MAC addresses that they have: what ARP and ND are about.
//!
//! The daemon writes the table. Of a value the datapath stores two words alone: when the
//! binding was last confirmed, and that somebody contests it.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::sync::atomic::Ordering;

use bytemuck::{Pod, Zeroable};

use crate::cell::{AtomicU32, AtomicU64};
use crate::fdb::FdbKey;
use crate::wire::MacAddr;

/// The most bindings in one instance.
pub const MAX_NEIGHBORS: u32 = 32_768;

/// An address in a segment.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct NeighborKey {
    /// An IPv6 address, or an IPv4 one in its mapped form (RFC 4291 2.5.5.2), in pairs of
    /// bytes as this machine loads them from the wire.
    pub address: [u16; 8],
    /// The segment's id.
    pub segment: u16,
    /// Zero.
    pub reserved: u16,
}

impl NeighborKey {
    /// That of an IPv6 address as loaded from the wire.
    #[inline(always)]
    pub const fn from_v6(segment: u16, address: [u16; 8]) -> Self {
        Self { address, segment, reserved: 0 }
    }

    /// That of an IPv4 address as loaded from the wire.
    #[inline(always)]
    pub const fn from_v4(segment: u16, [high, low]: [u16; 2]) -> Self {
        Self::from_v6(segment, [0, 0, 0, 0, 0, 0xffff, high, low])
    }

    /// That of an address.
    pub const fn new(segment: u16, address: IpAddr) -> Self {
        let octets = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        let pair = u16::from_ne_bytes;
        let low = [pair([i, j]), pair([k, l]), pair([m, n]), pair([o, p])];
        let [w, x, y, z] = low;
        Self::from_v6(segment, [pair([a, b]), pair([c, d]), pair([e, f]), pair([g, h]), w, x, y, z])
    }

    /// The address.
    pub fn address(&self) -> IpAddr {
        let v6 = Ipv6Addr::from(self.address.map(u16::from_be));
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), |v4: Ipv4Addr| IpAddr::V4(v4))
    }
}

impl fmt::Debug for NeighborKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.segment, self.address())
    }
}

/// Bits of [`Binding::flags`].
pub mod neighbor_flag {
    /// The host is a router (RFC 4861 4.4).
    pub const ROUTER: u16 = 1 << 0;
}

/// A MAC address and [`neighbor_flag`] bits, as one word.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Binding(pub u64);

impl Binding {
    /// Of a MAC address and flags.
    #[inline(always)]
    pub const fn new(mac: MacAddr, flags: u16) -> Self {
        Self(FdbKey::new(flags, mac).0)
    }

    /// The MAC address.
    #[inline(always)]
    pub const fn mac(self) -> MacAddr {
        FdbKey(self.0).mac()
    }

    /// [`neighbor_flag`] bits.
    #[inline(always)]
    pub const fn flags(self) -> u16 {
        FdbKey(self.0).segment()
    }
}

/// A value of the table, as the daemon writes and reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct NeighborRecord {
    /// The binding.
    pub binding: Binding,
    /// [`crate::table::Clock::seconds`] when it was last confirmed.
    pub seen: u32,
    /// Whether questions are not answered: 1 or 0.
    pub contested: u32,
}

/// A value of the table in memory.
#[repr(C)]
#[derive(Debug, Default)]
pub struct NeighborSlot {
    binding: AtomicU64,
    seen: AtomicU32,
    contested: AtomicU32,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<NeighborSlot>() == size_of::<NeighborRecord>());
const _: () = assert!(size_of::<NeighborKey>() == 20 && size_of::<NeighborRecord>() == 16);

impl NeighborSlot {
    /// With these contents.
    pub fn new(record: NeighborRecord) -> Self {
        Self {
            binding: AtomicU64::new(record.binding.0),
            seen: AtomicU32::new(record.seen),
            contested: AtomicU32::new(record.contested),
        }
    }

    /// What is in it.
    pub fn record(&self) -> NeighborRecord {
        NeighborRecord {
            binding: self.binding(),
            seen: self.seen.load(Ordering::Relaxed),
            contested: self.contested.load(Ordering::Relaxed),
        }
    }

    /// The binding.
    #[inline(always)]
    pub fn binding(&self) -> Binding {
        Binding(self.binding.load(Ordering::Relaxed))
    }

    /// Whether somebody contests it: then nobody but the host itself may answer.
    #[inline(always)]
    pub fn is_contested(&self) -> bool {
        self.contested.load(Ordering::Relaxed) != 0
    }

    /// Notes that somebody does. The daemon decides what comes of it.
    #[inline(always)]
    pub fn contest(&self) {
        if !self.is_contested() {
            self.contested.store(1, Ordering::Relaxed);
        }
    }

    /// Notes that it was just confirmed; stores only what changes.
    #[inline(always)]
    pub fn touch(&self, now_seconds: u32) {
        if self.seen.load(Ordering::Relaxed) != now_seconds {
            self.seen.store(now_seconds, Ordering::Relaxed);
        }
    }
}

/// A host says which MAC address it has, and the table does not say so.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct NeighborEvent {
    /// Segment and MAC address.
    pub key: FdbKey,
    /// The address ([`NeighborKey::address`]).
    pub address: [u16; 8],
    /// Where the frame came from ([`crate::target::Target`] bits).
    pub source: u32,
    /// [`neighbor_flag`] bits.
    pub flags: u32,
}

/// Events in the ring are told apart by their length.
const _: () = assert!(size_of::<NeighborEvent>() == 32);

impl NeighborEvent {
    /// The address in its segment.
    pub const fn neighbor(&self) -> NeighborKey {
        NeighborKey::from_v6(self.key.segment(), self.address)
    }

    /// What it says of it.
    pub const fn binding(&self) -> Binding {
        Binding::new(self.key.mac(), self.flags as u16)
    }
}

/// How was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// ARP (RFC 826).
    Arp,
    /// IPv6 neighbour discovery (RFC 4861).
    Nd,
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: the type is `bytemuck::Pod`: any bits are a value and no byte is padding.
    unsafe impl aya::Pod for super::NeighborKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::NeighborRecord {}
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_versions() {
        let v4: IpAddr = "192.0.2.7".parse().expect("an address");
        let key = NeighborKey::new(3, v4);
        let loaded = [u16::from_ne_bytes([192, 0]), u16::from_ne_bytes([2, 7])];
        assert_eq!(key, NeighborKey::from_v4(3, loaded));
        assert_eq!(key.address(), v4);
        let v6: IpAddr = "2001:db8::7".parse().expect("an address");
        let key = NeighborKey::new(4, v6);
        assert_eq!((key.address(), key.segment), (v6, 4));
        assert_eq!(bytemuck::bytes_of(&key)[..4], [0x20, 1, 0xd, 0xb8]);
        assert_eq!(format!("{key:?}"), "4/2001:db8::7");
    }

    #[test]
    fn a_binding_is_one_word() {
        let mac = MacAddr([2, 3, 4, 5, 6, 7]);
        let binding = Binding::new(mac, neighbor_flag::ROUTER);
        assert_eq!((binding.mac(), binding.flags()), (mac, neighbor_flag::ROUTER));
        let slot = NeighborSlot::new(NeighborRecord { binding, seen: 5, contested: 0 });
        slot.touch(9);
        slot.contest();
        assert_eq!(slot.record(), NeighborRecord { binding, seen: 9, contested: 1 });
    }
}

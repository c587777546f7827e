//! The tables that the daemon writes and the datapath reads.
//!
//! All of them are arrays in shared memory. A record
//! that several words make up is changed so that a reader sees the old one or the
//! new one, never a mixture: an [`Adjacency`] holds two templates and a switch,
//! a flood list is written to fresh slots and then published as one 64-bit word.

use core::sync::atomic::Ordering;

use bytemuck::{Pod, Zeroable};

use crate::cell::{AtomicU32, AtomicU64};

use crate::target::Target;

/// The most ports in one instance.
pub const MAX_PORTS: u32 = 1024;
/// The most segments in one instance; ids run from 1 to this.
pub const MAX_SEGMENTS: u32 = 4096;
/// Adjacencies that an instance has room for unless told otherwise.
pub const DEFAULT_ADJACENCIES: u32 = 16_384;
/// FDB entries that an instance has room for unless told otherwise.
pub const DEFAULT_FDB_ENTRIES: u32 = 131_072;
/// The most adjacencies in one segment.
pub const MAX_SEGMENT_ADJACENCIES: u32 = 16_384;
/// The most ports in one segment.
pub const MAX_SEGMENT_PORTS: u32 = 64;
/// The most copies of one flooded frame.
pub const MAX_FLOOD_TARGETS: u32 = MAX_SEGMENT_ADJACENCIES + MAX_SEGMENT_PORTS;
/// Slots for flood lists: the longest one twice, with the room that it has to grow,
/// and as much again for all others.
pub const FLOOD_SLOTS: u32 = 131_072;
/// Slots of the port index, a power of two.
pub const PORT_SLOTS: u32 = 4096;
/// The counter row of drops that belong to no port and no adjacency.
pub const NO_ROW: u32 = 0;

/// The daemon's clock, in a map of one.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Clock {
    /// Seconds since the datapath was first loaded, written once a second.
    pub seconds: AtomicU32,
    /// The interface that frames leave by which the datapath cannot finish; zero: there is none.
    pub slow_ifindex: AtomicU32,
    /// The kernel's jiffies up to which the daemon answers for the next hops in the
    /// templates; it is renewed with `seconds`.
    pub lease: AtomicU64,
}

/// How long the lease on next hops is, in jiffies: 15 seconds where the kernel's clock
/// ticks 1000 times a second, one minute where it ticks 250 times.
pub const LEASE_JIFFIES: u64 = 15_000;

/// Bits of [`Port::flags`].
pub mod port_flag {
    /// The record is in use.
    pub const VALID: u32 = 1 << 0;
    /// The interface is up.
    pub const UP: u32 = 1 << 1;
    /// An interface of the host: frames for it enter its receive path, and its
    /// program sits on its transmit path.
    pub const HOST: u32 = 1 << 2;
    /// It may have no more addresses learned.
    pub const FULL: u32 = 1 << 3;
    /// Its interface takes frames that XDP redirects to it.
    pub const EXPRESS: u32 = 1 << 4;
    /// Its interface is a veth whose other end is in another network namespace.
    pub const PEER: u32 = 1 << 5;
    /// Frames have the 802.1Q tag with the VLAN id in the upper half while they are on
    /// its interface, and not while they are in the segment.
    pub const TAGGED: u32 = 1 << 6;
    /// Nothing goes in or out: another way leads to the same LAN. Such a port is not in the port index.
    pub const BLOCKED: u32 = 1 << 7;
    /// Where the VLAN id begins.
    pub const VLAN_SHIFT: u32 = 16;

    /// The VLAN id that a port's frames have on its interface; zero: no tag.
    #[inline(always)]
    pub const fn vlan(flags: u32) -> u16 {
        (flags >> VLAN_SHIFT) as u16
    }
}

/// A local interface in a segment.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Port {
    /// [`port_flag`] bits, and the VLAN id above them.
    pub flags: AtomicU32,
    /// Its interface.
    pub ifindex: AtomicU32,
    /// Its segment's id.
    pub segment: AtomicU32,
    /// The longest frame it takes, Ethernet header included.
    pub max_frame: AtomicU32,
}

/// A slot of the port index: which port an interface is and which segment it is in, as
/// one word that changes at once.
///
/// An interface's slot is its index modulo [`PORT_SLOTS`]. Where two interfaces want
/// one slot, one of them is found in the hash map behind it. Only ports in use have one.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct PortSlot(AtomicU64);

/// What the index says of an interface: its port and that port's segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indexed {
    /// The port's id.
    pub port: u32,
    /// The segment's id; zero where the interface has ports by VLAN ([`Indexed::BY_VLAN`]).
    pub segment: u32,
}

impl Indexed {
    /// The interface has a port for each of some VLANs, and perhaps one for frames
    /// without a tag: [`VlanKey`] says which.
    pub const BY_VLAN: Self = Self { port: 0, segment: 0 };
}

/// The port id of an interface that has ports by VLAN, in the map of ports by interface.
pub const PORT_BY_VLAN: u32 = u32::MAX;

/// What a port by VLAN is found by: the interface's index in the upper half, the VLAN id
/// in the lower one, zero for frames without a tag.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct VlanKey(pub u64);

impl VlanKey {
    /// That of a VLAN on an interface.
    #[inline(always)]
    pub const fn new(ifindex: u32, vlan: u16) -> Self {
        Self((ifindex as u64) << 32 | vlan as u64)
    }
}

// Both fit their half of a word.
const _: () = assert!(MAX_PORTS <= 1 << 16 && MAX_SEGMENTS < 1 << 16);

impl PortSlot {
    /// Which slot an interface has.
    #[inline(always)]
    pub const fn index(ifindex: u32) -> u32 {
        ifindex & (PORT_SLOTS - 1)
    }

    /// What it says of an interface, if it is that one's. No interface has the index 0.
    #[inline(always)]
    pub fn find(&self, ifindex: u32) -> Option<Indexed> {
        let bits = self.0.load(Ordering::Relaxed);
        if (bits >> 32) as u32 != ifindex {
            return None;
        }
        Some(Indexed { port: bits as u32 & 0xffff, segment: bits as u32 >> 16 })
    }

    /// Whether no interface has it.
    pub fn is_free(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// Gives it to an interface. Only for the one writer.
    pub fn set(&self, ifindex: u32, to: Indexed) {
        let low = to.segment << 16 | to.port & 0xffff;
        self.0.store(u64::from(ifindex) << 32 | u64::from(low), Ordering::Release);
    }

    /// Frees it. Only for the one writer.
    pub fn clear(&self) {
        self.0.store(0, Ordering::Release);
    }
}

/// Bits of [`Segment::flags`].
pub mod segment_flag {
    /// The record is in use.
    pub const VALID: u32 = 1 << 0;
    /// Frames go from tunnel to tunnel.
    pub const HUB: u32 = 1 << 1;
    /// It may have no more addresses learned.
    pub const FULL: u32 = 1 << 3;
    /// Some adjacency's frames go by the slow interface, or did
    /// ([`super::template_option::NEEDS_FINISHING`]).
    pub const FINISHES: u32 = 1 << 4;
    /// Questions for addresses that are known are answered, not flooded.
    pub const SUPPRESS: u32 = 1 << 5;
}

/// A broadcast domain.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Segment {
    /// [`FloodList`] bits.
    pub flood: AtomicU64,
    /// [`segment_flag`] bits.
    pub flags: AtomicU32,
    /// Of the sixteen addresses that bridges keep to one link
    /// ([`crate::wire::LINK_LOCAL_GROUPS`]), those that do not pass: a bit for each.
    pub blocked_groups: AtomicU32,
}

/// Where a segment's flood targets stand in the slot array: ports first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FloodList {
    /// Index of the first slot.
    pub start: u32,
    /// Ports at the start of the list.
    pub ports: u16,
    /// Adjacencies after them.
    pub adjacencies: u16,
}

impl FloodList {
    /// As one word.
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        self.start as u64 | (self.ports as u64) << 32 | (self.adjacencies as u64) << 48
    }

    /// From one word.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self { start: bits as u32, ports: (bits >> 32) as u16, adjacencies: (bits >> 48) as u16 }
    }
}

/// Bits of [`Adjacency::flags`].
pub mod adjacency_flag {
    /// The record is in use.
    pub const VALID: u32 = 1 << 0;
    /// The peer may have no more addresses learned.
    pub const FULL: u32 = 1 << 3;
    /// The DSCP outside replaces that inside (RFC 2983 3.1, the uniform model).
    pub const UNIFORM: u32 = 1 << 4;
    /// Sequence numbers are checked.
    pub const SEQUENCE: u32 = 1 << 5;
    /// The rules of NVGRE hold (RFC 7637 3.2): no checksum, no sequence number, no tag inside.
    pub const NVGRE: u32 = 1 << 6;
    /// TCP's maximum segment size is lowered to what fits through the tunnel.
    pub const CLAMP_MSS: u32 = 1 << 7;
    /// Those that say how packets of the peer are taken, and stand in the endpoint index as well.
    pub const RECEIVE: u32 = UNIFORM | SEQUENCE | NVGRE | CLAMP_MSS;
}

/// Bits of [`Template::options`]: what each packet has of its own.
pub mod template_option {
    /// A GRE checksum.
    pub const CHECKSUM: u8 = 1 << 0;
    /// A sequence number.
    pub const SEQUENCE: u8 = 1 << 1;
    /// The DSCP of the IP packet inside.
    pub const INHERIT_TOS: u8 = 1 << 2;
    /// The don't-fragment bit of the IP packet inside.
    pub const INHERIT_DF: u8 = 1 << 3;
    /// A flow id in the key's last octet (RFC 7637 3.2).
    pub const FLOW_ID: u8 = 1 << 4;
    /// A UDP header with the flow in its source port (RFC 8086 3.2).
    pub const UDP: u8 = 1 << 5;
    /// A lowered maximum segment size in a TCP packet inside that opens a connection.
    pub const CLAMP_MSS: u8 = 1 << 6;
    /// Those for which a frame must be of the wire's size, its checksums finished.
    pub const NEEDS_FINISHING: u8 = CHECKSUM | SEQUENCE;
    /// Those that need more than the first bytes of a packet, or a counter.
    pub const NOT_EXPRESS: u8 = NEEDS_FINISHING | INHERIT_DF;
}

/// Bits of [`Template::flags`].
pub mod template_flag {
    /// The next hop is known.
    pub const RESOLVED: u8 = 1 << 0;
    /// The outer packet may be fragmented, so each one needs its own identification (RFC 6864).
    pub const NEEDS_ID: u8 = 1 << 1;
    /// The interface takes frames that XDP redirects to it.
    pub const EXPRESS: u8 = 1 << 2;
    /// The interface is known; which neighbour is next, the kernel can be asked.
    pub const ROUTED: u8 = 1 << 3;
    /// What XDP sends back out of the interface that it came in by (`XDP_TX`) gets out.
    /// A veth's does only if its other end has an XDP program (veth_xdp_flush()).
    pub const SENDS_BACK: u8 = 1 << 4;
    /// What does not fit and may be fragmented inside is sent, and the outer packet fragmented.
    pub const FRAGMENTS: u8 = 1 << 5;
}

/// Headers that are so frequent that the datapath has code for each.
pub mod template_shape {
    /// Any header.
    pub const ANY: u8 = 0;
    /// IPv4 and GRE.
    pub const V4: u8 = 1;
    /// IPv4 and GRE with a key.
    pub const V4_KEYED: u8 = 2;
    /// IPv6 and GRE.
    pub const V6: u8 = 3;
    /// IPv6 and GRE with a key.
    pub const V6_KEYED: u8 = 4;
}

/// Room for the longest outer header: Ethernet, IPv6, and GRE with every field,
/// or UDP and GRE (RFC 8086).
pub const TEMPLATE_HEADER_LEN: usize = 80;

/// What an outer header rests on.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OuterFamily {
    /// IPv4.
    Ipv4 = 4,
    /// IPv6.
    Ipv6 = 6,
}

/// An outer header, ready but for lengths and checksum.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Template {
    /// Ethernet, IP, perhaps UDP, and GRE header, as on the wire. What a packet has of its
    /// own is zero: lengths, identification, checksums, sequence number, flow.
    pub header: [u8; TEMPLATE_HEADER_LEN],
    /// The interface to send it out of.
    pub ifindex: u32,
    /// The longest inner frame, Ethernet header included.
    pub max_frame: u32,
    /// Bytes of `header` in use.
    pub header_len: u16,
    /// Folded sum of the IPv4 header as it stands in `header`.
    pub checksum_base: u16,
    /// An [`OuterFamily`].
    pub family: u8,
    /// [`template_flag`] bits.
    pub flags: u8,
    /// [`template_option`] bits.
    pub options: u8,
    /// A [`template_shape`].
    pub shape: u8,
    /// Zero.
    pub reserved: [u8; 32],
}

/// Numbers for packets of one adjacency.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Sequence {
    /// In its lower half the next packet's sequence number (RFC 2890 2.2): how many had one. In its upper half the next
    /// packet's IPv4 identification, if it is to have one. (One word for both, since both are only ever added to.)
    pub sent: AtomicU64,
    /// The last number taken, and above it [`Clock::seconds`] then plus one; zero: none yet.
    pub received: AtomicU64,
}

/// A sequence number that is too old is taken all the same when nothing was taken for so
/// many seconds: the peer began anew.
pub const SEQUENCE_MEMORY_SECONDS: u32 = 10;

impl Sequence {
    /// Where identifications begin in [`Self::sent`].
    pub const IDS_SHIFT: u32 = 32;

    /// Whether a packet with this number is to be taken, and notes that it was. Numbers that
    /// are the last one taken, or up to 2^31 - 1 before it, are old.
    ///
    /// Of packets that two CPUs look at in the same moment, both may be taken.
    #[inline(always)]
    pub fn accept(&self, number: u32, seconds: u32) -> bool {
        let now = seconds.wrapping_add(1);
        let last = self.received.load(Ordering::Relaxed);
        let remembered = last != 0 && now.wrapping_sub((last >> 32) as u32) < SEQUENCE_MEMORY_SECONDS;
        let ahead = number.wrapping_sub(last as u32).cast_signed();
        if remembered && ahead <= 0 && ahead != i32::MIN {
            return false;
        }
        self.received.store((now as u64) << 32 | number as u64, Ordering::Relaxed);
        true
    }
}

/// One peer in one segment.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Adjacency {
    /// [`adjacency_flag`] bits.
    pub flags: AtomicU32,
    /// Its segment's id.
    pub segment: AtomicU32,
    /// Which of the two templates is in force.
    active: AtomicU32,
    /// Zero.
    pub reserved: [u32; 13],
    /// The template in force, and the one before or after it.
    templates: [Template; 2],
}

const _: () = assert!(size_of::<Clock>() == 16);
const _: () = assert!(size_of::<Port>() == 16);
const _: () = assert!(size_of::<PortSlot>() == 8);
const _: () = assert!(size_of::<Segment>() == 16);
const _: () = assert!(size_of::<Sequence>() == 16);
const _: () = assert!(size_of::<Template>() == 128);
const _: () = assert!(size_of::<Adjacency>() == 320);

impl Default for Adjacency {
    /// All zero: not in use.
    fn default() -> Self {
        Self {
            flags: AtomicU32::new(0),
            segment: AtomicU32::new(0),
            active: AtomicU32::new(0),
            reserved: [0; 13],
            templates: [Template::zeroed(); 2],
        }
    }
}

impl Adjacency {
    /// The template in force.
    ///
    /// The writer changes only the other one, and only after it has rested for
    /// [`crate::fdb::QUARANTINE_SECONDS`] since it was in force, so what this
    /// points at stays as it is for as long as a datapath program runs.
    #[inline(always)]
    pub fn template(&self) -> &Template {
        &self.templates[(self.active.load(Ordering::Acquire) & 1) as usize]
    }

    /// The template with this index, as [`Self::template`] if it was in force a moment ago.
    #[inline(always)]
    pub fn template_at(&self, index: u32) -> &Template {
        &self.templates[(index & 1) as usize]
    }

    /// Index of the template in force.
    #[inline(always)]
    pub fn active_index(&self) -> u32 {
        self.active.load(Ordering::Acquire) & 1
    }

    /// Switches to the template with this index.
    pub fn activate(&self, index: u32) {
        self.active.store(index & 1, Ordering::Release);
    }

    /// Writes the template that is not in force.
    ///
    /// # Safety
    /// `this` points to a live adjacency in memory that only the datapath reads
    /// and only the caller writes; its idle template has rested.
    pub unsafe fn write_idle(this: *mut Self, template: Template) -> u32 {
        // SAFETY: per the contract, `this` is live.
        let idle = unsafe { &(*this).active }.load(Ordering::Relaxed) & 1 ^ 1;
        // SAFETY: per the contract, nobody reads the idle template; `idle` is 0 or 1.
        unsafe { (&raw mut (*this).templates).cast::<Template>().add(idle as usize).write(template) };
        idle
    }
}

/// What the program needs to know at load time, as a global of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Config {
    /// [`crate::fdb::FdbHash::multipliers`].
    pub fdb_multipliers: [u64; 2],
    /// [`crate::fdb::FdbHash::shift`].
    pub fdb_shift: u32,
    /// [`crate::counters::traffic_rows`].
    pub traffic_rows: u32,
    /// [`crate::counters::drop_shards`] less one.
    pub drop_shard_mask: u32,
    /// More flags for `bpf_skb_adjust_room` when it strips, where the kernel knows them.
    pub strip_flags: u32,
    /// [`crate::endpoint::EndpointIndex::shift`].
    pub endpoint_shift: u32,
    /// Zero.
    pub reserved: u32,
}

/// The slot of a flood list that says a target.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct FloodSlot(pub AtomicU32);

impl FloodSlot {
    /// The target.
    #[inline(always)]
    pub fn target(&self) -> Target {
        Target::from_bits(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: the type is `bytemuck::Pod`: any bits are a value and no byte is padding.
    unsafe impl aya::Pod for super::Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::VlanKey {}
}

#[cfg(test)]
mod tests;

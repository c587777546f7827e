//! Where a frame can go, or came from: a port or an adjacency, as one number.

use core::fmt;

use bytemuck::{Pod, Zeroable};

/// A port or an adjacency, packed into 32 bits: the top two bits tell which,
/// the rest is its id. Zero is [`Target::NONE`], so zeroed memory points nowhere.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Target(u32);

const KIND_SHIFT: u32 = 30;
const KIND_PORT: u32 = 1;
const KIND_ADJACENCY: u32 = 2;
const ID_MASK: u32 = (1 << KIND_SHIFT) - 1;

/// A [`Target`] taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// Nowhere.
    None,
    /// The port with this id.
    Port(u32),
    /// The adjacency with this id.
    Adjacency(u32),
}

impl Target {
    /// Points nowhere.
    pub const NONE: Self = Self(0);

    /// The port with this id (below 2^28).
    #[inline(always)]
    pub const fn port(id: u32) -> Self {
        Self(KIND_PORT << KIND_SHIFT | (id & ID_MASK))
    }

    /// The adjacency with this id (below 2^28).
    #[inline(always)]
    pub const fn adjacency(id: u32) -> Self {
        Self(KIND_ADJACENCY << KIND_SHIFT | (id & ID_MASK))
    }

    /// From its 32 bits, as they stand in shared memory.
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Its 32 bits, as they stand in shared memory.
    #[inline(always)]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// Whether it points nowhere.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Takes it apart. Bits that no constructor makes read as `None`.
    #[inline(always)]
    pub const fn kind(self) -> TargetKind {
        match self.0 >> KIND_SHIFT {
            KIND_PORT => TargetKind::Port(self.0 & ID_MASK),
            KIND_ADJACENCY => TargetKind::Adjacency(self.0 & ID_MASK),
            _ => TargetKind::None,
        }
    }

    /// Whether it is an adjacency, that is, behind the tunnel.
    #[inline(always)]
    pub const fn is_adjacency(self) -> bool {
        self.0 >> KIND_SHIFT == KIND_ADJACENCY
    }
}

/// What the mark of a frame on the slow interface says: its target, and how many hops it
/// may go.
///
/// The bits of a [`Target`] are a mark without a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Where the frame goes; its id is below 2^20.
    pub target: Target,
    /// The most hops that its outer packet may go.
    pub hops: u8,
}

const HOPS_SHIFT: u32 = 20;
const HOPS_MASK: u32 = 0xff << HOPS_SHIFT;

impl Mark {
    /// On the slow interface, the mark of an outer packet as it was received whose checksum may not be finished: there
    /// the kernel finishes it. No target has these bits.
    pub const UNFINISHED: u32 = u32::MAX;

    /// As one word. No hops at all are no limit.
    #[inline(always)]
    pub const fn to_bits(self) -> u32 {
        let limit = if self.hops == u8::MAX { 0 } else { self.hops };
        self.target.0 & !HOPS_MASK | (limit as u32) << HOPS_SHIFT
    }

    /// From one word.
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        let limit = (bits >> HOPS_SHIFT) as u8;
        Self { target: Target(bits & !HOPS_MASK), hops: if limit == 0 { u8::MAX } else { limit } }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind() {
            TargetKind::None => f.write_str("none"),
            TargetKind::Port(id) => write!(f, "port#{id}"),
            TargetKind::Adjacency(id) => write!(f, "adjacency#{id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_a_target_and_a_limit() {
        for target in [Target::port(1023), Target::adjacency(0), Target::adjacency((1 << 20) - 1)] {
            assert_eq!(Mark::from_bits(target.to_bits()), Mark { target, hops: u8::MAX });
            for hops in [1, 64, 255] {
                let mark = Mark { target, hops };
                assert_eq!(Mark::from_bits(mark.to_bits()), mark);
            }
        }
    }

    #[test]
    fn packs_and_unpacks() {
        assert_eq!(Target::port(0).kind(), TargetKind::Port(0));
        assert_eq!(Target::adjacency(70_000).kind(), TargetKind::Adjacency(70_000));
        assert_eq!(Target::NONE.kind(), TargetKind::None);
        assert_eq!(Target::from_bits(u32::MAX).kind(), TargetKind::None);
        assert_ne!(Target::port(3), Target::adjacency(3));
        assert!(Target::adjacency(1).is_adjacency() && !Target::port(1).is_adjacency());
    }
}

//! What is to happen to a frame, and what it came out of.

use mgre_common::reason::{Direction, DropReason};
use mgre_common::target::Target;

use crate::frame::{Frame, Strip};
use crate::inner::{Inner, Version};

/// What is to happen to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to one port or adjacency.
    Forward {
        /// Where it came from.
        source: Target,
        /// Where it goes.
        to: Target,
        /// What the tunnel that it came through leaves to do.
        out_of: Option<OutOf>,
    },
    /// It goes to all of a segment.
    Flood {
        /// Where it came from, and does not go back to.
        source: Target,
        /// The segment.
        segment: u32,
        /// What the tunnel that it came through leaves to do.
        out_of: Option<OutOf>,
    },
    /// It is the next hook's to decide.
    Defer,
    /// A checksum is wrong, or not finished yet: it goes to the slow interface, where that is done.
    Unfinished {
        /// Where it came from.
        source: Target,
        /// Length of the frame inside.
        bytes: u32,
    },
    /// It is not for us.
    Pass,
    /// The kernel handles it, and that is counted.
    PassCounted(DropReason),
    /// It ends here.
    Drop {
        /// Whose counter counts it.
        target: Target,
        /// Which way it was going.
        direction: Direction,
        /// Why.
        reason: DropReason,
    },
}

/// What a frame that came through a tunnel needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOf {
    /// Outer headers to take off.
    pub strip: Strip,
    /// The packet inside that is to have another traffic class octet then, if there is one.
    pub inner: Inner,
    /// That octet: the packet's own if nothing is to be done.
    pub tos: u8,
    /// Whether TCP's maximum segment size is to be lowered: 1 or 0.
    pub clamps: u32,
}

impl OutOf {
    /// No tunnel at all.
    pub const NOTHING: Self = Self::new(Strip { outer_len: 0, inner_len: 0, hops: 0, tos: 0 });

    /// Only headers to take off.
    #[inline(always)]
    pub const fn new(strip: Strip) -> Self {
        Self { strip, inner: Inner { version: Version::V4, l3: 0, tos: 0 }, tos: 0, clamps: 0 }
    }

    /// The same, blurred ([`Frame::blur`]).
    #[inline(always)]
    pub fn blur<F: Frame>(self, frame: &F) -> Self {
        Self {
            strip: self.strip.blur(frame),
            inner: self.inner.blur(frame),
            tos: frame.blur(self.tos.into()) as u8,
            clamps: frame.blur(self.clamps),
        }
    }

    /// Whether the packet inside is to be changed.
    #[inline(always)]
    pub const fn remarks(&self) -> bool {
        self.tos != self.inner.tos
    }
}

impl Verdict {
    /// Where a frame came from that does not end here, nor go on to the kernel.
    #[inline(always)]
    pub const fn goes_on_from(&self) -> Option<Target> {
        match self {
            Self::Forward { source, .. } | Self::Flood { source, .. } | Self::Unfinished { source, .. } => {
                Some(*source)
            }
            Self::Defer | Self::Pass | Self::PassCounted(_) | Self::Drop { .. } => None,
        }
    }

    /// Dropped on its way in.
    #[inline(always)]
    pub const fn refuse(target: Target, reason: DropReason) -> Self {
        Self::Drop { target, direction: Direction::Receive, reason }
    }
}

//! What a program hands over to the one that goes on with its frame.
//!
//! The programs at the hooks finish what most frames need. The rest is the job of two programs of their own, reached by
//! a tail call: the verifier looks at each once, and not once more in every program that may need it.

use mgre_common::target::Target;

use crate::frame::{Replicate, Strip};
use crate::inner::{Inner, Version};
use crate::tables::Tables;
use crate::verdict::OutOf;

/// The program that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The one that forwards whatever can be forwarded ([`crate::act::resume_forward`]).
    Forward,
    /// The one that floods ([`crate::act::resume_flood`]).
    Flood,
}

/// What was found out about a frame that is not changed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handoff {
    /// Where the frame came from.
    pub source: Target,
    /// Where it goes: [`Target`] bits, or for [`Next::Flood`] the segment's id.
    pub to: u32,
    /// What the tunnel that it came through leaves to do.
    pub out_of: Option<OutOf>,
}

/// A frame that another program can go on with.
pub trait Chain: Replicate {
    /// Goes on in the next program.
    fn hand_over<T: Tables>(&mut self, tables: &T, next: Next, handoff: Handoff) -> Self::Action;
}

/// Words that a handoff takes: as many as a socket buffer has to spare (`__sk_buff::cb`).
pub const HANDOFF_WORDS: usize = 5;

const TUNNELLED: u32 = 1 << 16;
const INNER_V6: u32 = 1 << 17;
const CLAMPS: u32 = 1 << 18;
/// For the hook's own use.
pub const HOOK_BIT: u32 = 1 << 31;

impl Handoff {
    /// As words. Offsets are within the first [`MAX_BEHIND`](crate::frame::MAX_BEHIND) bytes of a packet, so an octet
    /// holds them.
    #[inline(always)]
    pub fn to_words(self) -> [u32; HANDOFF_WORDS] {
        let (source, to) = (self.source.to_bits(), self.to);
        let Some(OutOf { strip, inner, tos, clamps }) = self.out_of else { return [source, to, 0, 0, 0] };
        let octets = |a: u32, b: u32, c: u8, d: u8| u32::from_ne_bytes([a as u8, b as u8, c, d]);
        let mut last = u32::from(inner.tos) | u32::from(tos) << 8 | TUNNELLED;
        if inner.version.is_v6() {
            last |= INNER_V6;
        }
        if clamps != 0 {
            last |= CLAMPS;
        }
        [source, to, strip.inner_len, octets(strip.outer_len, inner.l3, strip.hops, strip.tos), last]
    }

    /// Out of words.
    #[inline(always)]
    pub fn from_words([source, to, inner_len, octets, last]: [u32; HANDOFF_WORDS]) -> Self {
        let [outer_len, l3, hops, outer_tos] = octets.to_ne_bytes();
        let version = if last & INNER_V6 == 0 { Version::V4 } else { Version::V6 };
        let out_of = OutOf {
            strip: Strip { outer_len: outer_len.into(), inner_len, hops, tos: outer_tos },
            inner: Inner { version, l3: l3.into(), tos: last as u8 },
            tos: (last >> 8) as u8,
            clamps: u32::from(last & CLAMPS != 0),
        };
        let out_of = (last & TUNNELLED != 0).then_some(out_of);
        Self { source: Target::from_bits(source), to, out_of }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_handed_over_arrives(
            source: u32, to: u32, inner_len: u32, outer_len: u8, l3: u8, octets: [u8; 4], v6: bool, clamps: bool,
            tunnelled: bool,
        ) {
            let [hops, outer_tos, tos, new_tos] = octets;
            let out_of = OutOf {
                strip: Strip { outer_len: outer_len.into(), inner_len, hops, tos: outer_tos },
                inner: Inner { version: if v6 { Version::V6 } else { Version::V4 }, l3: l3.into(), tos },
                tos: new_tos,
                clamps: clamps.into(),
            };
            let handoff = Handoff { source: Target::from_bits(source), to, out_of: tunnelled.then_some(out_of) };
            prop_assert_eq!(Handoff::from_words(handoff.to_words()), handoff);
        }
    }
}

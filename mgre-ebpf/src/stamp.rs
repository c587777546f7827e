//! What each outer packet has of its own: ECN, and what its peer's options ask for.

use mgre_common::table::{Template, template_flag, template_option};
use mgre_common::target::{Target, TargetKind};

use crate::frame::{Frame, Stamp};
use crate::inner::{ECN, Inner, flow};
use crate::superframe::segments;
use crate::tables::Tables;

/// What outer packets take over from the frame inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// The traffic class octet; zero if there is no IP packet.
    pub tos: u8,
    /// Whether nobody may fragment the packet: 1 or 0. (A number, so that it can be blurred.)
    pub dont_fragment: u8,
    /// How many packets it will be once it is cut, or more.
    pub segments: u16,
    /// Which flow it is of, if that was asked for.
    pub flow: u32,
}

impl Traits {
    /// None at all.
    pub const NONE: Self = Self { tos: 0, dont_fragment: 0, segments: 1, flow: 0 };

    /// Those of the frame that begins behind so many bytes of outer headers, as far as a
    /// template with these options ([`template_option`] bits) asks for them.
    #[inline(always)]
    pub fn read<F: Frame>(frame: &F, outer_len: u32, options: u8) -> Self {
        let inner = Inner::read(frame, outer_len);
        let tos = frame.blur(inner.map_or(0, |inner| inner.tos.into())) as u8;
        let asks = |option: u8| options & option != 0;
        let mut dont_fragment = 0;
        if asks(template_option::INHERIT_DF) {
            let set = inner.is_some_and(|inner| inner.dont_fragment(frame, outer_len));
            dont_fragment = frame.blur(set.into());
        }
        let mut number = 0;
        if asks(template_option::FLOW_ID | template_option::UDP) {
            number = frame.blur(flow(frame, outer_len));
        }
        let segments = frame.blur(segments(frame).into()) as u16;
        Self { tos, dont_fragment: dont_fragment as u8, segments, flow: number }
    }

    /// The same, blurred ([`Frame::blur`]).
    #[inline(always)]
    pub fn blur<F: Frame>(self, frame: &F) -> Self {
        Self {
            tos: frame.blur(self.tos.into()) as u8,
            dont_fragment: frame.blur(self.dont_fragment.into()) as u8,
            segments: frame.blur(self.segments.into()) as u16,
            flow: frame.blur(self.flow),
        }
    }

    /// What a packet to a peer has of its own, going no more than so many hops.
    #[inline(always)]
    pub fn stamp<T: Tables>(self, tables: &T, template: &Template, to: Target, hops: u8) -> Stamp {
        let inherits = template.options & template_option::INHERIT_TOS != 0;
        let inherits_df = template.options & template_option::INHERIT_DF != 0;
        let dont_fragment = if inherits_df { self.dont_fragment } else { 0 };
        Stamp {
            id: if dont_fragment != 0 { 0 } else { packet_id(tables, template, to, self.segments) },
            hops,
            // The normal mode of RFC 6040 4.1: ECN is always copied.
            tos: if inherits { self.tos } else { self.tos & ECN },
            dont_fragment,
            flow: self.flow,
        }
    }
}

/// The outer IPv4 identification, of the first of so many packets: zero where nobody may fragment them (RFC 6864 4.1).
#[inline(always)]
pub fn packet_id<T: Tables>(tables: &T, template: &Template, to: Target, segments: u16) -> u16 {
    if template.flags & template_flag::NEEDS_ID == 0 {
        return 0;
    }
    let TargetKind::Adjacency(id) = to.kind() else { return 0 };
    // A peer has them in every segment, and packets of all are put together by the same addresses.
    let first = (id as u16).wrapping_mul(0x9e37);
    tables.sequence(id).map_or(0, |sequence| tables.next_ids(sequence, segments).wrapping_add(first))
}

/// The first packet has number 0 (RFC 2890 2.2).
#[inline(always)]
pub fn next_sequence<T: Tables>(tables: &T, to: Target) -> u32 {
    let TargetKind::Adjacency(id) = to.kind() else { return 0 };
    tables.sequence(id).map_or(0, |sequence| tables.next_sequence(sequence))
}

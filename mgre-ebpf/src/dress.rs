//! Puts outer headers on a frame and takes them off, where that need not be done in line.
//!
//! In the kernel each of the two is a function that the verifier looks at by itself, once, whatever its callers know.
//! So all that they are told fits into a few numbers.

use mgre_common::reason::DropReason;
use mgre_common::table::Template;

use crate::frame::{Bare, Replicate, Resize, Stamp, Strip};
use crate::inner::{Inner, Version};
use crate::tables::Tables;
use crate::verdict::OutOf;

/// An adjacency, and its template in force when it was looked up.
#[derive(Clone, Copy, Debug)]
pub struct Via<'a> {
    /// The adjacency.
    pub id: u32,
    /// Which of its templates.
    pub index: u32,
    /// That template.
    pub template: &'a Template,
}

impl<'a> Via<'a> {
    /// An adjacency by its id.
    #[inline(always)]
    pub fn find<T: Tables>(tables: &'a T, id: u32) -> Option<Self> {
        let adjacency = tables.adjacency(id)?;
        let index = adjacency.active_index();
        Some(Self { id, index, template: adjacency.template_at(index) })
    }
}

/// What stands before the frame inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// Nothing.
    Nothing,
    /// The outer headers that it came with.
    Received(Strip),
    /// An outer header of ours, so many bytes long.
    Ours(u32),
}

/// What a frame is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dressing {
    /// The adjacency whose header it gets, and which of its templates.
    pub adjacency: u32,
    /// Which of its templates: 0 or 1.
    pub index: u32,
    /// What the packet has of its own.
    pub stamp: Stamp,
    /// What stands there now.
    pub outside: Outside,
}

const INDEX_SHIFT: u32 = 31;
const DONT_FRAGMENT: u64 = 1 << 48;
const OUTER_LEN_SHIFT: u32 = 32;
const RECEIVED: u64 = 1 << 62;
const OURS: u64 = 1 << 63;

impl Dressing {
    /// As numbers. Of the flow, the 16 bits that headers have room for.
    #[inline(always)]
    pub fn to_words(self) -> (u32, u64, u64) {
        let Stamp { id, hops, tos, dont_fragment, flow } = self.stamp;
        let mut stamp =
            u64::from(id) | u64::from(hops) << 16 | u64::from(tos) << 24 | u64::from(flow as u16) << 32;
        if dont_fragment != 0 {
            stamp |= DONT_FRAGMENT;
        }
        let outside = match self.outside {
            Outside::Nothing => 0,
            Outside::Received(Strip { outer_len, inner_len, .. }) => {
                RECEIVED | u64::from(outer_len) << OUTER_LEN_SHIFT | u64::from(inner_len)
            }
            Outside::Ours(outer_len) => OURS | u64::from(outer_len) << OUTER_LEN_SHIFT,
        };
        (self.adjacency | self.index << INDEX_SHIFT, stamp, outside)
    }

    /// Out of numbers.
    #[inline(always)]
    pub fn from_words(adjacency: u32, stamp: u64, outside: u64) -> Self {
        let outer_len = (outside >> OUTER_LEN_SHIFT) as u32 & 0xff;
        let outside = if outside & RECEIVED != 0 {
            Outside::Received(Strip { outer_len, inner_len: outside as u32, hops: 0, tos: 0 })
        } else if outside & OURS != 0 {
            Outside::Ours(outer_len)
        } else {
            Outside::Nothing
        };
        Self {
            adjacency: adjacency & !(1 << INDEX_SHIFT),
            index: adjacency >> INDEX_SHIFT,
            stamp: Stamp {
                id: stamp as u16,
                hops: (stamp >> 16) as u8,
                tos: (stamp >> 24) as u8,
                dont_fragment: u8::from(stamp & DONT_FRAGMENT != 0),
                flow: u32::from((stamp >> 32) as u16),
            },
            outside,
        }
    }
}

/// Puts an adjacency's header on a frame, or in the place of what stands there.
///
/// # Errors
/// The kernel could not. What has a header is never left as it was.
#[inline(always)]
pub fn dress<F: Replicate, T: Tables>(frame: &mut F, tables: &T, dressing: Dressing) -> Result<(), Bare> {
    let Dressing { adjacency, index, stamp, outside } = dressing;
    let adjacency = tables.adjacency(adjacency).ok_or(Bare::Broken(DropReason::Internal))?;
    let template = adjacency.template_at(index);
    match outside {
        Outside::Nothing => frame.encapsulate(template, stamp),
        Outside::Received(strip) => frame.relay(template, stamp, strip).map_err(Bare::Broken),
        Outside::Ours(outer_len) => frame.readdress(template, stamp, outer_len).map_err(Bare::Broken),
    }
}

/// Takes a frame out of the tunnel that it came through.
///
/// # Errors
/// The kernel could not; the frame must then be dropped.
#[inline(always)]
pub fn undress<F: Resize>(frame: &mut F, out_of: OutOf) -> Result<(), DropReason> {
    frame.strip(out_of.strip)?;
    if out_of.remarks() { frame.remark(out_of.inner, out_of.tos) } else { Ok(()) }
}

const INNER_V6: u32 = 1 << 24;

/// What [`undress`] must know, as numbers: the headers' length and the frame's, and what is to be changed inside.
#[inline(always)]
pub fn out_of_to_words(out_of: OutOf) -> (u64, u32) {
    let OutOf { strip: Strip { outer_len, inner_len, .. }, inner, tos, .. } = out_of;
    let mut change = u32::from(inner.tos) | u32::from(tos) << 8 | (inner.l3 & 0xff) << 16;
    if inner.version.is_v6() {
        change |= INNER_V6;
    }
    (u64::from(outer_len) << OUTER_LEN_SHIFT | u64::from(inner_len), change)
}

/// Out of such numbers.
#[inline(always)]
pub fn out_of_from_words(lens: u64, change: u32) -> OutOf {
    let outer_len = (lens >> OUTER_LEN_SHIFT) as u32 & 0xff;
    OutOf {
        strip: Strip { outer_len, inner_len: lens as u32, hops: 0, tos: 0 },
        inner: Inner {
            version: if change & INNER_V6 == 0 { Version::V4 } else { Version::V6 },
            l3: change >> 16 & 0xff,
            tos: change as u8,
        },
        tos: (change >> 8) as u8,
        clamps: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn strip(outer_len: u8, inner_len: u32) -> Strip {
        Strip { outer_len: outer_len.into(), inner_len, hops: 0, tos: 0 }
    }

    proptest! {
        #[test]
        fn a_dressing_survives(
            adjacency in 0..1_u32 << 28, index in 0..2_u32, id: u16, octets: [u8; 2], df: bool, flow: u16, kind in 0..3_u8,
            outer_len: u8, inner_len: u32,
        ) {
            let [hops, tos] = octets;
            let stamp = Stamp { id, hops, tos, dont_fragment: df.into(), flow: flow.into() };
            let outside = match kind {
                0 => Outside::Nothing,
                1 => Outside::Received(strip(outer_len, inner_len)),
                _ => Outside::Ours(outer_len.into()),
            };
            let dressing = Dressing { adjacency, index, stamp, outside };
            let (a, b, c) = dressing.to_words();
            prop_assert_eq!(Dressing::from_words(a, b, c), dressing);
        }

        #[test]
        fn an_undressing_survives(outer_len: u8, inner_len: u32, v6: bool, l3: u8, tos: u8, new_tos: u8) {
            let version = if v6 { Version::V6 } else { Version::V4 };
            let inner = Inner { version, l3: l3.into(), tos };
            let out_of = OutOf { strip: strip(outer_len, inner_len), inner, tos: new_tos, clamps: 0 };
            let (lens, change) = out_of_to_words(out_of);
            prop_assert_eq!(out_of_from_words(lens, change), out_of);
        }
    }
}

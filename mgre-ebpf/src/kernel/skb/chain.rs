//! Goes on with a socket buffer in another program, or in a function that the verifier looks at by itself: such a
//! global function has a BTF type, and takes the context and numbers.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::map;
use aya_ebpf::maps::ProgramArray;
use aya_ebpf::programs::TcContext;
use mgre_common::call;
use mgre_common::reason::{Direction, DropReason};
use mgre_ebpf::dress::{self, Dressing, out_of_from_words};
use mgre_ebpf::frame::{Bare, Resize as _};
use mgre_ebpf::handoff::{Chain, HOOK_BIT, Handoff, Next};
use mgre_ebpf::tables::Tables;

use super::Skb;
use crate::kernel::Maps;

#[map(name = "mgre_calls")]
static CALLS: ProgramArray = ProgramArray::with_max_entries(call::COUNT, 0);

impl Skb {
    /// The frame of a program that goes on, and what it was handed.
    #[inline(always)]
    pub(crate) fn resume(context: &TcContext) -> (Self, Handoff) {
        let skb = context.skb.skb;
        // SAFETY: the pointer is the program's context.
        let words = unsafe { (*skb).cb };
        (Self { skb, ingress: words[4] & HOOK_BIT != 0 }, Handoff::from_words(words))
    }
}

impl Chain for Skb {
    #[inline(always)]
    fn hand_over<T: Tables>(&mut self, tables: &T, next: Next, handoff: Handoff) -> i32 {
        let mut words = handoff.to_words();
        if self.ingress {
            words[4] |= HOOK_BIT;
        }
        let index = match next {
            Next::Forward => call::FORWARD,
            Next::Flood => call::FLOOD,
        };
        let context = TcContext::new(self.skb);
        // SAFETY: the pointer is the program's context; nothing here is to be dropped.
        unsafe {
            (*self.skb).cb = words;
            CALLS.tail_call(&context, index);
        }
        // The daemon sees to it that both are there for as long as this program is.
        tables.count_drop(handoff.source, Direction::Receive, DropReason::Internal);
        self.drop()
    }
}

/// What [`mgre_dress`] says of a frame: it has its header.
pub(super) const DRESSED: u32 = 0;
/// It is as it was.
pub(super) const REFUSED: u32 = 1;
/// It must be dropped.
const BROKEN: u32 = 2;

/// [`dress::dress`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn mgre_dress(skb: *mut __sk_buff, adjacency: u32, stamp: u64, outside: u64) -> u32 {
    let dressing = Dressing::from_words(adjacency, stamp, outside);
    match dress::dress(&mut Skb { skb, ingress: true }, &Maps, dressing) {
        Ok(()) => DRESSED,
        Err(Bare::Refused) => REFUSED,
        Err(Bare::Broken(_)) => BROKEN,
    }
}

/// [`dress::undress`]; not zero if that failed.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn mgre_undress(skb: *mut __sk_buff, lens: u64, change: u32) -> u32 {
    dress::undress(&mut Skb { skb, ingress: true }, out_of_from_words(lens, change)).is_err().into()
}

//! The programs' entry points.
//!
//! `mgre_port` runs where a local interface gives us frames, `mgre_underlay` where the underlay does, `mgre_slow` where
//! the slow interface does; they go on in `mgre_forward` and `mgre_replicate` where a frame needs more than its
//! headers. `mgre_probe` runs once, to learn what the kernel can do.

use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

use mgre_ebpf::{act, express};

use crate::kernel::{self, Maps, Skb, Xdp};

/// A frame from a port: TCX ingress of an interface, or egress of one that the host uses.
#[classifier]
#[inline(always)]
fn mgre_port(context: TcContext) -> i32 {
    // The hook may be an egress one.
    let mut frame = Skb::new(&context, false);
    let ifindex = frame.ifindex();
    act::process_port(&mut frame, &Maps, ifindex)
}

/// A packet from the underlay: TCX ingress of its interface.
#[classifier]
#[inline(always)]
fn mgre_underlay(context: TcContext) -> i32 {
    act::process_underlay(&mut Skb::new(&context, true), &Maps)
}

/// What the slow interface gives back, at either of its ends: TCX ingress.
#[classifier]
#[inline(always)]
fn mgre_slow(context: TcContext) -> i32 {
    let mut frame = Skb::new(&context, true);
    let mark = frame.mark();
    act::process_slow(&mut frame, &Maps, mark)
}

/// Goes on with a frame that one of the programs above left to be forwarded.
#[classifier]
#[inline(always)]
fn mgre_forward(context: TcContext) -> i32 {
    let (mut frame, handoff) = Skb::resume(&context);
    act::resume_forward(&mut frame, &Maps, handoff)
}

/// Goes on with a frame that one of the programs above left to be flooded.
#[classifier]
#[inline(always)]
fn mgre_replicate(context: TcContext) -> i32 {
    let (mut frame, handoff) = Skb::resume(&context);
    act::resume_flood(&mut frame, &Maps, handoff)
}

/// A frame from a port that is a physical interface: known unicast, before a socket buffer is made.
#[xdp]
#[inline(always)]
fn mgre_xport(context: XdpContext) -> u32 {
    let mut frame = Xdp::<false>::new(&context);
    let ifindex = frame.ifindex();
    express::process_port(&mut frame, &Maps, ifindex)
}

/// The same where frames may be longer than a page (multi-buffer XDP).
#[xdp(frags)]
#[inline(always)]
fn mgre_xport_mb(context: XdpContext) -> u32 {
    let mut frame = Xdp::<true>::new(&context);
    let ifindex = frame.ifindex();
    express::process_port(&mut frame, &Maps, ifindex)
}

/// A packet from the underlay, before a socket buffer is made.
#[xdp]
#[inline(always)]
fn mgre_xunder(context: XdpContext) -> u32 {
    express::process_underlay(&mut Xdp::<false>::new(&context), &Maps)
}

/// The same where packets may be longer than a page.
#[xdp(frags)]
#[inline(always)]
fn mgre_xunder_mb(context: XdpContext) -> u32 {
    express::process_underlay(&mut Xdp::<true>::new(&context), &Maps)
}

/// Renews the lease on next hops; the daemon runs it on a test packet, once a second.
#[classifier]
fn mgre_lease(_context: TcContext) -> i32 {
    kernel::renew_lease();
    0
}

/// Tries, on a test packet of IPv4 and at least 300 bytes, which flags the kernel knows
/// for taking headers off. Returns them, shifted right by 7, below which there are none.
#[classifier]
fn mgre_probe(context: TcContext) -> i32 {
    kernel::probe_strip_flags(&Skb::new(&context, true))
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The programs contain no panic that the compiler could not rule out; the
    // verifier refuses this loop should one ever be reachable.
    loop {}
}

/// Lets the programs call helpers that the kernel gives to GPL-compatible ones only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub(crate) static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

//! Takes outer headers off a socket buffer.

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_F_ADJ_ROOM_FIXED_GSO;
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_skb_vlan_push};
use mgre_common::reason::DropReason;
use mgre_common::wire::{ETHERNET_LEN, EtherType, IPV6_LEN, IpProtocol, VLAN_TAG_LEN};
use mgre_ebpf::frame::{Ethernet, Frame, Strip};

use super::{Skb, check};
use crate::kernel::maps::config;
use crate::kernel::xdp::MIN_FRAME_LEN;

/// Kernel 6.2 (commit d219df60a70e): sets the buffer's protocol when headers come off.
const DECAP_L3_IPV4: u64 = 1 << 7;
const DECAP_L3_IPV6: u64 = 1 << 8;
/// Kernels after 6.18: clears the marks of the encapsulation as well.
const DECAP_L4_GRE: u64 = 1 << 9;
/// The same of GRE in UDP.
const DECAP_L4_UDP: u64 = 1 << 10;
/// A program's return value has no room for flags below this bit anyway.
const PROBE_SHIFT: u32 = 7;

/// The kernel strips only what leaves the length of an IP header behind Ethernet and a tag: of the
/// one inside, where it is told what that is, else of the outer one.
const MIN_STRIP_LEN_V4: u32 = 14 + 4 + 20;
/// The same where the outer header is an IPv6 one.
const MIN_STRIP_LEN_V6: u32 = 14 + 4 + 40;

impl Skb {
    /// [`Resize::strip`](mgre_ebpf::frame::Resize::strip).
    #[inline(always)]
    pub(super) fn strip_headers(&self, strip: Strip) -> Result<(), DropReason> {
        let mut inner = Ethernet::read_behind(self, strip.outer_len).ok_or(DropReason::Malformed)?;
        let tag = self.inner_tag(strip, &inner);
        // It may be passed off as another packet then.
        let tunnel = self.tunnel_flag();
        self.fit(strip, inner.ethertype())?;
        let mut outer_len = strip.outer_len;
        let mut payload_len = strip.inner_len - ETHERNET_LEN as u32;
        let outer_ethertype = inner.ethertype();
        if let Some(tag) = tag {
            outer_len += VLAN_TAG_LEN as u32;
            payload_len -= VLAN_TAG_LEN as u32;
            inner = inner.with_ethertype(EtherType::from_bytes([tag[2], tag[3]]));
        }
        // With these, the kernel insists on a whole IP header behind what it strips.
        let inside = match inner.ethertype() {
            EtherType::IPV4 if payload_len >= 20 => DECAP_L3_IPV4,
            EtherType::IPV6 if payload_len >= 40 => DECAP_L3_IPV6,
            _ => 0,
        };
        let flags = (inside | tunnel) & u64::from(config().strip_flags) | u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
        self.adjust_room(-(outer_len as i32), flags)?;
        self.write_ethernet(0, inner)?;
        // Kernels before 6.2 were not told what was inside, and would cut a GSO packet by what was outside.
        let unknown = config().strip_flags & DECAP_L3_IPV4 as u32 == 0;
        if unknown && self.segment_size() != 0 && !self.protocol_is_told() {
            self.tell_protocol()?;
        }
        if let Some([high, low, ..]) = tag {
            let protocol = outer_ethertype.to_word();
            let tci = u16::from_be_bytes([high, low]);
            // SAFETY: the pointer is the program's context.
            check(unsafe { bpf_skb_vlan_push(self.skb, protocol, tci) })?;
        }
        Ok(())
    }

    /// Which marks of an encapsulation the packet has. The kernel looks for such headers in what it takes the packet for,
    /// and that is still what came in where an outer header of the other IP version was written over it.
    #[inline(always)]
    fn tunnel_flag(&self) -> u64 {
        if !self.protocol_is_told() {
            return 0;
        }
        let v6 = self.takes_it_for(EtherType::IPV6);
        let protocol = self.read::<u8>(ETHERNET_LEN + if v6 { 6 } else { 9 });
        if protocol == Some(IpProtocol::UDP.0) { DECAP_L4_UDP } else { DECAP_L4_GRE }
    }

    /// The tag at the start of a stripped frame and the type behind it, if it is one
    /// that the kernel should keep beside the frame: IP inside, so that a superframe
    /// can be cut.
    #[inline(always)]
    fn inner_tag(&self, strip: Strip, inner: &Ethernet) -> Option<[u8; VLAN_TAG_LEN]> {
        // What stands behind a frame's end is padding, and no tag.
        if !inner.ethertype().is_vlan() || strip.inner_len < (ETHERNET_LEN + VLAN_TAG_LEN) as u32 {
            return None;
        }
        let mut tag = [0_u8; VLAN_TAG_LEN];
        let to = tag.as_mut_ptr().cast::<c_void>();
        let at = strip.outer_len + ETHERNET_LEN as u32;
        // SAFETY: the pointer is the program's context, and `to` has room for the bytes.
        let read = unsafe { bpf_skb_load_bytes(self.skb.cast(), at, to, VLAN_TAG_LEN as u32) };
        let ethertype = EtherType::from_bytes([tag[2], tag[3]]);
        (read == 0 && (ethertype == EtherType::IPV4 || ethertype == EtherType::IPV6)).then_some(tag)
    }

    /// Cuts link-layer padding off, and sees to it that the kernel strips what is short: what came out of IPv6 it
    /// has to take for IPv4, and less than that is padded.
    #[inline(always)]
    fn fit(&self, strip: Strip, inner: EtherType) -> Result<(), DropReason> {
        if self.segment_size() != 0 {
            return Ok(());
        }
        self.resize(strip.outer_len + strip.inner_len)?;
        if strip.inner_len < MIN_STRIP_LEN_V4 {
            // With zeros: what stood behind the frame was cut off before.
            self.resize(strip.outer_len + MIN_FRAME_LEN)?;
        } else if strip.inner_len < MIN_STRIP_LEN_V6 && self.takes_it_for(EtherType::IPV6) {
            // Kernels before 6.2 cannot be told; and of a cut-short IPv6 header they are told nothing (`strip`).
            let tells = config().strip_flags & DECAP_L3_IPV4 as u32 != 0;
            let whole_v6 = strip.inner_len >= (ETHERNET_LEN + IPV6_LEN) as u32;
            if !(tells && (inner == EtherType::IPV4 || inner == EtherType::IPV6 && whole_v6)) {
                // Padding is no way here: the kernel refuses it for a packet that still bears the marks of the tunnel,
                // as do those that a sender in this host, or behind a veth, encapsulated.
                self.pass_off_as(EtherType::IPV4)?;
            }
        }
        Ok(())
    }
}

/// Which of the flags for taking headers off the kernel knows: each is tried on the test packet, made one of the tunnel
/// that the flag is about. The last one makes it an IPv6 packet.
pub(crate) fn probe_strip_flags(skb: &Skb) -> i32 {
    const OUTER_LEN: i32 = 14 + 20 + 8 + 4;
    let mut known = 0;
    for (flag, protocol) in [
        (DECAP_L3_IPV4, IpProtocol::GRE),
        (DECAP_L4_GRE, IpProtocol::GRE),
        (DECAP_L4_UDP, IpProtocol::UDP),
        (DECAP_L3_IPV6, IpProtocol::GRE),
    ] {
        let header = [[0x45, 0, 0, 0], [0, 0, 0, 0], [64, protocol.0, 0, 0]];
        let flags = flag | u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
        if skb.store(ETHERNET_LEN as u32, &header).is_ok() && skb.adjust_room(-OUTER_LEN, flags).is_ok() {
            known |= flag;
        }
    }
    (known >> PROBE_SHIFT) as i32
}

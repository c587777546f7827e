//! Checksums that cover a whole packet.

use mgre_common::checksum::fold;
use mgre_common::reason::DropReason;
use mgre_common::wire::{ETHERNET_LEN, EtherType, IPV4_LEN, IpProtocol, UDP_LEN};

use crate::frame::{Strip, Whole};
use crate::outer::{Claims, claim};

/// Verifies the checksums that a packet has. Those of the packets that a superframe was
/// made of were verified by who made it (`gre_gro_receive()`).
///
/// # Errors
/// One is wrong, or cannot be reckoned.
#[inline(always)]
pub fn checksums<F: Whole>(frame: &F, strip: Strip, claims: Claims) -> Result<(), DropReason> {
    if frame.segment_size() != 0 {
        return Ok(());
    }
    let len = strip.outer_len + strip.inner_len - claims.gre_at;
    if claims.makes(claim::CHECKSUM) {
        // RFC 2784 2.3: the GRE header and the payload.
        let sum = frame.sum(claims.gre_at, len).ok_or(DropReason::Checksum)?;
        if sum != 0xffff {
            return Err(DropReason::Checksum);
        }
    }
    if claims.makes(claim::UDP_CHECKSUM) {
        let at = claims.gre_at - UDP_LEN as u32;
        let sum = frame.sum(at, len + UDP_LEN as u32).ok_or(DropReason::Checksum)?;
        let pseudo = pseudo_header(frame, at, len + UDP_LEN as u32).ok_or(DropReason::Checksum)?;
        if fold(u32::from(sum) + u32::from(pseudo)) != 0xffff {
            return Err(DropReason::Checksum);
        }
    }
    Ok(())
}

/// The folded sum of the pseudo header of a UDP packet that starts there (RFC 768, RFC 8200 8.1).
#[inline(always)]
fn pseudo_header<F: Whole>(frame: &F, udp_at: u32, len: u32) -> Option<u16> {
    let addresses = match frame.read::<EtherType>(12)? {
        EtherType::IPV4 => frame.sum(udp_at - 8, 8)?,
        EtherType::IPV6 => frame.sum(udp_at - 32, 32)?,
        _ => return None,
    };
    Some(fold(u32::from(addresses) + u32::from(IpProtocol::UDP.0) + len))
}

const _: () = assert!(ETHERNET_LEN + IPV4_LEN == 34);

//! What only ethtool's ioctl tells and changes.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Commands, the flag and the string set are those of include/uapi/linux/ethtool.h.
const GET_FLAGS: u32 = 0x25;
const RX_VLAN: u32 = 1 << 8;
const GET_STRING_COUNTS: u32 = 0x37;
const GET_STRINGS: u32 = 0x1b;
const SET_FEATURES: u32 = 0x3b;
const FEATURES: u32 = 4;
const STRING_LEN: usize = 32;
/// `SIOCETHTOOL` of include/uapi/linux/sockios.h.
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// Does what a command's words say, for an interface; an answer stands in them afterwards.
fn ask(interface: &str, words: &mut [u32]) -> io::Result<()> {
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: any bits are an `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    // SAFETY: the request names an interface and points at a command that lives during the call, with room for
    // its answer: each caller says how much there is, in the command.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether an interface takes 802.1Q tags off the frames that it receives. One that does not say does not.
pub(super) fn takes_tags_off(interface: &str) -> bool {
    // `struct ethtool_value`.
    let mut value = [GET_FLAGS, 0];
    ask(interface, &mut value).is_ok() && value[1] & RX_VLAN != 0
}

/// Has an interface be given frames that are cut to the size of the wire and have finished checksums.
pub(super) fn turn_off_transmit(interface: &str) -> io::Result<()> {
    let names = feature_names(interface)?;
    let blocks = names.len().div_ceil(32);
    // `struct ethtool_sfeatures`: for each block what is to change, and to what.
    let mut words = vec![0; 2 + 2 * blocks];
    words[0] = SET_FEATURES;
    words[1] = blocks as u32;
    for (bit, _) in names.iter().enumerate().filter(|(_, name)| finishes(name)) {
        words[2 + 2 * (bit / 32)] |= 1 << (bit % 32);
    }
    ask(interface, &mut words)
}

/// Whether a feature is that an interface finishes frames itself.
fn finishes(feature: &str) -> bool {
    let cuts = feature.starts_with("tx-") && (feature.ends_with("segmentation") || feature.contains("-gso-"));
    cuts || feature.starts_with("tx-checksum-")
}

/// The names of features, by bit.
fn feature_names(interface: &str) -> io::Result<Vec<String>> {
    // `struct ethtool_sset_info` for one set: a mask of 64 bits, then the counts.
    let mut counts = [GET_STRING_COUNTS, 0, 0, 0, 0];
    bytemuck::cast_slice_mut::<u32, u8>(&mut counts[2..4])
        .copy_from_slice(&(1_u64 << FEATURES).to_ne_bytes());
    ask(interface, &mut counts)?;
    let count = counts[4];
    // `struct ethtool_gstrings`.
    let mut strings = vec![0; 3 + count as usize * STRING_LEN / 4];
    strings[..3].copy_from_slice(&[GET_STRINGS, FEATURES, count]);
    ask(interface, &mut strings)?;
    let name = |bytes: &[u8]| {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    };
    Ok(bytemuck::cast_slice(&strings[3..]).chunks(STRING_LEN).map(name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_finish_frames() {
        let of = |features: &[&'static str]| -> Vec<&str> {
            features.iter().copied().filter(|feature| finishes(feature)).collect()
        };
        let finishing = [
            "tx-checksum-ip-generic",
            "tx-checksum-sctp",
            "tx-generic-segmentation",
            "tx-tcp-segmentation",
            "tx-tcp-ecn-segmentation",
            "tx-tcp6-segmentation",
            "tx-gre-csum-segmentation",
            "tx-udp_tnl-segmentation",
            "tx-udp-segmentation",
            "tx-gso-list",
            "tx-gso-partial",
        ];
        assert_eq!(of(&finishing), finishing);
        let others =
            ["tx-scatter-gather", "tx-vlan-hw-insert", "tx-nocache-copy", "rx-gro", "rx-checksum", ""];
        assert_eq!(of(&others), Vec::<&str>::new());
    }
}

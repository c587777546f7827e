//! What only ethtool's ioctl tells.

use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `ETHTOOL_GFLAGS` and `ETH_FLAG_RXVLAN` of include/uapi/linux/ethtool.h.
const GET_FLAGS: u32 = 0x25;
const RX_VLAN: u32 = 1 << 8;
/// `SIOCETHTOOL` of include/uapi/linux/sockios.h.
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether an interface takes 802.1Q tags off the frames that it receives. One that does not say does not.
pub(super) fn takes_tags_off(interface: &str) -> bool {
    let Ok(fd) = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None) else {
        return false;
    };
    let mut value = Value { command: GET_FLAGS, data: 0 };
    // SAFETY: any bits are an `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request names an interface and points at a value that lives during the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    result == 0 && value.data & RX_VLAN != 0
}

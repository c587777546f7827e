//! What comes out of interfaces.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind, recv,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Everything that arrives at one interface.
pub(crate) struct Capture {
    socket: OwnedFd,
}

impl Capture {
    /// From now on.
    pub(crate) fn new(ifindex: u32) -> Self {
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll).unwrap();
        bind(socket.as_raw_fd(), &address(ifindex)).unwrap();
        Self { socket }
    }

    /// The next frame, if it is here or comes within so many milliseconds.
    pub(crate) fn next(&self, milliseconds: i64) -> Option<Vec<u8>> {
        let flags = if milliseconds == 0 {
            MsgFlags::MSG_DONTWAIT
        } else {
            setsockopt(&self.socket, ReceiveTimeout, &TimeVal::milliseconds(milliseconds)).unwrap();
            MsgFlags::empty()
        };
        let mut bytes = vec![0; 64 * 1024];
        let len = match recv(self.socket.as_raw_fd(), &mut bytes, flags) {
            Ok(len) => len,
            Err(Errno::EAGAIN) => return None,
            Err(error) => panic!("cannot receive: {error}"),
        };
        bytes.truncate(len);
        Some(bytes)
    }
}

/// All protocols on an interface.
fn address(ifindex: u32) -> LinkAddr {
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: ifindex.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: a whole `sockaddr_ll`, of the length that is said.
    unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(size_of_val(&raw) as u32)) }.unwrap()
}

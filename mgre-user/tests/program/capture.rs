//! What goes into interfaces, and what comes out of them.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind, sendmsg,
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
        let socket = open(ifindex, SockProtocol::EthAll);
        // Room for a whole flood.
        setsockopt(&socket, RcvBufForce, &(8 << 20)).unwrap();
        set_option(&socket, libc::PACKET_AUXDATA);
        set_option(&socket, libc::PACKET_IGNORE_OUTGOING);
        Self { socket }
    }

    /// The next frame, if it is here or comes within so many milliseconds.
    pub(crate) fn next(&self, milliseconds: i64) -> Option<Vec<u8>> {
        let flags = if milliseconds == 0 {
            libc::MSG_DONTWAIT
        } else {
            setsockopt(&self.socket, ReceiveTimeout, &TimeVal::milliseconds(milliseconds)).unwrap();
            0
        };
        match receive(&self.socket, flags) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("cannot receive: {error}"),
        }
    }
}

/// Sends a frame out of an interface.
pub(crate) fn send(ifindex: u32, frame: &[u8]) {
    let socket = open(ifindex, SockProtocol::EthAll);
    sendmsg::<LinkAddr>(socket.as_raw_fd(), &[IoSlice::new(frame)], &[], MsgFlags::empty(), None).unwrap();
}

/// Sends TCP over IPv4 as a superframe out of an interface, with checksums left to
/// whoever cuts it. The TCP header starts at `transport` and has no options.
pub(crate) fn send_superframe(ifindex: u32, frame: &[u8], segment_size: u16, transport: u16) {
    let socket = open(ifindex, SockProtocol::EthAll);
    set_option(&socket, libc::PACKET_VNET_HDR);
    let at = usize::from(transport);
    let mut frame = frame.to_vec();
    // The sum of the pseudo-header stands for the checksum (RFC 9293 3.1).
    let mut sum: u32 =
        frame[at - 8..at].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    sum += 6 + (frame.len() - at) as u32;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    frame[at + 16..at + 18].copy_from_slice(&(sum as u16).to_be_bytes());

    // struct virtio_net_hdr: VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4.
    let mut header = vec![1, 1];
    for field in [transport + 20, segment_size, transport, 16] {
        header.extend(field.to_ne_bytes());
    }
    let parts = [IoSlice::new(&header), IoSlice::new(&frame)];
    sendmsg::<LinkAddr>(socket.as_raw_fd(), &parts, &[], MsgFlags::empty(), None).unwrap();
}

/// Has the kernel cut TCP superframes and finish checksums before it sends out of an interface.
pub(crate) fn cut_superframes(interface: &str) {
    /// Without checksums by the device, superframes are not left to it either.
    const ETHTOOL_STXCSUM: u32 = 0x17;
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    let mut value = [ETHTOOL_STXCSUM, 0];
    // SAFETY: all zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None).unwrap();
    // SAFETY: the request points at a `struct ethtool_value`, which the kernel reads.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn open(ifindex: u32, protocol: SockProtocol) -> OwnedFd {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), protocol).unwrap();
    bind(socket.as_raw_fd(), &address(ifindex)).unwrap();
    socket
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

fn set_option(socket: &OwnedFd, option: i32) {
    let on: i32 = 1;
    // SAFETY: the value is as long as is said.
    let result = unsafe {
        let len = size_of_val(&on) as u32;
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const on).cast(), len)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// One frame as on the wire: a tag that the kernel keeps beside it is put back.
fn receive(socket: &OwnedFd, flags: i32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0_u8; 128 * 1024];
    let mut control = [0_u64; 16];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the message points at buffers of the lengths that it says.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    bytes.truncate(len);
    // SAFETY: the kernel filled the message in.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: null, or a header in `control`.
    if let Some(header) = unsafe { first.as_ref() }
        && (header.cmsg_level, header.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA)
    {
        // SAFETY: that type has this content.
        let beside = unsafe { libc::CMSG_DATA(first).cast::<libc::tpacket_auxdata>().read_unaligned() };
        if beside.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
            let [a, b] = beside.tp_vlan_tpid.to_be_bytes();
            let [c, d] = beside.tp_vlan_tci.to_be_bytes();
            bytes.splice(12..12, [a, b, c, d]);
        }
    }
    Ok(bytes)
}

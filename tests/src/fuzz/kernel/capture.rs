//! What comes out of interfaces, with its mark: one packet socket for all of them.

use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

/// `SO_RCVMARK` (Linux 5.19).
const SO_RCVMARK: libc::c_int = 75;
/// Room for frames that wait.
const ROOM: libc::c_int = 8 << 20;

/// A frame that arrived at an interface.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) ifindex: u32,
    /// Its bytes as on the wire.
    pub(super) bytes: Vec<u8>,
    pub(super) mark: u32,
}

/// Everything that arrives in the namespace.
pub(super) struct Capture {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Capture {
    /// From now on.
    pub(super) fn new() -> io::Result<Self> {
        let protocol = (libc::ETH_P_ALL as u16).to_be().into();
        // SAFETY: no memory is passed.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else has.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let this = Self { socket, buffer: vec![0; 32 * 1024] };
        this.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, ROOM)?;
        this.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        this.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        this.set(libc::SOL_SOCKET, SO_RCVMARK, 1)?;
        Ok(this)
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let len = size_of_val(&value) as u32;
        // SAFETY: the value is as long as is said.
        let result = unsafe {
            libc::setsockopt(self.socket.as_raw_fd(), level, option, (&raw const value).cast(), len)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The next frame, if it comes in time.
    pub(super) fn next(&mut self, limit: Duration) -> Result<Copy, String> {
        if let Some(copy) = self.receive()? {
            return Ok(copy);
        }
        let mut wait = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, as is said.
        unsafe { libc::poll(&raw mut wait, 1, limit.as_millis() as libc::c_int) };
        self.receive()?.ok_or_else(|| "it did not come".into())
    }

    /// That there is no other frame.
    pub(super) fn nothing_more(&mut self) -> Result<(), String> {
        match self.receive()? {
            None => Ok(()),
            Some(copy) => Err(format!("one copy more came out: {copy:x?}")),
        }
    }

    fn receive(&mut self) -> Result<Option<Copy>, String> {
        let mut control = [0_u64; 32];
        let mut part = libc::iovec { iov_base: self.buffer.as_mut_ptr().cast(), iov_len: self.buffer.len() };
        // SAFETY: all zero is a value of both.
        let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) = unsafe { (zeroed(), zeroed()) };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: the message points at buffers of the lengths that it says.
        let len = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let Ok(len) = usize::try_from(len) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error.to_string()) };
        };
        let mut bytes = self.buffer[..len].to_vec();
        let mut mark = 0;
        // SAFETY: the kernel filled the message in.
        let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        // SAFETY: null, or a header in `control`.
        while let Some(found) = unsafe { header.as_ref() } {
            // SAFETY: the header is one that the kernel wrote.
            let data = unsafe { libc::CMSG_DATA(header) };
            match (found.cmsg_level, found.cmsg_type) {
                (libc::SOL_SOCKET, libc::SO_MARK) => {
                    // SAFETY: that type has this content.
                    mark = unsafe { data.cast::<u32>().read_unaligned() };
                }
                (libc::SOL_PACKET, libc::PACKET_AUXDATA) => {
                    // SAFETY: as above.
                    let beside = unsafe { data.cast::<libc::tpacket_auxdata>().read_unaligned() };
                    if beside.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
                        let [a, b] = beside.tp_vlan_tpid.to_be_bytes();
                        let [c, d] = beside.tp_vlan_tci.to_be_bytes();
                        bytes.splice(12..12, [a, b, c, d]);
                    }
                }
                _ => {}
            }
            // SAFETY: the header is one of the message's.
            header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
        }
        Ok(Some(Copy { ifindex: from.sll_ifindex.cast_unsigned(), bytes, mark }))
    }
}

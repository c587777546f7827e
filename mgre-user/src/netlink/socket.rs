//! One rtnetlink socket and the request-and-answer protocol on it.
//!
//! Requests are built with `netlink-packet-route`; of the answers only the
//! framing is decoded here, so that an attribute which a library does not know
//! yet cannot make an answer disappear.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, NetlinkBuffer,
    NetlinkMessage,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvmsg, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::decode::{attributes, text};
use super::error::Failure;

/// The kernel sends no dump message longer than 32 KiB (`netlink_dump()`, commit
/// d35c99ff77ec), and a single link without statistics and virtual functions is far below.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// The kernel answers within the system call that asks; this only guards against a lost answer.
const TIMEOUT_SECONDS: i64 = 5;
/// Requests of a batch that are under way at one time. Their answers must fit the socket's default receive
/// buffer (212,992 bytes, of which a short answer takes about one thousand).
const BATCH: usize = 128;
/// How often a dump that changed under way is read again.
const DUMP_ATTEMPTS: usize = 5;
/// `NLMSGERR_ATTR_MSG`: the text of an extended acknowledgement.
const ERROR_TEXT: u16 = 1;
/// Length of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;

/// One message of an answer.
#[derive(Debug)]
pub(super) struct Message {
    /// `RTM_*`.
    pub(super) kind: u16,
    /// Everything after the netlink header.
    pub(super) payload: Vec<u8>,
}

/// A rtnetlink socket for requests. It stays in the network namespace it was opened in.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// Opens a rtnetlink socket that receives the multicast groups whose bits are set.
pub(super) fn open(groups: u32, flags: SockFlag) -> nix::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags | SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

/// Has a socket receive a multicast group, too.
pub(super) fn join(fd: &OwnedFd, group: libc::c_uint) -> nix::Result<()> {
    // SAFETY: `fd` is open, and the option value is an int that lives during the call.
    let joined = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            (&raw const group).cast(),
            size_of_val(&group) as libc::socklen_t,
        )
    };
    Errno::result(joined).map(drop)
}

/// Receives one datagram of the kernel into `buffer`; its length. What another process sends is
/// passed over.
pub(super) fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> nix::Result<usize> {
    loop {
        let mut slices = [IoSliceMut::new(buffer)];
        let message = recvmsg::<NetlinkAddr>(fd.as_raw_fd(), &mut slices, None, MsgFlags::empty())?;
        if message.flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(Errno::EMSGSIZE);
        }
        if message.address.is_some_and(|sender| sender.pid() == 0) {
            return Ok(message.bytes);
        }
    }
}

/// The netlink messages in a datagram. A malformed one ends the sequence with an error.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Result<NetlinkBuffer<&[u8]>, Failure>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let Ok(message) = NetlinkBuffer::new_checked(datagram) else {
            datagram = &[];
            return Some(Err(Failure::malformed("malformed message")));
        };
        let padded = (message.length() as usize).next_multiple_of(4);
        datagram = datagram.get(padded..).unwrap_or_default();
        Some(Ok(message))
    })
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, Failure> {
        let fd = open(0, SockFlag::empty())?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(TIMEOUT_SECONDS))?;
        // Both only add to what an error says; kernels before 4.12 lack the first.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            if let Err(errno) = set_netlink_option(&fd, option) {
                tracing::debug!(option, %errno, "netlink socket option not available");
            }
        }
        Ok(Self { fd, sequence: 0, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// The number of the socket's network namespace.
    pub(super) fn namespace(&self) -> Result<u64, Failure> {
        /// Of include/uapi/asm-generic/socket.h.
        const SO_NETNS_COOKIE: libc::c_int = 71;
        let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
        // SAFETY: `fd` is open, and the kernel writes at most as many bytes as the cookie has.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        Errno::result(result)?;
        Ok(cookie)
    }

    /// Carries out a request that changes something.
    pub(super) fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Failure> {
        self.send(message, flags | NLM_F_ACK)?;
        self.answer(|_| ()).map(drop)
    }

    /// Asks for one object.
    pub(super) fn get(&mut self, message: RouteNetlinkMessage) -> Result<Message, Failure> {
        self.send(message, NLM_F_ACK)?;
        let mut found = None;
        self.answer(|message| found = Some(message))?;
        found.ok_or_else(|| Failure::malformed("the kernel acknowledged and sent no answer"))
    }

    /// Makes many requests, each of which the kernel answers with one message: an object, an acknowledgement,
    /// or an error. The answers are in the order of the requests.
    pub(super) fn batch(
        &mut self,
        requests: impl IntoIterator<Item = (RouteNetlinkMessage, u16)>,
    ) -> Result<Vec<Result<Option<Message>, Failure>>, Failure> {
        let mut requests = requests.into_iter().peekable();
        let mut answers = Vec::new();
        while requests.peek().is_some() {
            let (mut bytes, first, mut count) = (Vec::new(), self.sequence.wrapping_add(1), 0);
            for (message, flags) in requests.by_ref().take(BATCH) {
                self.sequence = self.sequence.wrapping_add(1);
                append(&mut bytes, message, flags, self.sequence);
                count += 1;
            }
            send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())?;
            let mut found: Vec<Option<_>> = std::iter::repeat_with(|| None).take(count).collect();
            let mut missing = count;
            while missing > 0 {
                let length = self.receive()?;
                for message in messages(&self.buffer[..length]) {
                    let message = message?;
                    let index = message.sequence_number().wrapping_sub(first) as usize;
                    let Some(place) = found.get_mut(index) else { continue };
                    let answer = match message.message_type() {
                        NLMSG_ERROR => outcome(&message).map(|()| None),
                        kind => Ok(Some(Message { kind, payload: message.payload().to_vec() })),
                    };
                    missing -= usize::from(place.replace(answer).is_none());
                }
            }
            answers.extend(found.into_iter().flatten());
        }
        Ok(answers)
    }

    /// Asks for all objects of a kind. A list that changed while it was read is read again, a few times:
    /// on a host where it never holds still, the last one is returned, and the change that disturbed it
    /// is announced to the monitor as well.
    pub(super) fn dump(&mut self, message: RouteNetlinkMessage) -> Result<Vec<Message>, Failure> {
        undisturbed(|| {
            let mut found = Vec::new();
            self.send(message.clone(), NLM_F_DUMP)?;
            let disturbed = self.answer(|message| found.push(message))?;
            Ok((found, disturbed))
        })
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Failure> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        append(&mut bytes, message, flags, self.sequence);
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())?;
        Ok(())
    }

    /// The next datagram's length.
    fn receive(&mut self) -> Result<usize, Failure> {
        loop {
            match receive(&self.fd, &mut self.buffer) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT.into()),
                other => return Ok(other?),
            }
        }
    }

    /// Reads until the request is answered. Whether a dump was disturbed by a change.
    fn answer(&mut self, mut take: impl FnMut(Message)) -> Result<bool, Failure> {
        let mut interrupted = false;
        loop {
            let length = self.receive()?;
            for message in messages(&self.buffer[..length]) {
                let message = message?;
                if message.sequence_number() != self.sequence {
                    continue;
                }
                interrupted |= is_disturbed(&message);
                match message.message_type() {
                    NLMSG_NOOP => {}
                    NLMSG_OVERRUN => return Err(Errno::ENOBUFS.into()),
                    NLMSG_ERROR | NLMSG_DONE => return outcome(&message).map(|()| interrupted),
                    kind => take(Message { kind, payload: message.payload().to_vec() }),
                }
            }
        }
    }
}

/// Reads a list until nothing disturbed it, or often enough.
fn undisturbed<T>(mut read: impl FnMut() -> Result<(T, bool), Failure>) -> Result<T, Failure> {
    for _ in 1..DUMP_ATTEMPTS {
        let (found, disturbed) = read()?;
        if !disturbed {
            return Ok(found);
        }
    }
    read().map(|(found, _)| found)
}

/// Whether a message is of a list that changed while it was read.
fn is_disturbed(message: &NetlinkBuffer<&[u8]>) -> bool {
    message.flags() & libc::NLM_F_DUMP_INTR as u16 != 0
}

/// Adds a request to bytes to send, padded.
fn append(bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | flags;
    request.header.sequence_number = sequence;
    request.finalize();
    let start = bytes.len();
    bytes.resize(start + request.buffer_len(), 0);
    request.serialize(&mut bytes[start..]);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// What an acknowledgement or the end of a dump says.
fn outcome(message: &NetlinkBuffer<&[u8]>) -> Result<(), Failure> {
    let payload = message.payload();
    let Some((code, rest)) = payload.split_first_chunk::<4>() else {
        return Err(Failure::malformed("short acknowledgement"));
    };
    let code = i32::from_ne_bytes(*code);
    if code >= 0 {
        return Ok(());
    }
    // An error carries the header of the request (NETLINK_CAP_ACK), the end of a dump does not.
    let skipped = if message.message_type() == NLMSG_ERROR { HEADER_LEN } else { 0 };
    let capped = message.flags() & (libc::NLM_F_ACK_TLVS as u16) != 0;
    let explanation = if capped { rest.get(skipped..).unwrap_or_default() } else { &[] };
    let message =
        attributes(explanation).find(|(kind, _)| *kind == ERROR_TEXT).and_then(|(_, value)| text(value));
    Err(Failure::Kernel { errno: Errno::from_raw(code.wrapping_neg()), message })
}

fn set_netlink_option(fd: &OwnedFd, option: libc::c_int) -> nix::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `fd` is open, and the option value is an int that lives during the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A netlink message as the kernel lays it out (include/uapi/linux/netlink.h).
    fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((16 + payload.len() as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_datagram_is_split_at_aligned_lengths() {
        let mut datagram = message(16, 0, b"abc");
        datagram.extend(message(17, 0, b""));
        let kinds: Vec<_> =
            messages(&datagram).map(|m| m.map(|m| (m.message_type(), m.payload().len()))).collect();
        assert!(matches!(kinds[..], [Ok((16, 3)), Ok((17, 0))]), "{kinds:?}");
    }

    #[test]
    fn a_short_datagram_is_an_error_and_ends() {
        let datagram = message(16, 0, b"abcd");
        for length in 1..datagram.len() {
            let found: Vec<_> = messages(&datagram[..length]).collect();
            assert!(matches!(found[..], [Err(_)]), "length {length}");
        }
    }

    #[test]
    fn a_list_that_changed_meanwhile_is_read_again() {
        let mut reads = 0;
        let mut read = |changing: usize| {
            undisturbed(|| {
                reads += 1;
                Ok((reads, reads <= changing))
            })
        };
        assert_eq!(read(2).ok(), Some(3), "the third is whole");
        assert_eq!(read(usize::MAX).ok(), Some(3 + DUMP_ATTEMPTS), "it never is, and the last one is taken");
        assert!(undisturbed::<()>(|| Err(Errno::ENOBUFS.into())).is_err());
        let marked = message(16, libc::NLM_F_DUMP_INTR as u16 | libc::NLM_F_MULTI as u16, b"");
        let plain = message(16, libc::NLM_F_MULTI as u16, b"");
        let is = |bytes: &[u8]| is_disturbed(&NetlinkBuffer::new_checked(bytes).expect("well-formed"));
        assert!(is(&marked) && !is(&plain));
    }

    #[test]
    fn an_error_brings_the_kernels_words() {
        let mut payload = (-libc::EINVAL).to_ne_bytes().to_vec();
        payload.extend([0; 16]);
        payload.extend([9, 0, 1, 0]);
        payload.extend(b"nope\0\0\0\0");
        let bytes = message(NLMSG_ERROR, libc::NLM_F_ACK_TLVS as u16, &payload);
        let parsed = NetlinkBuffer::new_checked(&bytes[..]).expect("well-formed");
        let Err(Failure::Kernel { errno, message: words }) = outcome(&parsed) else { panic!("an error") };
        assert_eq!((errno, words.as_deref()), (Errno::EINVAL, Some("nope")));

        let bytes = message(NLMSG_ERROR, 0, &[0; 20]);
        let parsed = NetlinkBuffer::new_checked(&bytes[..]).expect("well-formed");
        assert!(outcome(&parsed).is_ok());
    }
}

//! What interfaces can do with XDP, by the kernel's own word (generic netlink family `netdev`, since Linux 6.3).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::NetlinkBuffer;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::decode::attributes;
use super::socket::{join, messages, receive};
use super::{Change, Error, Netlink, Result};

/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY` and its attributes (include/uapi/linux/genetlink.h).
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const FAMILY_GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;
/// `NETDEV_MCGRP_MGMT`, and the commands of what it tells.
const MANAGEMENT: &[u8] = b"mgmt\0";
const DEVICE_ADDED: u8 = 2;
const DEVICE_DELETED: u8 = 3;
const DEVICE_CHANGED: u8 = 4;
/// `NETDEV_CMD_DEV_GET` and its attributes (include/uapi/linux/netdev.h).
const GET_DEVICE: u8 = 1;
const DEVICE_IFINDEX: u16 = 1;
const DEVICE_XDP_FEATURES: u16 = 3;

const DUMP: u16 = libc::NLM_F_DUMP as u16;
const TIMEOUT_SECONDS: i64 = 5;
const BUFFER: usize = 64 * 1024;

/// What an interface can do with XDP (`enum netdev_xdp_act`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures(u64);

impl XdpFeatures {
    /// It runs programs in its driver.
    pub const BASIC: u64 = 1;
    /// It sends on what a program redirects.
    pub const REDIRECT: u64 = 2;
    /// Others may redirect to it. A veth says so while its other end polls: with GRO on, or a program of its own.
    pub const TARGET: u64 = 4;
    /// It takes such of several pages as well.
    pub const TARGET_OF_SEVERAL_PAGES: u64 = 64;

    /// From the kernel's bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Whether programs can run in its driver and redirect.
    pub const fn runs_programs(self) -> bool {
        self.0 & (Self::BASIC | Self::REDIRECT) == Self::BASIC | Self::REDIRECT
    }

    /// Whether frames may be redirected to it, and such of several pages, too.
    pub const fn is_target(self, several_pages: bool) -> bool {
        let needed = if several_pages { Self::TARGET | Self::TARGET_OF_SEVERAL_PAGES } else { Self::TARGET };
        self.0 & needed == needed
    }
}

impl Netlink {
    /// What the namespace's interfaces can do with XDP. Nothing, on a kernel that does not tell.
    pub async fn xdp_features(&self) -> Result<HashMap<u32, XdpFeatures>> {
        tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| transport(std::io::Error::other(error)))?
            .map_err(|errno| transport(errno.into()))
    }
}

/// Whether the kernel tells what interfaces can do with XDP.
///
/// # Errors
/// The kernel cannot be asked.
pub fn tells_xdp_features() -> Result<bool> {
    let found = open().and_then(|fd| family(&fd));
    Ok(found.map_err(|errno| transport(errno.into()))?.is_some())
}

fn transport(source: std::io::Error) -> Error {
    Error::Transport { action: "read XDP features".into(), source }
}

fn read() -> nix::Result<HashMap<u32, XdpFeatures>> {
    let fd = open()?;
    let mut found = HashMap::new();
    if let Some(Family { id, .. }) = family(&fd)? {
        ask(&fd, id, GET_DEVICE, DUMP, &[], |payload| found.extend(device(payload)))?;
    }
    Ok(found)
}

fn open() -> nix::Result<OwnedFd> {
    let fd =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkGeneric)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(TIMEOUT_SECONDS))?;
    Ok(fd)
}

/// What the kernel numbered the family.
#[derive(Clone, Copy, Debug)]
struct Family {
    id: u16,
    /// The group that hears of changes of devices.
    group: Option<u32>,
}

/// The family; none if the kernel does not have it.
fn family(fd: &OwnedFd) -> nix::Result<Option<Family>> {
    let name = attribute(FAMILY_NAME, b"netdev\0");
    let (mut id, mut group) = (None, None);
    let answered = ask(fd, CONTROL, GET_FAMILY, libc::NLM_F_ACK as u16, &name, |payload| {
        for (kind, value) in attributes(payload) {
            match kind {
                FAMILY_ID => id = short(value),
                FAMILY_GROUPS => group = attributes(value).find_map(|(_, group)| management(group)),
                _ => {}
            }
        }
    });
    match answered {
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(id.map(|id| Family { id, group })),
    }
}

/// The id of a multicast group, if it is the one that hears of changes.
fn management(group: &[u8]) -> Option<u32> {
    let value = |wanted| attributes(group).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let id = value(GROUP_ID)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    id.filter(|_| value(GROUP_NAME) == Some(MANAGEMENT))
}

/// A subscription to changes of what interfaces can do.
///
/// Every change is announced, in the namespace of the interface that it is of, whatever made it
/// (`xdp_set_features_flag()` of net/core/xdp.c, since Linux 6.3): a veth's when its other end turns GRO on or gets
/// a program, too.
#[derive(Debug)]
pub(super) struct Watch {
    fd: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
    /// Messages were lost; what is still queued is thrown away before that is reported.
    lost: bool,
}

impl Watch {
    /// Subscribes; none on a kernel that does not tell.
    pub(super) fn open() -> io::Result<Option<Self>> {
        let fd = open()?;
        let Some(group) = family(&fd)?.and_then(|family| family.group) else { return Ok(None) };
        join(&fd, group)?;
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // SAFETY: an OwnedFd is open and names the same file until it is dropped, which AsyncFd does only
        // after taking it out of the reactor.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE.add(Interest::ERROR)) }?;
        Ok(Some(Self { fd, buffer: vec![0; BUFFER], lost: false }))
    }

    /// The next changes. Waits for one. Nothing is lost if the future is dropped.
    pub(super) async fn next(&mut self) -> io::Result<Vec<Change>> {
        loop {
            let mut ready = self.fd.ready(Interest::READABLE.add(Interest::ERROR)).await?;
            match receive(self.fd.get_ref(), &mut self.buffer) {
                Ok(_) if self.lost => {}
                Ok(length) => return Ok(changes(&self.buffer[..length])),
                Err(Errno::EAGAIN) => {
                    ready.clear_ready();
                    if std::mem::take(&mut self.lost) {
                        return Ok(vec![Change::Resynchronize]);
                    }
                }
                Err(Errno::EINTR) => {}
                // As for the monitor: more is lost, in silence, until the queue has been read empty.
                Err(Errno::ENOBUFS) => self.lost = true,
                Err(Errno::EMSGSIZE) => return Ok(vec![Change::Resynchronize]),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What a datagram tells.
fn changes(datagram: &[u8]) -> Vec<Change> {
    let change = |message: NetlinkBuffer<&[u8]>| {
        let payload = message.payload();
        let (index, features) = device(payload.get(4..)?)?;
        match *payload.first()? {
            DEVICE_ADDED | DEVICE_CHANGED => Some(Change::Features { index, features: Some(features) }),
            DEVICE_DELETED => Some(Change::Features { index, features: None }),
            _ => None,
        }
    };
    messages(datagram).filter_map(|message| message.map_or(Some(Change::Resynchronize), change)).collect()
}

/// An interface's index and features, from the attributes of a device.
fn device(payload: &[u8]) -> Option<(u32, XdpFeatures)> {
    let (mut ifindex, mut features) = (None, None);
    for (kind, value) in attributes(payload) {
        match kind {
            DEVICE_IFINDEX => ifindex = value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)),
            DEVICE_XDP_FEATURES => features = value.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes)),
            _ => {}
        }
    }
    Some((ifindex?, XdpFeatures(features?)))
}

fn short(value: &[u8]) -> Option<u16> {
    value.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

/// An attribute with its header, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Sends a request and hands over the payload of each message of the answer, without its generic header.
fn ask(
    fd: &OwnedFd,
    family: u16,
    command: u8,
    flags: u16,
    body: &[u8],
    mut take: impl FnMut(&[u8]),
) -> nix::Result<()> {
    const HEADERS: usize = 16 + 4;
    let mut request = ((HEADERS + body.len()) as u32).to_ne_bytes().to_vec();
    request.extend(family.to_ne_bytes());
    request.extend((libc::NLM_F_REQUEST as u16 | flags).to_ne_bytes());
    request.extend([0; 8]);
    request.extend([command, 1, 0, 0]);
    request.extend(body);
    send(fd.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = receive(fd, &mut buffer)?;
        for message in messages(&buffer[..length]) {
            let message = message.map_err(|_| Errno::EBADMSG)?;
            if let Some(result) = end(&message) {
                return result;
            }
            take(message.payload().get(4..).unwrap_or_default());
        }
    }
}

/// Whether a message ends an answer, and how.
fn end(message: &NetlinkBuffer<&[u8]>) -> Option<nix::Result<()>> {
    match i32::from(message.message_type()) {
        libc::NLMSG_DONE => Some(Ok(())),
        libc::NLMSG_ERROR => {
            let code = message.payload().first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
            Some(if code == 0 { Ok(()) } else { Err(Errno::from_raw(code.wrapping_neg())) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_from_a_device() {
        let mut payload = attribute(DEVICE_IFINDEX, &7_u32.to_ne_bytes());
        payload.extend(attribute(DEVICE_XDP_FEATURES, &0x7_u64.to_ne_bytes()));
        let (ifindex, features) = device(&payload).expect("a device");
        assert_eq!(ifindex, 7);
        assert!(features.runs_programs() && features.is_target(false));
        assert!(!XdpFeatures::from_bits(1).runs_programs() && !XdpFeatures::default().is_target(false));
        assert!(!features.is_target(true) && XdpFeatures::from_bits(0x7 | 1 << 6).is_target(true));
        assert_eq!(device(&payload[..8]), None);
    }
}

//! News of what changes in the kernel.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::socket::{SockFlag, setsockopt, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::features::Watch;
use super::socket::{join, messages, open, receive};
use super::{Error, Neighbor, Result, XdpFeatures, decode};

/// Room for some ten thousand messages between two looks.
const RECEIVE_BUFFER: usize = 8 * 1024 * 1024;
/// Longest datagram: a notification is one message, a link's the longest with some kilobytes.
const DATAGRAM: usize = 64 * 1024;

/// A loss shows as an error, which need not come with something to read.
const WAKE: Interest = Interest::READABLE.add(Interest::ERROR);

/// `RTM_NEWNEXTHOP` and `RTM_DELNEXTHOP` of include/uapi/linux/rtnetlink.h.
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;

/// What changes a route without a message of its own are rules and next-hop objects.
const GROUPS: [libc::c_uint; 9] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_NEXTHOP,
];

/// Something changed. What it is now, if that is not said, ask [`Netlink`](super::Netlink).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// An interface came, went, or changed: state, carrier, address, MTU, name.
    Link {
        /// Its index.
        index: u32,
    },
    /// An interface gained or lost an address.
    Addresses,
    /// A route, a routing rule or a next-hop object came, went, or changed.
    Routes,
    /// A neighbour came, went, or changed state or link-layer address.
    Neighbor {
        /// The interface.
        ifindex: u32,
        /// The neighbour's IP address.
        address: IpAddr,
        /// What it is now; none if it went.
        neighbor: Option<Neighbor>,
    },
    /// An interface became able to do something with XDP, or ceased to be, or went.
    Features {
        /// Its index.
        index: u32,
        /// What it can do now; none if it went.
        features: Option<XdpFeatures>,
    },
    /// A TC filter or a qdisc came, went, or changed. Reported after [`Monitor::watch_filters`] alone.
    Filters {
        /// The interface.
        index: u32,
    },
    /// Messages were lost, because they came faster than they were read: everything may have changed.
    Resynchronize,
}

/// A subscription to changes of links, of what they can do with XDP, of addresses, routes, rules, next hops and
/// neighbours.
#[derive(Debug)]
pub struct Monitor {
    fd: AsyncFd<OwnedFd>,
    /// None on a kernel that does not tell.
    features: Option<Watch>,
    buffer: Vec<u8>,
    pending: VecDeque<Change>,
    /// Messages were lost; what is still queued is thrown away before that is reported.
    lost: bool,
}

impl Monitor {
    /// Subscribes, in the calling thread's network namespace. What changes from here on is reported; read the
    /// present state after this, not before.
    pub fn open() -> Result<Self> {
        Self::with_receive_buffer(RECEIVE_BUFFER)
    }

    /// As [`Monitor::open`], with a receive buffer of so many bytes. The kernel doubles it for its own
    /// overhead and has a lower bound; without CAP_NET_ADMIN it also has an upper one.
    pub fn with_receive_buffer(bytes: usize) -> Result<Self> {
        Self::subscribe(bytes)
            .map_err(|source| Error::Transport { action: "subscribe to changes".into(), source })
    }

    fn subscribe(buffer_bytes: usize) -> io::Result<Self> {
        let groups = GROUPS.iter().fold(0, |bits, group| bits | 1u32 << (group - 1));
        let fd = open(groups, SockFlag::SOCK_NONBLOCK)?;
        // Best effort: with a smaller buffer, losses are only likelier, and they are reported.
        if setsockopt(&fd, sockopt::RcvBufForce, &buffer_bytes).is_err()
            && let Err(errno) = setsockopt(&fd, sockopt::RcvBuf, &buffer_bytes)
        {
            tracing::debug!(%errno, "cannot set the monitor's receive buffer");
        }
        // SAFETY: an OwnedFd is open and names the same file until it is dropped, which AsyncFd does only
        // after taking it out of the reactor.
        let fd = unsafe { AsyncFd::register_with_interest(fd, WAKE) }?;
        let features = Watch::open()?;
        Ok(Self { fd, features, buffer: vec![0; DATAGRAM], pending: VecDeque::new(), lost: false })
    }

    /// Reports changes of TC filters and qdiscs, too.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn watch_filters(&self) -> Result<()> {
        join(self.fd.get_ref(), libc::RTNLGRP_TC)
            .map_err(|errno| Error::Transport { action: "subscribe to filters".into(), source: errno.into() })
    }

    /// The next change. Waits for one. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Change> {
        loop {
            if let Some(change) = self.pending.pop_front() {
                return Ok(change);
            }
            let features = async {
                match &mut self.features {
                    Some(watch) => watch.next().await,
                    None => std::future::pending().await,
                }
            };
            let mut ready = tokio::select! {
                ready = self.fd.ready(WAKE) => ready.map_err(failed)?,
                changes = features => {
                    self.pending.extend(changes.map_err(failed)?);
                    continue;
                }
            };
            match receive(self.fd.get_ref(), &mut self.buffer) {
                Ok(_) if self.lost => {}
                Ok(length) => read(&self.buffer[..length], &mut self.pending),
                Err(Errno::EAGAIN) => {
                    ready.clear_ready();
                    if std::mem::take(&mut self.lost) {
                        return Ok(Change::Resynchronize);
                    }
                }
                Err(Errno::EINTR) => {}
                // After the first loss the kernel drops without a further error until the queue has been read
                // empty (NETLINK_S_CONGESTED of net/netlink/af_netlink.c), so a new picture taken before that
                // could miss a change.
                Err(Errno::ENOBUFS) => self.lost = true,
                // Longer than the buffer, so not understood.
                Err(Errno::EMSGSIZE) => self.pending.push_back(Change::Resynchronize),
                Err(errno) => return Err(failed(errno.into())),
            }
        }
    }
}

fn failed(source: io::Error) -> Error {
    Error::Transport { action: "read changes".into(), source }
}

/// Adds the changes that a datagram tells of.
fn read(datagram: &[u8], changes: &mut VecDeque<Change>) {
    for message in messages(datagram) {
        let change = match message {
            Ok(message) => change(message.message_type(), message.payload()),
            Err(_) => Some(Change::Resynchronize),
        };
        if let Some(change) = change
            && changes.back() != Some(&change)
        {
            changes.push_back(change);
        }
    }
}

fn change(kind: u16, payload: &[u8]) -> Option<Change> {
    Some(match kind {
        // The index is the second word of `struct ifinfomsg`.
        libc::RTM_NEWLINK | libc::RTM_DELLINK => {
            let index = payload.get(4..)?.first_chunk()?;
            Change::Link { index: u32::from_ne_bytes(*index) }
        }
        libc::RTM_NEWADDR | libc::RTM_DELADDR => Change::Addresses,
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE | libc::RTM_NEWRULE | libc::RTM_DELRULE => Change::Routes,
        RTM_NEWNEXTHOP | RTM_DELNEXTHOP => Change::Routes,
        // The index is the second word of `struct tcmsg`.
        libc::RTM_NEWTFILTER | libc::RTM_DELTFILTER | libc::RTM_DELQDISC => {
            let index = payload.get(4..)?.first_chunk()?;
            Change::Filters { index: u32::from_ne_bytes(*index) }
        }
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
            let entry = decode::neighbor(payload)?;
            let neighbor = (kind == libc::RTM_NEWNEIGH).then_some(entry.neighbor);
            Change::Neighbor { ifindex: entry.ifindex, address: entry.address, neighbor }
        }
        kind if kind == netlink_packet_core::NLMSG_OVERRUN => Change::Resynchronize,
        _ => return None,
    })
}

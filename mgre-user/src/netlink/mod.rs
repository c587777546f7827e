//! Everything the daemon asks of the kernel by rtnetlink: links, addresses, routes, neighbours, and news of
//! their changes.
//!
//! | file | what |
//! | --- | --- |
//! | `socket` | one socket, requests and answers |
//! | `decode` | from the kernel's messages to the types below; pure |
//! | `link`, `route`, `neighbor` | the operations of [`Netlink`] |
//! | `filter` | TC filters and their qdisc |
//! | `monitor` | [`Monitor`]: what changes |
//! | `resolve` | from route, links and neighbours to a next hop; pure |
//! | `error` | [`Error`]: one line each |
//!
//! All of it happens in the network namespace that the process was started in.

mod decode;
mod error;
mod ethtool;
mod features;
mod filter;
mod link;
mod monitor;
mod neighbor;
pub mod resolve;
mod route;
mod socket;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use mgre_common::wire::MacAddr;

pub use self::error::{Error, Result};
pub use self::features::{XdpFeatures, tells_xdp_features};
pub use self::filter::{Direction, Filter, Filters};
pub use self::monitor::{Change, Monitor};
use self::socket::Socket;

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index, unique in the network namespace.
    pub index: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its link-layer address, if that is 48 bits long.
    pub mac: Option<MacAddr>,
    /// Largest packet it takes, in bytes, without the link-layer header.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Able to pass packets: `IFF_RUNNING` and `IFF_LOWER_UP`.
    pub running: bool,
    /// `IFF_PROMISC`: set by hand, or by whoever asked for it through netlink. A packet capture does not show
    /// here.
    pub promiscuous: bool,
    /// The driver's name for its type, such as `veth` or `bridge`. `None` for most physical interfaces.
    pub kind: Option<String>,
    /// Free text an administrator or owner gave it (`ifalias`).
    pub alias: Option<String>,
    /// The other end of a veth, or the interface below a VLAN or macvlan, if it is in this network namespace.
    pub peer_index: Option<u32>,
    /// The bridge, bond or VRF it is enslaved to.
    pub controller: Option<u32>,
    /// `IFF_LOOPBACK`.
    pub loopback: bool,
    /// Whether it carries Ethernet frames (`ARPHRD_ETHER`).
    pub ethernet: bool,
    /// Id of the XDP program that runs on it, if one does.
    pub xdp_program: Option<u32>,
    /// Whether it takes 802.1Q tags off received frames, as physical interfaces may.
    pub vlan_offload: bool,
}

/// An IP address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of the prefix that is on the link, in bits.
    pub prefix_len: u8,
    /// Whether the kernel found that another host has it (`IFA_F_DADFAILED`, IPv6 alone).
    pub duplicate: bool,
}

/// A question for a route, as the kernel's own packets ask it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Where packets go.
    pub destination: IpAddr,
    /// The address that they come from, which rules may look at; none: as of a packet that has none yet.
    pub source: Option<IpAddr>,
    /// Index of the interface that it must leave by, or of the VRF whose table it is that counts.
    pub by: Option<u32>,
}

/// How a packet to a remote endpoint leaves this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// The interface it leaves by.
    pub ifindex: u32,
    /// The router it goes to; `None` if the destination is on the link. It may be an IPv6 address for an IPv4
    /// destination (RFC 5549).
    pub gateway: Option<IpAddr>,
    /// The source address the kernel would choose.
    pub preferred_source: Option<IpAddr>,
    /// MTU of the route or of the discovered path, in bytes, if it has one of its own.
    pub mtu: Option<u32>,
    /// The destination is this host.
    pub local: bool,
}

/// An entry of the neighbour table (ARP or neighbour discovery).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Neighbor {
    /// The link-layer address, if it is known and 48 bits long.
    pub mac: Option<MacAddr>,
    /// Whether the address may be used: `REACHABLE`, `STALE`, `DELAY`, `PROBE`, `PERMANENT` or `NOARP`.
    pub usable: bool,
}

/// A handle for requests to the kernel. Clones share one socket.
///
/// The kernel works on a request within the system call that brings it and may wait there for the
/// rtnetlink lock, so requests run on the runtime's blocking threads, one at a time. Each is carried
/// through to its end even if the future that waits for it is dropped: nothing is left half done.
#[derive(Clone, Debug)]
pub struct Netlink {
    /// `None` after a request failed in a way that leaves answers unread; the next one opens a new socket.
    socket: Arc<Mutex<Option<Socket>>>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn connect() -> Result<Self> {
        let socket = Socket::open().map_err(|failure| failure.during("open a socket"))?;
        Ok(Self { socket: Arc::new(Mutex::new(Some(socket))) })
    }

    /// Runs `work` with the socket on a blocking thread.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Socket) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(&self.socket);
        let task = tokio::task::spawn_blocking(move || {
            // The slot is empty while the socket is in use, so that a panic leaves none in an unknown state.
            let mut slot = shared.lock().unwrap_or_else(PoisonError::into_inner);
            let mut socket = match slot.take() {
                Some(socket) => socket,
                None => Socket::open().map_err(|failure| failure.during("open a socket"))?,
            };
            let result = work(&mut socket);
            if !matches!(result, Err(Error::Transport { .. })) {
                *slot = Some(socket);
            }
            result
        });
        match task.await {
            Ok(result) => result,
            Err(join) => match join.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(join) => Err(Error::Transport {
                    action: "finish a request".into(),
                    source: std::io::Error::other(join),
                }),
            },
        }
    }
}

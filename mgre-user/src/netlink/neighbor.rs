//! The neighbour table: reading it, and having the kernel keep entries resolved.

use std::collections::HashMap;
use std::net::IpAddr;

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::route::RouteProtocol;
use nix::errno::Errno;

use super::decode::{self, NeighborEntry};
use super::error::Failure;
use super::route::family;
use super::socket::Socket;
use super::{Neighbor, Netlink, Result};

/// `NDA_PROTOCOL` of the entries we manage, `ip neighbour` shows it as `proto 109`: it tells them, after a
/// restart too, from those that someone else asked the kernel to manage. A number no routing daemon is known
/// to use (include/uapi/linux/rtnetlink.h, iproute2's rt_protos).
const PROTOCOL: u8 = 109;

impl Netlink {
    /// The neighbour tables, IPv4 and IPv6, by interface index and address.
    pub async fn neighbors(&self) -> Result<HashMap<(u32, IpAddr), Neighbor>> {
        self.run(|socket| {
            let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
            let answer = socket.dump(request).map_err(|failure| failure.during("list neighbours"))?;
            Ok(answer
                .iter()
                .filter(|message| message.kind == libc::RTM_NEWNEIGH)
                .filter_map(|message| decode::neighbor(&message.payload))
                .map(|entry| ((entry.ifindex, entry.address), entry.neighbor))
                .collect())
        })
        .await
    }

    /// One neighbour, if the table has it.
    pub async fn neighbor(&self, ifindex: u32, address: IpAddr) -> Result<Option<Neighbor>> {
        self.run(move |socket| {
            let entry = look_up(socket, ifindex, address)
                .map_err(|failure| failure.on_link(ifindex, format!("look up neighbour {address}")))?;
            Ok(entry.map(|entry| entry.neighbor))
        })
        .await
    }

    /// Asks the kernel to resolve a neighbour now and to keep it resolved.
    ///
    /// From Linux 5.16 it does so by itself (`NTF_EXT_MANAGED`) until [`Netlink::release_neighbor`], or until
    /// the interface goes down or loses carrier, which drops all entries but permanent ones: ask again at
    /// each [`Change::Links`](super::Change::Links). An older kernel resolves it once (`NTF_USE`): ask again
    /// now and then. Asking for what is kept already costs one lookup.
    ///
    /// An entry that somebody provides (permanent, `NOARP`, learned by a control plane) or has the kernel
    /// manage is left alone, and a known link-layer address is never replaced.
    pub async fn keep_neighbor(&self, ifindex: u32, address: IpAddr) -> Result<()> {
        self.run(move |socket| {
            keep(socket, ifindex, address)
                .map_err(|failure| failure.on_link(ifindex, format!("resolve neighbour {address}")))
        })
        .await
    }

    /// Takes back what [`Netlink::keep_neighbor`] asked for. The entry stays as an ordinary one, which ages.
    pub async fn release_neighbor(&self, ifindex: u32, address: IpAddr) -> Result<()> {
        self.run(move |socket| {
            release(socket, ifindex, address)
                .map_err(|failure| failure.on_link(ifindex, format!("release neighbour {address}")))
        })
        .await
    }
}

fn keep(socket: &mut Socket, ifindex: u32, address: IpAddr) -> Result<(), Failure> {
    let mut message = request(ifindex, address);
    // A kernel without NTF_EXT_MANAGED ignores the attribute (it parses leniently), and on NTF_USE alone does
    // the next best thing. Without NTF_USE it would take the request for an update to state NONE.
    message.header.flags = NeighbourFlags::Use;
    match look_up(socket, ifindex, address)? {
        Some(entry) if entry.provided || entry.managed => return Ok(()),
        // Somebody else's mark must not be replaced by ours, and without ours we could not release it.
        Some(entry) if entry.protocol != 0 && entry.protocol != PROTOCOL => {}
        _ => {
            message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
            message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        }
    }
    socket.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE)
}

fn release(socket: &mut Socket, ifindex: u32, address: IpAddr) -> Result<(), Failure> {
    let entry = match look_up(socket, ifindex, address) {
        Err(failure) if failure.errno() == Some(Errno::ENODEV) => return Ok(()),
        other => other?,
    };
    if !entry.is_some_and(|entry| entry.managed && entry.protocol == PROTOCOL && !entry.provided) {
        return Ok(());
    }
    // neigh_update_flags() of net/core/neighbour.c makes the entry's flag what the request says: not managed.
    // NTF_USE keeps state and link-layer address as they are.
    let mut message = request(ifindex, address);
    message.header.flags = NeighbourFlags::Use;
    match socket.change(RouteNetlinkMessage::NewNeighbour(message), 0) {
        Err(failure) if matches!(failure.errno(), Some(Errno::ENOENT | Errno::ENODEV)) => Ok(()),
        other => other,
    }
}

fn look_up(socket: &mut Socket, ifindex: u32, address: IpAddr) -> Result<Option<NeighborEntry>, Failure> {
    match socket.get(RouteNetlinkMessage::GetNeighbour(request(ifindex, address))) {
        Ok(answer) => decode::neighbor(&answer.payload)
            .map(Some)
            .ok_or_else(|| Failure::malformed("malformed neighbour")),
        Err(failure) if failure.errno() == Some(Errno::ENOENT) => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn request(ifindex: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = ifindex;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

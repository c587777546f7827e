//! The neighbour table: reading it, and having the kernel keep entries resolved.

use std::collections::HashMap;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::route::RouteProtocol;
use nix::errno::Errno;

use super::decode::{self, NeighborEntry};
use super::error::Failure;
use super::route::family;
use super::socket::{Message, Socket};
use super::{Error, Neighbor, Netlink, Result};

/// `NDA_PROTOCOL` of the entries we manage, `ip neighbour` shows it as `proto 109`: it tells them, after a
/// restart too, from those that someone else asked the kernel to manage. A number no routing daemon is known
/// to use (include/uapi/linux/rtnetlink.h, iproute2's rt_protos).
const PROTOCOL: u8 = 109;

const CREATE: u16 = NLM_F_CREATE | NLM_F_ACK;

/// So many that are released at once stay in the table: half of what it holds before it is cleared up early
/// (`gc_thresh2`).
const ORDINARY_MOST: usize = 256;

/// What names a neighbour: interface and address.
type Key = (u32, IpAddr);

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
        Ok(self.neighbors_at(vec![(ifindex, address)]).await?.pop().flatten())
    }

    /// [`Netlink::neighbor`] for many at once.
    pub async fn neighbors_at(&self, all: Vec<Key>) -> Result<Vec<Option<Neighbor>>> {
        self.run(move |socket| {
            let found = look_up_all(socket, &all).map_err(|failure| failure.during("look up neighbours"))?;
            let named = all.iter().zip(found).map(|((ifindex, address), found)| match found {
                Ok(entry) => Ok(entry.map(|entry| entry.neighbor)),
                Err(failure) => Err(failure.on_link(*ifindex, format!("look up neighbour {address}"))),
            });
            named.collect()
        })
        .await
    }

    /// Asks the kernel to resolve a neighbour now and to keep it resolved.
    ///
    /// From Linux 5.16 it does so by itself (`NTF_EXT_MANAGED`) until [`Netlink::release_neighbor`], or until
    /// the interface goes down or loses carrier, which drops all entries but permanent ones: ask again at
    /// each [`Change::Link`](super::Change::Link). An older kernel resolves it once (`NTF_USE`): ask again
    /// now and then. Asking for what is kept already costs one lookup.
    ///
    /// It is marked as learned from outside (`NTF_EXT_LEARNED`) as well, so that it does not count against the limit of
    /// the table (`gc_thresh3`), which all network namespaces of a machine share.
    ///
    /// An entry that somebody else provides (permanent, `NOARP`, learned by a control plane) or has the kernel
    /// manage is left alone, and a known link-layer address is never replaced.
    pub async fn keep_neighbor(&self, ifindex: u32, address: IpAddr) -> Result<()> {
        self.keep_neighbors(vec![(ifindex, address)]).await?.pop().map_or(Ok(()), |kept| kept.map(drop))
    }

    /// [`Netlink::keep_neighbor`] for many at once. Says of each what it was before, if it was there.
    pub async fn keep_neighbors(&self, all: Vec<Key>) -> Result<Vec<Result<Option<Neighbor>>>> {
        self.run(move |socket| {
            let during = |failure: Failure| failure.during("resolve neighbours");
            let mut found = look_up_all(socket, &all).map_err(during)?;
            let requests: Vec<_> = all.iter().zip(&found).map(|(key, found)| keep(*key, found)).collect();
            let asked: Vec<usize> = (0..all.len()).filter(|index| requests[*index].is_some()).collect();
            let answers = socket.batch(requests.into_iter().flatten().map(|request| (request, CREATE)));
            for (index, answer) in asked.into_iter().zip(answers.map_err(during)?) {
                if let Err(failure) = answer {
                    found[index] = Err(failure);
                }
            }
            let named = all.iter().zip(found).map(|((ifindex, address), found)| match found {
                Ok(entry) => Ok(entry.map(|entry| entry.neighbor)),
                Err(failure) if failure.errno() == Some(Errno::ENOBUFS) => {
                    Err(Error::NoRoomForNeighbors { v4: address.is_ipv4() })
                }
                Err(failure) => Err(failure.on_link(*ifindex, format!("resolve neighbour {address}"))),
            });
            Ok(named.collect())
        })
        .await
    }

    /// Takes back what [`Netlink::keep_neighbor`] asked for. The entry stays as an ordinary one, which ages.
    pub async fn release_neighbor(&self, ifindex: u32, address: IpAddr) -> Result<()> {
        self.release_neighbors(vec![(ifindex, address)]).await?.pop().unwrap_or(Ok(()))
    }

    /// [`Netlink::release_neighbor`] for all that were asked for, by whomever.
    pub async fn release_all_neighbors(&self) -> Result<()> {
        let ours = self
            .run(|socket| {
                let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
                let answer = socket.dump(request).map_err(|failure| failure.during("list neighbours"))?;
                let entries = answer.iter().filter_map(|message| decode::neighbor(&message.payload));
                let ours = entries.filter(is_ours);
                Ok(ours.map(|entry| (entry.ifindex, entry.address)).collect::<Vec<Key>>())
            })
            .await?;
        self.release_neighbors(ours).await?.into_iter().collect()
    }

    /// [`Netlink::release_neighbor`] for many at once. More than a few are deleted: as ordinary entries they would
    /// leave no room in the table for a while.
    pub async fn release_neighbors(&self, all: Vec<Key>) -> Result<Vec<Result<()>>> {
        self.run(move |socket| {
            let during = |failure: Failure| failure.during("release neighbours");
            let found = look_up_all(socket, &all).map_err(during)?;
            let is_ours = |found: &Result<_, _>| matches!(found, Ok(Some(entry)) if is_ours(entry));
            let ours: Vec<Key> =
                all.iter().zip(&found).filter(|(_, found)| is_ours(found)).map(|(key, _)| *key).collect();
            let let_go = if ours.len() > ORDINARY_MOST { delete } else { release };
            let answers = socket.batch(ours.iter().map(|key| (let_go(*key), NLM_F_ACK))).map_err(during)?;
            let lookups = all.iter().zip(found).filter_map(|(key, found)| Some((key, found.err()?)));
            let releases = ours.iter().zip(answers).filter_map(|(key, answer)| Some((key, answer.err()?)));
            let gone = |failure: &Failure| matches!(failure.errno(), Some(Errno::ENOENT | Errno::ENODEV));
            let failed = lookups.chain(releases).filter(|(_, failure)| !gone(failure));
            Ok(failed
                .map(|((ifindex, address), failure)| {
                    Err(failure.on_link(*ifindex, format!("release neighbour {address}")))
                })
                .collect())
        })
        .await
    }
}

/// What to ask for a neighbour to be kept, given its entry; nothing for one that is kept already.
fn keep(
    (ifindex, address): Key,
    found: &Result<Option<NeighborEntry>, Failure>,
) -> Option<RouteNetlinkMessage> {
    let mut message = request(ifindex, address);
    // A kernel without NTF_EXT_MANAGED ignores the attribute (it parses leniently), and on NTF_USE alone does
    // the next best thing. Without NTF_USE it would take the request for an update to state NONE.
    message.header.flags = NeighbourFlags::Use;
    match found.as_ref().ok()? {
        Some(entry) if is_provided(entry) => return None,
        // Another's, or ours and complete. An older daemon left ours without the second mark.
        Some(entry) if entry.managed && (entry.protocol != PROTOCOL || entry.learned) => return None,
        // Somebody else's mark must not be replaced by ours, and without ours we could not release it.
        Some(entry) if entry.protocol != 0 && entry.protocol != PROTOCOL => {}
        _ => {
            message.header.flags |= NeighbourFlags::ExtLearned;
            message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
            message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        }
    }
    Some(RouteNetlinkMessage::NewNeighbour(message))
}

/// Whether we have the kernel keep an entry.
fn is_ours(entry: &NeighborEntry) -> bool {
    entry.managed && entry.protocol == PROTOCOL && !entry.fixed
}

/// Whether somebody else set it, by hand or from a control plane.
fn is_provided(entry: &NeighborEntry) -> bool {
    entry.fixed || entry.learned && !is_ours(entry)
}

fn release((ifindex, address): Key) -> RouteNetlinkMessage {
    // neigh_update_flags() of net/core/neighbour.c makes the entry's flags what the request says: neither of ours.
    // NTF_USE keeps state and link-layer address as they are.
    let mut message = request(ifindex, address);
    message.header.flags = NeighbourFlags::Use;
    RouteNetlinkMessage::NewNeighbour(message)
}

fn delete((ifindex, address): Key) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelNeighbour(request(ifindex, address))
}

/// The entries of neighbours, as far as there are.
fn look_up_all(
    socket: &mut Socket,
    all: &[Key],
) -> Result<Vec<Result<Option<NeighborEntry>, Failure>>, Failure> {
    let requests = all
        .iter()
        .map(|(ifindex, address)| (RouteNetlinkMessage::GetNeighbour(request(*ifindex, *address)), 0));
    let answers = socket.batch(requests)?;
    let entry = |answer: Result<Option<Message>, Failure>| match answer {
        Ok(answer) => answer
            .and_then(|answer| decode::neighbor(&answer.payload))
            .map(Some)
            .ok_or_else(|| Failure::malformed("malformed neighbour")),
        Err(failure) if failure.errno() == Some(Errno::ENOENT) => Ok(None),
        Err(failure) => Err(failure),
    };
    Ok(answers.into_iter().map(entry).collect())
}

fn request(ifindex: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = ifindex;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

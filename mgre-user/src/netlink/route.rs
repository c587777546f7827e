//! Addresses and route lookups.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::decode::{self, Lookup};
use super::error::Failure;
use super::socket::{Message, Socket};
use super::{Address, Error, Netlink, Result, Route};

/// The family of an address, as netlink headers name it.
pub(super) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

impl Netlink {
    /// All addresses of all interfaces, IPv4 and IPv6.
    pub async fn addresses(&self) -> Result<Vec<Address>> {
        self.run(|socket| {
            let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
            let answer = socket.dump(request).map_err(|failure| failure.during("list addresses"))?;
            Ok(answer
                .iter()
                .filter(|message| message.kind == libc::RTM_NEWADDR)
                .filter_map(|message| decode::interface_address(&message.payload))
                .collect())
        })
        .await
    }

    /// Gives an interface an address. [`Error::AddressExists`] if it has it already.
    pub async fn add_address(&self, index: u32, address: IpAddr, prefix_len: u8) -> Result<()> {
        self.run(move |socket| {
            let request = RouteNetlinkMessage::NewAddress(of_interface(index, address, prefix_len));
            socket.change(request, NLM_F_CREATE | NLM_F_EXCL).map_err(|failure| match failure.errno() {
                Some(Errno::EEXIST) => Error::AddressExists { ifindex: index, address, prefix_len },
                _ => failure.on_link(index, format!("add {address}/{prefix_len} to interface {index}")),
            })
        })
        .await
    }

    /// Takes an address from an interface, if it has it.
    pub async fn remove_address(&self, index: u32, address: IpAddr, prefix_len: u8) -> Result<()> {
        self.run(move |socket| {
            let request = RouteNetlinkMessage::DelAddress(of_interface(index, address, prefix_len));
            match socket.change(request, 0) {
                Err(failure) if failure.errno() == Some(Errno::EADDRNOTAVAIL) => Ok(()),
                other => other.map_err(|failure| {
                    failure.on_link(index, format!("remove {address}/{prefix_len} from interface {index}"))
                }),
            }
        })
        .await
    }

    /// How a packet to `dst` would leave this host, from `source` if one is given: the kernel's own lookup,
    /// rules and multipath included. `None` if it would not leave at all: no route,
    /// unreachable, prohibited, blackhole.
    pub async fn route_to(&self, dst: IpAddr, source: Option<IpAddr>) -> Result<Option<Route>> {
        self.run(move |socket| {
            let found = look_up(socket, dst, source)
                .map_err(|failure| failure.during(format!("look up the route to {dst}")))?;
            match source {
                // The IPv4 lookup refuses a source that is not ours as it refuses a destination without a
                // route.
                Some(source) if found.is_none() && !is_local(socket, source) => {
                    Err(Error::SourceNotLocal(source))
                }
                _ => Ok(found),
            }
        })
        .await
    }

    /// [`Netlink::route_to`] for many destinations at once.
    pub async fn routes_to(&self, destinations: Vec<IpAddr>) -> Result<Vec<(IpAddr, Option<Route>)>> {
        if destinations.is_empty() {
            return Ok(Vec::new());
        }
        self.run(move |socket| {
            let requests = destinations.iter().map(|dst| (request(*dst, None), 0));
            let answers = socket.batch(requests).map_err(|failure| failure.during("look up routes"))?;
            let found = destinations.iter().zip(answers).map(|(dst, answer)| {
                let answer = answer.and_then(|answer| answer.ok_or_else(no_answer));
                let route =
                    found(answer).map_err(|failure| failure.during(format!("look up the route to {dst}")))?;
                Ok((*dst, route))
            });
            found.collect()
        })
        .await
    }
}

/// An interface's address, as a request names it.
fn of_interface(index: u32, address: IpAddr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix_len;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}

fn no_answer() -> Failure {
    Failure::malformed("the kernel acknowledged and sent no answer")
}

fn is_local(socket: &mut Socket, address: IpAddr) -> bool {
    matches!(look_up(socket, address, None), Ok(Some(Route { local: true, .. })))
}

fn look_up(socket: &mut Socket, dst: IpAddr, source: Option<IpAddr>) -> Result<Option<Route>, Failure> {
    found(socket.get(request(dst, source)))
}

fn request(dst: IpAddr, source: Option<IpAddr>) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(dst);
    message.header.destination_prefix_length = bits(dst);
    message.header.flags = RouteFlags::LookupTable;
    message.attributes.push(RouteAttribute::Destination(route_address(dst)));
    if let Some(source) = source {
        message.header.source_prefix_length = bits(source);
        message.attributes.push(RouteAttribute::Source(route_address(source)));
    }
    RouteNetlinkMessage::GetRoute(message)
}

/// What the kernel's answer says.
fn found(answer: Result<Message, Failure>) -> Result<Option<Route>, Failure> {
    match answer {
        Ok(answer) => match decode::route(&answer.payload) {
            Some(Lookup::Usable(route)) => Ok(Some(route)),
            Some(Lookup::Unusable) => Ok(None),
            None => Err(Failure::malformed("malformed route")),
        },
        // fib_props[] of net/ipv4/fib_semantics.c: EINVAL is a blackhole, EACCES a prohibit route, not a
        // privilege.
        Err(failure) => match failure.errno() {
            Some(
                Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL | Errno::ENETDOWN,
            ) => Ok(None),
            _ => Err(failure),
        },
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

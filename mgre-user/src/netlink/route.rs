//! Addresses and route lookups.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::decode::{self, Found};
use super::error::Failure;
use super::socket::{Message, Socket};
use super::{Address, Error, Lookup, Netlink, Result, Route};

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

    /// Many lookups at once, answered in their order. There is no route from a source that is no address of this
    /// host, nor by an interface that is gone.
    pub async fn routes(&self, lookups: Vec<Lookup>) -> Result<Vec<Option<Route>>> {
        if lookups.is_empty() {
            return Ok(Vec::new());
        }
        self.run(move |socket| {
            let requests = lookups.iter().map(|lookup| (request(lookup), 0));
            let answers = socket.batch(requests).map_err(|failure| failure.during("look up routes"))?;
            let found = lookups.iter().zip(answers).map(|(lookup, answer)| {
                let answer = answer.and_then(|answer| answer.ok_or_else(no_answer));
                found(answer)
                    .map_err(|failure| failure.during(format!("look up the route to {}", lookup.destination)))
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

fn look_up(
    socket: &mut Socket,
    destination: IpAddr,
    source: Option<IpAddr>,
) -> Result<Option<Route>, Failure> {
    found(socket.get(request(&Lookup { destination, source, by: None })))
}

fn request(lookup: &Lookup) -> RouteNetlinkMessage {
    let Lookup { destination, source, by } = *lookup;
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination);
    message.header.destination_prefix_length = bits(destination);
    message.header.flags = RouteFlags::LookupTable;
    message.attributes.push(RouteAttribute::Destination(route_address(destination)));
    if let Some(source) = source {
        message.header.source_prefix_length = bits(source);
        message.attributes.push(RouteAttribute::Source(route_address(source)));
    }
    // The rule that leads to a VRF's table looks at the interface alone.
    message.attributes.extend(by.map(RouteAttribute::Oif));
    RouteNetlinkMessage::GetRoute(message)
}

/// What the kernel's answer says.
fn found(answer: Result<Message, Failure>) -> Result<Option<Route>, Failure> {
    match answer {
        Ok(answer) => match decode::route(&answer.payload) {
            Some(Found::Usable(route)) => Ok(Some(route)),
            Some(Found::Unusable) => Ok(None),
            None => Err(Failure::malformed("malformed route")),
        },
        // fib_props[] of net/ipv4/fib_semantics.c: EINVAL is a blackhole, EACCES a prohibit route, not a
        // privilege.
        Err(failure) => match failure.errno() {
            Some(
                Errno::ENETUNREACH
                | Errno::EHOSTUNREACH
                | Errno::EACCES
                | Errno::EINVAL
                | Errno::ENETDOWN
                | Errno::ENODEV,
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

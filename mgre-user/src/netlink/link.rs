//! Interfaces: reading, changing, making and removing them.

use mgre_common::wire::MacAddr;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask,
    LinkFlags, LinkInfo, LinkMessage,
};
use nix::errno::Errno;

use super::error::Failure;
use super::socket::Socket;
use super::{Error, Link, Netlink, Result};
use super::{decode, ethtool};

impl Netlink {
    /// All interfaces of the network namespace.
    pub async fn links(&self) -> Result<Vec<Link>> {
        self.run(|socket| {
            let request = RouteNetlinkMessage::GetLink(query(0));
            let answer = socket.dump(request).map_err(|failure| failure.during("list interfaces"))?;
            Ok(answer
                .iter()
                .filter(|message| message.kind == libc::RTM_NEWLINK)
                .filter_map(|message| decode::link(&message.payload))
                .map(with_offloads)
                .collect())
        })
        .await
    }

    /// The interfaces with these indices, as far as they are there.
    pub async fn links_with(&self, indices: Vec<u32>) -> Result<Vec<Link>> {
        self.run(move |socket| {
            let requests = indices.iter().map(|index| (RouteNetlinkMessage::GetLink(query(*index)), 0));
            let answers = socket.batch(requests).map_err(|failure| failure.during("look up interfaces"))?;
            let mut links = Vec::new();
            for (index, answer) in indices.iter().zip(answers) {
                match answer {
                    Ok(answer) => {
                        let link = answer.and_then(|answer| decode::link(&answer.payload));
                        links.extend(link.map(with_offloads));
                    }
                    Err(failure) if failure.errno() == Some(Errno::ENODEV) => {}
                    Err(failure) => return Err(failure.during(format!("look up interface {index}"))),
                }
            }
            Ok(links)
        })
        .await
    }

    /// How many packets interfaces were given and the kernel had no room for. `None` if one is not there.
    pub async fn received_and_dropped(&self, indices: [u32; 2]) -> Result<Option<u64>> {
        self.run(move |socket| {
            let requests = indices.map(|index| (RouteNetlinkMessage::GetLink(with_index(index)), 0));
            let answers = socket.batch(requests).map_err(|failure| failure.during("look up interfaces"))?;
            let mut sum = Some(0);
            for answer in answers {
                let dropped =
                    answer.ok().flatten().and_then(|answer| decode::received_and_dropped(&answer.payload));
                sum = sum.zip(dropped).map(|(sum, dropped)| sum + dropped);
            }
            Ok(sum)
        })
        .await
    }

    /// The interface with a name or alternative name.
    pub async fn link_by_name(&self, name: &str) -> Result<Link> {
        let name = name.to_owned();
        self.run(move |socket| by_name(socket, &name)?.ok_or(Error::NoSuchName(name))).await
    }

    /// Makes a pair of veth interfaces, both up, with `alias` on both as the mark of who made them. `mac` is
    /// that of `name`'s end. The `peer` end gets no IPv6 link-local address; its name may be a pattern, such as
    /// `mgre%d`, for the first number that no interface has: the kernel chooses, so that nobody can come between.
    ///
    /// If any step fails, neither is left.
    pub async fn create_veth(
        &self,
        name: &str,
        peer: &str,
        mac: Option<MacAddr>,
        mtu: u32,
        alias: &str,
    ) -> Result<(Link, Link)> {
        for (name, filled) in [(name, name.to_owned()), (peer, peer.replacen("%d", "0", 1))] {
            if !valid_name(&filled) {
                return Err(Error::InvalidName(name.to_owned()));
            }
        }
        if name == peer {
            return Err(Error::NameTaken(peer.to_owned()));
        }
        let (name, peer, alias) = (name.to_owned(), peer.to_owned(), alias.to_owned());
        self.run(move |socket| {
            add_veth(socket, &name, &peer, mac, mtu)?;
            let index = required(socket, &name)?.index;
            let finished = finish_veth(socket, index, &alias);
            if finished.is_err()
                && let Err(failure) = delete(socket, index)
            {
                tracing::warn!("{}", failure.during(format!("delete interface {name} after a failure")));
            }
            finished
        })
        .await
    }

    /// Makes a pair of veth interfaces that only programs and packet sockets use: as [`Netlink::create_veth`], but
    /// neither end gets an IPv6 link-local address, and what leaves by the first is cut to the size of the wire
    /// and has finished checksums.
    pub async fn create_pair(&self, names: [&str; 2], mtu: u32, alias: &str) -> Result<(Link, Link)> {
        let ([name, peer], alias) = (names.map(str::to_owned), alias.to_owned());
        self.run(move |socket| {
            add_veth(socket, &name, &peer, None, mtu)?;
            let index = required(socket, &name)?.index;
            let finished = ethtool::turn_off_transmit(&name)
                .map_err(|error| Failure::of(&error).on_link(index, format!("turn off offloads of {name}")))
                .and_then(|()| silence(socket, index))
                .and_then(|()| finish_veth(socket, index, &alias));
            if finished.is_err()
                && let Err(failure) = delete(socket, index)
            {
                tracing::warn!("{}", failure.during(format!("delete interface {name} after a failure")));
            }
            finished
        })
        .await
    }

    /// Removes an interface. The other end of a veth goes with it.
    pub async fn delete_link(&self, index: u32) -> Result<()> {
        self.run(move |socket| {
            delete(socket, index)
                .map_err(|failure| failure.on_link(index, format!("delete interface {index}")))
        })
        .await
    }

    /// Takes an interface administratively up or down.
    pub async fn set_up(&self, index: u32, up: bool) -> Result<()> {
        let action = format!("take interface {index} {}", if up { "up" } else { "down" });
        self.set(flag(index, LinkFlags::Up, up), action).await
    }

    /// Turns `IFF_PROMISC` of an interface on or off.
    pub async fn set_promiscuous(&self, index: u32, on: bool) -> Result<()> {
        let action = format!("turn promiscuous mode of interface {index} {}", if on { "on" } else { "off" });
        self.set(flag(index, LinkFlags::Promisc, on), action).await
    }

    /// Sets the MAC address of an interface.
    pub async fn set_mac(&self, index: u32, mac: MacAddr) -> Result<()> {
        let mut message = with_index(index);
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        self.set(message, format!("set the MAC address of interface {index} to {mac}")).await
    }

    /// Sets the MTU of an interface, in bytes.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<()> {
        let mut message = with_index(index);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.set(message, format!("set the MTU of interface {index} to {mtu}")).await
    }

    async fn set(&self, message: LinkMessage, action: String) -> Result<()> {
        self.run(move |socket| {
            let index = message.header.index;
            socket
                .change(RouteNetlinkMessage::SetLink(message), 0)
                .map_err(|failure| failure.on_link(index, action))
        })
        .await
    }
}

/// Adds what only ethtool tells.
fn with_offloads(link: Link) -> Link {
    // Only physical interfaces have it done before the kernel sees the frame.
    let vlan_offload = link.kind.is_none() && !link.loopback && ethtool::takes_tags_off(&link.name);
    Link { vlan_offload, ..link }
}

/// Whether the kernel would take it, as `dev_valid_name()` of net/core/dev.c. '%' would make it a pattern to
/// number.
fn valid_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() < libc::IFNAMSIZ
        && !name
            .bytes()
            .any(|byte| byte.is_ascii_whitespace() || byte == 0x0b || matches!(byte, b'/' | b':' | b'%' | 0))
}

fn with_index(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn flag(index: u32, flag: LinkFlags, on: bool) -> LinkMessage {
    let mut message = with_index(index);
    message.header.change_mask = flag;
    if on {
        message.header.flags = flag;
    }
    message
}

fn query(index: u32) -> LinkMessage {
    let mut message = with_index(index);
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message
}

fn by_name(socket: &mut Socket, name: &str) -> Result<Option<Link>> {
    // The kernel takes a longer one for a malformed request, not for a name that nothing has.
    if !valid_name(name) {
        return Ok(None);
    }
    let mut message = query(0);
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let action = || format!("look up interface {name}");
    match socket.get(RouteNetlinkMessage::GetLink(message)) {
        Ok(answer) => decode::link(&answer.payload)
            .map(Some)
            .ok_or_else(|| Failure::malformed("malformed interface").during(action())),
        Err(failure) if failure.errno() == Some(Errno::ENODEV) => Ok(None),
        Err(failure) => Err(failure.during(action())),
    }
}

fn required(socket: &mut Socket, name: &str) -> Result<Link> {
    by_name(socket, name)?.ok_or_else(|| Error::NoSuchName(name.to_owned()))
}

fn delete(socket: &mut Socket, index: u32) -> Result<(), Failure> {
    socket.change(RouteNetlinkMessage::DelLink(with_index(index)), 0)
}

fn add_veth(socket: &mut Socket, name: &str, peer: &str, mac: Option<MacAddr>, mtu: u32) -> Result<()> {
    let mut other = LinkMessage::default();
    other.attributes = vec![LinkAttribute::IfName(peer.to_owned()), LinkAttribute::Mtu(mtu)];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]),
    ];
    if let Some(mac) = mac {
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    }
    let Err(failure) = socket.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL) else {
        return Ok(());
    };
    if failure.errno() == Some(Errno::EEXIST) {
        for name in [name, peer] {
            if by_name(socket, name)?.is_some() {
                return Err(Error::NameTaken(name.to_owned()));
            }
        }
    }
    Err(failure.during(format!("create interfaces {name} and {peer}")))
}

/// What a veth can be given only once it exists.
fn finish_veth(socket: &mut Socket, index: u32, alias: &str) -> Result<(Link, Link)> {
    let missing = || Failure::malformed("a veth without its other end").during("look up an interface");
    let peer_index = by_index(socket, index)?.peer_index.ok_or_else(missing)?;
    for index in [index, peer_index] {
        let mut message = with_index(index);
        message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
        socket
            .change(RouteNetlinkMessage::SetLink(message), 0)
            .map_err(|failure| failure.on_link(index, format!("mark interface {index}")))?;
    }
    silence(socket, peer_index)?;
    for index in [index, peer_index] {
        socket
            .change(RouteNetlinkMessage::SetLink(flag(index, LinkFlags::Up, true)), 0)
            .map_err(|failure| failure.on_link(index, format!("take interface {index} up")))?;
    }
    Ok((by_index(socket, index)?, by_index(socket, peer_index)?))
}

/// Has an interface get no IPv6 link-local address.
fn silence(socket: &mut Socket, index: u32) -> Result<()> {
    let mut message = with_index(index);
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
        AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
    ])]));
    match socket.change(RouteNetlinkMessage::SetLink(message), 0) {
        // No IPv6 on the interface (turned off, or its MTU is below 1280): no link-local address either.
        Err(failure) if failure.errno() == Some(Errno::EAFNOSUPPORT) => Ok(()),
        other => other.map_err(|failure| failure.on_link(index, "turn off its IPv6 link-local address")),
    }
}

fn by_index(socket: &mut Socket, index: u32) -> Result<Link> {
    let action = "look up an interface";
    let answer = socket
        .get(RouteNetlinkMessage::GetLink(query(index)))
        .map_err(|failure| failure.on_link(index, action))?;
    decode::link(&answer.payload).ok_or_else(|| Failure::malformed("malformed interface").during(action))
}

#[cfg(test)]
mod tests {
    use super::valid_name;

    #[test]
    fn names_as_the_kernel_takes_them() {
        for name in ["a", "mgre0", "eth0.5", "fifteen-letters", "é"] {
            assert!(valid_name(name), "{name:?}");
        }
        for name in
            ["", ".", "..", "sixteen-letters!", "a b", "a/b", "a:b", "a%d", "a\tb", "a\nb", "a\0b", "a\x0bb"]
        {
            assert!(!valid_name(name), "{name:?}");
        }
    }
}

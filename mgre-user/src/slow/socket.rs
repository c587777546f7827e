//! The sockets of the slow path. None of them waits.

use std::io;
use std::mem::zeroed;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use libc::{c_int, socklen_t};
use mgre_common::wire::{EtherType, GRE_IN_UDP_PORT, GreFlags, IpProtocol};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};

/// `ICMP_FILTER` of include/uapi/linux/icmp.h, at the level `SOL_RAW`.
const ICMP_FILTER: c_int = 1;
const SOL_RAW: c_int = 255;
/// `ICMPV6_FILTER` of include/uapi/linux/icmpv6.h, at the level of ICMPv6.
const ICMPV6_FILTER: c_int = 1;
const DESTINATION_UNREACHABLE: u32 = 3;
const PACKET_TOO_BIG: u32 = 2;
/// The ICMPv6 type for a packet that could not be delivered.
const ICMPV6_UNREACHABLE: u32 = 1;
/// `IP_PMTUDISC_INTERFACE`, for IPv6 the same: what others say of paths is not taken, by ourselves
/// or by the kernel on our behalf.
const PMTUDISC_INTERFACE: c_int = 4;
/// Bytes, of which the kernel counts what it needs itself as well.
const RECEIVE_BUFFER: c_int = 1 << 20;
/// `UDP_NO_CHECK6_RX`: packets without a checksum are taken (RFC 8086 6).
const UDP_NO_CHECK6_RX: c_int = 102;
/// `SKF_AD_OFF` with `SKF_AD_IFINDEX` and `SKF_AD_MARK` of include/uapi/linux/filter.h.
const FILTER_IFINDEX: u32 = (-0x1000_i32 + 8) as u32;
const FILTER_MARK: u32 = (-0x1000_i32 + 20) as u32;

/// What a filter can say.
const ACCEPT: SockFilter = statement(libc::BPF_RET | libc::BPF_K, u32::MAX);
const REFUSE: SockFilter = statement(libc::BPF_RET | libc::BPF_K, 0);

const fn statement(code: u32, k: u32) -> SockFilter {
    SockFilter::new(code as u16, 0, 0, k)
}

/// Goes on with the next if the accumulator is `k`, else with the one after it.
const fn unless_skip(k: u32) -> SockFilter {
    SockFilter::new((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, k)
}

fn domain(address: IpAddr) -> Domain {
    if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 }
}

fn open(domain: Domain, kind: Type, protocol: c_int) -> io::Result<Socket> {
    Socket::new(domain, kind.nonblocking().cloexec(), Some(Protocol::from(protocol)))
}

fn set<T>(socket: &Socket, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    // SAFETY: the value lives during the call, and its length is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives a socket room for a burst. Without the privilege it has the usual.
fn enlarge(socket: &Socket) {
    if let Err(error) = set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER) {
        tracing::debug!(%error, "cannot enlarge a socket's buffer");
    }
}

/// Binds to one of our addresses, which may not be there yet, and asks for what an IP header says where a
/// socket does not get the header itself.
fn bind(socket: &Socket, local: IpAddr, port: u16, with_header: bool) -> io::Result<()> {
    enlarge(socket);
    match local {
        IpAddr::V4(_) => {
            socket.set_freebind_v4(true)?;
            set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &PMTUDISC_INTERFACE)?;
            if !with_header {
                set(socket, libc::IPPROTO_IP, libc::IP_RECVTTL, &1_i32)?;
                set(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, &1_i32)?;
            }
        }
        IpAddr::V6(_) => {
            socket.set_freebind_v6(true)?;
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &PMTUDISC_INTERFACE)?;
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, &1_i32)?;
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, &1_i32)?;
        }
    }
    socket.bind(&SocketAddr::new(local, port).into())
}

/// Refuses what an interface received, and goes on with the next for all else.
fn unless_from(ifindex: u32) -> [SockFilter; 3] {
    let from = statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, FILTER_IFINDEX);
    [from, unless_skip(ifindex), REFUSE]
}

/// A socket for GRE packets to one of our addresses. Over IPv4 it gives their IP headers too.
///
/// What is given to the datapath at the `inner` end of the pair does not come back, not even where
/// nobody takes it there. Where the address is shared with other users of GRE, only Ethernet in GRE comes: of theirs,
/// the kernel would make a copy of every packet.
pub(super) fn gre(local: IpAddr, is_shared: bool, inner: u32) -> io::Result<Socket> {
    let socket = open(domain(local), Type::RAW, IpProtocol::GRE.0.into())?;
    // Version 1 is PPTP's and the kernel's. The filter sees an IPv4 packet from its IP header on.
    let at = if local.is_ipv4() { libc::BPF_IND } else { libc::BPF_ABS };
    let [from, is, refuse] = unless_from(inner);
    let ethernet = EtherType::TRANSPARENT_ETHERNET.number().into();
    socket.attach_filter(&[
        from,
        is,
        refuse,
        // Where the IP header ends; no use for IPv6.
        statement(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0),
        statement(libc::BPF_LD | libc::BPF_H | at, 0),
        statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, GreFlags::VERSION.into()),
        unless_skip(1),
        REFUSE,
        statement(libc::BPF_LD | libc::BPF_H | at, 2),
        unless_skip(ethernet),
        ACCEPT,
        if is_shared { REFUSE } else { ACCEPT },
    ])?;
    bind(&socket, local, 0, true)?;
    Ok(socket)
}

/// A socket for GRE-in-UDP packets to one of our addresses, with `inner` as for [`gre`].
pub(super) fn gre_in_udp(local: IpAddr, inner: u32) -> io::Result<Socket> {
    let socket = open(domain(local), Type::DGRAM, IpProtocol::UDP.0.into())?;
    if local.is_ipv6() {
        socket.set_only_v6(true)?;
        set(&socket, libc::IPPROTO_UDP, UDP_NO_CHECK6_RX, &1_i32)?;
    }
    let [from, is, refuse] = unless_from(inner);
    socket.attach_filter(&[from, is, refuse, ACCEPT])?;
    bind(&socket, local, GRE_IN_UDP_PORT, false)?;
    Ok(socket)
}

/// A socket for ICMP messages that may say that a packet was too big.
pub(super) fn errors(v6: bool) -> io::Result<Socket> {
    if v6 {
        let socket = open(Domain::IPV6, Type::RAW, IpProtocol::ICMPV6.0.into())?;
        // Bits that are set are kept out.
        let mut filter = [u32::MAX; 8];
        for kind in [PACKET_TOO_BIG, ICMPV6_UNREACHABLE] {
            filter[(kind / 32) as usize] &= !(1 << (kind % 32));
        }
        set(&socket, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &filter)?;
        return Ok(socket);
    }
    let socket = open(Domain::IPV4, Type::RAW, IpProtocol::ICMP.0.into())?;
    set(&socket, SOL_RAW, ICMP_FILTER, &!(1_u32 << DESTINATION_UNREACHABLE))?;
    Ok(socket)
}

/// A socket to send IP packets with, headers and all.
pub(super) fn packets(v6: bool) -> io::Result<Socket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = open(domain, Type::RAW, libc::IPPROTO_RAW)?;
    let (level, name) = match v6 {
        true => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
        false => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
    };
    set(&socket, level, name, &PMTUDISC_INTERFACE)?;
    Ok(socket)
}

/// Sends an IP packet.
pub(super) fn send_packet(socket: &Socket, packet: &[u8], remote: IpAddr) -> io::Result<()> {
    socket.send_to(packet, &SocketAddr::new(remote, 0).into()).map(drop)
}

/// A socket to send frames out of an interface with. It receives nothing.
pub(super) fn frames(ifindex: u32) -> io::Result<Socket> {
    let socket = open(Domain::PACKET, Type::RAW, 0)?;
    socket.bind(&link_address(ifindex, 0)?)?;
    Ok(socket)
}

/// A socket to send frames out of any interface with. It receives nothing. To close one waits for a grace period of the
/// kernel.
pub(super) fn any_frames() -> io::Result<Socket> {
    open(Domain::PACKET, Type::RAW, 0)
}

/// Sends a frame out of an interface.
pub(super) fn send_frame(socket: &Socket, ifindex: u32, frame: &[u8]) -> io::Result<()> {
    socket.send_to(frame, &link_address(ifindex, 0)?).map(drop)
}

/// A socket for frames that an interface receives and that have no mark.
pub(super) fn unmarked(ifindex: u32) -> io::Result<Socket> {
    // With a protocol it would receive at once, from every interface, and without a filter.
    let socket = open(Domain::PACKET, Type::RAW, 0)?;
    let mark = statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, FILTER_MARK);
    socket.attach_filter(&[mark, unless_skip(0), ACCEPT, REFUSE])?;
    set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
    enlarge(&socket);
    socket.bind(&link_address(ifindex, libc::ETH_P_ALL as u16)?)?;
    Ok(socket)
}

fn link_address(ifindex: u32, protocol: u16) -> io::Result<SockAddr> {
    // SAFETY: any bits are a `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the storage is zeroed and has room for any address.
    unsafe { *storage.view_as::<libc::sockaddr_ll>() = address };
    // SAFETY: the storage holds an address of that length.
    Ok(unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as socklen_t) })
}

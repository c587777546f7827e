//! Outer packets that the kernel put together, or that have IP options: given to the datapath in a form that it
//! takes. The datapath judges them as any others.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mgre_common::wire::{IpProtocol, MacAddr};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use super::counters::Happening;
use super::limit::{Bucket, Rate};
use super::outer::{Header, frame, take_v4, udp_header};
use super::{PACKET_MOST, Pair, Shared, socket};

/// Packets of one of our addresses: what comes faster waits in the socket, and is lost there.
const RATE: Rate = Rate { every: Duration::from_micros(20), burst: 1024 };
/// How long there is no reading after that, or after an error.
const PAUSE: Duration = Duration::from_millis(5);
/// Room for what a socket says of a packet beside the packet, in words of eight bytes, by which it is aligned.
const CONTROL: usize = 32;

/// What a socket gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// GRE packets.
    Gre,
    /// GRE packets in UDP.
    GreInUdp,
}

/// Takes packets from a socket, for as long as it lives.
pub(super) struct Receiver {
    kind: Kind,
    local: IpAddr,
    /// Whether GRE of no peer's for that address is the kernel's: then there may be much of it, that concerns us not.
    is_shared: bool,
    socket: AsyncFd<Socket>,
    /// Sends to the datapath.
    frames: Socket,
    /// Those of the end where that arrives, and of the one that it leaves by.
    macs: [MacAddr; 2],
    shared: Shared,
}

/// A packet of a socket: its bytes stand in a buffer.
struct Datagram {
    length: usize,
    from: Option<SocketAddr>,
    ttl: Option<u8>,
    tos: u8,
}

impl Receiver {
    /// Opens the sockets.
    pub(super) fn new(
        kind: Kind,
        local: IpAddr,
        is_shared: bool,
        pair: Pair,
        shared: Shared,
    ) -> io::Result<Self> {
        let Pair { inner, outer } = pair;
        let socket = match kind {
            Kind::Gre => socket::gre(local, is_shared, inner.0)?,
            Kind::GreInUdp => socket::gre_in_udp(local, inner.0)?,
        };
        let (socket, frames) = (super::readable(socket)?, socket::frames(outer.0)?);
        Ok(Self { kind, local, is_shared, socket, frames, macs: [inner.1, outer.1], shared })
    }

    pub(super) async fn run(self) {
        let mut buffer = vec![0; PACKET_MOST];
        let mut bucket = Bucket::new(Instant::now());
        loop {
            match self.socket.async_io(Interest::READABLE, |socket| receive(socket, &mut buffer)).await {
                Ok(datagram) => self.take(&datagram, &buffer[..datagram.length]),
                Err(error) => {
                    tracing::debug!(%error, "cannot receive from {}", self.local);
                    sleep(PAUSE).await;
                }
            }
            while !bucket.take(RATE, Instant::now()) {
                sleep(PAUSE).await;
            }
        }
    }

    fn take(&self, datagram: &Datagram, bytes: &[u8]) {
        let Some((header, udp, payload)) = self.header(datagram, bytes) else {
            self.shared.counters.count(Happening::Refused);
            return;
        };
        let known = self.shared.known.borrow();
        if self.is_shared && !known.is_peers(header.remote, header.local, payload) {
            // Of GRE the kernel has it, too; of GRE in UDP nobody.
            if self.kind == Kind::GreInUdp {
                self.shared.counters.count(Happening::Refused);
            }
            return;
        }
        if !known.is_peer(header.remote, header.local) {
            self.shared.counters.count(Happening::Refused);
            return;
        }
        drop(known);
        self.shared.counters.count(Happening::Reassembled);
        let frame = match udp {
            None => frame(self.macs, &header, [&[], payload]),
            Some(port) => {
                udp_header(&header, port, payload).and_then(|udp| frame(self.macs, &header, [&udp, payload]))
            }
        };
        let sent = frame.ok_or(io::ErrorKind::InvalidInput.into()).and_then(|frame| self.frames.send(&frame));
        self.shared.counters.count(match sent {
            Ok(_) => Happening::Reinjected,
            Err(error) => {
                tracing::debug!(%error, "cannot give a packet to the datapath");
                Happening::Refused
            }
        });
    }

    /// The IP header, the source port of a UDP header, and what stands behind both.
    fn header<'a>(&self, datagram: &Datagram, bytes: &'a [u8]) -> Option<(Header, Option<u16>, &'a [u8])> {
        if self.kind == Kind::Gre && self.local.is_ipv4() {
            let (header, payload) = take_v4(bytes)?;
            return Some((header, None, payload));
        }
        let from = datagram.from?;
        let (protocol, port) = match self.kind {
            Kind::Gre => (IpProtocol::GRE, None),
            Kind::GreInUdp => (IpProtocol::UDP, Some(from.port())),
        };
        let header = Header {
            remote: from.ip(),
            local: self.local,
            tos: datagram.tos,
            // Without it a packet could go round for ever.
            ttl: datagram.ttl?,
            protocol,
            dont_fragment: false,
        };
        Some((header, port, bytes))
    }
}

fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<Datagram> {
    let mut control = [0_u64; CONTROL];
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(bytemuck::cast_slice_mut(&mut control)),
        flags,
    )?;
    let mut datagram =
        Datagram { length: message.bytes, from: message.address.and_then(from), ttl: None, tos: 0 };
    // A packet of which not everything was said is one without a TTL.
    for said in message.cmsgs().into_iter().flatten() {
        match said {
            ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => {
                datagram.ttl = u8::try_from(ttl).ok();
            }
            ControlMessageOwned::Ipv4Tos(tos) => datagram.tos = tos,
            ControlMessageOwned::Ipv6TClass(class) => datagram.tos = class as u8,
            _ => {}
        }
    }
    Ok(datagram)
}

fn from(address: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::V4(SocketAddrV4::from(*address)));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::V6(SocketAddrV6::from(*address))))
}

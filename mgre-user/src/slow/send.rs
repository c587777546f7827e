//! Outer packets that the datapath cannot send, because they must be cut.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::time::Duration;

use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use super::counters::Happening;
use super::fragment::cut;
use super::outer::sent;
use super::{PACKET_MOST, Shared, read, socket};

/// How long there is no reading after an error.
const PAUSE: Duration = Duration::from_millis(5);

/// Sends what comes out of the pair, for as long as it lives.
pub(super) struct Cutter {
    frames: AsyncFd<Socket>,
    v4: Socket,
    /// None in a host without IPv6.
    v6: Option<Socket>,
    /// Of the next packet. RFC 7739 5.2: a counter that begins anywhere.
    identification: u32,
    shared: Shared,
}

impl Cutter {
    /// Opens the sockets; `ifindex` is the end that packets come out of.
    pub(super) fn new(ifindex: u32, shared: Shared) -> io::Result<Self> {
        let frames = super::readable(socket::unmarked(ifindex)?)?;
        let identification = RandomState::new().hash_one(0) as u32;
        let v6 = socket::packets(true);
        if let Err(error) = &v6 {
            tracing::debug!(%error, "no IPv6 packets can be sent in fragments");
        }
        Ok(Self { frames, v4: socket::packets(false)?, v6: v6.ok(), identification, shared })
    }

    pub(super) async fn run(mut self) {
        let mut buffer = vec![0; PACKET_MOST];
        loop {
            match self.frames.async_io(Interest::READABLE, |socket| read(socket, &mut buffer)).await {
                Ok(length) => {
                    let done = self.send(&buffer[..length]);
                    self.shared.counters.count(match done {
                        Some(()) => Happening::Fragmented,
                        None => Happening::Refused,
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot receive from the datapath");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// None if it is no packet of ours, has no way, or a part of it could not be sent.
    fn send(&mut self, frame: &[u8]) -> Option<()> {
        let sent = sent(frame)?;
        let mtu = self.shared.known.borrow().mtu(sent.remote, sent.local, sent.rest)?;
        self.identification = self.identification.wrapping_add(1);
        let socket = if sent.remote.is_ipv4() { &self.v4 } else { self.v6.as_ref()? };
        for packet in cut(sent.packet, mtu, self.identification)? {
            if let Err(error) = socket::send_packet(socket, &packet, sent.remote) {
                tracing::debug!(%error, "cannot send a fragment to {}", sent.remote);
                return None;
            }
        }
        Some(())
    }
}

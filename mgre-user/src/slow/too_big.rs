//! Tells senders that their packets are too big.

use std::io;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use mgre_common::event::TooBig;
use mgre_common::target::{Mark, Target};
use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::yield_now;

use super::counters::{Counters, Happening};
use super::icmp::{Oversize, Sender};
use super::limit::{Limit, Rate};
use super::{Pair, socket};

/// What one sender is told: each of its flows needs to know.
const EACH: Rate = Rate { every: Duration::from_millis(50), burst: 16 };
/// What all are told together.
const ALL: Rate = Rate { every: Duration::from_millis(1), burst: 256 };
/// Events taken in one go.
const BATCH: usize = 64;

/// Takes the datapath's word for it, for as long as it lives.
pub(super) struct Teller {
    ring: AsyncFd<RingBuf<MapData>>,
    pair: watch::Receiver<Option<Pair>>,
    /// Sends into the pair, and the interface that it sends out of.
    frames: Option<(u32, Socket)>,
    limit: Limit<Sender>,
    counters: Counters,
}

impl Teller {
    /// # Errors
    /// The ring cannot be waited for.
    pub(super) fn new(
        ring: RingBuf<MapData>,
        pair: watch::Receiver<Option<Pair>>,
        counters: Counters,
    ) -> io::Result<Self> {
        // SAFETY: the ring owns its descriptor, which stays open and the same until the
        // `AsyncFd` has let go of it and is dropped.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| error.into_parts().1)?;
        Ok(Self { ring, pair, frames: None, limit: Limit::new(EACH, ALL, Instant::now()), counters })
    }

    pub(super) async fn run(mut self) {
        loop {
            if let Err(error) = self.ring.readable().await.map(drop) {
                tracing::error!(%error, "cannot wait for the datapath; no sender is told that its packets are too big");
                return;
            }
            for _ in 0..BATCH {
                let Some(item) = self.ring.get_mut().next() else {
                    self.rest();
                    break;
                };
                let event = bytemuck::try_pod_read_unaligned::<TooBig>(&item);
                drop(item);
                match event {
                    Ok(event) => {
                        let told = self.tell(&event).is_some();
                        let happening = if told { Happening::IcmpSent } else { Happening::IcmpSuppressed };
                        self.counters.count(happening);
                    }
                    Err(error) => tracing::error!(%error, "an event of the wrong size"),
                }
            }
            yield_now().await;
        }
    }

    /// The ring was empty when it was looked at last. What came since wakes again.
    fn rest(&mut self) {
        if let Some(Ok(mut ready)) = futures::FutureExt::now_or_never(self.ring.readable()) {
            ready.clear_ready();
        }
    }

    fn tell(&mut self, event: &TooBig) -> Option<()> {
        let head = &event.head;
        let captured = event.bytes.get(..head.captured as usize)?;
        let oversize = Oversize::new(captured)?;
        if !self.limit.take(oversize.sender(), Instant::now()) {
            return None;
        }
        let frame = oversize.answer(head.mtu, head.tag);
        let mark = Mark { target: Target::from_bits(head.source), hops: u8::MAX };
        let sent = self.socket().and_then(|socket| {
            socket.set_mark(mark.to_bits())?;
            socket.send(&frame)
        });
        match sent {
            Ok(_) => Some(()),
            Err(error) => {
                tracing::debug!(%error, "cannot tell a sender that its packet is too big");
                // The interface may be another by now.
                self.frames = None;
                None
            }
        }
    }

    fn socket(&mut self) -> io::Result<&Socket> {
        let pair = *self.pair.borrow();
        let ifindex = pair.ok_or(io::ErrorKind::NotFound)?.outer.0;
        let socket = match self.frames.take().filter(|(there, _)| *there == ifindex) {
            Some((_, socket)) => socket,
            None => socket::frames(ifindex)?,
        };
        Ok(&self.frames.insert((ifindex, socket)).1)
    }
}

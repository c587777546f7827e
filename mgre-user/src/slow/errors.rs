//! Takes ICMP messages that say that a packet was too big, or that there was no way for it.

use std::io;
use std::time::Duration;

use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::counters::Happening;
use super::outer::take_v4;
use super::quote::{Said, is_about_path, read_v4, read_v6};
use super::{Shared, read, socket};

/// The longest message that is looked at; one that is longer has a wrong checksum then.
const MESSAGE_MOST: usize = 4096;
/// How long there is no reading after an error.
const PAUSE: Duration = Duration::from_millis(5);

/// Tells the engine of them, for as long as it lives.
pub(super) struct Listener {
    v6: bool,
    socket: AsyncFd<Socket>,
    engine: mpsc::Sender<Said>,
    shared: Shared,
}

impl Listener {
    /// Opens a socket for one family.
    pub(super) fn new(v6: bool, engine: mpsc::Sender<Said>, shared: Shared) -> io::Result<Self> {
        let socket = super::readable(socket::errors(v6)?)?;
        Ok(Self { v6, socket, engine, shared })
    }

    pub(super) async fn run(self) {
        let mut buffer = vec![0; MESSAGE_MOST];
        loop {
            match self.socket.async_io(Interest::READABLE, |socket| read(socket, &mut buffer)).await {
                Ok(length) => self.take(&buffer[..length]),
                Err(error) => {
                    tracing::debug!(%error, "cannot receive ICMP");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn take(&self, bytes: &[u8]) {
        // A raw IPv4 socket gives the IP header too.
        let message = if self.v6 { Some(bytes) } else { take_v4(bytes).map(|(_, message)| message) };
        let Some(message) = message.filter(|message| is_about_path(self.v6, message)) else { return };
        let read = if self.v6 { read_v6 } else { read_v4 };
        let said = read(message, &self.shared.known.borrow());
        // The engine says whether it is news.
        let told = said.is_some_and(|said| self.engine.try_send(said).is_ok());
        if !told {
            self.shared.counters.count(Happening::IcmpIgnored);
        }
    }
}

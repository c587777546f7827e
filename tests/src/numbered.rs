//! Numbered frames from one host to another, of which each is to arrive once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Result, anyhow};

use crate::{
    capture::{Capture, Sender},
    packet::marked,
    spoke::Spoke,
    wait,
};

/// Between two frames.
const PAUSE: Duration = Duration::from_micros(200);
/// What a frame says before its number.
const MARK: &str = "numbered";

/// Frames that are on their way.
#[derive(Debug)]
pub struct Numbered {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<u64>>,
    capture: Capture,
}

/// What became of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrivals {
    /// How many were sent.
    pub sent: u64,
    /// How many of them did not arrive.
    pub lost: u64,
    /// How many arrived more than once.
    pub repeated: u64,
}

fn number(frame: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(frame.get(14..)?).ok()?;
    text.strip_prefix(MARK)?.trim_matches(|c: char| c == '\0' || c == ' ').parse().ok()
}

impl Numbered {
    /// Begins to send, from the host of one spoke to that of another. Both know the other's address already.
    ///
    /// # Errors
    /// There is no interface to send from.
    pub fn start(from: &Spoke, to: &Spoke) -> Result<Self> {
        let capture = Capture::start_where(&to.host, "eth0", |frame| number(frame).is_some())?;
        let sender = Sender::new(&from.host, "eth0")?;
        let (destination, source) = (to.host_mac(), from.host_mac());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sender = thread::spawn(move || {
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                sender.send(&marked(destination, source, &format!("{MARK} {sent}")))?;
                sent += 1;
                thread::sleep(PAUSE);
            }
            Ok(sent)
        });
        Ok(Self { stop, sender, capture })
    }

    /// Ends, and counts.
    ///
    /// # Errors
    /// A frame could not be sent.
    pub fn stop(self) -> Result<Arrivals> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| anyhow!("the sender panicked"))??;
        let last = sent.saturating_sub(1);
        // It may be the last one that is lost.
        wait::until("the last frame arrives", Duration::from_secs(1), || {
            Ok(self.capture.count(|frame| number(&frame.bytes) == Some(last)) > 0)
        })
        .ok();
        let mut arrived: BTreeMap<u64, u64> = BTreeMap::new();
        for frame in self.capture.stop() {
            if let Some(number) = number(&frame.bytes) {
                *arrived.entry(number).or_default() += 1;
            }
        }
        let repeated = arrived.values().filter(|times| **times > 1).count() as u64;
        Ok(Arrivals { sent, lost: sent - arrived.len() as u64, repeated })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{BROADCAST, UNKNOWN};

    #[test]
    fn frames_say_their_numbers() {
        assert_eq!(number(&marked(BROADCAST, UNKNOWN, "numbered 1234")), Some(1234));
        assert_eq!(number(&marked(BROADCAST, UNKNOWN, "other 1234")), None);
        assert_eq!(number(&[]), None);
    }
}

//! 64-byte frames: how many a second arrive, from a generator on one CPU.
//!
//! The generator's frames leave h1 as XDP frames do and become socket buffers where they arrive at the next interface.
//! The kernel then carries each batch the whole way on the generator's CPU before the next one, so this measures what a
//! frame costs, end to end; no second CPU helps.
//!
//! GRO is off meanwhile: such frames do not merge, and to find that out is not forwarding.

use std::{
    io::ErrorKind,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nametoindex;

use super::{
    assemble,
    bpf::{Counter, Hook, Kind, Link, Program},
    contestant::{Contestant, host_ip, host_mac},
    frame, machine,
    measure::Sample,
    stop,
};

/// How many frames the kernel handles at once; a driver's usual NAPI budget.
const BATCH: u32 = 64;
/// How many are sent between looks at the clock.
const CHUNK: u32 = 256 * BATCH;
/// The most in one round, should the clock stand still.
const MAX_FRAMES: u64 = 1 << 28;
/// How long the last frames may be under way.
const DRAIN: Duration = Duration::from_millis(50);

/// The generator in h1 and the sink in h2.
#[derive(Debug)]
pub struct Probe {
    generator: Program,
    sent: Counter,
    delivered: Counter,
    _sink: Link,
    _entrance: Link,
    frame: Vec<u8>,
}

impl Probe {
    /// Loads both.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(contestant: &Contestant) -> Result<Self> {
        let (sent, delivered) = (Counter::new()?, Counter::new()?);
        let generator = contestant.host(1).enter(|| -> Result<Program> {
            let ifindex = if_nametoindex("eth0")?;
            Program::load(Kind::Xdp, &assemble::generator(sent.fd(), ifindex))
        })??;
        let sink = contestant.host(2).enter(|| -> Result<Link> {
            Program::load(Kind::Classifier, &assemble::sink(delivered.fd()))?.attach(Hook::TcxIngress, "eth0")
        })??;
        let (netns, interface) = contestant.beside_h1();
        let entrance =
            netns.enter(|| Program::load(Kind::Xdp, &assemble::pass())?.attach(Hook::Xdp, interface))??;
        let host = |number| (host_mac(number), host_ip(number));
        Ok(Self {
            generator,
            sent,
            delivered,
            _sink: sink,
            _entrance: entrance,
            frame: frame::frame(host(1), host(2))?,
        })
    }

    /// One round.
    ///
    /// # Errors
    /// No frame arrived, some were flooded, or the kernel refuses.
    pub fn measure(&self, contestant: &Contestant, time: Duration) -> Result<Sample> {
        let flooded = contestant.teach()?;
        // The first frames warm the caches, and the kernel's pages.
        contestant.host(1).enter(|| self.send(Duration::from_millis(100)))??;
        thread::sleep(DRAIN);
        let before = (self.sent.read()?, self.delivered.read()?);
        let elapsed = contestant.host(1).enter(|| self.send(time))??;
        let sent = self.sent.read()? - before.0;
        thread::sleep(DRAIN);
        let delivered = self.delivered.read()? - before.1;
        contestant.check_unicast(flooded)?;
        ensure!(delivered > 0 && delivered <= sent, "{sent} frames sent, {delivered} arrived");
        let millions = |frames: u64| frames as f64 / elapsed.as_secs_f64() / 1e6;
        Ok(Sample { value: millions(delivered), sent: Some(millions(sent)), bytes_per_packet: None })
    }

    /// Sends for a while, on one CPU, and says how long that was.
    fn send(&self, time: Duration) -> Result<Duration> {
        machine::claim(machine::busy_cpu())?;
        let start = Instant::now();
        let mut chunks = MAX_FRAMES / u64::from(CHUNK);
        while start.elapsed() < time && chunks > 0 {
            stop::check()?;
            match self.generator.run_live(&self.frame, CHUNK, BATCH) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => other.context("cannot generate frames")?,
            }
            chunks -= 1;
        }
        Ok(start.elapsed())
    }
}

/// GRO is off while this lives.
#[derive(Debug)]
pub struct GroOff<'a>(&'a [Contestant]);

impl<'a> GroOff<'a> {
    /// Turns it off.
    ///
    /// # Errors
    /// ethtool's.
    pub fn new(contestants: &'a [Contestant]) -> Result<Self> {
        let this = Self(contestants);
        contestants.iter().try_for_each(|contestant| contestant.set_gro("off"))?;
        Ok(this)
    }
}

impl Drop for GroOff<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.iter().try_for_each(|contestant| contestant.set_gro("on")) {
            eprintln!("{error:#}");
        }
    }
}

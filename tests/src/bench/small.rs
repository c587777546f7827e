//! 64-byte frames: how many a second arrive, from a generator on one CPU.
//!
//! The generator hands the kernel frames as if the interface that h1 is plugged into had received them, as a driver does.
//! The kernel then carries each batch the whole way on the generator's CPU before the next one, so this measures what a
//! frame costs, end to end; no second CPU helps.
//!
//! GRO is off meanwhile: such frames do not merge, and to find that out is not forwarding.

use std::{
    io::ErrorKind,
    sync::atomic::{AtomicU32, Ordering},
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
    race::Sample,
    stop,
};

/// How many frames the kernel handles at once; a driver's usual NAPI budget.
const BATCH: u32 = 64;
/// How long one call of the generator takes at least: to begin and to end one costs the kernel some 20 ms, in which it
/// waits and nothing is sent.
const CALL: Duration = Duration::from_millis(400);
/// Frames of the first call; each further one sends twice as many, until it takes long enough.
const FIRST_CALL: u32 = 256 * BATCH;
/// The most in one round, should the clock stand still.
const MAX_FRAMES: u64 = 1 << 28;
/// Long enough for a call to be as long as it should.
const WARM_UP: Duration = Duration::from_millis(1200);
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
    /// Frames of one call.
    call: AtomicU32,
}

impl Probe {
    /// Loads both.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(contestant: &Contestant) -> Result<Self> {
        let (sent, delivered) = (Counter::new()?, Counter::new()?);
        let generator = Program::load(Kind::Xdp, &assemble::generator(sent.fd()))?;
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
            call: AtomicU32::new(FIRST_CALL),
        })
    }

    /// One round.
    ///
    /// # Errors
    /// No frame arrived, some were flooded, or the kernel refuses.
    pub fn measure(&self, contestant: &Contestant, time: Duration) -> Result<Sample> {
        let flooded = contestant.teach()?;
        // The first frames warm the caches, and the kernel's pages.
        self.send_into(contestant, WARM_UP)?;
        thread::sleep(DRAIN);
        let before = (self.sent.read()?, self.delivered.read()?);
        let elapsed = self.send_into(contestant, time)?;
        let sent = self.sent.read()? - before.0;
        thread::sleep(DRAIN);
        let delivered = self.delivered.read()? - before.1;
        contestant.check_unicast(flooded)?;
        ensure!(delivered > 0 && delivered <= sent, "{sent} frames sent, {delivered} arrived");
        let millions = |frames: u64| frames as f64 / elapsed.as_secs_f64() / 1e6;
        Ok(Sample { value: millions(delivered), sent: Some(millions(sent)), ..Sample::default() })
    }

    /// Sends for a while into the interface that h1 is plugged into.
    fn send_into(&self, contestant: &Contestant, time: Duration) -> Result<Duration> {
        let (netns, interface) = contestant.beside_h1();
        netns.enter(|| self.send(if_nametoindex(interface)?, time))?
    }

    /// Sends for a while, on one CPU, and says how long that was.
    fn send(&self, ifindex: u32, time: Duration) -> Result<Duration> {
        machine::claim(machine::busy_cpu())?;
        let start = Instant::now();
        let mut left = MAX_FRAMES;
        while start.elapsed() < time && left > 0 {
            stop::check()?;
            let (call, frames) = (Instant::now(), self.call.load(Ordering::Relaxed));
            match self.generator.run_live(&self.frame, ifindex, frames, BATCH) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => other.context("cannot generate frames")?,
            }
            left = left.saturating_sub(frames.into());
            if call.elapsed() < CALL {
                self.call.store(frames * 2, Ordering::Relaxed);
            }
        }
        Ok(start.elapsed())
    }
}

/// GRO is off while this lives.
#[derive(Debug)]
pub struct GroOff<'a>(&'a [&'a Contestant]);

impl<'a> GroOff<'a> {
    /// Turns it off.
    ///
    /// # Errors
    /// ethtool's.
    pub fn new(contestants: &'a [&'a Contestant]) -> Result<Self> {
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

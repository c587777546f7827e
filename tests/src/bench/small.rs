//! 64-byte frames: how many a second arrive, from a generator on one CPU.
//!
//! The kernel carries each batch of the generator's frames the whole way on the generator's CPU before the next one, so
//! this measures what a frame costs, end to end; no second CPU helps. There are two entrances, and to each belongs a
//! sink:
//!
//! - [`Entrance::Stack`]: frames are handed to the kernel as if the interface that h1 is plugged into had received them
//!   and its driver had made socket buffers of them. An XDP program there would not see them. What arrives at h2 is
//!   counted where socket buffers pass.
//! - [`Entrance::Driver`]: frames leave h1 as XDP frames, so that the interface's driver receives them; where there is
//!   no XDP program that takes them, it makes socket buffers. What arrives at h2 is counted in its driver, and what was
//!   delivered past that, behind it.
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
    cpu, frame, machine,
    race::Sample,
    stop,
};
use crate::{netns::Netns, wait};

/// How many frames the kernel handles at once; a driver's usual NAPI budget.
const BATCH: u32 = 64;
/// How long one call of the generator takes at least: to begin and to end one costs the kernel some 20 ms, in which it
/// waits and nothing is sent.
const CALL: Duration = Duration::from_millis(400);
const CALL_OVERHEAD: Duration = Duration::from_millis(20);
/// Frames of the first call; the next ones are made as long as they should be.
const FIRST_CALL: u32 = 256 * BATCH;
/// How many times as long as the last one a call may be.
const MAX_GROWTH: f64 = 16.0;
/// The most in one round, should the clock stand still.
const MAX_FRAMES: u64 = 1 << 28;
/// The longest warm-up.
const WARM_UP_LIMIT: Duration = Duration::from_secs(3);
/// How long the last frames may be under way.
const DRAIN: Duration = Duration::from_millis(50);
/// How long mgre may take to see that an interface can be redirected to.
const EXPRESS_LIMIT: Duration = Duration::from_secs(5);
/// How many of an XDP contestant's frames must have been redirected by XDP. The rest is a moment's.
const EXPRESS_SHARE: f64 = 0.999;

/// Where the generator's frames go in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// Behind the driver of the interface beside h1, as socket buffers.
    Stack,
    /// Into that driver.
    Driver,
}

/// The generator in h1 and the sink in h2.
#[derive(Debug)]
pub struct Probe {
    entrance: Entrance,
    generator: Program,
    sent: Counter,
    /// What arrived at h2 in the driver, and what arrived behind it.
    delivered: [Counter; 2],
    _links: Vec<Link>,
    frame: Vec<u8>,
    /// Frames of one call.
    call: AtomicU32,
}

impl Probe {
    /// Loads both.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(contestant: &Contestant, entrance: Entrance) -> Result<Self> {
        let sent = Counter::new()?;
        let delivered = [Counter::new()?, Counter::new()?];
        let [h1, h2] = [contestant.host(1), contestant.host(2)];
        let beside = contestant.beside_h1();
        let sink = |kind, hook, counter: &Counter| {
            attach(h2, "eth0", kind, hook, &assemble::sink(kind, counter.fd()))
        };
        let pass = |(netns, interface)| attach(netns, interface, Kind::Xdp, Hook::Xdp, &assemble::pass());
        let mut links = vec![sink(Kind::Classifier, Hook::TcxIngress, &delivered[1])?];
        let ending = match entrance {
            Entrance::Stack => {
                links.push(pass(beside)?);
                assemble::pass()
            }
            Entrance::Driver => {
                links.push(sink(Kind::Xdp, Hook::Xdp, &delivered[0])?);
                // A veth polls, as it must to get frames from XDP, only beside an XDP program. h1 gets answers to
                // pings.
                links.push(pass((h1, "eth0"))?);
                let has_one = contestant.kind.is_xdp() || beside.0.name() == h2.name();
                if !has_one {
                    links.push(pass(beside)?);
                }
                assemble::redirect(h1.enter(|| if_nametoindex("eth0"))??)
            }
        };
        let generator = Program::load(Kind::Xdp, &assemble::generator(sent.fd(), &ending))?;
        let host = |number| (host_mac(number), host_ip(number));
        let frame = frame::frame(host(1), host(2))?;
        let call = AtomicU32::new(FIRST_CALL);
        Ok(Self { entrance, generator, sent, delivered, _links: links, frame, call })
    }

    /// One round.
    ///
    /// # Errors
    /// No frame arrived, some were flooded, some went another way than they should, or the kernel refuses.
    pub fn measure(&self, contestant: &Contestant, time: Duration) -> Result<Sample> {
        let flooded = contestant.teach()?;
        let express = self.entrance == Entrance::Driver && contestant.kind.is_xdp();
        if express {
            self.wait_express(contestant)?;
        }
        self.enter(contestant, |ifindex| self.warm_up(ifindex))?;
        thread::sleep(DRAIN);
        let redirected_before = if express { redirected(contestant)? } else { [0; 2] };
        let before = self.counts()?;
        let (elapsed, busy) = self.enter(contestant, |ifindex| self.send(ifindex, time))?;
        let sent = self.sent.read()? - before.0;
        thread::sleep(DRAIN);
        let after = self.counts()?.1;
        contestant.check_unicast(flooded)?;
        let delivered = after - before.1;
        ensure!(delivered > 0 && delivered <= sent, "{sent} frames sent, {delivered} arrived");
        if express {
            check_express(redirected_before, redirected(contestant)?, sent)?;
        }
        let millions = |frames: u64| frames as f64 / elapsed.as_secs_f64() / 1e6;
        let cpu_ns = Some(busy.as_secs_f64() * 1e9 / delivered as f64);
        Ok(Sample { value: millions(delivered), sent: Some(millions(sent)), cpu_ns, ..Sample::default() })
    }

    /// What was sent, and what arrived.
    fn counts(&self) -> Result<(u64, u64)> {
        Ok((self.sent.read()?, self.delivered[0].read()? + self.delivered[1].read()?))
    }

    /// Waits until frames go by XDP: the daemon looks now and then at what it may redirect to.
    fn wait_express(&self, contestant: &Contestant) -> Result<()> {
        let all_redirected = || {
            let before = redirected(contestant)?;
            self.enter(contestant, |ifindex| {
                Ok(self.generator.run_live(&self.frame, ifindex, BATCH, BATCH)?)
            })?;
            Ok(check_express(before, redirected(contestant)?, BATCH.into()).is_ok())
        };
        wait::until("frames go by XDP", EXPRESS_LIMIT, all_redirected).map(|_| ())
    }

    /// Calls a function where frames go in, with the interface's number.
    fn enter<T: Send>(
        &self,
        contestant: &Contestant,
        function: impl FnOnce(u32) -> Result<T> + Send,
    ) -> Result<T> {
        let (netns, interface) = match self.entrance {
            Entrance::Stack => contestant.beside_h1(),
            Entrance::Driver => (contestant.host(1), "eth0"),
        };
        netns.enter(|| {
            machine::claim(machine::busy_cpu())?;
            function(if_nametoindex(interface)?)
        })?
    }

    /// Warms the caches and the kernel's pages, and finds how many frames a call must have.
    fn warm_up(&self, ifindex: u32) -> Result<()> {
        let mut frames = self.call.load(Ordering::Relaxed);
        if frames != FIRST_CALL {
            // It was found in an earlier round: a short call will do.
            return self.call(ifindex, frames / 4).map(|_| ());
        }
        let start = Instant::now();
        let mut took = self.call(ifindex, frames)?;
        while took < CALL && start.elapsed() < WARM_UP_LIMIT {
            frames = next_call(frames, took);
            took = self.call(ifindex, frames)?;
        }
        self.call.store(frames, Ordering::Relaxed);
        Ok(())
    }

    /// Sends for a while, and says how long that was and how long CPUs were busy.
    fn send(&self, ifindex: u32, time: Duration) -> Result<(Duration, Duration)> {
        let (meter, start) = (cpu::Meter::start()?, Instant::now());
        let mut left = MAX_FRAMES;
        while start.elapsed() < time && left > 0 {
            stop::check()?;
            let frames = self.call.load(Ordering::Relaxed);
            let took = self.call(ifindex, frames)?;
            left = left.saturating_sub(frames.into());
            if took < CALL {
                self.call.store(next_call(frames, took), Ordering::Relaxed);
            }
        }
        Ok((start.elapsed(), meter.busy()?))
    }

    /// One call of the generator, and how long it took.
    fn call(&self, ifindex: u32, frames: u32) -> Result<Duration> {
        let start = Instant::now();
        match self.generator.run_live(&self.frame, ifindex, frames, BATCH) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => {
                other.context("cannot generate frames")?;
            }
        }
        Ok(start.elapsed())
    }
}

/// Frames that XDP programs redirected where they enter each switch, by the drivers' counts.
fn redirected(contestant: &Contestant) -> Result<[u64; 2]> {
    let [_, wan0] = contestant.middle();
    let [first, second] =
        [contestant.beside_h1(), wan0].map(|(netns, interface)| netns.xdp_redirected(interface));
    Ok([first?, second?])
}

/// Whether nearly all frames went by XDP through both switches.
fn check_express(before: [u64; 2], after: [u64; 2], sent: u64) -> Result<()> {
    let redirected = [after[0] - before[0], after[1] - before[1]];
    let all = redirected.iter().all(|count| *count as f64 >= sent as f64 * EXPRESS_SHARE);
    ensure!(all, "of {sent} frames XDP redirected {} in s1 and {} in s2", redirected[0], redirected[1]);
    Ok(())
}

/// How many frames a call needs, a little more than [`CALL`] long, if so many took that long.
fn next_call(frames: u32, took: Duration) -> u32 {
    let work = took.saturating_sub(CALL_OVERHEAD).as_secs_f64();
    let wanted = (CALL * 11 / 10).saturating_sub(CALL_OVERHEAD).as_secs_f64();
    let growth = if work > 0.0 { (wanted / work).min(MAX_GROWTH) } else { MAX_GROWTH };
    (f64::from(frames) * growth).ceil() as u32
}

fn attach(netns: &Netns, interface: &str, kind: Kind, hook: Hook, program: &[u64]) -> Result<Link> {
    netns.enter(|| Program::load(kind, program)?.attach(hook, interface))?
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_past_xdp_are_noticed() {
        assert!(check_express([5, 7], [1005, 1007], 1000).is_ok());
        let error = check_express([5, 7], [1005, 900], 1000).expect_err("too few in s2");
        assert_eq!(error.to_string(), "of 1000 frames XDP redirected 1000 in s1 and 893 in s2");
    }

    #[test]
    fn calls_become_as_long_as_they_should() {
        // A frame in a microsecond, and what a call costs.
        let took = |frames: u32| CALL_OVERHEAD + Duration::from_micros(frames.into());
        let mut frames = FIRST_CALL;
        for _ in 0..3 {
            frames = next_call(frames, took(frames));
        }
        assert!((CALL..CALL * 2).contains(&took(frames)), "{frames}");
        assert_eq!(next_call(100, Duration::ZERO), 1600);
    }
}

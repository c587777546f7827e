//! A peer that sends frames from as many addresses as it can think of, and what becomes of the others meanwhile.
//!
//! The peer is one that is configured, so its packets are taken. The others are two hosts with a TCP stream between
//! them that goes through the same spoke. Phases alternate: in one the peer sends frames from one address (the
//! *control*), in the other as many frames, as fast and as long, each from an address of its own. What the frames
//! themselves cost, and what it costs to make them on the same machine, is in both.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::{
    bench::stop,
    capture::Sender,
    daemon::Daemon,
    packet::{Mac, marked},
    topology::Spokes,
    wait,
};

/// The spoke that is attacked, the one that attacks, and another.
pub const VICTIM: u8 = 1;
/// The spoke that attacks: its packets are made by hand.
pub const ATTACKER: u8 = 2;
/// The spoke whose host the victim's host has a stream with.
pub const OTHER: u8 = 3;

/// Frames of a system call.
const BATCH: u64 = 64;
const PORT: u16 = 5001;
/// Bytes of the stream before the first phase.
const WARM_UP: u64 = 16 << 20;
/// What the stream's ends read and write at once.
const BUFFER: usize = 256 << 10;
/// Where the source address of the frame inside begins: behind Ethernet, IPv4, GRE with a key, and the destination.
const SOURCE_AT: usize = 14 + 20 + 8 + 6;

/// How to attack.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How often there is a phase of each kind.
    pub rounds: usize,
    /// Frames of each phase.
    pub frames: u64,
    /// Frames a second, if the machine can.
    pub rate: u64,
    /// Whether there are phases without frames, too.
    pub alone: bool,
}

/// What the peer does in a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing, for as long as frames would take.
    Alone,
    /// It sends from one address.
    Control,
    /// It sends each frame from another address.
    Attack,
}

/// A phase.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// What the peer did.
    pub kind: Kind,
    /// How long it took.
    pub time: Duration,
    /// Frames of the peer that arrived.
    pub arrived: u64,
    /// The stream between the others, in bits a second.
    pub stream: f64,
    /// CPU time of the victim's daemon.
    pub daemon: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// All phases, round by round.
    pub phases: Vec<Phase>,
    /// The daemon's memory before and after.
    pub memory: [Memory; 2],
}

impl Outcome {
    /// Phases of a kind.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Phase> {
        self.phases.iter().filter(move |phase| phase.kind == kind)
    }

    /// The stream while there were many addresses, over what it was in the same round while there was one.
    pub fn ratios(&self) -> impl Iterator<Item = f64> {
        self.over(Kind::Control)
    }

    /// The stream while there were many addresses, over what it was in the same round in a phase of this kind.
    pub fn over(&self, kind: Kind) -> impl Iterator<Item = f64> {
        self.of(Kind::Attack).zip(self.of(kind)).map(|(attack, other)| attack.stream / other.stream)
    }

    /// How many different addresses arrived.
    pub fn addresses(&self) -> u64 {
        self.of(Kind::Attack).map(|phase| phase.arrived).sum()
    }

    /// The daemon's CPU time in phases of a kind, over the time that they took.
    pub fn daemon_share(&self, kind: Kind) -> f64 {
        let sum = |what: fn(&Phase) -> Duration| self.of(kind).map(what).sum::<Duration>().as_secs_f64();
        sum(|phase| phase.daemon) / sum(|phase| phase.time).max(f64::MIN_POSITIVE)
    }
}

/// A process's memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All of it that is there, tables included that are mapped.
    pub resident: u64,
    /// Of it what is its own.
    pub anonymous: u64,
}

impl Memory {
    /// A daemon's.
    ///
    /// # Errors
    /// It does not run.
    pub fn of(daemon: &Daemon) -> Result<Self> {
        let pid = daemon.pid().context("the daemon does not run")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = |name: &str| -> Result<u64> {
            let rest = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
            let kib: u64 = rest.split_whitespace().next().context("no number")?.parse()?;
            Ok(kib * 1024)
        };
        Ok(Self { resident: line("VmRSS:")?, anonymous: line("RssAnon:")? })
    }
}

/// The CPU time that a daemon has had. Good to 10 ms.
///
/// # Errors
/// It does not run.
pub fn cpu_time(daemon: &Daemon) -> Result<Duration> {
    let pid = daemon.pid().context("the daemon does not run")?;
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may hold anything: the times are the 14th and 15th field of all.
    let fields: Vec<&str> = text.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
    let ticks: u32 =
        fields.get(11..13).context("no times")?.iter().flat_map(|field| field.parse::<u32>()).sum();
    Ok(Duration::from_millis(10) * ticks)
}

/// The address with this number; no two are the same.
pub fn address(number: u64) -> Mac {
    // An odd factor makes each number below 2^40 another one.
    let [_, _, _, rest @ ..] = number.wrapping_mul(0x9e37_79b9_7f4a_7c15 & 0xff_ffff_ffff).to_be_bytes();
    let mut mac = [0x06; 6];
    mac[1..].copy_from_slice(&rest);
    mac
}

/// Frames of the hostile peer, ready to be sent.
struct Attacker {
    sender: Sender,
    packets: Vec<Vec<u8>>,
    rate: u64,
    /// Addresses used so far.
    used: u64,
}

impl Attacker {
    fn new(spokes: &Spokes, rate: u64) -> Result<Self> {
        let victim = spokes.spoke(VICTIM);
        let inner = marked(victim.host_mac(), address(0), "hostile");
        let packet = spokes.outer(ATTACKER, VICTIM).frame(&inner)?;
        ensure!(packet[SOURCE_AT..].starts_with(&address(0)), "the source address is elsewhere");
        Ok(Self {
            sender: Sender::new(&spokes.core, &format!("s{VICTIM}"))?,
            packets: vec![packet; BATCH as usize],
            rate,
            used: 0,
        })
    }

    /// Sends so many frames, each from an address of its own if there are to be many.
    fn send(&mut self, frames: u64, many: bool) -> Result<()> {
        let start = Instant::now();
        let mut sent = 0;
        while sent < frames {
            for packet in &mut self.packets {
                if many {
                    self.used += 1;
                }
                let source = if many { address(self.used) } else { address(0) };
                packet[SOURCE_AT..SOURCE_AT + 6].copy_from_slice(&source);
            }
            self.sender.send_all(&self.packets)?;
            sent += BATCH;
            let due = Duration::from_secs_f64(sent as f64 / self.rate as f64);
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
        Ok(())
    }
}

/// A TCP stream from one host to another, as fast as it goes.
struct Stream<'a> {
    received: &'a AtomicU64,
    over: &'a AtomicBool,
}

impl Stream<'_> {
    fn receive(&self, listener: &TcpListener) -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut buffer = vec![0; BUFFER];
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                bytes => self.received.fetch_add(bytes as u64, Ordering::Relaxed),
            };
        }
    }

    fn send(&self, mut stream: TcpStream) -> Result<()> {
        let buffer = vec![0; BUFFER];
        while !self.over.load(Ordering::Relaxed) {
            stream.write_all(&buffer)?;
        }
        Ok(())
    }
}

/// Attacks.
///
/// # Errors
/// The stream does not go, or frames do not arrive.
pub fn attack(spokes: &Spokes, plan: Plan) -> Result<Outcome> {
    let (victim, other) = (spokes.spoke(VICTIM), spokes.spoke(OTHER));
    let listener = victim.host.enter(|| TcpListener::bind((victim.host_ipv4(), PORT)))??;
    let stream = other.host.enter(|| TcpStream::connect((victim.host_ipv4(), PORT)))??;
    let (received, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let ends = Stream { received: &received, over: &over };
    thread::scope(|scope| {
        let receiver = scope.spawn(|| ends.receive(&listener));
        let sender = scope.spawn(|| ends.send(stream));
        let outcome = phases(spokes, plan, &received);
        over.store(true, Ordering::Relaxed);
        for end in [sender, receiver] {
            end.join().map_err(|_| anyhow!("an end of the stream panicked"))?.context("the stream")?;
        }
        outcome
    })
}

fn phases(spokes: &Spokes, plan: Plan, received: &AtomicU64) -> Result<Outcome> {
    let victim = spokes.spoke(VICTIM);
    let mut attacker = Attacker::new(spokes, plan.rate)?;
    wait::until("the stream goes", wait::SOON, || Ok(received.load(Ordering::Relaxed) > WARM_UP))?;
    attacker.send(plan.frames / 4, false)?;
    let mut outcome = Outcome::default();
    outcome.memory[0] = Memory::of(&victim.daemon)?;
    let mut kinds = vec![Kind::Control, Kind::Attack];
    if plan.alone {
        kinds.push(Kind::Alone);
    }
    for _ in 0..plan.rounds {
        // In turns, so that what grows or shrinks with time is in all.
        kinds.rotate_left(1);
        for kind in &kinds {
            stop::check()?;
            let arrived = || -> Result<u64> {
                victim.peer(&format!("spoke{ATTACKER}"))?["rx_packets"].as_u64().context("no count")
            };
            let (frames, daemon) = (arrived()?, cpu_time(&victim.daemon)?);
            let (bytes, start) = (received.load(Ordering::Relaxed), Instant::now());
            match kind {
                Kind::Alone => thread::sleep(Duration::from_secs_f64(plan.frames as f64 / plan.rate as f64)),
                Kind::Control => attacker.send(plan.frames, false)?,
                Kind::Attack => attacker.send(plan.frames, true)?,
            }
            let (time, bytes) = (start.elapsed(), received.load(Ordering::Relaxed) - bytes);
            outcome.phases.push(Phase {
                kind: *kind,
                time,
                stream: bytes as f64 * 8.0 / time.as_secs_f64(),
                daemon: cpu_time(&victim.daemon)?.saturating_sub(daemon),
                arrived: arrived()? - frames,
            });
        }
    }
    outcome.memory[1] = Memory::of(&victim.daemon)?;
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn addresses_are_many_and_of_stations() {
        let all: HashSet<Mac> = (0..100_000).map(address).collect();
        assert_eq!(all.len(), 100_000);
        assert!(all.iter().all(|mac| mac[0] == 0x06));
    }
}

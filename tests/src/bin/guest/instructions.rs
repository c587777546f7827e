//! What a frame costs, in instructions.
//!
//! In a virtual machine whose clock counts instructions (qemu's `-icount shift=0,sleep=off`) the time that frames take
//! on the one CPU is the number of instructions that were executed for them, whatever the machine underneath is doing.
//! The sender and the veth pairs are part of it, and the same for all. There are two senders:
//!
//! - a packet socket, whose frames are socket buffers from the start, so that XDP must make buffers of its own of them;
//! - the driver's side of the veth pair, as a card's frames come in: as buffers of XDP, of which the driver makes
//!   socket buffers where no program takes them.

mod contestant;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use mgre_tests::{
    battery::{
        report::{Report, Verdict},
        station::Station,
    },
    bench::frame,
    capture::Sender,
    packet::Datagram,
};

use self::contestant::{Contestant, Entrance, Kind, Made};

/// Frames of a measurement.
const FRAMES: usize = 20_000;
/// Frames of one system call: fewer than a veth's ring has room for.
const BATCH: usize = 32;
/// Frames that the kernel handles at once where they come from the driver's side: a driver's usual budget.
const BUDGET: u32 = 64;
/// Measurements of a contestant that must agree, one after the other.
const ROUNDS: usize = 3;
/// How many are made at most: daemons (a switch's, the kernel's threads) do something of their own now and then.
const MOST_ROUNDS: usize = 12;
/// How far apart the measurements of one may be.
const MOST_SPREAD: f64 = 0.01;
/// How long after an interface is up the kernel may leave it without a queue (`linkwatch`), and bridges without ports.
const LINK_WATCH: Duration = Duration::from_secs(3);
/// A frame's length.
const LENGTH: usize = 60;
/// What all are compared with.
const REFERENCE: Kind = Kind::Gretap;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only contestants with this in their name; may be repeated
    #[arg(long, value_name = "SUBSTRING")]
    only: Vec<String>,
    /// Frames of a measurement
    #[arg(long, value_name = "N", default_value_t = FRAMES)]
    frames: usize,
}

pub(crate) fn run(report: &mut Report, arguments: &Arguments) {
    let name = "instructions per frame";
    match counts_instructions() {
        Ok(()) => {}
        Err(error) => {
            report.record(name, &Verdict::Skip(format!("{error:#}")));
            return;
        }
    }
    for entrance in Entrance::ALL {
        let name = format!("{name} from {}", entrance.name());
        let figures = race(report, &name, entrance, arguments);
        report.context(&table(&format!("from {}", entrance.name()), &figures));
    }
}

/// Measures each of them, and returns those that were measured.
fn race(report: &mut Report, name: &str, entrance: Entrance, arguments: &Arguments) -> Vec<(Kind, f64)> {
    let mut figures = Vec::new();
    for kind in Kind::ALL {
        let wanted = |part: &String| kind.name().contains(part.as_str());
        if !arguments.only.is_empty() && !arguments.only.iter().any(wanted) {
            continue;
        }
        let name = format!("{name}: {}", kind.name());
        match measure(kind, entrance, arguments.frames) {
            Ok(Measured::Missing(why)) => {
                report.record(&name, &Verdict::Skip(why));
            }
            Ok(Measured::Rounds(rounds)) => {
                let (least, most) = rounds
                    .iter()
                    .fold((f64::MAX, 0_f64), |(least, most), round| (least.min(*round), most.max(*round)));
                let spread = (most - least) / least;
                let median = median(&rounds);
                let detail = format!("{median:.0} ({ROUNDS} rounds, spread {:.2} %)", spread * 100.0);
                if report.record(&name, &Verdict::when(spread <= MOST_SPREAD, detail)) {
                    figures.push((kind, median));
                }
            }
            Err(error) => {
                report.check(&name, Err(error.context("INVALID")));
            }
        }
    }
    figures
}

/// Whether a nanosecond is an instruction here, and nothing else runs at the same time.
fn counts_instructions() -> Result<()> {
    const LOOPS: u64 = 1_000_000;
    let cpus = thread::available_parallelism()?.get();
    ensure!(cpus == 1, "it is measured on one CPU, and there are {cpus}");
    let took = (0..5)
        .map(|_| {
            let start = Instant::now();
            let instructions = spin(LOOPS)?;
            Some(start.elapsed().as_nanos() as f64 / instructions as f64)
        })
        .collect::<Option<Vec<_>>>()
        .context("it is not known how many instructions a loop is on this kind of CPU")?;
    let took = median(&took);
    ensure!(
        (took - 1.0).abs() < 0.03,
        "a nanosecond is no instruction here (an instruction takes {took:.3} ns): run it in a virtual machine with \
         -icount shift=0,sleep=off"
    );
    Ok(())
}

/// Runs a loop, and says how many instructions it was.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn spin(loops: u64) -> Option<u64> {
    // SAFETY: the loop changes the one register that it is told it may, and the flags.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("2:", "dec {0}", "jnz 2b", inout(reg) loops => _);
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("2:", "subs {0}, {0}, #1", "b.ne 2b", inout(reg) loops => _);
    }
    Some(2 * loops)
}

/// Runs a loop, and says how many instructions it was, if that is known.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn spin(_loops: u64) -> Option<u64> {
    None
}

/// What came of a contestant.
enum Measured {
    /// Something is missing here.
    Missing(String),
    /// Instructions per frame, of each round.
    Rounds(Vec<f64>),
}

fn measure(kind: Kind, entrance: Entrance, frames: usize) -> Result<Measured> {
    let contestant = match Contestant::build(kind, entrance)? {
        Made::Contestant(contestant) => contestant,
        Made::Missing(why) => return Ok(Measured::Missing(why)),
    };
    thread::sleep(LINK_WATCH);
    let [one, two] = contestant.lab.stations();
    let ends = [one, two].map(|station| (station.mac(), station.ipv4().into()));
    let ports = (4000, frame::UDP_PORT);
    let frame = Datagram { length: LENGTH - 14, ports, ..Datagram::new(ends[0], ends[1]) }.frame()?;
    ensure!(frame.len() == LENGTH, "a frame of {} bytes", frame.len());
    contestant.introduce(&frame)?;
    let batches = frames.div_ceil(BATCH.max(BUDGET as usize));
    let frames = batches * BATCH.max(BUDGET as usize);
    let socket = Socket::new(one, frame.clone())?;
    let round = |frames: usize| match entrance {
        Entrance::Socket => socket.send(frames),
        Entrance::Driver => contestant.generate(&frame, u32::try_from(frames)?, BUDGET),
    };
    round(frames / 4)?;
    let mut rounds: Vec<f64> = Vec::new();
    while rounds.len() < ROUNDS
        || (rounds.len() < MOST_ROUNDS && spread(&rounds[rounds.len() - ROUNDS..]) > MOST_SPREAD)
    {
        let before = contestant.delivered()?;
        let nanoseconds = round(frames)?;
        let delivered = contestant.delivered()? - before;
        ensure!(
            delivered >= frames as u64,
            "{delivered} of {frames} frames were delivered: a path that drops looks cheap"
        );
        // A frame or two of somebody else (ARP) do no harm; a flood would.
        ensure!(
            delivered < frames as u64 + 50,
            "{delivered} frames were delivered of {frames} that were sent"
        );
        rounds.push(nanoseconds);
    }
    contestant.check()?;
    Ok(Measured::Rounds(rounds))
}

/// The packet socket that sends.
struct Socket {
    sender: Sender,
    batch: Vec<Vec<u8>>,
}

impl Socket {
    fn new(station: Station<'_>, frame: Vec<u8>) -> Result<Self> {
        let sender = Sender::new(station.netns, station.interface)?;
        sender.bypass_qdisc()?;
        Ok(Self { sender, batch: vec![frame; BATCH] })
    }

    /// Sends so many frames, and says how long that took for each, in ns.
    fn send(&self, frames: usize) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..frames / BATCH {
            self.sender.send_all(&self.batch)?;
        }
        // Whatever is left to be done is done by the kernel's own threads, which get the CPU now.
        for _ in 0..4 {
            thread::yield_now();
        }
        Ok(start.elapsed().as_nanos() as f64 / frames as f64)
    }
}

/// How far apart values are, as a share of the least.
fn spread(values: &[f64]) -> f64 {
    let least = values.iter().copied().fold(f64::MAX, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    (most - least) / least
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn table(title: &str, figures: &[(Kind, f64)]) -> String {
    let reference = figures.iter().find(|(kind, _)| *kind == REFERENCE).map(|(_, figure)| *figure);
    let mut text = format!("{title:<22} {:>12} {:>24}\n", "instructions", format!("of {}", REFERENCE.name()));
    for (kind, figure) in figures {
        let ratio =
            reference.map_or_else(|| "-".to_owned(), |reference| format!("{:.3}", figure / reference));
        text += &format!("{:<22} {figure:>12.0} {ratio:>24}\n", kind.name());
    }
    text
}

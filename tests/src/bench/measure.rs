//! Rounds of a part, every contestant in each.

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use super::{
    bulk::{self, WireMode},
    contestant::{Contestant, Kind},
    latency,
    small::{GroOff, Probe},
    statistics::Spread,
    stop,
};

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// 64-byte frames from a generator
    Frames,
    /// Bulk TCP, superframes all the way
    Bulk,
    /// Bulk TCP, MTU-sized packets in the middle
    Wire,
    /// One byte back and forth over TCP
    Latency,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Frames, Self::Bulk, Self::Wire, Self::Latency];

    /// What heads its table.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Frames => "64-byte frames, known unicast, one CPU",
            Self::Bulk => "TCP bulk, one stream, superframes in the middle",
            Self::Wire => "TCP bulk, one stream, MTU-sized packets in the middle",
            Self::Latency => "TCP, one byte back and forth, one CPU",
        }
    }

    /// Its name in JSON.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Frames => "frames",
            Self::Bulk => "bulk",
            Self::Wire => "wire",
            Self::Latency => "latency",
        }
    }

    /// What its figures count; more is better in all.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Frames => "Mpps",
            Self::Bulk | Self::Wire => "Gbit/s",
            Self::Latency => "k/s",
        }
    }
}

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Rounds of each part.
    pub rounds: usize,
    /// Time of each measurement of 64-byte frames and of latency.
    pub time: Duration,
    /// Time of each measurement of TCP, in seconds.
    pub tcp_seconds: u32,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// The figure, in the part's unit.
    pub value: f64,
    /// What was sent for it, where that is more than what arrived.
    pub sent: Option<f64>,
    /// Mean length of what left the middle's first interface, where that tells something.
    pub bytes_per_packet: Option<f64>,
}

/// All rounds of a part.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which part.
    pub part: Part,
    /// A sample for each round.
    pub samples: Vec<(Kind, Vec<Sample>)>,
}

impl Outcome {
    /// What one contestant did, by round.
    pub fn of(&self, kind: Kind) -> Option<&[Sample]> {
        self.samples.iter().find(|(other, _)| *other == kind).map(|(_, samples)| &samples[..])
    }

    /// mgre's figure over another's of the same round.
    pub fn ratio_to(&self, other: Kind) -> Option<Spread> {
        let pairs = self.of(Kind::Mgre)?.iter().zip(self.of(other)?);
        Spread::of(pairs.map(|(mgre, other)| mgre.value / other.value))
    }

    /// What one frame costs on a contestant's way beyond what it costs on the direct one, in ns; of frames alone.
    pub fn beyond_direct_ns(&self, kind: Kind) -> Option<Spread> {
        if self.part != Part::Frames {
            return None;
        }
        let pairs = self.of(kind)?.iter().zip(self.of(Kind::Direct)?);
        Spread::of(pairs.map(|(one, direct)| 1e3 / one.value - 1e3 / direct.value))
    }
}

/// Measures a part, and tells of each step on standard error.
///
/// # Errors
/// A measurement failed.
pub fn measure(part: Part, contestants: &[Contestant], plan: Plan) -> Result<Outcome> {
    let probes = match part {
        Part::Frames => contestants.iter().map(Probe::new).collect::<Result<Vec<_>>>()?,
        _ => Vec::new(),
    };
    let _gro_off = (part == Part::Frames).then(|| GroOff::new(contestants)).transpose()?;
    let _wire_mode = (part == Part::Wire).then(|| WireMode::new(contestants)).transpose()?;
    let mut samples: Vec<(Kind, Vec<Sample>)> =
        contestants.iter().map(|one| (one.kind, Vec::new())).collect();
    for round in 0..plan.rounds {
        // Another one begins each time, so that no one always has the same one before it.
        for turn in 0..contestants.len() {
            stop::check()?;
            let index = (round + turn) % contestants.len();
            let contestant = &contestants[index];
            let sample = match part {
                Part::Frames => probes[index].measure(contestant, plan.time),
                Part::Bulk => bulk::measure(contestant, plan.tcp_seconds, false),
                Part::Wire => bulk::measure(contestant, plan.tcp_seconds, true),
                Part::Latency => latency::measure(contestant, plan.time),
            };
            let title = contestant.kind.title();
            let sample = sample.with_context(|| format!("{}: {title}", part.title()))?;
            eprintln!(
                "{:8} round {}/{}  {title:24} {:8.3} {}",
                part.key(),
                round + 1,
                plan.rounds,
                sample.value,
                part.unit()
            );
            samples[index].1.push(sample);
        }
    }
    Ok(Outcome { part, samples })
}

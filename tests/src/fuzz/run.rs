//! Frames without end, and what they came to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use mgre_ebpf::host::cases::End;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::Sample;
use super::generate::Generator;
use super::host::Host;
use super::minimise::minimise;
use super::worlds::{STANDARD, world};
use crate::model::flaw::Flaw;
use crate::model::{Input, Model, Prediction};

/// Frames in one network before the next one.
const IN_ONE_WORLD: u64 = 20_000;

/// How long to go on.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Runs of the pipeline, or of a program.
    pub executions: u64,
    /// Time.
    pub time: Duration,
}

/// What frames came to.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// Runs of the pipeline, or of a program.
    pub executions: u64,
    /// Frames made.
    pub frames: u64,
    /// Frames that the early hook finished.
    pub early: u64,
    /// Time.
    pub time: Duration,
    /// Frames by how they ended.
    pub ends: BTreeMap<&'static str, u64>,
    /// Drops by reason.
    pub reasons: BTreeMap<&'static str, u64>,
    /// Networks.
    pub worlds: u64,
    /// Copies whose bytes were looked at, of those that were sent.
    pub copies_seen: (u64, u64),
}

impl Statistics {
    /// Notes a frame.
    pub fn note(&mut self, prediction: &Prediction) {
        self.frames += 1;
        let outcome = &prediction.outcome;
        let end = match (outcome.end, outcome.outputs.len()) {
            (End::Passed, _) => "passed",
            (End::Dropped, _) => "dropped",
            (End::Sent, _) if outcome.flooded.is_some() => "flooded",
            (End::Sent, _) if outcome.outputs[0].mark != 0 => "to be finished",
            (End::Sent, _) if outcome.transmitted.keys().any(|to| to.is_adjacency()) => "into a tunnel",
            (End::Sent, _) => "to a port",
        };
        *self.ends.entry(end).or_default() += 1;
        for ((_, _, reason), times) in &outcome.drops {
            *self.reasons.entry(reason.name()).or_default() += times;
        }
        if outcome.answered.is_some() {
            *self.ends.entry("(answered)").or_default() += 1;
        }
        if !outcome.claims.is_empty() {
            *self.ends.entry("(claim reported)").or_default() += 1;
        }
        if !outcome.reports.is_empty() {
            *self.ends.entry("(address reported)").or_default() += 1;
        }
        if !outcome.too_big.is_empty() {
            *self.ends.entry("(too big, told)").or_default() += 1;
        }
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.executions += other.executions;
        self.frames += other.frames;
        self.early += other.early;
        self.time = self.time.max(other.time);
        self.worlds += other.worlds;
        self.copies_seen.0 += other.copies_seen.0;
        self.copies_seen.1 += other.copies_seen.1;
        for (name, count) in &other.ends {
            *self.ends.entry(name).or_default() += count;
        }
        for (name, count) in &other.reasons {
            *self.reasons.entry(name).or_default() += count;
        }
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.executions as f64 / self.time.as_secs_f64().max(0.001);
        writeln!(
            f,
            "{} executions in {:.1} s, {rate:.0} a second; {} frames in {} networks; {} finished by the early hook",
            self.executions,
            self.time.as_secs_f64(),
            self.frames,
            self.worlds,
            self.early
        )?;
        if self.copies_seen.1 > 0 {
            writeln!(
                f,
                "copies whose bytes were looked at: {} of {}",
                self.copies_seen.0, self.copies_seen.1
            )?;
        }
        for (title, numbers) in [("ends", &self.ends), ("drops", &self.reasons)] {
            write!(f, "{title}:")?;
            for (name, count) in numbers {
                write!(f, " {name} {:.3}%,", *count as f64 * 100.0 / self.frames.max(1) as f64)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// A difference, and a sample that shows it.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The smallest sample that shows it.
    pub sample: Sample,
    /// What differs.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sample { world, input } = &self.sample;
        let Input { entrance, bytes, segment_size, tag, moment } = input;
        writeln!(f, "network {world}, {entrance:x?}, segment size {segment_size}, tag {tag:x?}, {moment:?}")?;
        writeln!(f, "frame  {}", super::code::to_hex(bytes))?;
        writeln!(f, "sample {}", super::code::to_hex(&super::code::encode(&self.sample)))?;
        write!(f, "{}", self.what)
    }
}

fn model(number: u16, flaw: Option<Flaw>) -> Model {
    let model = Model::new(&world(number));
    match flaw {
        Some(flaw) => model.with_flaw(flaw),
        None => model,
    }
}

/// Runs one sample on the host, at both hooks.
///
/// # Errors
/// What differs.
pub fn check_on_host(sample: &Sample, flaw: Option<Flaw>) -> Result<Prediction, String> {
    let mut host = Host::new(&world(sample.world), model(sample.world, flaw));
    host.check(&sample.input, true)?;
    host.check(&sample.input, false)
}

/// Runs the pipeline on the host against the model, with a seed, until the budget is spent.
///
/// # Errors
/// A difference.
pub fn on_host(seed: u64, budget: Budget, flaw: Option<Flaw>) -> Result<Statistics, Box<Difference>> {
    let start = Instant::now();
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut statistics = Statistics::default();
    while statistics.executions < budget.executions && start.elapsed() < budget.time {
        let number = if statistics.worlds.is_multiple_of(4) { STANDARD } else { rng.random() };
        let description = world(number);
        let mut host = Host::new(&description, model(number, flaw));
        let generator = Generator::new(&description);
        statistics.worlds += 1;
        let left = budget.executions - statistics.executions;
        while host.executions < IN_ONE_WORLD.min(left) {
            let input = generator.input(&mut rng);
            match host.check(&input, rng.random()) {
                Ok(prediction) => statistics.note(&prediction),
                Err(what) => return Err(Box::new(smallest(Sample { world: number, input }, what, flaw))),
            }
        }
        statistics.executions += host.executions;
        statistics.early += host.early_finished;
        if let Some(address) = host.stray_age() {
            let input = generator.input(&mut rng);
            let what = format!("{address:?} has an age that it must not have, in network {number}");
            return Err(Box::new(Difference { sample: Sample { world: number, input }, what }));
        }
        if let Some(binding) = host.stray_binding() {
            let input = generator.input(&mut rng);
            let what = format!("{binding:?} is not what it must be, in network {number}");
            return Err(Box::new(Difference { sample: Sample { world: number, input }, what }));
        }
    }
    statistics.time = start.elapsed();
    Ok(statistics)
}

/// A difference with the smallest sample that shows it, if it shows on its own.
fn smallest(sample: Sample, what: String, flaw: Option<Flaw>) -> Difference {
    let Err(alone) = check_on_host(&sample, flaw) else {
        let what = format!("{what}\n(only behind other frames)");
        return Difference { sample, what };
    };
    let kind = |what: &str| what.split(':').nth(1).map(str::to_owned);
    let smaller = minimise(&sample, |sample| {
        check_on_host(sample, flaw).is_err_and(|what| kind(&what) == kind(&alone))
    });
    let what = check_on_host(&smaller, flaw).err().unwrap_or(what);
    Difference { sample: smaller, what }
}

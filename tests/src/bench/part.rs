//! The benchmark's parts. Each is a function that makes a [`Report`].

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use super::{control, field::Field, race::Race, report::Report};

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// 64-byte frames from a generator, into the driver: XDP and everyone else
    Xdp,
    /// 64-byte frames from a generator, as socket buffers
    Frames,
    /// Small datagrams between sockets
    Udp,
    /// Bulk TCP, superframes all the way
    Bulk,
    /// Bulk TCP, MTU-sized packets in the middle
    Wire,
    /// One byte back and forth over TCP
    Latency,
    /// The daemon with many peers: changes, scrapes, learning, memory
    Control,
}

impl Part {
    /// Measures it, and tells of each step on standard error.
    ///
    /// # Errors
    /// A measurement failed.
    pub fn run(self, field: &mut Field, plan: Plan) -> Result<Report> {
        match self {
            Self::Xdp => Race::Xdp.run(field, plan),
            Self::Frames => Race::Frames.run(field, plan),
            Self::Udp => Race::Udp.run(field, plan),
            Self::Bulk => Race::Bulk.run(field, plan),
            Self::Wire => Race::Wire.run(field, plan),
            Self::Latency => Race::Latency.run(field, plan),
            Self::Control => control::run(plan),
        }
    }
}

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Whether it is to be over soon: less than two minutes for all parts together.
    pub quick: bool,
    /// Rounds of each part.
    pub rounds: usize,
    /// Time of each measurement that is not TCP's.
    pub time: Duration,
    /// Time of each measurement of TCP, in seconds.
    pub tcp_seconds: u32,
}

impl Plan {
    /// For people who look, or for people who wait; with a number of rounds of one's own.
    pub fn new(quick: bool, rounds: Option<usize>) -> Self {
        let (usual, time, tcp_seconds) = if quick { (2, 0.4, 1) } else { (5, 1.5, 2) };
        Self { quick, rounds: rounds.unwrap_or(usual), time: Duration::from_secs_f64(time), tcp_seconds }
    }
}

//! The benchmark's parts. Each is a function that makes a [`Report`].

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use super::{
    control,
    field::Field,
    hostile,
    micro::{flood, program, scaling},
    old,
    race::Race,
    report::Report,
};

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
    /// The XDP programs alone, beside an empty one
    Program,
    /// Tables and programs with many addresses and peers
    Scaling,
    /// Copies of a flooded frame
    Flood,
    /// The daemon with many peers: changes, scrapes, learning, memory
    Control,
    /// A peer that sends each frame from another address, while others work
    Hostile,
    /// 64-byte frames, by this build and by the one that --old names
    Old,
}

impl Part {
    /// Measures it, and tells of each step on standard error.
    ///
    /// # Errors
    /// A measurement failed.
    pub fn run(self, field: &mut Field, object: Option<&Path>, plan: Plan) -> Result<Report> {
        let object = || object.context("this part needs the benchmark's own programs: cargo xtask bench");
        match self {
            Self::Xdp => Race::Xdp.run(field, plan),
            Self::Frames => Race::Frames.run(field, plan),
            Self::Udp => Race::Udp.run(field, plan),
            Self::Bulk => Race::Bulk.run(field, plan),
            Self::Wire => Race::Wire.run(field, plan),
            Self::Latency => Race::Latency.run(field, plan),
            Self::Program => program::run(object()?, plan),
            Self::Scaling => scaling::run(object()?, plan),
            Self::Flood => flood::run(object()?, plan),
            Self::Control => control::run(plan),
            Self::Hostile => hostile::run(plan),
            Self::Old => old::run(field, plan),
        }
    }
}

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Whether it is to be over soon: less than two minutes for all parts together.
    pub quick: bool,
    /// Rounds of each part, but those of TCP streams.
    pub rounds: usize,
    /// Time of each measurement of such a part. Many short rounds rather than few long ones: what is compared is then
    /// measured at nearly the same time.
    pub time: Duration,
    /// Rounds of TCP streams, which take long to start.
    pub tcp_rounds: usize,
    /// Time of each of their measurements, in seconds.
    pub tcp_seconds: u32,
}

impl Plan {
    /// For people who look, or for people who wait; with a number of rounds of one's own.
    pub fn new(quick: bool, rounds: Option<usize>) -> Self {
        let (usual, tcp_rounds, tcp_seconds) = if quick { (2, 2, 1) } else { (10, 5, 2) };
        let time = Duration::from_millis(if quick { 300 } else { 400 });
        Self {
            quick,
            rounds: rounds.unwrap_or(usual),
            time,
            tcp_rounds: rounds.unwrap_or(tcp_rounds),
            tcp_seconds,
        }
    }
}

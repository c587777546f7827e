//! Parts in which contestants race: rounds, every contestant in each.

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use super::{
    bulk::{self, WireMode},
    contestant::Contestant,
    field::Field,
    kind::Kind,
    latency,
    part::Plan,
    plot::Plot,
    report::{Bar, Report},
    small::{Entrance, GroOff, Probe},
    statistics::Spread,
    stop,
    table::{Cell, Table},
    udp,
};

/// What the contestants do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Race {
    /// 64-byte frames from a generator, as XDP frames.
    Xdp,
    /// 64-byte frames from a generator, as socket buffers.
    Frames,
    /// Small datagrams between sockets.
    Udp,
    /// Bulk TCP, superframes all the way.
    Bulk,
    /// Bulk TCP, MTU-sized packets in the middle.
    Wire,
    /// One byte back and forth over TCP.
    Latency,
}

impl Race {
    /// Its part's name.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Frames => "frames",
            Self::Udp => "udp",
            Self::Bulk => "bulk",
            Self::Wire => "wire",
            Self::Latency => "latency",
        }
    }

    /// What heads its table.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Xdp => "64-byte frames into the driver, known unicast, one CPU",
            Self::Frames => "64-byte frames as socket buffers, known unicast, one CPU",
            Self::Udp => "UDP, 64 bytes each, between two sockets",
            Self::Bulk => "TCP bulk, one stream, superframes in the middle",
            Self::Wire => "TCP bulk, one stream, MTU-sized packets in the middle",
            Self::Latency => "TCP, one byte back and forth, one CPU",
        }
    }

    /// What its figures count; more is better in all.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Xdp | Self::Frames | Self::Udp => "Mpps",
            Self::Bulk | Self::Wire => "Gbit/s",
            Self::Latency => "k/s",
        }
    }

    /// What a sample's CPU time is for.
    const fn cpu_unit(self) -> &'static str {
        match self {
            Self::Xdp | Self::Frames => "CPU ns/frame",
            Self::Udp => "CPU ns/datagram",
            Self::Bulk | Self::Wire => "CPU s/GB",
            Self::Latency => "CPU ns/round trip",
        }
    }

    /// Whose ratios to all others are shown.
    const fn champions(self) -> &'static [Kind] {
        match self {
            Self::Xdp => &[Kind::MgreXdp, Kind::Mgre],
            Self::Frames | Self::Udp | Self::Bulk | Self::Wire | Self::Latency => &[Kind::Mgre],
        }
    }

    /// Whether a contestant takes part.
    pub const fn admits(self, kind: Kind) -> bool {
        match self {
            Self::Xdp => true,
            Self::Frames | Self::Udp | Self::Bulk | Self::Wire | Self::Latency => !kind.is_xdp(),
        }
    }

    /// Where 64-byte frames go in, of races that are about them.
    pub const fn entrance(self) -> Option<Entrance> {
        match self {
            Self::Xdp => Some(Entrance::Driver),
            Self::Frames => Some(Entrance::Stack),
            Self::Udp | Self::Bulk | Self::Wire | Self::Latency => None,
        }
    }

    /// Runs it.
    ///
    /// # Errors
    /// A contestant cannot be built, or a measurement failed.
    pub fn run(self, field: &mut Field, plan: Plan) -> Result<Report> {
        let absent = field.absent();
        let contestants = field.on_start(self)?;
        Ok(Report { remarks: absent, ..self.measure(&contestants, plan)?.report() })
    }

    /// All its rounds.
    ///
    /// # Errors
    /// A measurement failed.
    pub fn measure(self, contestants: &[&Contestant], plan: Plan) -> Result<Outcome> {
        let entrance = self.entrance();
        let probe = |one: &&Contestant| entrance.map(|entrance| Probe::new(one, entrance));
        let probes = contestants.iter().filter_map(probe).collect::<Result<Vec<_>>>()?;
        let _gro_off = entrance.map(|_| GroOff::new(contestants)).transpose()?;
        let _wire_mode = (self == Self::Wire).then(|| WireMode::new(contestants)).transpose()?;
        let mut samples: Vec<(Kind, Vec<Sample>)> =
            contestants.iter().map(|one| (one.kind, Vec::new())).collect();
        let rounds = if matches!(self, Self::Bulk | Self::Wire) { plan.tcp_rounds } else { plan.rounds };
        for round in 0..rounds {
            for index in order(round, contestants.len()) {
                stop::check()?;
                let contestant = contestants[index];
                let sample = match self {
                    Self::Xdp | Self::Frames => probes[index].measure(contestant, plan.time),
                    Self::Udp => udp::measure(contestant, plan.time),
                    Self::Bulk => bulk::measure(contestant, plan.tcp_seconds, false),
                    Self::Wire => bulk::measure(contestant, plan.tcp_seconds, true),
                    Self::Latency => latency::measure(contestant, plan.time),
                };
                let title = contestant.kind.title();
                let sample = sample.with_context(|| format!("{}: {title}", self.title()))?;
                eprintln!(
                    "{:8} round {}/{rounds}  {title:25} {:8.3} {}",
                    self.key(),
                    round + 1,
                    sample.value,
                    self.unit()
                );
                samples[index].1.push(sample);
            }
        }
        Ok(Outcome { race: self, samples })
    }
}

/// Who comes when in a round: another one begins each time and every other round goes the other way, so that no one
/// always has the same one before it.
fn order(round: usize, contestants: usize) -> impl Iterator<Item = usize> {
    (0..contestants).map(move |turn| {
        let index = (round / 2 + turn) % contestants;
        if round.is_multiple_of(2) { index } else { contestants - 1 - index }
    })
}

/// One measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// The figure, in the race's unit.
    pub value: f64,
    /// What was sent for it, where that is more than what arrived.
    pub sent: Option<f64>,
    /// Mean length of what left the middle's first interface, where that tells something.
    pub bytes_per_packet: Option<f64>,
    /// Time that the machine's CPUs were busy, all together, for each frame,
    /// datagram, byte or round trip, in ns.
    pub cpu_ns: Option<f64>,
}

/// All rounds of a race.
#[derive(Clone, Debug)]
pub struct Outcome {
    race: Race,
    /// A sample for each round.
    samples: Vec<(Kind, Vec<Sample>)>,
}

impl Outcome {
    /// Of which race.
    pub const fn race(&self) -> Race {
        self.race
    }

    /// What one contestant did, by round.
    fn of(&self, kind: Kind) -> Option<&[Sample]> {
        self.samples.iter().find(|(other, _)| *other == kind).map(|(_, samples)| &samples[..])
    }

    /// One's figure over another's of the same round.
    pub fn ratio(&self, one: Kind, other: Kind) -> Option<Spread> {
        let pairs = self.of(one)?.iter().zip(self.of(other)?);
        Spread::of(pairs.map(|(one, other)| one.value / other.value))
    }

    /// What one frame costs on a contestant's way beyond what it costs on the direct one, in ns; of frames alone.
    fn beyond_direct_ns(&self, kind: Kind) -> Option<Spread> {
        if self.race.entrance().is_none() || kind == Kind::Direct {
            return None;
        }
        let pairs = self.of(kind)?.iter().zip(self.of(Kind::Direct)?);
        Spread::of(pairs.map(|(one, direct)| 1e3 / one.value - 1e3 / direct.value))
    }

    fn report(&self) -> Report {
        let rounds = self.samples.first().map_or(0, |(_, samples)| samples.len());
        Report {
            key: self.race.key().into(),
            title: format!("{} ({rounds} rounds)", self.race.title()),
            tables: vec![self.figures(), self.ratios()],
            bars: self.bars(),
            plots: vec![self.plot()],
            remarks: Vec::new(),
            details: self.details(),
        }
    }

    /// What each contestant did.
    pub fn figures(&self) -> Table {
        let mut table = Table::new(
            self.race.unit(),
            &[
                ("value", "median (min .. max)"),
                ("sent", "sent"),
                ("bytes_per_packet", "B/packet"),
                ("cpu", self.race.cpu_unit()),
                ("ns_beyond_direct", "ns beyond direct"),
            ],
        );
        for (kind, samples) in &self.samples {
            let median = |figure: fn(&Sample) -> Option<f64>, decimals| {
                let spread = Spread::of(samples.iter().filter_map(figure));
                spread.map_or(Cell::Empty, |spread| Cell::Figure(spread.median, decimals))
            };
            let cpu_decimals = if matches!(self.race, Race::Bulk | Race::Wire) { 2 } else { 0 };
            table.row(
                kind.key(),
                kind.title(),
                [
                    Cell::spread(Spread::of(samples.iter().map(|sample| sample.value)), 3),
                    median(|sample| sample.sent, 3),
                    median(|sample| sample.bytes_per_packet, 0),
                    Cell::spread(Spread::of(samples.iter().filter_map(|sample| sample.cpu_ns)), cpu_decimals),
                    Cell::spread(self.beyond_direct_ns(*kind), 0),
                ],
            );
        }
        table
    }

    /// Those whose ratios are shown, as far as they ran.
    fn champions(&self) -> impl Iterator<Item = Kind> + '_ {
        self.race.champions().iter().copied().filter(|kind| self.of(*kind).is_some())
    }

    fn ratios(&self) -> Table {
        let titles: Vec<_> = self
            .champions()
            .map(|kind| (format!("{}_over", kind.key()), format!("{} /", kind.title())))
            .collect();
        let columns: Vec<_> = titles.iter().map(|(key, title)| (key.as_str(), title.as_str())).collect();
        let mut table = Table::new("ratio of the same round", &columns);
        for (other, _) in &self.samples {
            let cells = self.champions().map(|one| {
                let ratio = if one == *other { None } else { self.ratio(one, *other) };
                Cell::spread(ratio, 2)
            });
            let cells: Vec<_> = cells.collect();
            if cells.iter().any(|cell| *cell != Cell::Empty) {
                table.row(other.key(), other.title(), cells);
            }
        }
        table
    }

    fn plot(&self) -> Plot {
        let bars = self.samples.iter().filter_map(|(kind, samples)| {
            let spread = Spread::of(samples.iter().map(|sample| sample.value))?;
            Some((kind.title().to_owned(), spread))
        });
        Plot::Bars { title: format!("{}, {}", self.race.title(), self.race.unit()), bars: bars.collect() }
    }

    fn bars(&self) -> Vec<Bar> {
        let bar = |what: &str, one, other, target, stretch| {
            Bar::ratio_at_least(what, target, stretch, self.ratio(one, other))
        };
        // A bar for what was not there would say no more than that.
        let v6 = |what: &str, one, other| {
            self.of(one).map(|_| bar(&format!("{what}, IPv6 / IPv4"), one, other, 0.9, 1.0))
        };
        let tcx_v6 = |what| v6(what, Kind::MgreV6, Kind::Mgre);
        let mut bars = match self.race {
            Race::Xdp => vec![
                bar("64 B, XDP / bare XDP redirect", Kind::MgreXdp, Kind::RedirectXdp, 0.85, 0.95),
                bar("64 B, XDP / vxlan + bridge", Kind::MgreXdp, Kind::Vxlan, 11.0, 14.0),
                bar("64 B, TCX / vxlan + bridge", Kind::Mgre, Kind::Vxlan, 3.5, 5.0),
            ],
            Race::Frames => {
                vec![bar("64 B as socket buffers, TCX / vxlan + bridge", Kind::Mgre, Kind::Vxlan, 3.5, 5.0)]
            }
            Race::Wire => vec![
                bar("TCP wire mode, TCX / two bridges", Kind::Mgre, Kind::Bridges, 0.98, 1.05),
                bar("TCP wire mode, TCX / vxlan + bridge", Kind::Mgre, Kind::Vxlan, 1.25, 1.4),
            ],
            Race::Udp | Race::Bulk | Race::Latency => Vec::new(),
        };
        bars.extend(match self.race {
            Race::Xdp => v6("64 B, XDP", Kind::MgreXdpV6, Kind::MgreXdp),
            _ => None,
        });
        bars.extend(tcx_v6(match self.race {
            Race::Xdp => "64 B, TCX",
            Race::Frames => "64 B as socket buffers, TCX",
            Race::Udp => "UDP, TCX",
            Race::Bulk => "TCP bulk, TCX",
            Race::Wire => "TCP wire mode, TCX",
            Race::Latency => "TCP back and forth, TCX",
        }));
        bars
    }

    /// Every round.
    pub fn details(&self) -> Value {
        let round = |sample: &Sample| -> Value {
            let figures = [
                ("value", Some(sample.value)),
                ("sent", sample.sent),
                ("bytes_per_packet", sample.bytes_per_packet),
                ("cpu_ns", sample.cpu_ns),
            ];
            let known =
                figures.into_iter().filter_map(|(name, figure)| Some((name.to_owned(), json!(figure?))));
            Value::Object(known.collect())
        };
        let rounds = |samples: &[Sample]| samples.iter().map(round).collect::<Value>();
        let by_contestant: Map<_, _> =
            self.samples.iter().map(|(kind, samples)| (kind.key().to_owned(), rounds(samples))).collect();
        json!({ "unit": self.race.unit(), "cpu_unit": self.race.cpu_unit(), "rounds": by_contestant })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: [f64; 3]) -> Vec<Sample> {
        let sample =
            |value| Sample { value, sent: Some(value), cpu_ns: Some(1e3 / value), ..Sample::default() };
        values.map(sample).to_vec()
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let outcome = Outcome {
            race: Race::Frames,
            samples: vec![(Kind::Mgre, samples([2.0, 4.0, 9.0])), (Kind::Vxlan, samples([1.0, 4.0, 3.0]))],
        };
        let ratio = outcome.ratio(Kind::Mgre, Kind::Vxlan).expect("measured");
        assert_eq!(ratio, Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(outcome.ratio(Kind::Mgre, Kind::Direct), None);
        let report = outcome.report();
        assert_eq!(report.json()["tables"][1][0]["mgre_over"]["median"], 2.0);
        assert_eq!(report.json()["details"]["rounds"]["mgre"][1]["value"], 4.0);
        assert!(
            report.text().contains("  vxlan + bridge           2.00 (1.00 .. 3.00)"),
            "{}",
            report.text()
        );
        assert_eq!(report.bars[0].measured, Some(ratio));
    }

    #[test]
    fn nobody_always_follows_the_same_one() {
        let orders: Vec<Vec<usize>> = (0..6).map(|round| order(round, 3).collect()).collect();
        assert_eq!(orders[..2], [vec![0, 1, 2], vec![2, 1, 0]]);
        for first in 0..3 {
            assert_eq!(orders.iter().filter(|order| order[0] == first).count(), 2, "{orders:?}");
        }
    }

    #[test]
    fn beyond_direct_is_the_difference_of_times() {
        let outcome = Outcome {
            race: Race::Frames,
            samples: vec![(Kind::Mgre, samples([1.0, 1.0, 2.0])), (Kind::Direct, samples([2.0, 4.0, 4.0]))],
        };
        let wanted = Spread { median: 500.0, min: 250.0, max: 750.0 };
        assert_eq!(outcome.beyond_direct_ns(Kind::Mgre), Some(wanted));
        assert_eq!(outcome.beyond_direct_ns(Kind::Direct), None);
    }
}

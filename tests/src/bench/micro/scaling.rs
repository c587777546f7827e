//! What tables cost as they grow: the FDB beside the kernel's hash map, and the
//! programs with many addresses and peers.

use std::path::Path;

use anyhow::Result;
use mgre_common::bench::LOOKUPS;
use serde_json::{Value, json};

use super::{
    addresses::{Demand, sequence},
    laboratory::{CABLE, Laboratory, Programs, Size},
    program::{self, Costs, PACKET_LEN},
};
use crate::bench::{
    part::Plan,
    plot::Plot,
    report::{Bar, Report},
    statistics::Spread,
    table::{Cell, Table},
};

const XDP_TX: u32 = 3;
const PEERS: u32 = 100;
const PEER_COUNTS: [u32; 3] = [1, 100, 10_000];
const PEER_ENTRIES: u32 = 1 << 16;

/// What one round found of a table of one size under one demand.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// Nanoseconds of a lookup that overlaps with others: FDB and hash map.
    overlapped: [f64; 2],
    /// Of one that waits for the one before.
    waiting: [f64; 2],
    costs: Costs,
}

/// All rounds of a size and a demand.
#[derive(Debug)]
struct Point {
    size: Size,
    demand: Demand,
    rounds: Vec<Round>,
}

impl Point {
    fn spread(&self, figure: impl Fn(&Round) -> f64) -> Option<Spread> {
        Spread::of(self.rounds.iter().map(figure))
    }

    fn ratio(&self, times: fn(&Round) -> [f64; 2]) -> Option<Spread> {
        self.spread(|round| times(round)[0] / times(round)[1])
    }

    fn is(&self, entries: u32, demand: Demand) -> bool {
        self.size.entries == entries && self.demand == demand
    }

    fn json(&self) -> Value {
        let round = |round: &Round| {
            json!({
                "fdb": round.overlapped[0], "hash": round.overlapped[1],
                "fdb_waiting": round.waiting[0], "hash_waiting": round.waiting[1],
                "encap": round.costs.encap, "decap": round.costs.decap,
            })
        };
        json!({
            "entries": self.size.entries,
            "peers": self.size.peers,
            "demand": self.demand.to_string(),
            "rounds": self.rounds.iter().map(round).collect::<Value>(),
        })
    }
}

/// The part.
///
/// # Errors
/// It cannot be measured.
pub fn run(object: &Path, plan: Plan) -> Result<Report> {
    let laboratory = Laboratory::new()?;
    let sizes: &[u32] =
        if plan.quick { &[1 << 10, 1 << 16, 1 << 20] } else { &[1 << 10, 1 << 16, 1 << 18, 1 << 20] };
    let rounds = if plan.quick { 1 } else { plan.rounds };
    let mut tables = Vec::new();
    for entries in sizes {
        eprintln!("scaling  {entries} entries");
        let size = Size { entries: *entries, peers: PEERS, v6: false };
        tables.extend(laboratory.enter(|| measure(object, size, &Demand::ALL, rounds))?);
    }
    let mut peers = Vec::new();
    let counts = if plan.quick { &PEER_COUNTS[2..] } else { &PEER_COUNTS };
    for count in counts {
        eprintln!("scaling  {count} peers");
        let size = Size { entries: PEER_ENTRIES, peers: *count, v6: false };
        peers.extend(laboratory.enter(|| measure(object, size, &[Demand::Uniform], rounds))?);
    }
    Ok(Report {
        key: "scaling".into(),
        title: format!("tables as they grow ({PEERS} peers; {LOOKUPS} lookups in a run)"),
        tables: vec![lookups(&tables), programs(&tables), by_peers(&peers)],
        bars: bars(&tables),
        plots: plots(&tables),
        remarks: vec![
            "overlapped: lookups that do not depend on each other; waiting: each waits for the one before"
                .into(),
            "the sequence of addresses is read in all, and its cost is taken off".into(),
        ],
        details: tables.iter().chain(&peers).map(Point::json).collect(),
    })
}

fn measure(object: &Path, size: Size, demands: &[Demand], rounds: usize) -> Result<Vec<Point>> {
    let mut programs = Programs::load(object, size, CABLE)?;
    programs.get_ready_for_xdp()?;
    let mut points = Vec::new();
    for demand in demands {
        programs.go_through(&sequence(*demand, size.entries, size.peers, PACKET_LEN)?);
        programs.set(0)?;
        let rounds = (0..rounds).map(|_| round(&mut programs)).collect::<Result<_>>()?;
        points.push(Point { size, demand: *demand, rounds });
    }
    Ok(points)
}

fn round(programs: &mut Programs) -> Result<Round> {
    let frame = program::frame();
    let mut time = |name: &str| {
        programs.time_xdp(name, &frame, XDP_TX).map(|nanoseconds| nanoseconds / f64::from(LOOKUPS))
    };
    let overlapped = [time("bench_by_none")?, time("bench_by_fdb")?, time("bench_by_hash")?];
    let waiting = [time("bench_by_none_w")?, time("bench_by_fdb_w")?, time("bench_by_hash_w")?];
    // What is left of a lookup in the nearest cache can be less than the clock shows.
    let net = |[none, fdb, hash]: [f64; 3]| [(fdb - none).max(0.1), (hash - none).max(0.1)];
    Ok(Round { overlapped: net(overlapped), waiting: net(waiting), costs: program::costs(programs)? })
}

fn name(point: &Point) -> String {
    format!("{} k, {}", point.size.entries >> 10, point.demand)
}

fn lookups(points: &[Point]) -> Table {
    let columns = [
        ("fdb", "FDB ns"),
        ("hash", "hash ns"),
        ("ratio", "FDB / hash"),
        ("fdb_waiting", "waiting: FDB ns"),
        ("hash_waiting", "hash ns"),
        ("ratio_waiting", "FDB / hash"),
    ];
    let mut table = Table::new("lookup, entries", &columns);
    for point in points {
        let ways: [fn(&Round) -> [f64; 2]; 2] = [|round| round.overlapped, |round| round.waiting];
        let cells = ways.into_iter().flat_map(|times| {
            [
                Cell::spread(point.spread(|round| times(round)[0]), 1),
                Cell::spread(point.spread(|round| times(round)[1]), 1),
                Cell::spread(point.ratio(times), 2),
            ]
        });
        table.row(&name(point), &name(point), cells);
    }
    table
}

fn programs(points: &[Point]) -> Table {
    let mut table = Table::new("program, entries", &[("encap", "encap ns"), ("decap", "decap ns")]);
    for point in points {
        table.row(&name(point), &name(point), costs(point));
    }
    table
}

fn by_peers(points: &[Point]) -> Table {
    let mut table = Table::new("program, peers", &[("encap", "encap ns"), ("decap", "decap ns")]);
    for point in points {
        let name = format!("{} peers, {} k addresses, uniform", point.size.peers, PEER_ENTRIES >> 10);
        table.row(&point.size.peers.to_string(), &name, costs(point));
    }
    table
}

fn costs(point: &Point) -> [Cell; 2] {
    let of = |figure: fn(&Costs) -> f64| Cell::spread(point.spread(|round| figure(&round.costs)), 1);
    [of(|costs| costs.encap), of(|costs| costs.decap)]
}

fn bars(points: &[Point]) -> Vec<Bar> {
    let find = |entries, demand| points.iter().find(|point| point.is(entries, demand));
    let mut bars: Vec<Bar> = [10, 16, 20]
        .into_iter()
        .map(|bits| {
            let what = format!("FDB / BPF hash lookup, {} k uniform, waiting", (1_u32 << bits) >> 10);
            let measured =
                find(1 << bits, Demand::Uniform).and_then(|point| point.ratio(|round| round.waiting));
            Bar::ratio_at_most(&what, 0.5, 0.25, measured)
        })
        .collect();
    let (small, large) = (find(1 << 10, Demand::Zipf), find(1 << 20, Demand::Zipf));
    let growth = small.zip(large).and_then(|(small, large)| {
        let rounds = small.rounds.iter().zip(&large.rounds);
        Spread::of(rounds.map(|(small, large)| large.costs.encap / small.costs.encap))
    });
    bars.push(Bar::ratio_at_most("encapsulation, 1 M / 1 k entries, Zipf(1)", 1.5, 1.2, growth));
    bars
}

fn plots(points: &[Point]) -> Vec<Plot> {
    let line = |name: &str, figure: fn(&Round) -> f64| {
        let uniform = points.iter().filter(|point| point.demand == Demand::Uniform);
        let of = |point: &Point| Some((f64::from(point.size.entries), point.spread(figure)?.median));
        (name.to_owned(), uniform.filter_map(of).collect())
    };
    vec![Plot::Lines {
        title: "a lookup among uniform addresses".into(),
        x: "entries".into(),
        y: "ns".into(),
        lines: vec![
            line("mgre's FDB", |round| round.overlapped[0]),
            line("mgre's FDB, waiting", |round| round.waiting[0]),
            line("BPF hash", |round| round.overlapped[1]),
            line("BPF hash, waiting", |round| round.waiting[1]),
        ],
    }]
}

//! What a copy of a flooded frame costs, beside a clone that is sent as it is.

use std::path::Path;

use anyhow::{Result, ensure};
use mgre_user::datapath::load::PORT_PROGRAM;
use serde_json::{Value, json};

use super::{
    laboratory::{Laboratory, Programs, SINK, STATION, Size},
    program::packet,
};
use crate::bench::{
    part::Plan,
    plot::Plot,
    report::{Bar, Report},
    statistics::Spread,
    table::{Cell, Table},
};

/// `TC_ACT_SHOT` and `TC_ACT_REDIRECT`.
const DROP: u32 = 2;
const REDIRECT: u32 = 7;

const COUNTS: [u32; 7] = [1, 4, 16, 64, 256, 1024, 4096];

/// Those that there are bars for, and the one that there is a bar of IPv6 for.
const BAR_COUNTS: [u32; 3] = [64, 1024, 4096];
const V6_BAR_COUNT: u32 = 64;

/// Nanoseconds for each copy, in one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    mgre: f64,
    v6: Option<f64>,
    bare: f64,
}

/// The part.
///
/// # Errors
/// It cannot be measured.
pub fn run(object: &Path, plan: Plan) -> Result<Report> {
    let laboratory = Laboratory::new()?;
    let rounds = if plan.quick { 3 } else { plan.rounds.max(5) };
    let mut points = Vec::new();
    // To load the programs takes longer than to run them.
    let counts = if plan.quick { &BAR_COUNTS[..2] } else { &COUNTS };
    for &count in counts {
        eprintln!("flood    {count} copies");
        let v6 = !plan.quick || count == V6_BAR_COUNT;
        points.push((count, laboratory.enter(|| measure(object, count, rounds, v6))?));
    }
    let mut table = Table::new(
        "copies",
        &[
            ("mgre", "mgre ns/copy"),
            ("v6", "mgre, IPv6 ns/copy"),
            ("bare", "bare ns/copy"),
            ("ratio", "mgre / bare"),
            ("ratio_v6", "IPv6 / IPv4"),
        ],
    );
    for (count, rounds) in &points {
        let of = |figure: fn(&Round) -> Option<f64>| Spread::of(rounds.iter().filter_map(figure));
        let cells = [
            Cell::spread(of(|round| Some(round.mgre)), 0),
            Cell::spread(of(|round| round.v6), 0),
            Cell::spread(of(|round| Some(round.bare)), 0),
            Cell::spread(of(|round| Some(round.mgre / round.bare)), 2),
            Cell::spread(of(|round| Some(round.v6? / round.mgre)), 2),
        ];
        table.row(&count.to_string(), &count.to_string(), cells);
    }
    let ratio = |count: u32, figure: fn(&Round) -> Option<f64>| {
        let rounds = points.iter().find(|point| point.0 == count).map(|point| &point.1);
        rounds.and_then(|rounds| Spread::of(rounds.iter().filter_map(figure)))
    };
    let bar = |count: u32| {
        let ratio = ratio(count, |round| Some(round.mgre / round.bare));
        Bar::ratio_at_most(&format!("flood, a copy / a bare clone, {count} copies"), 1.15, 1.05, ratio)
    };
    let v6 = ratio(V6_BAR_COUNT, |round| Some(round.v6? / round.mgre));
    let v6 = Bar::ratio_at_most("flood, a copy, 64 copies, IPv6 / IPv4", 1.1, 1.0, v6);
    Ok(Report {
        key: "flood".into(),
        title: "a broadcast of 60 bytes to many peers, one CPU".into(),
        tables: vec![table],
        bars: BAR_COUNTS.map(bar).into_iter().chain([v6]).collect(),
        plots: vec![plot(&points)],
        remarks: vec![
            "bare: bpf_clone_redirect of one packet of the same length, again and again".into(),
            "copies end in a bridge without ports: nothing queues, and what receives them costs next to nothing".into(),
        ],
        details: points.iter().map(details).collect(),
    })
}

fn measure(object: &Path, copies: u32, rounds: usize, v6: bool) -> Result<Vec<Round>> {
    let mut frame = vec![0_u8; 60];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&STATION.0);
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    let packet = packet(false)?;
    let mut v4 = Pair::load(object, copies, false)?;
    let mut v6 = if v6 { Some(Pair::load(object, copies, true)?) } else { None };
    let mut measured = Vec::new();
    for _ in 0..rounds {
        let mgre = v4.flood(&frame, copies)?;
        let v6 = v6.as_mut().map(|v6| v6.flood(&frame, copies)).transpose()?;
        let bare = v4.difference("bench_clone", &packet, DROP)?;
        let copy = |time: f64| time / f64::from(copies);
        measured.push(Round { mgre: copy(mgre), v6: v6.map(copy), bare: copy(bare) });
    }
    Ok(measured)
}

/// Programs with many peers, and with one: what is between them is what copies cost.
struct Pair {
    many: Programs,
    one: Programs,
}

impl Pair {
    fn load(object: &Path, copies: u32, v6: bool) -> Result<Self> {
        // The last peer gets the frame itself, which a test run does not send.
        let mut many = Programs::load(object, Size { entries: 1, peers: copies + 1, v6 }, SINK)?;
        let mut one = Programs::load(object, Size { entries: 1, peers: 1, v6 }, SINK)?;
        many.set(copies)?;
        one.set(0)?;
        Ok(Self { many, one })
    }

    fn difference(&mut self, program: &str, packet: &[u8], wanted: u32) -> Result<f64> {
        Ok(self.many.time_tc(program, packet, wanted)? - self.one.time_tc(program, packet, wanted)?)
    }

    /// Floods, and makes sure that it was to all.
    fn flood(&mut self, frame: &[u8], copies: u32) -> Result<f64> {
        let before = self.many.flooded();
        let time = self.difference(PORT_PROGRAM, frame, REDIRECT)?;
        let after = self.many.flooded();
        let (frames, made) = (after.0 - before.0, after.1 - before.1);
        ensure!(
            made == frames * u64::from(copies + 1),
            "{made} copies of {frames} frames for {copies} peers"
        );
        Ok(time)
    }
}

fn plot(points: &[(u32, Vec<Round>)]) -> Plot {
    let line = |name: &str, figure: fn(&Round) -> Option<f64>| {
        let of = |(count, rounds): &(u32, Vec<Round>)| {
            Some((f64::from(*count), Spread::of(rounds.iter().filter_map(figure))?.median))
        };
        (name.to_owned(), points.iter().filter_map(of).collect())
    };
    Plot::Lines {
        title: "a copy of a flooded frame".into(),
        x: "copies".into(),
        y: "ns".into(),
        lines: vec![
            line("mgre", |round| Some(round.mgre)),
            line("mgre, IPv6", |round| round.v6),
            line("bare clone_redirect", |round| Some(round.bare)),
        ],
    }
}

fn details((count, rounds): &(u32, Vec<Round>)) -> Value {
    let round = |round: &Round| json!({ "mgre": round.mgre, "v6": round.v6, "bare": round.bare });
    json!({ "copies": count, "rounds": rounds.iter().map(round).collect::<Value>() })
}

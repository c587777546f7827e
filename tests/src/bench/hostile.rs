//! A peer that sends each frame from another address, while others work: [`crate::hostile`] says how.

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    part::Plan,
    report::{Bar, Report, Side},
    statistics::Spread,
    table::{Cell, Table},
};
use crate::{
    hostile::{self, ATTACKER, Kind, Outcome, Phase, VICTIM},
    topology::{SEGMENT, Spokes, Underlay},
    traffic,
};

/// How much of the others' throughput must be left.
const LEAST: f64 = 0.9;
/// How much of a CPU the daemon may need at most.
const MOST_CPU: f64 = 0.25;
/// How much memory of its own the daemon may need more, in MiB.
const MOST_MEMORY: f64 = 16.0;
/// More addresses than there are.
const NO_LIMIT: &str = "4000000";

/// The part.
///
/// # Errors
/// It cannot be measured.
pub fn run(plan: Plan) -> Result<Report> {
    let rounds = if plan.quick { 4 } else { 20 };
    let plan = hostile::Plan { rounds, frames: 50_000, rate: 100_000, alone: true };
    let mut table = Table::new(
        "limits of addresses",
        &[
            ("addresses", "addresses"),
            ("ratio", "stream, many / one"),
            ("undisturbed", "many / no frames"),
            ("attack", "many Gbit/s"),
            ("control", "one Gbit/s"),
            ("alone", "no frames Gbit/s"),
            ("rate", "kframes/s"),
            ("cpu", "daemon CPU"),
            ("memory", "MiB more"),
        ],
    );
    let (mut bars, mut details) = (Vec::new(), Vec::new());
    for (key, title, limited) in [("usual", "as they are", true), ("none", "none", false)] {
        let outcome = attack(plan, limited)?;
        table.row(key, title, cells(&outcome));
        bars.extend(self::bars(title, &outcome));
        details.push(json!({ "limits": key, "phases": phases(&outcome) }));
    }
    Ok(Report {
        key: "hostile".into(),
        title: format!("One peer sends each frame from another address ({rounds} rounds)"),
        tables: vec![table],
        bars,
        remarks: vec![
            "the ratio is of phases of one round: the peer sends as many frames as fast, each from another address and all \
             from one; a TCP stream of two other hosts goes through the same spoke meanwhile. Over no frames, what the \
             generator and the frames themselves take of the machine counts as well"
                .into(),
        ],
        details: details.into(),
        ..Report::default()
    })
}

fn attack(plan: hostile::Plan, limited: bool) -> Result<Outcome> {
    let mut spokes = Spokes::new(3, Underlay::Switched)?;
    (1..=3).for_each(|number| spokes.spoke_mut(number).daemon.hide_log());
    let victim = spokes.spoke(VICTIM);
    traffic::reaches(&spokes.spoke(hostile::OTHER).host, &victim.host_ip())?;
    if !limited {
        victim.daemon.mgre(&["peer", "set", &format!("spoke{ATTACKER}"), "--max-macs", NO_LIMIT])?;
        victim.daemon.mgre(&["segment", "set", SEGMENT, "--max-macs", NO_LIMIT])?;
    }
    hostile::attack(&spokes, plan)
}

fn streams(outcome: &Outcome, kind: Kind) -> Cell {
    Cell::spread(Spread::of(outcome.of(kind).map(|phase| phase.stream / 1e9)), 2)
}

/// MiB that the daemon has more than before, of its own.
fn growth(outcome: &Outcome) -> f64 {
    let [before, after] = outcome.memory;
    (after.anonymous as f64 - before.anonymous as f64) / f64::from(1 << 20)
}

fn cells(outcome: &Outcome) -> [Cell; 9] {
    let rate = |phase: &Phase| phase.arrived as f64 / phase.time.as_secs_f64() / 1e3;
    [
        Cell::Figure(outcome.addresses() as f64, 0),
        Cell::spread(Spread::of(outcome.ratios()), 2),
        Cell::spread(Spread::of(outcome.over(Kind::Alone)), 2),
        streams(outcome, Kind::Attack),
        streams(outcome, Kind::Control),
        streams(outcome, Kind::Alone),
        Cell::spread(Spread::of(outcome.of(Kind::Attack).map(rate)), 0),
        Cell::Figure(outcome.daemon_share(Kind::Attack), 3),
        Cell::Figure(growth(outcome), 1),
    ]
}

fn bars(limits: &str, outcome: &Outcome) -> Vec<Bar> {
    let what = |what: &str| format!("{what}, a peer with ever new addresses, limits: {limits}");
    let at_most = |name: &str, target: f64, stretch: f64, unit: &'static str, figure: f64| {
        let (side, stretch, measured) = (Side::AtMost, Some(stretch), Spread::of([figure]));
        Bar { what: what(name), side, target, stretch, unit, measured }
    };
    let cpu = outcome.daemon_share(Kind::Attack);
    vec![
        Bar::ratio_at_least(&what("others' stream"), LEAST, 1.0, Spread::of(outcome.ratios())),
        Bar::ratio_at_least(
            &what("the same over no frames"),
            LEAST,
            1.0,
            Spread::of(outcome.over(Kind::Alone)),
        ),
        at_most("daemon's share of a CPU", MOST_CPU, MOST_CPU / 5.0, "", cpu),
        at_most("daemon's memory", MOST_MEMORY, MOST_MEMORY / 4.0, "MiB more", growth(outcome)),
    ]
}

fn phases(outcome: &Outcome) -> Value {
    let phase = |phase: &Phase| {
        json!({
            "kind": format!("{:?}", phase.kind).to_lowercase(),
            "seconds": phase.time.as_secs_f64(),
            "arrived": phase.arrived,
            "bits_per_second": phase.stream,
            "daemon_seconds": phase.daemon.as_secs_f64(),
        })
    };
    outcome.phases.iter().map(phase).collect()
}

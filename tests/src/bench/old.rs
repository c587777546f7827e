//! This build of mgre and another one, in the same rounds: whether it became slower.

use anyhow::Result;
use serde_json::json;

use super::{
    field::Field,
    kind::Kind,
    part::Plan,
    race::{Outcome, Race},
    report::{Bar, Report},
    table::{Cell, Table},
};

/// In a race, this build and the other one.
type Pair = (Race, &'static str, Kind, Kind);

const PAIRS: [Pair; 3] = [
    (Race::Xdp, "64 B, XDP", Kind::MgreXdp, Kind::OldMgreXdp),
    (Race::Xdp, "64 B, TCX", Kind::Mgre, Kind::OldMgre),
    (Race::Frames, "64 B as socket buffers, TCX", Kind::Mgre, Kind::OldMgre),
];
/// How much of the other build's rate must be left: 3 % are what two runs of the same build may differ by.
const LEAST: f64 = 0.97;

/// The part.
///
/// # Errors
/// It cannot be measured, or there is no other build.
pub fn run(field: &mut Field, plan: Plan) -> Result<Report> {
    // Small differences want many rounds.
    let plan = Plan { rounds: plan.rounds * 2, ..plan };
    let outcomes = [Race::Xdp, Race::Frames]
        .into_iter()
        .map(|race| {
            let kinds: Vec<Kind> = pairs(race).flat_map(|(_, _, this, old)| [*this, *old]).collect();
            race.measure(&field.these(&kinds)?, plan)
        })
        .collect::<Result<Vec<Outcome>>>()?;
    let mut ratios = Table::new("ratio of the same round", &[("this_over_old", "this build / old build")]);
    let mut bars = Vec::new();
    for (race, title, this, old) in PAIRS {
        let ratio =
            outcomes.iter().find(|outcome| outcome.race() == race).and_then(|one| one.ratio(this, old));
        ratios.row(&format!("{}-{}", race.key(), this.key()), title, [Cell::spread(ratio, 3)]);
        bars.push(Bar::ratio_at_least(&format!("{title}, this build / old build"), LEAST, 1.0, ratio));
    }
    Ok(Report {
        key: "old".into(),
        title: format!("64-byte frames, this build and an older one ({} rounds)", plan.rounds),
        tables: outcomes.iter().map(Outcome::figures).chain([ratios]).collect(),
        bars,
        details: outcomes
            .iter()
            .map(|one| json!({ "race": one.race().key(), "rounds": one.details() }))
            .collect(),
        ..Report::default()
    })
}

fn pairs(race: Race) -> impl Iterator<Item = &'static Pair> {
    PAIRS.iter().filter(move |pair| pair.0 == race)
}

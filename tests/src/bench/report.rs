//! The tables, and the same as JSON.

use serde_json::{Map, Value, json};

use super::{
    contestant::Kind,
    measure::{Outcome, Sample},
    statistics::Spread,
};

/// How many signs the longest bar has.
const BAR_LEN: f64 = 30.0;

/// A part's table: the figures with a bar each, and mgre's ratios to the others.
pub fn text(outcome: &Outcome) -> String {
    let part = outcome.part;
    let rounds = outcome.samples.first().map_or(0, |(_, samples)| samples.len());
    let mut text = format!("{} ({rounds} rounds)\n", part.title());
    text +=
        &format!("  {:<24} {:>9}  {:<19} {}\n", part.unit(), "median", "min .. max", extra_heading(outcome));
    let most = outcome.samples.iter().filter_map(|(_, samples)| median(samples, |sample| Some(sample.value)));
    let most = most.fold(0.0, f64::max);
    for (kind, samples) in &outcome.samples {
        let Some(spread) = Spread::of(samples.iter().map(|sample| sample.value)) else { continue };
        let bar = "#".repeat((spread.median / most * BAR_LEN).round() as usize);
        let range = format!("{:.3} .. {:.3}", spread.min, spread.max);
        text += &format!(
            "  {:<24} {:>9.3}  {range:<19} {:>9}  {bar}\n",
            kind.title(),
            spread.median,
            extra(samples)
        );
    }
    for (other, spread) in ratios(outcome) {
        let name = format!("mgre / {}", other.title());
        let range = format!("{:.2} .. {:.2}", spread.min, spread.max);
        text += &format!("  {name:<31} {:>6.2}  {range}\n", spread.median);
    }
    for (kind, spread) in beyond_direct(outcome) {
        let name = format!("ns a frame beyond direct, {}", kind.key());
        let range = format!("{:.0} .. {:.0}", spread.min, spread.max);
        text += &format!("  {name:<34} {:>4.0}  {range}\n", spread.median);
    }
    text
}

fn extra_heading(outcome: &Outcome) -> &'static str {
    match outcome.samples.first().and_then(|(_, samples)| samples.first()) {
        Some(Sample { sent: Some(_), .. }) => "     sent",
        Some(Sample { bytes_per_packet: Some(_), .. }) => "B/packet",
        _ => "",
    }
}

/// What was sent, or the mean length of packets.
fn extra(samples: &[Sample]) -> String {
    if let Some(sent) = median(samples, |sample| sample.sent) {
        return format!("{sent:.3}");
    }
    median(samples, |sample| sample.bytes_per_packet).map_or_else(String::new, |bytes| format!("{bytes:.0}"))
}

fn median(samples: &[Sample], figure: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
    Spread::of(samples.iter().filter_map(figure)).map(|spread| spread.median)
}

fn ratios(outcome: &Outcome) -> impl Iterator<Item = (Kind, Spread)> + '_ {
    let others = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Mgre);
    others.filter_map(|kind| Some((kind, outcome.ratio_to(kind)?)))
}

fn beyond_direct(outcome: &Outcome) -> impl Iterator<Item = (Kind, Spread)> + '_ {
    let others = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Direct);
    others.filter_map(|kind| Some((kind, outcome.beyond_direct_ns(kind)?)))
}

/// A part for programs: every round, and the ratios.
pub fn json(outcome: &Outcome) -> Value {
    let rounds = |samples: &[Sample]| -> Value {
        let rows = samples.iter().map(|sample| {
            let mut row = Map::from_iter([("value".to_owned(), json!(sample.value))]);
            row.extend(sample.sent.map(|sent| ("sent".to_owned(), json!(sent))));
            row.extend(sample.bytes_per_packet.map(|bytes| ("bytes_per_packet".to_owned(), json!(bytes))));
            Value::Object(row)
        });
        rows.collect()
    };
    let samples = outcome.samples.iter().map(|(kind, samples)| (kind.key().to_owned(), rounds(samples)));
    let spread = |spread: Spread| json!({ "median": spread.median, "min": spread.min, "max": spread.max });
    let ratios = ratios(outcome).map(|(kind, ratio)| (kind.key().to_owned(), spread(ratio)));
    let beyond = beyond_direct(outcome).map(|(kind, cost)| (kind.key().to_owned(), spread(cost)));
    json!({
        "part": outcome.part.key(),
        "title": outcome.part.title(),
        "unit": outcome.part.unit(),
        "rounds": samples.collect::<Map<_, _>>(),
        "mgre_over": ratios.collect::<Map<_, _>>(),
        "ns_beyond_direct": beyond.collect::<Map<_, _>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::measure::Part;

    #[test]
    fn ratios_are_of_the_same_round() {
        let samples = |values: [f64; 3]| {
            values.map(|value| Sample { value, sent: Some(value), bytes_per_packet: None }).to_vec()
        };
        let outcome = Outcome {
            part: Part::Frames,
            samples: vec![(Kind::Mgre, samples([2.0, 4.0, 9.0])), (Kind::Vxlan, samples([1.0, 4.0, 3.0]))],
        };
        let ratio = outcome.ratio_to(Kind::Vxlan).expect("measured");
        assert_eq!(ratio, Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(outcome.ratio_to(Kind::Direct), None);
        assert_eq!(json(&outcome)["mgre_over"]["vxlan"]["median"], 2.0);
        assert_eq!(json(&outcome)["rounds"]["mgre"][1]["value"], 4.0);
        let table = text(&outcome);
        assert!(table.contains("mgre / vxlan + bridge             2.00  1.00 .. 3.00"), "{table}");
    }
}

//! What parts find: tables, bars and plots, for people and for programs.
//!
//! A part fills in a [`Report`] and knows nothing of how it is shown.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::{
    plot::Plot,
    statistics::Spread,
    table::{Cell, Table},
};

/// What one part found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The part's name in JSON and on the command line.
    pub key: String,
    /// What heads it.
    pub title: String,
    /// Its tables.
    pub tables: Vec<Table>,
    /// Which bars it can answer.
    pub bars: Vec<Bar>,
    /// What there is to draw.
    pub plots: Vec<Plot>,
    /// What a reader must know besides: what was left out, and why.
    pub remarks: Vec<String>,
    /// Every single measurement, for programs.
    pub details: Value,
}

impl Report {
    /// For the terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.title);
        for table in &self.tables {
            text += &table.text();
            text.push('\n');
        }
        for remark in &self.remarks {
            text += &format!("  {remark}\n");
        }
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "part": self.key,
            "title": self.title,
            "tables": self.tables.iter().map(Table::json).collect::<Value>(),
            "bars": self.bars.iter().map(Bar::json).collect::<Value>(),
            "remarks": self.remarks,
            "details": self.details,
        })
    }
}

/// On which side of a bar a figure must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// At least the bar: rates.
    AtLeast,
    /// At most the bar: costs.
    AtMost,
}

/// A figure that was promised, and what came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// What is measured against what.
    pub what: String,
    /// What is wanted of the median.
    pub side: Side,
    /// The promise.
    pub target: f64,
    /// What would be better still.
    pub stretch: Option<f64>,
    /// The figure's unit; empty for ratios.
    pub unit: &'static str,
    /// What was measured; none if a contestant was not there.
    pub measured: Option<Spread>,
}

impl Bar {
    /// A ratio that should be high.
    pub fn ratio_at_least(what: &str, target: f64, stretch: f64, measured: Option<Spread>) -> Self {
        let (what, stretch) = (what.to_owned(), Some(stretch));
        Self { what, side: Side::AtLeast, target, stretch, unit: "", measured }
    }

    /// A ratio that should be low.
    pub fn ratio_at_most(what: &str, target: f64, stretch: f64, measured: Option<Spread>) -> Self {
        Self { side: Side::AtMost, ..Self::ratio_at_least(what, target, stretch, measured) }
    }

    /// Whether the median is where it should be; none if it was not measured.
    pub fn met(&self) -> Option<bool> {
        Some(self.reaches(self.measured?.median, self.target))
    }

    fn reaches(&self, figure: f64, bar: f64) -> bool {
        match self.side {
            Side::AtLeast => figure >= bar,
            Side::AtMost => figure <= bar,
        }
    }

    fn verdict(&self) -> &'static str {
        let stretch = |spread: Spread| self.stretch.is_some_and(|bar| self.reaches(spread.median, bar));
        match (self.met(), self.measured) {
            (Some(true), Some(spread)) if stretch(spread) => "met, and the stretch",
            (Some(true), _) => "met",
            (Some(false), _) => "NOT met",
            (None, _) => "not measured",
        }
    }

    fn target_text(&self) -> String {
        let mut text = String::from(match self.side {
            Side::AtLeast => ">= ",
            Side::AtMost => "<= ",
        });
        // Writing to a string never fails.
        write!(text, "{}", self.target).ok();
        if let Some(stretch) = self.stretch {
            write!(text, " ({stretch})").ok();
        }
        if !self.unit.is_empty() {
            write!(text, " {}", self.unit).ok();
        }
        text
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what,
            "side": match self.side { Side::AtLeast => "at_least", Side::AtMost => "at_most" },
            "target": self.target,
            "stretch": self.stretch,
            "unit": self.unit,
            "measured": self.measured.map(Spread::json),
            "met": self.met(),
        })
    }
}

/// The bars of all parts, as a table; none if there are none.
pub fn bars(reports: &[Report]) -> Option<Table> {
    let mut table =
        Table::new("bars", &[("bar", "bar (stretch)"), ("measured", "measured"), ("verdict", "")]);
    for bar in reports.iter().flat_map(|report| &report.bars) {
        let measured = bar.measured.map_or(Cell::Empty, |spread| Cell::Spread(spread, 2));
        table.row(
            &bar.what,
            &bar.what,
            [Cell::Text(bar.target_text()), measured, Cell::Text(bar.verdict().to_owned())],
        );
    }
    (!table.rows.is_empty()).then_some(table)
}

/// Everything, for programs.
pub fn json(machine: Value, programs: Value, reports: &[Report]) -> Value {
    let parts: Value = reports.iter().map(Report::json).collect();
    Value::Object(Map::from_iter([
        ("machine".to_owned(), machine),
        ("programs".to_owned(), programs),
        ("parts".to_owned(), parts),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(median: f64) -> Option<Spread> {
        Some(Spread { median, min: median - 0.5, max: median + 0.5 })
    }

    #[test]
    fn bars_are_judged_by_their_median() {
        let cases = [
            (Bar::ratio_at_least("rate", 3.0, 5.0, spread(2.9)), "NOT met"),
            (Bar::ratio_at_least("rate", 3.0, 5.0, spread(3.0)), "met"),
            (Bar::ratio_at_least("rate", 3.0, 5.0, spread(5.1)), "met, and the stretch"),
            (Bar::ratio_at_most("cost", 2.5, 2.0, spread(2.6)), "NOT met"),
            (Bar::ratio_at_most("cost", 2.5, 2.0, spread(2.2)), "met"),
            (Bar::ratio_at_most("cost", 2.5, 2.0, spread(1.9)), "met, and the stretch"),
            (Bar::ratio_at_most("cost", 2.5, 2.0, None), "not measured"),
        ];
        for (bar, verdict) in cases {
            assert_eq!(bar.verdict(), verdict, "{bar:?}");
        }
    }

    #[test]
    fn bars_of_all_parts_make_one_table() {
        let bar = |what: &str| Bar::ratio_at_least(what, 0.85, 0.95, spread(0.9));
        let report = |what| Report { bars: vec![bar(what)], ..Report::default() };
        let text = bars(&[report("one"), report("another")]).expect("two bars").text();
        assert!(text.contains(">= 0.85 (0.95)") && text.contains("0.90 (0.40 .. 1.40)"), "{text}");
        assert_eq!(text.lines().count(), 3, "{text}");
        assert_eq!(bars(&[Report::default()]), None);
    }
}

//! What came of it, as a text for a terminal and as a table for the documentation.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use super::{
    Examined,
    results::{Loaded, Outcome, Program},
};
use crate::vm::files;

const BEGIN: &str = "<!-- matrix -->";
const END: &str = "<!-- /matrix -->";

/// The programs' names, of all kernels.
fn program_names(examined: &[Examined]) -> Vec<&str> {
    let names: BTreeSet<&str> =
        examined.iter().flat_map(programs).map(|program| program.name.as_str()).collect();
    names.into_iter().collect()
}

fn programs(examined: &Examined) -> &[Program] {
    match &examined.report.loaded {
        Some(Loaded::Yes { programs, .. }) => programs,
        Some(Loaded::No(_)) | None => &[],
    }
}

fn cells(examined: &Examined, names: &[&str]) -> Vec<String> {
    let report = &examined.report;
    let skipped: usize = report.skipped().values().sum();
    let mut cells = vec![examined.kernel.clone()];
    match &report.loaded {
        Some(Loaded::Yes { seconds, programs }) => {
            cells.extend([report.passed(), report.failed(), skipped].map(|count| count.to_string()));
            cells.push(format!("{seconds:.1}"));
            cells.extend(names.iter().map(|name| {
                let program = programs.iter().find(|program| program.name == *name);
                let count = program.and_then(|program| program.verified_instructions);
                count.map_or_else(|| "-".to_owned(), thousands)
            }));
        }
        Some(Loaded::No(_)) => cells.push("refused".to_owned()),
        None => cells.push("no answer".to_owned()),
    }
    cells
}

fn heads<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let mut heads = vec!["kernel", "passed", "failed", "skipped", "load, s"];
    heads.extend(names.iter().map(|name| name.strip_prefix("mgre_").unwrap_or(name)));
    heads
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// For a terminal: a table, and below it why which tests failed or were skipped.
pub(super) fn text(examined: &[Examined]) -> String {
    let names = program_names(examined);
    let mut rows: Vec<Vec<String>> = vec![heads(&names).into_iter().map(str::to_owned).collect()];
    rows.extend(examined.iter().map(|one| cells(one, &names)));
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let mut text = "mgre on other kernels; verified instructions of mgre_...\n".to_owned();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            match column {
                0 => _ = write!(line, "{cell:<width$}", width = width(0)),
                column => _ = write!(line, "  {cell:>width$}", width = width(column)),
            }
        }
        text += line.trim_end();
        text.push('\n');
    }
    for one in examined {
        text += &remarks(one);
    }
    text
}

fn remarks(examined: &Examined) -> String {
    let Examined { kernel, report, trouble, complaints } = examined;
    let mut lines = Vec::new();
    if let Some(Loaded::No(why)) = &report.loaded {
        lines.push(format!("refused: {why}"));
    }
    lines.extend(trouble.clone());
    lines.extend(complaints.iter().map(|line| format!("the kernel says: {line}")));
    for tested in &report.tests {
        if let Outcome::Failed(why) = &tested.outcome {
            lines.push(format!("FAIL {}: {}: {why}", tested.program, tested.test));
        }
    }
    for (why, count) in report.skipped() {
        lines.push(format!("SKIP {count}: {why}"));
    }
    lines.iter().map(|line| format!("{kernel}: {line}\n")).collect()
}

/// For the documentation.
fn markdown(examined: &[Examined]) -> String {
    let names = program_names(examined);
    let heads = heads(&names);
    let mut text = format!("| {} |\n| --- |{}\n", heads.join(" | "), " ---: |".repeat(heads.len() - 1));
    for one in examined {
        let cells = cells(one, &names);
        text += &format!("| {} |{}\n", cells.join(" | "), " |".repeat(heads.len() - cells.len()));
    }
    let mut notes = String::new();
    for one in examined {
        if let Some(Loaded::No(why)) = &one.report.loaded {
            notes += &format!("- {}: refused: {why}\n", one.kernel);
        }
        for (why, count) in one.report.skipped() {
            notes += &format!("- {}: {count} skipped: {why}\n", one.kernel);
        }
    }
    if !notes.is_empty() {
        text += &format!("\n{notes}");
    }
    text
}

/// Puts the table into a file, between its markers.
pub(super) fn write(path: &Path, examined: &[Examined]) -> Result<()> {
    let old = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let new = between_markers(&old, &markdown(examined))
        .with_context(|| format!("{} has no {BEGIN} with {END} below it", path.display()))?;
    files::write(path, new.as_bytes())
}

fn between_markers(old: &str, table: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]
mod tests {
    use super::*;
    use crate::vm::matrix::results::{Report, Tested};

    fn examined() -> Vec<Examined> {
        let tested = |test: &str, outcome| Tested { program: "vlan".into(), test: test.into(), outcome };
        let program = Program { name: "mgre_port".into(), verified_instructions: Some(1_098_714) };
        let loaded = Report {
            loaded: Some(Loaded::Yes { seconds: 2.46, programs: vec![program] }),
            tests: vec![
                tested("a", Outcome::Passed),
                tested("b", Outcome::Failed("why".into())),
                tested("c", Outcome::Skipped("no TCX".into())),
            ],
        };
        let refused = Report { loaded: Some(Loaded::No("too old".into())), tests: Vec::new() };
        let one = |kernel: &str, report| Examined {
            kernel: kernel.into(),
            report,
            trouble: None,
            complaints: Vec::new(),
        };
        vec![one("5.10.0-1-cloud-amd64", refused), one("6.12.1-cloud-amd64", loaded)]
    }

    #[test]
    fn columns_are_aligned() {
        let text = text(&examined());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "kernel                 passed  failed  skipped  load, s       port");
        assert_eq!(lines[2], "5.10.0-1-cloud-amd64  refused");
        assert_eq!(lines[3], "6.12.1-cloud-amd64          1       1        1      2.5  1,098,714");
        assert_eq!(lines[4], "5.10.0-1-cloud-amd64: refused: too old");
        assert_eq!(lines[5], "6.12.1-cloud-amd64: FAIL vlan: b: why");
        assert_eq!(lines[6], "6.12.1-cloud-amd64: SKIP 1: no TCX");
    }

    #[test]
    fn the_documentation_keeps_its_text() {
        let old = "# Kernels\n<!-- matrix -->\nold\n<!-- /matrix -->\nBelow.\n";
        let new = between_markers(old, &markdown(&examined())).unwrap();
        assert!(
            new.starts_with("# Kernels\n<!-- matrix -->\n| kernel | passed |")
                && new.ends_with("-->\nBelow.\n")
        );
        assert!(
            new.contains("| 6.12.1-cloud-amd64 | 1 | 1 | 1 | 2.5 | 1,098,714 |\n") && !new.contains("old\n<")
        );
        assert!(new.contains("| 5.10.0-1-cloud-amd64 | refused | | | | |\n"));
        assert_eq!(between_markers("nothing", ""), None);
    }
}

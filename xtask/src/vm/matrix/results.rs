//! What a guest said of the tests in it.
//!
//! Its script writes lines that begin with `@` between what the test programs print: `@programs JSON`,
//! `@begin PROGRAM`, `@skip SKIP TEST: WHY`, `@end PROGRAM CODE SECONDS`.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Selected;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// What became of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tested {
    pub(super) program: String,
    pub(super) test: String,
    pub(super) outcome: Outcome,
}

/// What a kernel made of one of mgre's programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) name: String,
    pub(super) verified_instructions: Option<u64>,
}

/// What a kernel made of mgre.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Loaded {
    /// The programs, and how long it took to load them.
    Yes { seconds: f64, programs: Vec<Program> },
    /// mgre's own reason.
    No(String),
}

/// Everything that a guest said.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    pub(super) loaded: Option<Loaded>,
    pub(super) tests: Vec<Tested>,
}

impl Report {
    fn count(&self, wanted: impl Fn(&Outcome) -> bool) -> usize {
        self.tests.iter().filter(|tested| wanted(&tested.outcome)).count()
    }

    pub(super) fn passed(&self) -> usize {
        self.count(|outcome| *outcome == Outcome::Passed)
    }

    pub(super) fn failed(&self) -> usize {
        self.count(|outcome| matches!(outcome, Outcome::Failed(_)))
    }

    /// Reasons for which tests were skipped, and how many for each.
    pub(super) fn skipped(&self) -> BTreeMap<&str, usize> {
        let mut reasons = BTreeMap::new();
        for tested in &self.tests {
            if let Outcome::Skipped(why) = &tested.outcome {
                *reasons.entry(why.as_str()).or_default() += 1;
            }
        }
        reasons
    }
}

/// Reads a guest's output. Of the tests that were wanted, those that it does not speak of have failed.
pub(super) fn parse(output: &str, wanted: &[Selected]) -> Result<Report> {
    let mut report = Report::default();
    let mut ends = BTreeMap::new();
    for (program, lines) in by_program(output) {
        match program {
            None => {
                if let Some(json) = lines.iter().find_map(|line| line.strip_prefix("@programs ")) {
                    report.loaded = Some(parse_programs(json)?);
                }
            }
            Some(program) => {
                report.tests.extend(tests(program, &lines));
                let end = lines.iter().find_map(|line| line.strip_prefix("@end ")).map(str::to_owned);
                ends.insert(program.to_owned(), end);
            }
        }
    }
    if matches!(report.loaded, Some(Loaded::No(_))) {
        return Ok(report);
    }
    for selected in wanted {
        let why = match ends.get(&selected.program) {
            None => "did not run: the guest ended before".to_owned(),
            Some(None) => "did not end: nor did the guest".to_owned(),
            Some(Some(end)) => format!("did not end: {}", ending(end)),
        };
        for test in &selected.tests {
            if !report.tests.iter().any(|tested| tested.program == selected.program && tested.test == *test) {
                report.tests.push(Tested {
                    program: selected.program.clone(),
                    test: test.clone(),
                    outcome: Outcome::Failed(why.clone()),
                });
            }
        }
    }
    Ok(report)
}

/// The lines of each program, and those of none.
fn by_program(output: &str) -> Vec<(Option<&str>, Vec<&str>)> {
    let mut parts: Vec<(Option<&str>, Vec<&str>)> = vec![(None, Vec::new())];
    for line in output.lines() {
        if let Some(program) = line.strip_prefix("@begin ") {
            parts.push((Some(program), Vec::new()));
        } else if let Some((_, lines)) = parts.last_mut() {
            lines.push(line);
        }
    }
    parts
}

/// `PROGRAM CODE SECONDS` in words.
fn ending(end: &str) -> String {
    let mut words = end.split_whitespace().skip(1);
    let (code, seconds) = (words.next().unwrap_or("?"), words.next().unwrap_or("?"));
    match code {
        // SIGKILL, by timeout.
        "137" => format!("the program was ended after {seconds} s"),
        code => format!("the program ended with {code} after {seconds} s"),
    }
}

fn parse_programs(json: &str) -> Result<Loaded> {
    let value: Value =
        serde_json::from_str(json).with_context(|| format!("the guest said of mgre: {json:?}"))?;
    if let Some(why) = value["refused"].as_str() {
        return Ok(Loaded::No(why.to_owned()));
    }
    let seconds =
        value["loaded"]["load_seconds"].as_f64().context("the guest does not say how long it took")?;
    let programs = value["loaded"]["programs"].as_array().context("the guest names no programs")?;
    let program = |value: &Value| {
        Some(Program {
            name: value["name"].as_str()?.to_owned(),
            verified_instructions: value["verified_instructions"].as_u64(),
        })
    };
    Ok(Loaded::Yes { seconds, programs: programs.iter().filter_map(program).collect() })
}

/// What libtest printed of a program's tests.
fn tests(program: &str, lines: &[&str]) -> Vec<Tested> {
    let skips: BTreeMap<&str, &str> =
        lines.iter().filter_map(|line| line.strip_prefix("@skip SKIP ")?.split_once(": ")).collect();
    let mut found = Vec::new();
    for line in lines {
        let Some((test, word)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) else {
            continue;
        };
        let test = test.trim_end_matches(" - should panic");
        let outcome = match word {
            "ok" => match skips.get(test) {
                Some(why) => Outcome::Skipped((*why).to_owned()),
                None => Outcome::Passed,
            },
            "FAILED" => Outcome::Failed(reason(test, lines)),
            word if word.starts_with("ignored") => Outcome::Skipped(word.to_owned()),
            _ => continue,
        };
        found.push(Tested { program: program.to_owned(), test: test.to_owned(), outcome });
    }
    found
}

/// The first words of a test that say what went wrong: an error that it returned, or what is below `panicked at`.
fn reason(test: &str, lines: &[&str]) -> String {
    const LONGEST: usize = 200;
    let head = format!("---- {test} stdout ----");
    let said = lines.iter().skip_while(|line| **line != head).skip(1);
    let said: Vec<&str> =
        said.copied().take_while(|line| !line.starts_with("---- ") && *line != "failures:").collect();
    let panicked = said.iter().position(|line| line.starts_with("thread '") && line.contains("panicked at"));
    let returned = said.iter().position(|line| line.starts_with("Error: "));
    let words = match (panicked, returned) {
        (Some(at), _) => said.iter().skip(at + 1).take(2).copied().collect::<Vec<_>>().join(" "),
        (None, Some(at)) => said[at].to_owned(),
        (None, None) => said.iter().find(|line| !line.trim().is_empty()).copied().unwrap_or("?").to_owned(),
    };
    words.trim().chars().take(LONGEST).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]
mod tests {
    use super::*;

    const OUTPUT: &str = r#"@programs {"kernel":"6.12.1-amd64","loaded":{"load_seconds":2.5,"programs":[{"name":"mgre_port","verified_instructions":98714,"xlated_bytes":1,"jited_bytes":2}]}}
@begin vlan

running 4 tests
test tags::one ... ok
test tags::two ... ok
test three ... FAILED
test four ... FAILED
test five - should panic ... ok

failures:

---- three stdout ----

thread 'three' (12) panicked at tests/tests/vlan.rs:3:5:
assertion `left == right` failed
  left: 1
 right: 2
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace

---- four stdout ----
some words
Error: waited 10s in vain for: an address


failures:
    three
    four

test result: FAILED. 2 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s

@skip SKIP tags::two: this kernel has no TCX
@end vlan 101 12
@begin mtu
test a ... ok
test b has been running for over 60 seconds
@end mtu 137 900
@begin udp
test c ... ok
"#;

    fn selected(program: &str, tests: &[&str]) -> Selected {
        let tests = tests.iter().map(|test| (*test).to_owned()).collect();
        Selected { program: program.to_owned(), tests }
    }

    #[test]
    fn outcomes_are_read() {
        let wanted = [
            selected("vlan", &["tags::one", "tags::two", "three", "four", "five"]),
            selected("mtu", &["a", "b"]),
            selected("udp", &["c", "d"]),
            selected("xdp", &["e"]),
        ];
        let report = parse(OUTPUT, &wanted).unwrap();
        let of = |test: &str| &report.tests.iter().find(|tested| tested.test == test).unwrap().outcome;
        let failed = |test: &str| match of(test) {
            Outcome::Failed(why) => why.as_str(),
            other => panic!("{test}: {other:?}"),
        };
        for test in ["tags::one", "five", "a", "c"] {
            assert_eq!(*of(test), Outcome::Passed, "{test}");
        }
        assert_eq!(*of("tags::two"), Outcome::Skipped("this kernel has no TCX".into()));
        assert_eq!(failed("three"), "assertion `left == right` failed   left: 1");
        assert_eq!(failed("four"), "Error: waited 10s in vain for: an address");
        assert_eq!(failed("b"), "did not end: the program was ended after 900 s");
        assert_eq!(failed("d"), "did not end: nor did the guest");
        assert_eq!(failed("e"), "did not run: the guest ended before");
        assert_eq!((report.passed(), report.failed()), (4, 5));
        assert_eq!(report.skipped(), BTreeMap::from([("this kernel has no TCX", 1)]));
        let program = Program { name: "mgre_port".into(), verified_instructions: Some(98_714) };
        assert_eq!(report.loaded, Some(Loaded::Yes { seconds: 2.5, programs: vec![program] }));
    }

    #[test]
    fn a_kernel_that_refuses_is_not_tested() {
        let output = "@programs {\"kernel\":\"5.10.0\",\"refused\":\"kernel 5.10.0 is too old\"}\n";
        let report = parse(output, &[selected("vlan", &["one"])]).unwrap();
        assert_eq!(report.loaded, Some(Loaded::No("kernel 5.10.0 is too old".into())));
        assert_eq!(report.tests, []);
    }

    #[test]
    fn a_guest_that_dies_at_once_fails_everything() {
        let report = parse("", &[selected("vlan", &["one", "two"])]).unwrap();
        assert_eq!((report.loaded.is_none(), report.failed()), (true, 2));
    }
}

//! What checks found: a line each on standard output, and in a file as JSON lines.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is as it should be.
    Pass(String),
    /// It is not.
    Fail(String),
    /// It could not be looked at, and why.
    Skip(String),
}

impl Verdict {
    /// Passed if `good`.
    pub fn when(good: bool, detail: impl Into<String>) -> Self {
        if good { Self::Pass(detail.into()) } else { Self::Fail(detail.into()) }
    }

    fn parts(&self) -> (&'static str, &str) {
        match self {
            Self::Pass(detail) => ("PASS", detail),
            Self::Fail(detail) => ("FAIL", detail),
            Self::Skip(detail) => ("SKIP", detail),
        }
    }
}

/// The results of a run.
#[derive(Debug)]
pub struct Report {
    json: Option<File>,
    last: Instant,
    passed: usize,
    skipped: usize,
    failed: usize,
    baseline: bool,
    /// What fails whoever is between the stations: names of checks, without what they begin with.
    excused: BTreeSet<String>,
    /// Of the checks that send frames, the frames that do not get through then.
    excused_frames: BTreeMap<String, BTreeSet<String>>,
}

impl Report {
    /// An empty one, which also writes to a file.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new(json: Option<&Path>) -> Result<Self> {
        let create = |path: &Path| File::create(path).with_context(|| path.display().to_string());
        let json = json.map(create).transpose()?;
        Ok(Self {
            json,
            last: Instant::now(),
            passed: 0,
            skipped: 0,
            failed: 0,
            baseline: false,
            excused: BTreeSet::new(),
            excused_frames: BTreeMap::new(),
        })
    }

    /// Whether checks are now made without mgre. Those that fail then are skipped, and are skipped again where they
    /// fail with mgre: it is not its fault. A check is the same if it has the same name behind the first colon.
    pub fn set_baseline(&mut self, baseline: bool) {
        self.baseline = baseline;
    }

    /// Names of the frames that a check need not send, because they do not get through without mgre either.
    pub fn excused_frames(&self, name: &str) -> BTreeSet<String> {
        self.excused_frames.get(check_of(name)).cloned().unwrap_or_default()
    }

    /// Remembers which frames did not get through, if this is without mgre, and makes a failure of that a skip: others
    /// of the check's frames are looked at with mgre all the same.
    pub fn excuse_frames<'a>(
        &mut self,
        name: &str,
        faulty: impl Iterator<Item = &'a str>,
        verdict: Verdict,
    ) -> Verdict {
        let Verdict::Fail(detail) = verdict else { return verdict };
        if !self.baseline {
            return Verdict::Fail(detail);
        }
        let excused = self.excused_frames.entry(check_of(name).to_owned()).or_default();
        excused.extend(faulty.map(str::to_owned));
        Verdict::Skip(format!("fails without mgre too: {detail}"))
    }

    fn excuse(&mut self, name: &str, verdict: &Verdict) -> Option<Verdict> {
        let Verdict::Fail(detail) = verdict else { return None };
        let check = check_of(name);
        if self.baseline {
            self.excused.insert(check.to_owned());
        }
        self.excused.contains(check).then(|| Verdict::Skip(format!("fails without mgre too: {detail}")))
    }

    /// Notes what a check found, and says whether it passed or was skipped for a reason that is not mgre's.
    pub fn record(&mut self, name: &str, verdict: &Verdict) -> bool {
        let excused = self.excuse(name, verdict);
        let verdict = excused.as_ref().unwrap_or(verdict);
        let (word, detail) = verdict.parts();
        // A line each, whatever a program wrote.
        let detail = detail.split_whitespace().collect::<Vec<_>>().join(" ");
        let seconds = self.lap().as_secs_f64();
        match verdict {
            Verdict::Pass(_) => self.passed += 1,
            Verdict::Skip(_) => self.skipped += 1,
            Verdict::Fail(_) => self.failed += 1,
        }
        self.print(&format!("{word} {name}: {detail}"));
        self.write(&json!({
            "result": word.to_lowercase(), "name": name, "detail": detail, "seconds": seconds,
        }));
        !matches!(verdict, Verdict::Fail(_))
    }

    /// The same; that the check could not be made is a failure.
    pub fn check(&mut self, name: &str, result: Result<Verdict>) -> bool {
        let verdict = result.unwrap_or_else(|error| Verdict::Fail(format!("{error:#}")));
        self.record(name, &verdict)
    }

    /// Notes a failure to do something that a check is not about, if it is one.
    pub fn ensure<T>(&mut self, name: &str, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.record(name, &Verdict::Fail(format!("{error:#}")))).ok()
    }

    /// Lines that say more about what was checked.
    pub fn context(&mut self, text: &str) {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            self.print(&format!("     {}", line.trim_end()));
            self.write(&json!({ "context": line.trim_end() }));
        }
    }

    /// How many checks have failed until now.
    pub fn failures(&self) -> usize {
        self.failed
    }

    /// Prints the sums, and says whether no check failed.
    pub fn finish(mut self) -> bool {
        let (passed, failed, skipped) = (self.passed, self.failed, self.skipped);
        self.print(&format!("{passed} passed, {failed} failed, {skipped} skipped"));
        self.write(&json!({ "passed": passed, "failed": failed, "skipped": skipped }));
        failed == 0
    }

    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.last, now)
    }

    fn print(&self, line: &str) {
        if cfg!(test) {
            // These lines say FAIL, and whoever reads a test's output would believe it.
            return;
        }
        // Whoever reads may be gone; the file and the exit code still say how it went.
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{line}").and_then(|()| stdout.flush()).ok();
    }

    fn write(&mut self, line: &Value) {
        if let Some(file) = &mut self.json
            && let Err(error) = writeln!(file, "{line}")
        {
            eprintln!("cannot write results: {error}");
            self.json = None;
        }
    }
}

/// What a check's name is without what it begins with.
fn check_of(name: &str) -> &str {
    name.split_once(": ").map_or(name, |(_, check)| check)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_failures_is_good() {
        let mut report = Report::new(None).expect("no file");
        assert!(report.record("one", &Verdict::when(true, "a\nb")));
        assert!(report.record("two", &Verdict::Skip("no such kernel module".to_owned())));
        assert_eq!((report.passed, report.skipped, report.failures()), (1, 1, 0));
        assert!(report.finish());
    }

    #[test]
    fn what_fails_without_mgre_is_no_failure_with_it() {
        let mut report = Report::new(None).expect("no file");
        let fails = Verdict::when(false, "");
        report.set_baseline(true);
        report.record("cards: ping", &fails);
        report.set_baseline(false);
        report.record("native: ping", &fails);
        assert_eq!((report.skipped, report.failures()), (2, 0));
        report.record("native: TCP", &fails);
        assert!(!report.finish());
    }

    #[test]
    fn frames_are_excused_one_by_one() {
        let mut report = Report::new(None).expect("no file");
        let fails = || Verdict::Fail("x".to_owned());
        report.set_baseline(true);
        let verdict = report.excuse_frames("cards: frames 1>2", ["a"].into_iter(), fails());
        assert!(matches!(verdict, Verdict::Skip(_)) && report.record("cards: frames 1>2", &verdict));
        report.set_baseline(false);
        assert_eq!(report.excused_frames("native: frames 1>2"), BTreeSet::from(["a".to_owned()]));
        assert!(report.excused_frames("native: frames 2>1").is_empty());
        let verdict = report.excuse_frames("native: frames 1>2", ["b"].into_iter(), fails());
        assert!(!report.record("native: frames 1>2", &verdict));
    }

    #[test]
    fn a_failure_is_written_down() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut report = Report::new(Some(file.path())).expect("opens");
        assert!(!report.check("broken", Err(anyhow::anyhow!("why").context("what"))));
        assert!(!report.finish());
        let text = std::fs::read_to_string(file.path()).expect("reads");
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!((&lines[0]["result"], &lines[0]["detail"]), (&json!("fail"), &json!("what: why")));
        assert_eq!(lines[1], json!({ "passed": 0, "failed": 1, "skipped": 0 }));
    }
}

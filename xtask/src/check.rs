//! What the code must pass beside its tests.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use xtask::{ebpf, toolchain};

use crate::{host, setup};

const CARGO_DENY_VERSION: &str = "0.20.2";
/// How long the advisory database may take to come.
const FETCH_TIMEOUT: Duration = Duration::from_secs(60);

enum Outcome {
    Passed,
    /// Not done, and why.
    Skipped(String),
}

type Step = fn(&Path) -> Result<Outcome>;

const STEPS: [(&str, Step); 6] = [
    ("rustfmt", rustfmt),
    ("clippy, host crates", clippy_host),
    ("clippy, eBPF crate", clippy_ebpf),
    ("rustdoc", rustdoc),
    ("licences, bans, sources", deny),
    ("advisories", advisories),
];

pub(crate) fn run(root: &Path) -> Result<()> {
    setup::run(root, setup::Purpose::Check)?;
    let mut summary = Vec::new();
    let mut failed = 0;
    for (name, step) in STEPS {
        println!("check: {name}");
        let start = Instant::now();
        let result = step(root);
        let word = match result {
            Ok(Outcome::Passed) => "ok".to_owned(),
            Ok(Outcome::Skipped(why)) => format!("SKIPPED: {why}"),
            Err(error) => {
                failed += 1;
                format!("FAILED: {error:#}")
            }
        };
        let line = format!("check: {name:<24} {:>6.1} s  {word}", start.elapsed().as_secs_f64());
        println!("{line}");
        summary.push(line);
    }
    println!("\n{}", summary.join("\n"));
    if failed > 0 {
        bail!("{failed} of {} checks failed", STEPS.len());
    }
    Ok(())
}

fn rustfmt(root: &Path) -> Result<Outcome> {
    host::run(host::cargo(root).args(["fmt", "--all", "--", "--check"]))?;
    Ok(Outcome::Passed)
}

fn clippy_host(root: &Path) -> Result<Outcome> {
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    host::run(host::cargo(root).args(clippy))?;
    Ok(Outcome::Passed)
}

fn clippy_ebpf(root: &Path) -> Result<Outcome> {
    let toolchain = toolchain::find(root)?;
    ebpf::clippy(&toolchain, root, &xtask::target_dir(root).join("ebpf"))?;
    Ok(Outcome::Passed)
}

fn rustdoc(root: &Path) -> Result<Outcome> {
    let doc = ["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"];
    // Private items are documented too, so that links to them lead somewhere.
    let flags = "-D warnings -A rustdoc::private_intra_doc_links";
    host::run(host::cargo(root).env("RUSTDOCFLAGS", flags).args(doc))?;
    Ok(Outcome::Passed)
}

fn deny(root: &Path) -> Result<Outcome> {
    host::run(cargo_deny(root)?.args(["check", "licenses", "bans", "sources"]))?;
    Ok(Outcome::Passed)
}

fn advisories(root: &Path) -> Result<Outcome> {
    let mut fetch = cargo_deny(root)?;
    if let Err(why) = finish_within(fetch.args(["fetch", "db"]), FETCH_TIMEOUT)? {
        return Ok(Outcome::Skipped(format!("the advisory database cannot be fetched: {why}")));
    }
    host::run(cargo_deny(root)?.args(["check", "--disable-fetch", "advisories"]))?;
    Ok(Outcome::Passed)
}

/// cargo-deny over the whole workspace, built once where there is none.
fn cargo_deny(root: &Path) -> Result<Command> {
    let mut command = Command::new(find_or_install_cargo_deny(root)?);
    command.current_dir(root).args(["--workspace", "--all-features", "--locked"]);
    Ok(command)
}

fn find_or_install_cargo_deny(root: &Path) -> Result<PathBuf> {
    let tools = xtask::tools_dir(root);
    let find =
        || xtask::find_program("cargo-deny", [tools.join("bin")].into_iter().chain(xtask::path_folders()));
    if let Some(found) = find() {
        return Ok(found);
    }
    println!("check: building cargo-deny {CARGO_DENY_VERSION}, some minutes, once");
    let package = format!("cargo-deny@{CARGO_DENY_VERSION}");
    host::run(host::cargo(root).args(["install", &package, "--locked", "--root"]).arg(&tools))?;
    find().context("cargo installed cargo-deny, but it is not in target/tools/bin")
}

/// Runs a command to its end or the limit; where it does not succeed, its last words say why.
fn finish_within(command: &mut Command, limit: Duration) -> Result<Result<(), String>> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {}", host::shown(command)))?;
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(Err(format!("not done after {} s", limit.as_secs())));
        }
        thread::sleep(Duration::from_millis(100));
    };
    if status.success() {
        return Ok(Ok(()));
    }
    let mut words = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut words)?;
    }
    let last = words.lines().map(str::trim).rfind(|line| !line.is_empty());
    Ok(Err(last.map_or_else(|| status.to_string(), str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<(), String> {
        finish_within(Command::new("sh").args(["-c", script]), limit).expect("sh starts")
    }

    #[test]
    fn commands_get_only_so_long_and_are_quoted() {
        let long = Duration::from_secs(10);
        assert_eq!(shell("true", long), Ok(()));
        assert_eq!(shell("echo first >&2; echo last >&2; echo >&2; false", long), Err("last".to_owned()));
        assert_eq!(shell("exec sleep 60", Duration::ZERO), Err("not done after 0 s".to_owned()));
    }
}

//! Says, as one line of JSON, whether this kernel takes mgre, and what it made of the programs.

use std::{process::ExitCode, time::Instant};

use anyhow::{Context as _, Result};
use mgre_tests::{daemon::Options, lone::Lone};
use mgre_user::{
    datapath::load::{self, Capacity},
    object,
};
use nix::sys::utsname::uname;
use serde_json::{Value, json};

/// Of a daemon that is told nothing else, more or less; the programs are the same for any.
const CAPACITY: Capacity = Capacity { fdb_entries: 65_536, adjacencies: 1_024 };

fn main() -> ExitCode {
    let said = uname()
        .context("cannot tell the kernel's release")
        .map(|kernel| kernel.release().to_string_lossy().into_owned())
        .map(|kernel| match programs() {
            Ok(report) => json!({ "kernel": kernel, "loaded": report }),
            Err(error) => json!({ "kernel": kernel, "refused": reason(&format!("{error:#}")) }),
        });
    match said {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// First the daemon, whose word counts; then the programs by themselves.
fn programs() -> Result<Value> {
    drop(Lone::new(Options::default())?);
    let object = object::object()?;
    let start = Instant::now();
    let loaded = load::load(object, CAPACITY)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let mut programs = Vec::new();
    for (name, program) in loaded.programs.programs() {
        // One that only asks the kernel something is not kept.
        let Ok(info) = program.info() else { continue };
        programs.push(json!({
            "name": name,
            "verified_instructions": info.verified_instruction_count(),
            "xlated_bytes": info.size_translated(),
            "jited_bytes": info.size_jitted(),
        }));
    }
    Ok(json!({ "load_seconds": load_seconds, "programs": programs }))
}

/// The daemon's own word, where its log is in an error. Of a verifier's log, which can have thousands of lines, the one
/// that says why is the last before the statistics.
fn reason(error: &str) -> String {
    let said = error.lines().rev().find_map(|line| line.trim().strip_prefix("mgre: "));
    let Some(said) = said else { return error.lines().next().unwrap_or(error).to_owned() };
    let said = said.split(" Verifier output:").next().unwrap_or(said);
    let is_statistics =
        |line: &&str| ["verification time", "processed "].iter().any(|word| line.starts_with(word));
    match error.lines().position(|line| is_statistics(&line)) {
        Some(end) => format!("{said} {}", error.lines().nth(end.saturating_sub(1)).unwrap_or_default()),
        None => said.to_owned(),
    }
}

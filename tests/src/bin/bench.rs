//! Compares mgre with what the kernel offers, on this machine, in namespaces.

use std::{fs::File, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use mgre_tests::{
    bench::{
        contestant::{Contestant, Kind},
        machine::Machine,
        measure::{Part, Plan, measure},
        programs, report, stop,
    },
    skip,
};
use serde_json::json;

#[derive(Debug, Parser)]
#[command(name = "bench", bin_name = "cargo xtask bench", about)]
struct Arguments {
    /// Shorter and fewer rounds: less than two minutes in all
    #[arg(long)]
    quick: bool,
    /// Only this part; may be repeated
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,
    /// Only this contestant; may be repeated
    #[arg(long, value_name = "NAME")]
    contestant: Vec<Kind>,
    /// Only the size of mgre's programs
    #[arg(long, conflicts_with_all = ["only", "contestant"])]
    programs: bool,
    /// How many rounds
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Write everything that was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if let Some(why) = skip::missing() {
        bail!("{why}");
    }
    // Now, so that a wrong name does not cost five minutes.
    let json = arguments.json.as_ref().map(|file| File::create(file).context(file.display().to_string()));
    let json = json.transpose()?;
    stop::catch()?;

    let machine = Machine::read()?;
    println!("{}", machine.text());
    let mut contestants = Vec::new();
    for kind in kinds(arguments) {
        stop::check()?;
        contestants.push(Contestant::build(kind)?);
    }
    let programs = match contestants.first() {
        Some(mgre) if mgre.kind == Kind::Mgre => programs::list(mgre)?,
        _ => Vec::new(),
    };
    println!("{}", programs::text(&programs));

    let mut outcomes = Vec::new();
    for part in parts(arguments) {
        let outcome = measure(part, &contestants, plan(arguments))?;
        println!("\n{}", report::text(&outcome));
        outcomes.push(report::json(&outcome));
    }
    if let Some(file) = json {
        let all =
            json!({ "machine": machine.json(), "programs": programs::json(&programs), "parts": outcomes });
        serde_json::to_writer_pretty(file, &all)?;
    }
    Ok(())
}

/// mgre first, if at all.
fn kinds(arguments: &Arguments) -> Vec<Kind> {
    let wanted = |kind: &Kind| arguments.contestant.is_empty() || arguments.contestant.contains(kind);
    if arguments.programs { vec![Kind::Mgre] } else { Kind::ALL.into_iter().filter(wanted).collect() }
}

fn parts(arguments: &Arguments) -> Vec<Part> {
    let wanted = |part: &Part| arguments.only.is_empty() || arguments.only.contains(part);
    if arguments.programs { Vec::new() } else { Part::ALL.into_iter().filter(wanted).collect() }
}

fn plan(arguments: &Arguments) -> Plan {
    let (rounds, time, tcp_seconds) = if arguments.quick { (3, 0.7, 1) } else { (5, 2.0, 3) };
    let rounds = arguments.rounds.map_or(rounds, |rounds| rounds as usize);
    Plan { rounds, time: Duration::from_secs_f64(time), tcp_seconds }
}

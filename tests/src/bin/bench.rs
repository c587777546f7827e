//! Compares mgre with what the kernel offers, on this machine, in namespaces.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum as _};
use mgre_tests::{
    bench::{
        field::Field,
        kind::Kind,
        machine::Machine,
        part::{Part, Plan},
        plot, programs,
        report::{self, Report},
        stop,
    },
    skip,
};

#[derive(Debug, Parser)]
#[command(name = "bench", bin_name = "cargo xtask bench", about)]
struct Arguments {
    /// Shorter and fewer rounds, fewer contestants: less than two minutes in all
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
    /// Another build of mgre, to be compared with this one in a part of its own
    #[arg(long, value_name = "FILE")]
    old: Option<PathBuf>,
    /// How many rounds
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// The benchmark's own eBPF programs; `cargo xtask bench` builds and names them
    #[arg(long, value_name = "FILE", hide = true)]
    object: Option<PathBuf>,
    /// Write everything that was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw it in this file, as SVG; by default bench/bench.svg beside the folder that this program is in
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
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

    let start = Instant::now();
    let machine = Machine::read()?;
    println!("{}", machine.text());
    let old =
        arguments.old.as_ref().map(|file| file.canonicalize().with_context(|| file.display().to_string()));
    let mut field = Field::new(&arguments.contestant, arguments.quick, old.transpose()?);
    let parts = parts(arguments);
    let programs = if arguments.programs || arguments.only.is_empty() {
        field.one(Kind::Mgre)?.map(programs::list).transpose()?.unwrap_or_default()
    } else {
        Vec::new()
    };
    if !programs.is_empty() {
        println!("{}", programs::text(&programs));
    }

    let plan = Plan::new(arguments.quick, arguments.rounds.map(|rounds| rounds as usize));
    let mut reports = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let name = part.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        eprintln!("part {}/{}: {name}, after {:.0} s", index + 1, parts.len(), start.elapsed().as_secs_f64());
        let report = part.run(&mut field, arguments.object.as_deref(), plan)?;
        println!("\n{}", report.text());
        reports.push(report);
    }
    if let Some(bars) = report::bars(&reports) {
        println!("{}", bars.text());
    }
    draw(arguments, &reports)?;
    if let Some(file) = json {
        let all = report::json(machine.json(), programs::json(&programs), &reports);
        serde_json::to_writer_pretty(file, &all)?;
    }
    Ok(())
}

fn parts(arguments: &Arguments) -> Vec<Part> {
    let wanted = |part: &&Part| match part {
        Part::Old if arguments.only.is_empty() => arguments.old.is_some(),
        part => arguments.only.is_empty() || arguments.only.contains(part),
    };
    if arguments.programs {
        Vec::new()
    } else {
        Part::value_variants().iter().filter(wanted).copied().collect()
    }
}

fn draw(arguments: &Arguments, reports: &[Report]) -> Result<()> {
    let plots: Vec<_> = reports.iter().flat_map(|report| report.plots.iter().cloned()).collect();
    if plots.is_empty() {
        return Ok(());
    }
    let file = match &arguments.plot {
        Some(file) => file.clone(),
        None => default_plot()?,
    };
    plot::write(&plots, &file)?;
    println!("plots: {}", file.display());
    Ok(())
}

/// `target/bench/bench.svg`, where this program is `target/release/bench`.
fn default_plot() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(2).map_or_else(|| PathBuf::from("."), Path::to_owned);
    Ok(target.join("bench").join("bench.svg"))
}

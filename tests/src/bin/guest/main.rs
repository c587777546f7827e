//! Batteries of checks between two stations, on the kernel that runs here.
//!
//! It needs root, `mgre` and a few tools, and no compiler: it runs in the initrd of a virtual machine as well as on a
//! host.

mod hardened;
mod instructions;
mod nic;
mod peers;
mod segment;
mod spokes;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use mgre_tests::{battery::report::Report, daemon, skip, wait};

/// Checks what two stations do with each other through mgre, on this kernel
#[derive(Debug, Parser)]
#[command(name = "guest")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Write the results to this file, too, as JSON lines
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Two mgre spokes, in every mode and with every option
    Spokes(spokes::Arguments),
    /// mgre beside the kernel's gretap and Open vSwitch
    Peers(peers::Arguments),
    /// Emulated cards, and what happens to cards
    Nic(nic::Arguments),
    /// A kernel that is set up to allow less
    Hardened(hardened::Arguments),
    /// What a frame costs in instructions, where the clock counts them
    Instructions(instructions::Arguments),
}

/// How mgre attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// As it likes
    Auto,
    /// XDP in the driver
    Native,
    /// XDP behind the driver
    Generic,
    /// Traffic control alone
    Tc,
}

impl Mode {
    const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tc => "tc",
        }
    }

    /// Whether XDP programs are on veth pairs: those lose what a station leaves to its interface to do.
    const fn is_xdp(self) -> bool {
        matches!(self, Self::Native | Self::Generic)
    }

    const fn offloads(self) -> &'static [bool] {
        if self.is_xdp() { &[false] } else { &[true, false] }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        bail!("needs root");
    }
    for tool in ["ip", "tc", "ethtool", "nsenter", "ping"] {
        if skip::find_program(tool).is_none() {
            bail!("{tool} is missing");
        }
    }
    let mgre = daemon::program()?;
    let mut report = Report::new(arguments.json.as_deref())?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let slowness = wait::patient(Duration::from_secs(1)).as_secs();
    report.context(&format!("Linux {}, {}, patience {slowness}", kernel.trim(), mgre.display()));
    match &arguments.command {
        Command::Spokes(arguments) => spokes::run(&mut report, arguments),
        Command::Peers(arguments) => peers::run(&mut report, arguments),
        Command::Nic(arguments) => nic::run(&mut report, arguments),
        Command::Hardened(arguments) => hardened::run(&mut report, arguments),
        Command::Instructions(arguments) => instructions::run(&mut report, arguments),
    }
    Ok(report.finish())
}

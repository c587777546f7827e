//! Three sites joined into one Ethernet, in network namespaces of this machine.
//!
//! Builds the overlay as an operator would, runs real traffic, shows what the switches know, and cleans up.
//! Fails if anything that mgre promises does not happen.

mod kept;
mod report;
mod show;
mod steps;

use std::{net::SocketAddr, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use mgre_tests::{
    skip,
    topology::{Layout, Spokes, Underlay},
};

use self::show::Show;

/// Three sites joined into one Ethernet by mgre, in network namespaces of this machine
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Arguments {
    /// Leave everything up, and say how to look around
    #[arg(long)]
    keep: bool,
    /// Remove what --keep left
    #[arg(long, conflicts_with = "keep")]
    cleanup: bool,
}

const PICTURE: &str = "
  host1 10.77.0.1 ── lan0 [ spoke1 ] 10.0.1.1 ──┐
  host2 10.77.0.2 ── lan0 [ spoke2 ] 10.0.2.1 ──┼── core, a plain IP router
  host3 10.77.0.3 ── lan0 [ spoke3 ] 10.0.3.1 ──┘

  The hosts are to be on one Ethernet. Between the spokes there is nothing but IP: mgre switches frames
  from spoke to spoke in GRE with key 7, by their destination MAC address.
";

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
        bail!("the demo cannot run: {why}");
    }
    if arguments.cleanup {
        return kept::remove();
    }
    let start = Instant::now();
    let mut layout = Layout { metrics: Some(metrics_address()), ..Layout::new(3, Underlay::Routed) };
    if arguments.keep {
        kept::refuse_second()?;
        layout.prefix = Some(kept::PREFIX.to_owned());
        layout.folder = Some(kept::FOLDER.into());
    } else {
        layout.prefix = Some(format!("mgre-demo{}-", std::process::id()));
    }
    println!("{PICTURE}");
    let mut show = Show::new()?;
    let mut spokes = None;
    show.step(
        "set up",
        "three daemons, each told its underlay, segment, port and peers in 5 commands",
        || {
            spokes = Some(build(layout)?);
            Ok("all peers up".to_owned())
        },
    );
    let Some(spokes) = spokes else {
        kept::remove_if(arguments.keep);
        bail!("the overlay could not be set up");
    };
    let laptop = steps::run(&mut show, &spokes);
    if !show.interrupted() {
        report::print(&spokes, &show)?;
    }

    let failed = show.failed();
    let took = start.elapsed().as_secs_f64();
    if arguments.keep && !show.interrupted() {
        kept::leave(spokes, laptop);
    } else {
        drop((spokes, laptop));
    }
    if show.interrupted() {
        kept::remove_if(arguments.keep);
        bail!("interrupted; everything is cleaned up");
    }
    if failed > 0 {
        bail!("{failed} of {} steps failed ({took:.1} s)", show.steps());
    }
    println!("\nEverything as promised: {} steps in {took:.1} s.", show.steps());
    if arguments.keep {
        kept::explain();
    }
    Ok(())
}

fn build(layout: Layout) -> Result<Spokes> {
    let mut spokes = layout.build().context("cannot build the overlay")?;
    for number in 1..=3 {
        spokes.spoke_mut(number).daemon.hide_log();
    }
    Ok(spokes)
}

/// Where each daemon serves metrics, in its own namespace.
fn metrics_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9747))
}

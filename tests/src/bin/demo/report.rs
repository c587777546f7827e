//! What the switches know and have counted.

use anyhow::Result;
use mgre_tests::{
    metrics::{Metrics, Sample},
    topology::Spokes,
};

use crate::{metrics_address, show::Show};

/// Metrics to show a few lines of.
const METRICS: [&str; 6] = [
    "mgre_peer_receive_packets_total",
    "mgre_peer_transmit_bytes_total",
    "mgre_peer_up",
    "mgre_fdb_entries",
    "mgre_fdb_moves_total",
    "mgre_flood_copies_total",
];

/// Prints everything.
pub(crate) fn print(spokes: &Spokes, show: &Show) -> Result<()> {
    show.heading("mgre fdb show", "Which host is behind which spoke, as each spoke has learned it.");
    for spoke in spokes.iter() {
        section(&spoke.name(), &spoke.daemon.mgre(&["fdb", "show"])?);
    }
    show.heading(
        "mgre peer show",
        "Every peer is reached through one attach point; the kernel has no tunnel device.",
    );
    for spoke in spokes.iter() {
        section(&spoke.name(), &spoke.daemon.mgre(&["peer", "show"])?);
    }
    show.heading(
        "mgre stats --drops",
        "Nothing is dropped without a reason; spoke1's counters that are not zero.",
    );
    section("spoke1", &spokes.spoke(1).daemon.mgre(&["stats", "--drops"])?);

    let metrics = Metrics::over_tcp(&spokes.spoke(2).netns, metrics_address())?;
    let count = metrics.samples.len();
    show.heading("GET /metrics", &format!("A few of the {count} series that Prometheus gets from spoke2."));
    for sample in METRICS.iter().flat_map(|name| metrics.all(name, &[])) {
        println!("    {}", series(sample));
    }
    if let Some(gigabits) = show.gigabits() {
        show.heading("throughput", &format!("TCP host1 to host3 through the overlay: {gigabits:.2} Gbit/s."));
    }
    Ok(())
}

fn section(name: &str, table: &str) {
    println!("  {name}");
    for line in table.lines() {
        println!("    {}", line.trim_end());
    }
    if table.trim().is_empty() {
        println!("    (none)");
    }
}

fn series(sample: &Sample) -> String {
    let labels: Vec<_> = sample.labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
    let name = if labels.is_empty() {
        sample.name.clone()
    } else {
        format!("{}{{{}}}", sample.name, labels.join(","))
    };
    format!("{name:<72} {}", sample.value)
}

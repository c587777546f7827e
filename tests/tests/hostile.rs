//! Peers and strangers that mean no good.

use anyhow::{Context as _, Result};
use mgre_tests::{
    hostile::{self, ATTACKER, Kind, OTHER, Outcome, Plan, VICTIM},
    metrics::Metrics,
    packet::{Mac, mac_text},
    skip::skipped,
    topology::{SEGMENT, Spoke, Spokes, Underlay},
    traffic,
};
use serde_json::Value;

/// More addresses than anybody sends.
const NO_LIMIT: &str = "4000000";
/// Given to the third spoke.
const GIVEN: Mac = [0x02, 0, 0, 0, 0xdd, 0x01];

/// Where the addresses of the others are.
fn others(spokes: &Spokes) -> Result<Vec<Value>> {
    let (victim, other) = (spokes.spoke(VICTIM), spokes.spoke(OTHER));
    let place = |mac: Mac| -> Result<Value> {
        let entry = victim.fdb(mac)?.with_context(|| format!("{} is not known", mac_text(mac)))?;
        Ok([&entry["mac"], &entry["peer"], &entry["port"], &entry["flags"]].into_iter().cloned().collect())
    };
    [victim.host_mac(), other.host_mac(), GIVEN].into_iter().map(place).collect()
}

fn series(spoke: &Spoke, name: &str) -> Result<f64> {
    Metrics::over_socket(&spoke.daemon.socket())?.get(name, &[]).with_context(|| name.to_owned())
}

fn attack(limited: bool, plan: Plan) -> Result<(Spokes, Outcome)> {
    let spokes = Spokes::new(3, Underlay::Switched)?;
    let (victim, other) = (spokes.spoke(VICTIM), spokes.spoke(OTHER));
    victim.daemon.mgre(&["fdb", "add", SEGMENT, &mac_text(GIVEN), "--peer", "spoke3"])?;
    if !limited {
        victim.daemon.mgre(&["peer", "set", "spoke2", "--max-macs", NO_LIMIT])?;
        victim.daemon.mgre(&["segment", "set", SEGMENT, "--max-macs", NO_LIMIT])?;
    }
    assert!(traffic::reaches(&other.host, &victim.host_ip())?);
    victim.wait_fdb_peer(other.host_mac(), "spoke3")?;
    victim.wait_fdb_port(victim.host_mac(), "lan0")?;
    let before = others(&spokes)?;

    let outcome = hostile::attack(&spokes, plan)?;
    let wanted = plan.rounds as u64 * plan.frames * 10 / 11;
    assert!(outcome.addresses() >= wanted, "{} of {wanted} arrived", outcome.addresses());
    assert_eq!(others(&spokes)?, before);
    assert!(traffic::reaches(&other.host, &victim.host_ip())?);
    // The daemon answers, and needs little.
    let [before, after] = outcome.memory;
    assert!(after.anonymous < before.anonymous + (16 << 20), "{:?}", outcome.memory);
    assert!(after.resident < before.resident + (32 << 20), "{:?}", outcome.memory);
    let cpu = outcome.daemon_share(Kind::Attack);
    assert!(cpu < if limited { 0.2 } else { 0.5 }, "the daemon took {cpu} of a CPU");
    // How much is left of the stream is for the benchmark to say. None would be too little anywhere.
    let mut ratios: Vec<f64> = outcome.ratios().collect();
    ratios.sort_unstable_by(f64::total_cmp);
    assert!(ratios[ratios.len() / 2] > 0.5, "{ratios:?}");
    Ok((spokes, outcome))
}

#[test]
fn a_million_addresses_from_one_peer() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    // Some more than a million: a queue on a busy machine may lose some.
    let plan = Plan { rounds: 22, frames: 50_000, rate: 250_000, alone: false };
    let (spokes, outcome) = attack(true, plan)?;
    let victim = spokes.spoke(VICTIM);
    assert!(outcome.addresses() >= 1_000_000);
    let learned = victim.daemon.list(&["fdb", "show", "--peer", &format!("spoke{ATTACKER}")])?.len();
    assert!(learned <= 1024, "{learned} learned");
    // A frame from a new address is dropped once the peer has as many as it may. Those of a moment before are not.
    let refused = victim.drops("mac_limit")?;
    assert!(refused <= outcome.addresses() && refused > outcome.addresses() * 9 / 10, "{refused}");
    Ok(())
}

#[test]
fn addresses_without_a_limit() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let plan = Plan { rounds: 4, frames: 50_000, rate: 250_000, alone: false };
    let (spokes, outcome) = attack(false, plan)?;
    let victim = spokes.spoke(VICTIM);
    assert_eq!(victim.drops("mac_limit")?, 0);
    // Each was reported, or counted as not reported.
    let (events, lost) =
        (series(victim, "mgre_fdb_events_total")?, series(victim, "mgre_fdb_events_lost_total")?);
    assert!(lost > 0.0 && events + lost >= outcome.addresses() as f64, "{events} and {lost} lost");
    assert_eq!(victim.daemon.json(&["status"])?["events_lost"].as_f64(), Some(lost));
    Ok(())
}

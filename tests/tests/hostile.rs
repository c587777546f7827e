//! Peers and strangers that mean no good.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use mgre_tests::{
    capture::{self, Capture, Sender},
    conservation::Books,
    gre::Outer,
    hostile::{self, ATTACKER, Kind, Memory, OTHER, Outcome, Plan, VICTIM},
    metrics::Metrics,
    packet::{BROADCAST, Datagram, Mac, mac_text, marked},
    skip::skipped,
    topology::{KEY, SEGMENT, Spoke, Spokes, Underlay},
    traffic, wait,
};
use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::SmallRng};
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

/// An address that only hostile packets have.
const HOSTILE: Mac = [0x02, 0, 0, 0, 0xee, 0x01];

/// The attacker's packets to the victim.
fn outer(spokes: &Spokes) -> Outer {
    spokes.outer(ATTACKER, VICTIM)
}

#[test]
fn strangers_are_not_heard() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(3, Underlay::Switched)?;
    let victim = spokes.spoke(VICTIM);
    let at_host = Capture::start(&victim.host, "eth0")?;
    let at_other = Capture::start(&spokes.spoke(OTHER).host, "eth0")?;
    let books = Books::open(&spokes)?;
    let strangers: [IpAddr; 3] = [[10, 0, 0, 99].into(), [192, 0, 2, 1].into(), [255; 4].into()];
    let mut packets = Vec::new();
    let inner = marked(BROADCAST, HOSTILE, "from a stranger");
    for source in strangers {
        packets.push((Outer { source, ..outer(&spokes) }.frame(&inner)?, "unknown_endpoint"));
    }
    // Our own address is nobody's but ours.
    let source = spokes.layout.endpoint(VICTIM);
    packets.push((Outer { source, ..outer(&spokes) }.frame(&inner)?, "unknown_endpoint"));
    for key in [Some(KEY + 1), Some(KEY.swap_bytes()), Some(0), None] {
        packets.push((Outer { key, ..outer(&spokes) }.frame(&inner)?, "key_mismatch"));
    }
    for (packet, reason) in &packets {
        let before = victim.drops(reason)?;
        spokes.send_to(VICTIM, &[packet])?;
        victim.wait_drops(reason, before + 1)?;
    }
    assert_eq!(victim.fdb(HOSTILE)?, None);
    assert_eq!((at_host.arrived(&inner), at_other.arrived(&inner)), (0, 0));
    // Who has another peer's address and the key cannot be told from that peer: the underlay is trusted with both.
    let packet = spokes.outer(OTHER, VICTIM).frame(&inner)?;
    spokes.send_to(VICTIM, &[packet])?;
    at_host.wait_arrival("a packet in a peer's name", &inner)?;
    victim.wait_fdb_peer(HOSTILE, "spoke3")?;
    books.check(&spokes)?;
    books.check_underlay(&spokes)
}

/// Steals an address again and again while it lives.
struct Thief<'a> {
    over: &'a AtomicBool,
    spokes: &'a Spokes,
    packet: Vec<u8>,
}

impl Thief<'_> {
    fn run(&self) -> Result<()> {
        let sender = Sender::new(&self.spokes.core, &format!("s{VICTIM}"))?;
        while !self.over.load(Ordering::Relaxed) {
            sender.send(&self.packet)?;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// An address is stolen by a peer while its owner talks: what is for it recovers although the theft goes on.
fn stolen(spokes: &Spokes, owner: &Spoke, peer: Option<&str>) -> Result<()> {
    let victim = spokes.spoke(VICTIM);
    let other = spokes.spoke(if owner.number == VICTIM { OTHER } else { VICTIM });
    assert!(traffic::reaches(&other.host, &owner.host_ip())?);
    let place = |entry: &Value| match peer {
        Some(peer) => entry["peer"] == peer,
        None => entry["port"] == "lan0",
    };
    let over = AtomicBool::new(false);
    let packet = outer(spokes).frame(&marked(BROADCAST, owner.host_mac(), "mine"))?;
    let thief = Thief { over: &over, spokes, packet };
    thread::scope(|scope| {
        let theft = scope.spawn(|| thief.run());
        let result = (|| -> Result<()> {
            let talks = traffic::Background::ping(&owner.host, &["-i", "0.05", &other.host_ip()])?;
            wait::until("the address is held where it belongs", Duration::from_secs(30), || {
                let entry = victim.fdb(owner.host_mac())?;
                Ok(entry.is_some_and(|entry| place(&entry) && entry["flags"].to_string().contains("held")))
            })
            .with_context(|| victim.daemon.mgre(&["fdb", "show"]).unwrap_or_default())?;
            let before = victim.drops("loop")?;
            // While the theft goes on, nothing for the owner goes astray.
            let pings = traffic::ping(&other.host, &["-c", "20", "-i", "0.05", "-W", "5", &owner.host_ip()])?;
            assert!(pings.all_came_back(), "{pings:?}");
            wait::until("the thief's frames are dropped", wait::SOON, || Ok(victim.drops("loop")? > before))?;
            drop(talks);
            Ok(())
        })();
        over.store(true, Ordering::Relaxed);
        theft.join().map_err(|_| anyhow!("the thief panicked"))??;
        result
    })?;
    let series = |name: &str| -> Result<f64> {
        let metrics = Metrics::over_socket(&victim.daemon.socket())?;
        metrics.get(name, &[("segment", SEGMENT)]).with_context(|| name.to_owned())
    };
    assert!(series("mgre_fdb_moves_total")? >= 1.0 && series("mgre_fdb_holds_total")? >= 1.0);
    Ok(())
}

#[test]
fn an_address_stolen_from_another_peer_comes_back() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(3, Underlay::Switched)?;
    stolen(&spokes, spokes.spoke(OTHER), Some("spoke3"))
}

#[test]
fn an_address_stolen_from_a_port_comes_back() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(3, Underlay::Switched)?;
    stolen(&spokes, spokes.spoke(VICTIM), None)
}

#[test]
fn a_given_address_cannot_be_stolen() -> Result<()> {
    const FRAMES: usize = 1000;
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(3, Underlay::Switched)?;
    let (victim, other) = (spokes.spoke(VICTIM), spokes.spoke(OTHER));
    let mac = other.host_mac();
    assert!(traffic::reaches(&victim.host, &other.host_ip())?);
    victim.daemon.mgre(&["fdb", "add", SEGMENT, &mac_text(mac), "--peer", "spoke3"])?;
    let before = victim.fdb(mac)?;
    spokes.send_to(VICTIM, &vec![outer(&spokes).frame(&marked(BROADCAST, mac, "mine"))?; FRAMES])?;
    victim.wait_drops("static_mac_moved", FRAMES as u64)?;
    assert_eq!(victim.fdb(mac)?, before);
    assert!(traffic::reaches(&victim.host, &other.host_ip())?);
    Ok(())
}

/// Whatever a peer sends, the daemon lives, everything is counted, and others work.
#[test]
fn random_packets_of_a_peer() -> Result<()> {
    const PACKETS: usize = 5000;
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(3, Underlay::Switched)?;
    let (victim, other) = (spokes.spoke(VICTIM), spokes.spoke(OTHER));
    for spoke in spokes.iter() {
        spoke.host.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        // Nobody answers what is random.
        spoke.host.ip("link set eth0 arp off")?;
    }
    let books = Books::open(&spokes)?;
    let memory = Memory::of(&victim.daemon)?;
    let mut random = SmallRng::seed_from_u64(0x6d67_7265);
    let datagram = Datagram::new(spokes.spoke(ATTACKER).host_end(true), victim.host_end(true)).frame()?;
    let mut packets = Vec::with_capacity(PACKETS);
    for _ in 0..PACKETS {
        // Random bytes, or a good frame with some of its bytes changed.
        let mut inner = datagram.clone();
        if random.random_bool(0.5) {
            inner = vec![0; random.random_range(14..1400)];
            random.fill_bytes(&mut inner);
        } else {
            for _ in 0..random.random_range(1..8) {
                let at = random.random_range(0..inner.len());
                inner[at] = random.random();
            }
        }
        let outer = Outer { tos: random.random_range(0..4), checksum: random.random(), ..outer(&spokes) };
        let mut packet = outer.frame(&inner)?;
        if random.random_bool(0.2) {
            // GRE's header and what follows; not the version, for another one's packets are not ours.
            let at = random.random_range(36..packet.len().min(64));
            packet[at] ^= 1 << random.random_range(0..8);
        }
        packets.push(packet);
    }
    spokes.send_to(VICTIM, &packets)?;
    books.check(&spokes)?;
    books.check_underlay(&spokes)?;
    assert!(Memory::of(&victim.daemon)?.anonymous < memory.anonymous + (16 << 20));
    for host in [&victim.host, &other.host] {
        host.ip("link set eth0 arp on")?;
    }
    assert!(traffic::reaches(&other.host, &victim.host_ip())?);
    Ok(())
}

/// Fragments that never become a packet are the kernel's to forget. They are counted, and others work; fragments of
/// others have to wait until the kernel has forgotten: its memory for them is one for all of a network namespace.
#[test]
fn a_flood_of_fragments() -> Result<()> {
    const PACKETS: u16 = 5000;
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(3, Underlay::Switched)?;
    let (victim, other) = (spokes.spoke(VICTIM), spokes.spoke(OTHER));
    assert!(traffic::reaches(&other.host, &victim.host_ip())?);
    // After so many seconds, not thirty.
    victim.netns.sysctl("ipv4/ipfrag_time", "3")?;
    let memory = Memory::of(&victim.daemon)?;
    let inner = [&marked(BROADCAST, HOSTILE, "in parts")[..], &[0; 1200]].concat();
    let mut fragments = Vec::new();
    for identification in 0..PACKETS {
        let parts = Outer { identification, ..outer(&spokes) }.fragments(&inner, 800)?;
        fragments.extend(parts.into_iter().take(1));
    }
    spokes.send_to(VICTIM, &fragments)?;
    victim.wait_drops("outer_fragment", fragments.len() as u64)?;
    assert_eq!(victim.fdb(HOSTILE)?, None);
    assert!(traffic::reaches(&other.host, &victim.host_ip())?);
    assert!(Memory::of(&victim.daemon)?.anonymous < memory.anonymous + (16 << 20));
    let at_host = Capture::start(&victim.host, "eth0")?;
    let mut identification = 0;
    wait::until("a packet in fragments arrives", Duration::from_secs(30), || {
        identification += 1;
        let parts = Outer { identification, ..spokes.outer(OTHER, VICTIM) }.fragments(&inner, 800)?;
        capture::send(&spokes.core, &format!("s{VICTIM}"), &parts)?;
        thread::sleep(Duration::from_millis(100));
        Ok(at_host.arrived(&inner) > 0)
    })?;
    Ok(())
}

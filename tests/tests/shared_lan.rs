//! Two spokes with ports on one LAN: what goes round is damped, and hosts on the LAN and elsewhere reach each other meanwhile.

use std::{thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use mgre_tests::{
    capture::{self, Capture},
    conservation::Link,
    metrics::Metrics,
    netns::{self, Netns},
    packet::{BROADCAST, Mac, mac_text, marked},
    skip::skipped,
    topology::{SEGMENT, Spoke, Spokes, Underlay},
    traffic, wait,
};

/// A host on the LAN that both spokes are at.
const SHARED: Mac = [0x02, 0, 0, 0, 0xbb, 0x01];
const SHARED_IP: &str = "10.77.0.50";
/// How long it may take until every address is held where it belongs: one may be held elsewhere first, and is let go from there
/// when it is not seen for ten seconds.
const SETTLED: Duration = Duration::from_secs(60);
/// How long it may take until they are let go: ten seconds at least, twice as long each further time.
const RELEASED: Duration = Duration::from_secs(180);
/// The spokes' ports to it.
const PORT: &str = "lan9";

/// Three spokes, the first two of which have a port on one LAN.
struct World {
    spokes: Spokes,
    lan: Netns,
    host: Netns,
}

impl World {
    fn new() -> Result<Self> {
        let spokes = Spokes::new(3, Underlay::Switched)?;
        for spoke in spokes.iter() {
            spoke.host.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        }
        let (lan, host) = (Netns::new("lan")?, Netns::new("shared")?);
        for netns in [&lan, &host] {
            netns.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
            netns.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        }
        lan.ip("link add br0 type bridge mcast_snooping 0\nlink set br0 up")?;
        netns::ip(&format!(
            "link add h0 netns {} type veth peer name eth0 address {} netns {}",
            lan.name(),
            mac_text(SHARED),
            host.name()
        ))?;
        lan.ip("link set h0 master br0 up")?;
        host.ip(&format!("link set eth0 mtu 1458 up\naddr add {SHARED_IP}/24 dev eth0"))?;
        let this = Self { spokes, lan, host };
        for number in [1, 2] {
            netns::ip(&format!(
                "link add {PORT} netns {} type veth peer name p{number} netns {}",
                this.spokes.spoke(number).netns.name(),
                this.lan.name()
            ))?;
            this.spokes.spoke(number).netns.ip(&format!("link set {PORT} up"))?;
            this.lan.ip(&format!("link set p{number} master br0 up"))?;
        }
        Ok(this)
    }

    /// Makes a spoke's cable to the LAN a port.
    fn connect(&self, number: u8) -> Result<()> {
        self.spokes.spoke(number).daemon.mgre(&["port", "add", SEGMENT, PORT])?;
        Ok(())
    }

    /// Frames that went over the LAN until now: those that its bridge sent to a spoke, and those that it got.
    fn frames(&self) -> Result<u64> {
        let links = [Link::read(&self.lan, "p1")?, Link::read(&self.lan, "p2")?];
        Ok(links.iter().map(|link| link.sent + link.received).sum())
    }

    fn wait_quiet(&self) -> Result<()> {
        wait::until("next to nothing goes over the LAN", Duration::from_secs(20), || {
            let before = self.frames()?;
            sleep(Duration::from_millis(500));
            Ok(self.frames()? - before < 20)
        })
        .map(|_| ())
    }
}

fn is_held(spoke: &Spoke, mac: Mac) -> Result<bool> {
    let entry = spoke.fdb(mac)?;
    Ok(entry.is_some_and(|entry| entry["flags"].as_array().is_some_and(|all| all.contains(&"held".into()))))
}

fn held(spoke: &Spoke) -> Result<f64> {
    let metrics = Metrics::over_socket(&spoke.daemon.socket())?;
    metrics.get("mgre_fdb_held", &[("segment", SEGMENT)]).context("no mgre_fdb_held")
}

#[test]
fn who_is_on_the_lan_of_a_loop_reaches_who_is_not() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let world = World::new()?;
    let [one, two, three] = [1, 2, 3].map(|number| world.spokes.spoke(number));
    world.connect(1)?;
    assert!(traffic::reaches(&three.host, SHARED_IP)?);
    world.connect(2)?;

    // One broadcast would go round for ever.
    let at_three = Capture::start(&three.host, "eth0")?;
    let frame = marked(BROADCAST, SHARED, "round and round");
    capture::send(&world.host, "eth0", &[&frame])?;
    at_three.wait_arrival("the broadcast", &frame)?;
    world.wait_quiet()?;
    drop(at_three);
    // One of them ends it.
    wait::until("the address is held", wait::SOON, || Ok(is_held(one, SHARED)? || is_held(two, SHARED)?))?;
    assert!(one.drops("loop")? + two.drops("loop")? > 0);

    // There are two ways now, and both hosts ask for each other's address anew.
    for (from, to) in [(&three.host, SHARED_IP.to_owned()), (&world.host, three.host_ip())] {
        wait::until("neighbours are forgotten", wait::SOON, || {
            Ok(from.run(&["ip", "neigh", "flush", "all"]).is_ok())
        })?;
        traffic::wait_reachable(from, &to, SETTLED)?;
    }
    world.wait_quiet()?;

    // Without the second cable there is no loop, and nothing is held for it.
    world.lan.ip("link del p2")?;
    for spoke in [one, two, three] {
        wait::until(&format!("spoke {} holds nothing", spoke.number), RELEASED, || Ok(held(spoke)? == 0.0))
            .with_context(|| spoke.daemon.mgre(&["fdb", "show"]).unwrap_or_default())?;
    }
    for (from, to) in [(&three.host, SHARED_IP.to_owned()), (&world.host, three.host_ip())] {
        // A port that was blocked is not at once open again.
        traffic::wait_reachable(from, &to, SETTLED)?;
    }
    one.wait_fdb_port(SHARED, PORT)
}

//! Two spokes with ports on one LAN: what goes round is seen, damped and reported, and ends with its cause.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, sleep},
    time::Duration,
};

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
use serde_json::Value;

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

/// What a daemon tells of held addresses.
struct Told {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Told {
    fn by(spoke: &Spoke) -> Result<Self> {
        let mut child = spoke.daemon.command(&["--json", "monitor"])?.stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("no standard output")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let read = Arc::clone(&lines);
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let event: Value = serde_json::from_str(&line).unwrap_or_default();
                read.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            }
        });
        let this = Self { child, lines };
        wait::until("the monitor listens", wait::SOON, || {
            spoke.daemon.mgre(&["segment", "add", "heard", "--key", "99"])?;
            spoke.daemon.mgre(&["segment", "del", "heard"])?;
            Ok(!this.lines.lock().unwrap_or_else(PoisonError::into_inner).is_empty())
        })?;
        Ok(this)
    }

    fn has(&self, event: &str, mac: Mac) -> bool {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().any(|line| {
            line["event"] == event && line["mac"] == mac_text(mac).as_str() && line["segment"] == SEGMENT
        })
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("monitor: {error}");
        }
    }
}

fn series(spoke: &Spoke, name: &str) -> Result<f64> {
    let metrics = Metrics::over_socket(&spoke.daemon.socket())?;
    metrics.get(name, &[("segment", SEGMENT)]).with_context(|| name.to_owned())
}

#[test]
fn a_loop_through_a_lan_is_damped_and_reported_and_ends() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let world = World::new()?;
    let [one, two, three] = [1, 2, 3].map(|number| world.spokes.spoke(number));
    world.connect(1)?;
    assert!(traffic::reaches(&three.host, SHARED_IP)?);
    let told = [Told::by(one)?, Told::by(two)?];
    world.connect(2)?;

    // One broadcast would go round for ever.
    let at_three = Capture::start(&three.host, "eth0")?;
    let frame = marked(BROADCAST, SHARED, "round and round");
    capture::send(&world.host, "eth0", &[&frame])?;
    at_three.wait_arrival("the broadcast", &frame)?;
    world.wait_quiet()?;
    drop(at_three);

    // At both ends of the loop, the address is held, and everybody who asks is told.
    for (spoke, told) in [one, two].into_iter().zip(&told) {
        wait::until("the address is held", wait::SOON, || is_held(spoke, SHARED))?;
        wait::until("the loop is reported", wait::SOON, || Ok(told.has("fdb_held", SHARED)))?;
        assert!(series(spoke, "mgre_fdb_held")? >= 1.0 && series(spoke, "mgre_fdb_holds_total")? >= 1.0);
        let status = spoke.daemon.mgre(&["status"])?;
        assert!(status.lines().any(|line| line.starts_with("held") && line.contains(SEGMENT)), "{status}");
        assert!(spoke.daemon.log().contains(&mac_text(SHARED)), "{}", spoke.daemon.log());
        assert!(spoke.drops("loop")? > 0);
    }

    // Those on the LAN and those elsewhere reach each other, although there are two ways.
    for (from, to) in [(&three.host, SHARED_IP.to_owned()), (&world.host, three.host_ip())] {
        traffic::wait_reachable(from, &to, SETTLED)?;
    }
    world.wait_quiet()?;

    // Without the second cable there is no loop, and nothing is held for it.
    world.lan.ip("link del p2")?;
    for spoke in [one, two, three] {
        wait::until(&format!("spoke {} holds nothing", spoke.number), RELEASED, || {
            Ok(series(spoke, "mgre_fdb_held")? == 0.0)
        })
        .with_context(|| spoke.daemon.mgre(&["fdb", "show"]).unwrap_or_default())?;
    }
    assert!(told.iter().any(|told| told.has("fdb_released", SHARED)));
    for (from, to) in [(&three.host, SHARED_IP.to_owned()), (&world.host, three.host_ip())] {
        assert!(traffic::reaches(from, &to)?);
    }
    one.wait_fdb_port(SHARED, PORT)
}

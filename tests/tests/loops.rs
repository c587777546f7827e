//! Two spokes that share a LAN make a loop: it is found, reported and ended, and forgotten when it is gone.

use std::{thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use mgre_tests::{
    metrics::Metrics,
    monitor::Monitor,
    netns::{self, Netns},
    packet::{Mac, mac_text},
    skip::skipped,
    spoke::Spoke,
    topology::{SEGMENT, Spokes, Underlay},
    traffic, wait,
};

/// The station on the shared LAN.
const STATION: Mac = [0x02, 0, 0, 0, 9, 0x10];
const STATION_IP: &str = "10.77.0.9";

/// How long it may take until nothing goes round any more.
const DAMPED: Duration = Duration::from_secs(30);
/// How long until a port is tried again, and until a hold is over: twenty seconds, and ten of quiet, or twice as long
/// where it was held again.
const RELEASED: Duration = Duration::from_secs(60);

/// A bridge with a station, to which spokes can be connected.
struct Lan {
    bridge: Netns,
    station: Netns,
}

impl Lan {
    fn new() -> Result<Self> {
        let (bridge, station) = (Netns::new("lan")?, Netns::new("station")?);
        bridge.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        station.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        bridge.ip("link add br0 type bridge mcast_snooping 0\nlink set br0 up")?;
        netns::ip(&format!(
            "link add p0 netns {} type veth peer name eth0 address {} netns {}",
            bridge.name(),
            mac_text(STATION),
            station.name()
        ))?;
        bridge.ip("link set p0 master br0 up")?;
        station.ip(&format!("link set eth0 mtu 1400 up\naddr add {STATION_IP}/24 dev eth0"))?;
        Ok(Self { bridge, station })
    }

    /// Connects a spoke, which gets an interface `shared0`.
    fn connect(&self, spokes: &Spokes, number: u8) -> Result<()> {
        let spoke = spokes.spoke(number);
        netns::ip(&format!(
            "link add shared0 netns {} type veth peer name p{number} netns {}",
            spoke.netns.name(),
            self.bridge.name()
        ))?;
        self.bridge.ip(&format!("link set p{number} master br0 up"))?;
        spoke.netns.ip("link set shared0 up")?;
        spoke.daemon.mgre(&["port", "add", SEGMENT, "shared0"])?;
        Ok(())
    }

    /// Frames that the first spoke has given to it so far.
    fn frames(&self) -> Result<u64> {
        let text = self.bridge.run(&["cat", "/proc/net/dev"])?;
        let line = text.lines().find_map(|line| line.trim().strip_prefix("p1:")).context("no p1")?;
        Ok(line.split_whitespace().nth(1).context("no packets")?.parse()?)
    }

    /// Waits until hardly anything is on it any more.
    fn wait_quiet(&self) -> Result<()> {
        wait::until("the LAN is quiet", DAMPED, || {
            let before = self.frames()?;
            sleep(Duration::from_millis(250));
            Ok(self.frames()? - before < 50)
        })
        .map(|_| ())
    }
}

/// Whether the spoke's port on the LAN is blocked.
fn is_blocked(spoke: &Spoke) -> Result<bool> {
    let ports = spoke.daemon.list(&["port", "show"])?;
    Ok(ports.iter().any(|port| port["name"] == "shared0" && port["state"] == "blocked"))
}

fn holds_nothing(spoke: &Spoke) -> Result<bool> {
    Ok(spoke.daemon.json(&["status"])?["held"] == serde_json::json!([]))
}

/// Everybody reaches everybody.
fn all_reach_all(spokes: &Spokes, lan: &Lan) -> Result<()> {
    for to in spokes.iter() {
        assert!(traffic::reaches(&lan.station, &to.host_ip())?, "the station to host {}", to.number);
        assert!(traffic::reaches(&to.host, STATION_IP)?, "host {} to the station", to.number);
        for from in spokes.iter() {
            assert!(traffic::reaches(&from.host, &to.host_ip())?, "{} to {}", from.number, to.number);
        }
    }
    Ok(())
}

#[test]
fn of_two_spokes_on_one_lan_one_stands_back() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(3, Underlay::Switched)?;
    let [one, two, three] = [1, 2, 3].map(|number| spokes.spoke(number));
    let lan = Lan::new()?;
    lan.connect(&spokes, 1)?;
    for to in spokes.iter() {
        assert!(traffic::reaches(&lan.station, &to.host_ip())?, "spoke {}", to.number);
    }
    let monitors = [Monitor::start(&one.daemon)?, Monitor::start(&two.daemon)?];
    lan.connect(&spokes, 2)?;
    // Something for all, which goes round and round.
    lan.station.run(&["ip", "neigh", "flush", "all"])?;
    traffic::ping(&lan.station, &["-c", "1", "-W", "1", &three.host_ip()])?;

    // An address is seen in two places by turns, and held; it is said everywhere.
    let (held, monitor) = wait::value("an address is held", DAMPED, || {
        for (spoke, monitor) in [(one, &monitors[0]), (two, &monitors[1])] {
            if !holds_nothing(spoke)? {
                return Ok(Some((spoke, monitor)));
            }
        }
        Ok(None)
    })?;
    let status = held.daemon.json(&["status"])?;
    assert_eq!(status["held"][0]["segment"], SEGMENT, "{status}");
    assert!(held.daemon.mgre(&["status"])?.contains("in segment lan: seen in two places by turns"));
    let entries = held.daemon.list(&["fdb", "show"])?;
    assert!(
        entries.iter().any(|entry| entry["flags"] == serde_json::json!(["learned", "held"])),
        "{entries:?}"
    );
    let metrics = Metrics::over_socket(&held.daemon.socket())?;
    assert!(metrics.get("mgre_fdb_held", &[("segment", SEGMENT)]).is_some_and(|held| held >= 1.0));
    assert!(metrics.get("mgre_fdb_holds_total", &[("segment", SEGMENT)]).is_some_and(|holds| holds >= 1.0));
    let event = monitor.wait_for("it is told", |event| event["event"] == "fdb_held")?;
    assert_eq!(event["segment"], SEGMENT);
    wait::until("the log says it", wait::SOON, || Ok(held.daemon.log().contains("by turns")))?;

    // They find out about each other, and one of them stands back.
    wait::until("one port is blocked", DAMPED, || Ok(is_blocked(one)? || is_blocked(two)?))?;
    let (blocked, left) = if is_blocked(one)? { (one, two) } else { (two, one) };
    assert!(!is_blocked(left)?, "both of them");
    let monitor = &monitors[usize::from(blocked.number) - 1];
    let event = monitor.wait_for("the port is blocked", |event| event["event"] == "port_state")?;
    assert_eq!((&event["port"], &event["state"]), (&"shared0".into(), &"blocked".into()), "{event}");
    let ports = blocked.daemon.mgre(&["port", "show"])?;
    assert!(ports.contains("blocked") && ports.contains("on the same LAN"), "{ports}");
    lan.wait_quiet()?;
    assert!(one.drops("loop")? + two.drops("loop")? > 0);
    all_reach_all(&spokes, &lan)?;
    lan.wait_quiet()?;
    assert!(!is_blocked(left)?);

    // Without the other way, it takes over.
    left.netns.ip("link del shared0")?;
    wait::until("the port is tried again", RELEASED, || Ok(!is_blocked(blocked)?))?;
    wait::until("nothing is held any more", RELEASED, || {
        Ok(holds_nothing(one)? && holds_nothing(two)? && holds_nothing(three)?)
    })?;
    assert!(one.daemon.mgre(&["status"])?.contains("no addresses"));
    all_reach_all(&spokes, &lan)?;
    assert!(!is_blocked(blocked)? && holds_nothing(blocked)?);
    Ok(())
}

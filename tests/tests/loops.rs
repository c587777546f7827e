//! Two spokes that share a LAN make a loop: it is found, damped, reported, and forgotten when it is gone.

use std::{thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use mgre_tests::{
    metrics::Metrics,
    monitor::Monitor,
    netns::{self, Netns},
    packet::{Mac, mac_text},
    skip::skipped,
    topology::{SEGMENT, Spokes, Underlay},
    traffic, wait,
};

/// The station on the shared LAN.
const STATION: Mac = [0x02, 0, 0, 0, 9, 0x10];
const STATION_IP: &str = "10.77.0.9";

/// How long it may take until everything that goes round is held: each address a second or so.
const DAMPED: Duration = Duration::from_secs(30);
/// How long until a hold is over: ten seconds of quiet, or twice and four times as long where it was held again.
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

#[test]
fn a_loop_over_a_shared_lan_is_damped_and_reported() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(4, Underlay::Switched)?;
    let [one, two, three, four] = [1, 2, 3, 4].map(|number| spokes.spoke(number));
    let lan = Lan::new()?;
    lan.connect(&spokes, 1)?;
    for to in [one, two, three] {
        assert!(traffic::reaches(&lan.station, &to.host_ip())?, "spoke {}", to.number);
    }
    let monitor = Monitor::start(&one.daemon)?;
    lan.connect(&spokes, 2)?;
    // Something for all, which goes round and round, and what hosts far from the loop say as well.
    lan.station.run(&["ip", "neigh", "flush", "all"])?;
    traffic::ping(&lan.station, &["-c", "1", "-W", "1", &three.host_ip()])?;
    assert!(traffic::reaches(&three.host, &four.host_ip())?);

    wait::until("the first spoke holds the station", DAMPED, || {
        let entry = one.fdb(STATION)?;
        Ok(entry.is_some_and(|entry| entry["flags"] == serde_json::json!(["learned", "held"])))
    })?;
    assert_eq!(one.fdb(STATION)?.context("it has it")?["port"], "shared0");
    let event = monitor.wait_for("it is told", |event| {
        event["event"] == "fdb_held" && event["mac"] == mac_text(STATION).as_str()
    })?;
    assert_eq!((&event["segment"], &event["port"]), (&SEGMENT.into(), &"shared0".into()), "{event}");
    assert!(one.daemon.log().contains("by turns"), "{}", one.daemon.log());
    let status = one.daemon.json(&["status"])?;
    assert_eq!(status["held"][0]["segment"], SEGMENT, "{status}");
    assert!(one.daemon.mgre(&["status"])?.contains("in segment lan: seen in two places by turns"));
    let metrics = Metrics::over_socket(&one.daemon.socket())?;
    assert!(metrics.get("mgre_fdb_held", &[("segment", SEGMENT)]).is_some_and(|held| held >= 1.0));
    assert!(metrics.get("mgre_fdb_holds_total", &[("segment", SEGMENT)]).is_some_and(|holds| holds >= 1.0));

    // Nothing goes round any more, and who is not in the loop does not suffer from it.
    lan.wait_quiet()?;
    assert!(one.drops("loop")? + two.drops("loop")? > 0);
    for (from, to) in [(three, four), (four, three)] {
        from.host.run(&["ip", "neigh", "flush", "all"])?;
        for address in [to.host_ip(), to.host_ipv6()] {
            assert!(traffic::reaches(&from.host, &address)?, "{} to {address}", from.number);
        }
    }
    lan.wait_quiet()?;

    // Without it, all is as before.
    two.daemon.mgre(&["port", "del", "shared0"])?;
    wait::until("nothing is held any more", RELEASED, || {
        let held = |daemon: &mgre_tests::daemon::Daemon| -> Result<bool> {
            Ok(daemon.json(&["status"])?["held"] != serde_json::json!([]))
        };
        for spoke in spokes.iter() {
            if held(&spoke.daemon)? {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    monitor.wait_for("it is let go", |event| event["event"] == "fdb_released")?;
    assert!(one.daemon.mgre(&["status"])?.contains("no addresses"));
    for to in spokes.iter() {
        assert!(traffic::reaches(&lan.station, &to.host_ip())?, "the station to host {}", to.number);
        assert!(traffic::reaches(&to.host, STATION_IP)?, "host {} to the station", to.number);
    }
    Ok(())
}

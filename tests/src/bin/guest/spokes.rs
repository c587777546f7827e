//! Two mgre spokes between the stations, and a third for hubs.

use std::{thread, time::Duration};

use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};
use mgre_tests::{
    battery::{
        everything::{self, Plan},
        lab::{Lab, endpoint},
        remains,
        report::{Report, Verdict},
        station::Station,
        streams,
        switch::{Config, Switch},
    },
    topology::{Family, Layout, SEGMENT, Spokes, Underlay},
    wait,
};

use crate::Mode;

/// Bytes that GRE with a key over IPv4 takes of an underlay packet, the inner Ethernet header included.
const OVERHEAD: u32 = 20 + 8 + 14;
/// The stations' largest packet with it.
const MTU: u32 = 1500 - OVERHEAD;
/// What IPv6 outside, UDP, checksums and sequence numbers take besides.
const OPTIONS_OVERHEAD: u32 = 20 + 8 + 4 + 4;
/// An underlay for long packets.
const JUMBO: u32 = 9000;
/// Between numbered datagrams, on an ordinary machine and at most.
const INTERVAL: Duration = Duration::from_millis(1);
const MOST_INTERVAL: Duration = Duration::from_millis(5);
/// How long a datapath is to do without its daemon.
const ALONE: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only in this mode; may be repeated
    #[arg(long, value_name = "MODE")]
    mode: Vec<Mode>,
    /// Only these parts
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    parts: Vec<Part>,
    /// One way where two tell little more
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Everything that two stations do with each other
    Battery,
    /// Checksums, sequence numbers, UDP, TOS and DF, IPv6 outside
    Options,
    /// Packets that are too big
    Big,
    /// Packets of 9000 bytes
    Jumbo,
    /// Two spokes that know a hub alone
    Hub,
    /// IPv4 and IPv6 outside, side by side
    Families,
    /// Daemons that are killed and started again under traffic
    Restart,
}

pub(crate) fn run(report: &mut Report, arguments: &Arguments) {
    let modes = if arguments.mode.is_empty() { Mode::value_variants() } else { &arguments.mode };
    let parts = if arguments.parts.is_empty() { Part::value_variants() } else { &arguments.parts };
    for mode in modes {
        let run = Run { mode: *mode, quick: arguments.quick };
        run.all(report, parts);
    }
}

/// Two spokes in a lab.
struct Pair {
    // First, so that they end before their namespaces do.
    switches: Vec<Switch>,
    lab: Lab,
    /// How many checks had failed before.
    failures: usize,
}

#[derive(Clone, Copy)]
struct Run {
    mode: Mode,
    quick: bool,
}

impl Run {
    fn name(&self, what: &str) -> String {
        format!("{} {what}", self.mode.name())
    }

    fn plan(&self, what: &str, mtu: u32) -> Plan {
        let polls = self.mode.is_xdp();
        Plan { quick: self.quick, offloads: self.mode.offloads(), polls, ..Plan::new(self.name(what), mtu) }
    }

    fn all(&self, report: &mut Report, parts: &[Part]) {
        let has = |part| parts.contains(&part);
        if [Part::Battery, Part::Options, Part::Big, Part::Restart].into_iter().any(has)
            && let Some(mut pair) = self.pair(report, MTU, 1500)
        {
            if has(Part::Battery) {
                let before = self.redirected(report, &pair);
                everything::run(report, &self.plan("battery", MTU), pair.lab.stations());
                if let (Some(before), Some(after)) = (before, self.redirected(report, &pair)) {
                    let detail = format!("{} packets from wan0 redirected by the driver", after - before);
                    let verdict = Verdict::when(after > before, detail);
                    report.record(&self.name("battery: XDP takes known unicast"), &verdict);
                }
            }
            if has(Part::Options) {
                self.options(report, &pair);
            }
            if has(Part::Big) {
                self.big(report, &pair);
            }
            if has(Part::Restart) {
                self.restart(report, &mut pair);
            }
            self.end(report, pair);
        }
        if has(Part::Jumbo)
            && let Some(pair) = self.pair(report, JUMBO - OVERHEAD, JUMBO)
        {
            let plan = Plan { quick: true, vlan: false, ..self.plan("jumbo", JUMBO - OVERHEAD) };
            everything::run(report, &plan, pair.lab.stations());
            self.end(report, pair);
        }
        if has(Part::Hub) {
            let result = self.hub(report, Family::V4);
            report.ensure(&self.name("hub"), result);
        }
        if has(Part::Families) {
            let result = self.families(report).and_then(|()| self.hub(report, Family::Mixed));
            report.ensure(&self.name("families"), result);
        }
    }

    /// Packets of the underlay that XDP redirected at both spokes, by the driver's count; none where it has none to
    /// count.
    fn redirected(&self, report: &mut Report, pair: &Pair) -> Option<u64> {
        if self.mode != Mode::Native {
            return None;
        }
        let counts = [1, 2].map(|number| pair.lab.switch(number).xdp_redirected("wan0"));
        report.ensure(&self.name("XDP counters"), counts.into_iter().sum::<Result<u64>>())
    }

    /// Both spokes; none if they do not start.
    fn pair(&self, report: &mut Report, mtu: u32, underlay_mtu: u32) -> Option<Pair> {
        let name = self.name(&format!("daemons, underlay MTU {underlay_mtu}"));
        let result = self.start(mtu, underlay_mtu);
        let verdict = result.as_ref().map(|pair| {
            let times: Vec<_> =
                pair.switches.iter().map(|switch| format!("{:.2?}", switch.started)).collect();
            Verdict::Pass(format!("ready after {}", times.join(" and ")))
        });
        report.check(&name, verdict.map_err(|error| anyhow!("{error:#}")));
        let mut pair = result.ok()?;
        pair.failures = report.failures();
        for switch in &pair.switches {
            report.context(&switch.hooks());
        }
        Some(pair)
    }

    fn start(&self, mtu: u32, underlay_mtu: u32) -> Result<Pair> {
        let lab = Lab::with_underlay(mtu, underlay_mtu)?;
        // Before mgre looks which interfaces can be redirected to.
        self.plan("", mtu).set_offloads(&lab.stations(), self.mode.offloads()[0])?;
        let config = Config::new(self.mode.name());
        let start = |number| Switch::new(&lab, number, &config);
        let switches = thread::scope(|scope| {
            let threads = [1, 2].map(|number| scope.spawn(move || start(number)));
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
                .collect::<Result<Vec<_>>>()
        })?;
        Ok(Pair { switches, lab, failures: 0 })
    }

    /// Has both detach.
    fn end(&self, report: &mut Report, pair: Pair) {
        let failed = report.failures() > pair.failures;
        for switch in pair.switches {
            if failed {
                report.context(&switch.drops());
            }
            let number = switch.number;
            let verdict = remains::check(switch, pair.lab.switch(number));
            let verdict = verdict.map(|()| Verdict::Pass("nothing is left".to_owned()));
            report.check(&self.name(&format!("detach s{number}")), verdict);
        }
    }

    fn options(&self, report: &mut Report, pair: &Pair) {
        let mtu = MTU - OPTIONS_OVERHEAD;
        let name = self.name("options");
        report.ensure(&name, pair.lab.set_mtu(mtu));
        for switch in &pair.switches {
            let local = endpoint(switch.number, false).to_string();
            let words = ["underlay", "add", "wan0", "--local", &local, "--mode", self.mode.name()];
            report.ensure(&name, switch.daemon.mgre(&words));
        }
        let csum_off = "--csum=false";
        let seq_off = "--seq=false";
        // What is done, and what undoes it; 4 and 6 stand for the peer's address.
        let cases: [(&str, &[&str], &[&str]); 9] = [
            ("csum", &["--csum"], &[csum_off]),
            ("seq", &["--seq"], &[seq_off]),
            ("csum seq", &["--csum", "--seq"], &[csum_off, seq_off]),
            ("gre-udp", &["--encap", "gre-udp"], &["--encap", "gre"]),
            (
                "gre-udp csum seq",
                &["--encap", "gre-udp", "--csum", "--seq"],
                &["--encap", "gre", csum_off, seq_off],
            ),
            (
                "tos inherit df inherit",
                &["--tos", "inherit", "--df", "inherit"],
                &["--tos", "0", "--df", "set"],
            ),
            ("IPv6", &["--remote", "6"], &["--remote", "4"]),
            (
                "IPv6 gre-udp tos inherit",
                &["--remote", "6", "--encap", "gre-udp", "--tos", "inherit"],
                &["--remote", "4", "--encap", "gre", "--tos", "0"],
            ),
            (
                "IPv6 csum seq gre-udp",
                &["--remote", "6", "--csum", "--seq", "--encap", "gre-udp"],
                &["--remote", "4", csum_off, seq_off, "--encap", "gre"],
            ),
        ];
        for (option, set, unset) in cases {
            let plan = self.plan(&format!("options: {option}"), mtu);
            if report.ensure(&plan.name, set_peers(pair, set)).is_some() {
                self.option(report, &plan, pair.lab.stations());
            }
            report.ensure(&plan.name, set_peers(pair, unset));
        }
        report.ensure(&name, pair.lab.set_mtu(MTU));
    }

    fn option(&self, report: &mut Report, plan: &Plan, [one, two]: [Station<'_>; 2]) {
        let name = &plan.name;
        for station in [one, two] {
            report.ensure(name, station.forget_neighbors());
        }
        report.check(&format!("{name}: ping"), one.pings(two.ipv4().into(), 3, 56, &[]));
        let full = one.pings(two.ipv4().into(), 2, plan.mtu - 28, &["-M", "do"]);
        report.check(&format!("{name}: ping of {} bytes", plan.mtu), full);
        everything::frames(report, plan, one, two);
        if !self.quick {
            everything::frames(report, plan, two, one);
        }
        everything::stream(report, name, one, two, two.ipv4().into(), plan.bytes);
        everything::stream(report, name, two, one, one.ipv6().into(), plan.bytes);
    }

    fn big(&self, report: &mut Report, pair: &Pair) {
        let [one, two] = pair.lab.stations();
        let plan = self.plan("big", MTU);
        let name = &plan.name;
        report.ensure(name, pair.lab.set_mtu(1500));
        let forget = |report: &mut Report| {
            for station in [one, two] {
                report.ensure(name, station.forget_paths());
            }
        };
        // So that no question for an address is among what is counted.
        report.ensure(name, one.pings(two.ipv4().into(), 1, 56, &[]));
        report.ensure(name, one.pings(two.ipv6().into(), 1, 56, &[]));
        for (address, family, bytes) in
            [(two.ipv4().to_string(), "IPv4 with DF", 1472), (two.ipv6().to_string(), "IPv6", 1452)]
        {
            let told = (|| {
                one.ping(address.parse()?, 3, bytes, &["-M", "do"])?;
                let route = one.netns.run(&["ip", "route", "get", &address])?;
                Ok(Verdict::when(route.contains(&format!("mtu {MTU} ")), route))
            })();
            report.check(&format!("{name}: {family}, the sender is told"), told);
        }
        forget(report);
        let dropped = one.ping(two.ipv4().into(), 2, 1472, &["-M", "dont"]);
        let dropped = dropped.map(|pings| {
            Verdict::when(pings.received == 0, format!("{} of {} came back", pings.received, pings.sent))
        });
        report.check(&format!("{name}: IPv4 without DF, outer packets with it, is dropped"), dropped);
        report.ensure(name, set_peers(pair, &["--df", "unset"]));
        let cut = one.pings(two.ipv4().into(), 3, 1472, &["-M", "dont"]);
        report.check(&format!("{name}: IPv4 without DF, in outer fragments"), cut);
        for address in two.addresses() {
            everything::stream(report, &format!("{name}: by path MTU"), one, two, address, plan.bytes);
        }
        report.ensure(name, set_peers(pair, &["--df", "set"]));
        forget(report);
        report.ensure(name, pair.lab.set_mtu(MTU));
    }

    fn restart(&self, report: &mut Report, pair: &mut Pair) {
        let Pair { switches, lab, .. } = pair;
        let [one, two] = lab.stations();
        let name = self.name("restart under traffic");
        for (station, other) in [(one, two), (two, one)] {
            report.ensure(&name, station.know(&other));
        }
        for switch in switches {
            let number = switch.number;
            let restart = || -> Result<()> {
                thread::sleep(ALONE);
                switch.daemon.kill()?;
                thread::sleep(ALONE);
                switch.daemon.start_again()?;
                switch.wait_up()?;
                thread::sleep(ALONE);
                Ok(())
            };
            let interval = wait::patient(INTERVAL).min(MOST_INTERVAL);
            let back = || streams::numbered(&two, &one, interval, restart);
            let verdict = streams::numbered(&one, &two, interval, back).map(
                |(((), sent_back, lost_back), sent, lost)| {
                    let text = |lost: &[u32]| match lost {
                        [] => "none".to_owned(),
                        lost => format!("{} from number {}", lost.len(), lost[0]),
                    };
                    Verdict::when(
                        lost.is_empty() && lost_back.is_empty(),
                        format!(
                            "of {sent} and {sent_back} datagrams, lost: {} and {}",
                            text(&lost),
                            text(&lost_back)
                        ),
                    )
                },
            );
            report.check(&format!("{name}: s{number}"), verdict);
        }
        let [one, two] = lab.stations();
        report.check(&format!("{name}: ping afterwards"), one.pings(two.ipv4().into(), 3, 56, &[]));
        for station in [one, two] {
            report.ensure(&name, station.forget_neighbors());
        }
    }

    /// Three spokes on a switched underlay.
    fn spokes(&self, family: Family) -> Result<Spokes> {
        let layout = Layout { family, mode: self.mode.name(), ..Layout::new(3, Underlay::Switched) };
        let spokes = layout.build()?;
        if self.mode.is_xdp() {
            // As a cable would have it: checksums are finished, and each other end can be redirected to.
            for spoke in spokes.iter() {
                let core = format!("s{}", spoke.number);
                spokes.core.run(&["ethtool", "-K", &core, "tx", "off", "gro", "on"])?;
            }
        }
        Ok(spokes)
    }

    fn hub(&self, report: &mut Report, family: Family) -> Result<()> {
        let spokes = self.spokes(family)?;
        for (number, other) in [(2, "spoke3"), (3, "spoke2")] {
            spokes.spoke(number).daemon.mgre(&["peer", "del", other])?;
        }
        let (hub, two, three) = (spokes.spoke(1), spokes.spoke(2), spokes.spoke(3));
        hub.daemon.mgre(&["segment", "set", SEGMENT, "--hub"])?;
        let what = if family == Family::Mixed { "hub from IPv4 to IPv6" } else { "hub" };
        let plan = Plan { quick: self.quick, ..self.plan(what, spokes.layout.mtu()) };
        everything::run(report, &plan, [Station::of(two), Station::of(three)]);
        let plan =
            Plan { quick: true, vlan: false, ..self.plan(&format!("{what} itself"), spokes.layout.mtu()) };
        everything::run(report, &plan, [Station::of(hub), Station::of(three)]);
        hide_logs(spokes);
        Ok(())
    }

    fn families(&self, report: &mut Report) -> Result<()> {
        let spokes = self.spokes(Family::Mixed)?;
        for (from, to, what) in [(1, 2, "IPv4 beside IPv6"), (2, 3, "IPv6 beside IPv4")] {
            let plan = self.plan(&format!("families: {what}"), spokes.layout.mtu());
            everything::run(report, &plan, [from, to].map(|number| Station::of(spokes.spoke(number))));
        }
        hide_logs(spokes);
        Ok(())
    }
}

/// Ends them without a word of their logs.
fn hide_logs(spokes: Spokes) {
    let (mut spokes, _core) = spokes.into_parts();
    spokes.iter_mut().for_each(|spoke| spoke.daemon.hide_log());
}

/// Tells both spokes of their peer; `4` and `6` stand for its address of that family.
fn set_peers(pair: &Pair, words: &[&str]) -> Result<()> {
    pair.switches.iter().try_for_each(|switch| {
        let [v4, v6] = [true, false].map(|is_v4| endpoint(3 - switch.number, is_v4).to_string());
        let words: Vec<&str> = words
            .iter()
            .map(|word| match *word {
                "4" => v4.as_str(),
                "6" => &v6,
                word => word,
            })
            .collect();
        switch.set_peer(&words)
    })
}

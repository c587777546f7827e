//! Emulated cards, told apart by their MAC addresses, and what XDP and their drivers make of each other.

mod change;

use std::{collections::BTreeMap, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use clap::Args;
use mgre_tests::{
    battery::{
        everything::{self, Plan},
        lab::{Lab, card, endpoint},
        remains,
        report::{Report, Verdict},
        station::Station,
        streams,
        switch::{Config, Switch},
    },
    netns::Netns,
    wait,
};

use crate::Mode;

/// What GRE with a key takes of an underlay packet.
const OVERHEAD: u32 = 42;
/// Drivers that qemu has cards for, and what else is loaded by hand.
const MODULES: [&str; 9] =
    ["virtio_pci", "virtio_net", "igb", "e1000e", "e1000", "vmxnet3", "8021q", "ip_gre", "bridge"];
/// How long a driver and the daemon may take to settle after a change.
const SETTLE: Duration = Duration::from_millis(1500);
/// Echo requests whose way is counted.
const PINGS: u32 = 100;
/// Features that let a card cut GRE's superframes, or believe that it can.
const GRE_SEGMENTATION: [&str; 3] = ["tx-gre-segmentation", "tx-gre-csum-segmentation", "tx-gso-partial"];

/// A driver that loses long frames once its card had an XDP program, though that was taken off, and does not let go of
/// one that is on it while the MTU grows (Linux 6.12). It had one after the changes of VLAN offloads.
const LOSES_LONG_FRAMES: &str = "vmxnet3";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How mgre attaches; may be repeated
    #[arg(long, value_name = "MODE", default_value = "auto")]
    mode: Vec<Mode>,
    /// MTU of the underlay's cards
    #[arg(long, value_name = "N", default_value_t = 1500)]
    mtu: u32,
    /// Then this MTU
    #[arg(long, value_name = "N")]
    jumbo: Option<u32>,
    /// Take links down and up again under traffic
    #[arg(long)]
    flaps: bool,
    /// Change the number of queues, the length of rings, and reset cards, under traffic
    #[arg(long)]
    queues: bool,
    /// One way where two tell little more
    #[arg(long)]
    quick: bool,
}

pub(crate) fn run(report: &mut Report, arguments: &Arguments) {
    for module in MODULES {
        // It may be built in, or not be there; the cards themselves are looked for below.
        Command::new("modprobe").arg(module).output().ok();
    }
    let missing = ["01", "02", "03", "04"]
        .into_iter()
        .find(|last| wait::value("a card", Duration::from_secs(1), || card(last)).is_err());
    if let Some(last) = missing {
        let why = format!("there is no card with MAC address 52:54:00:00:01:{last}");
        report.record("cards", &Verdict::Skip(why));
        return;
    }
    for (index, mode) in arguments.mode.iter().enumerate() {
        let run = Run { arguments, mode: *mode, first: index == 0 };
        let result = run.all(report);
        report.ensure(&format!("{} cards", mode.name()), result);
    }
}

struct Run<'a> {
    arguments: &'a Arguments,
    mode: Mode,
    /// What the cards do without mgre is looked at once: what was turned off then stays off.
    first: bool,
}

impl Run<'_> {
    const fn mtu(&self) -> u32 {
        self.arguments.mtu - OVERHEAD
    }

    fn plan(&self, what: &str) -> Plan {
        // Here the stations' offloads are their own business: h1 has a card, which finishes what is left to it.
        let polls = true;
        Plan {
            quick: self.arguments.quick,
            polls,
            ..Plan::new(format!("{} {what}", self.mode.name()), self.mtu())
        }
    }

    fn all(&self, report: &mut Report) -> Result<()> {
        let lab = Lab::with_cards(self.mtu(), self.arguments.mtu)?;
        // The checks read frames for groups and VLANs that the host is not in, and for stations that it is not.
        lab.host(1).ip("link set eth0 promisc on")?;
        for (number, interface) in [(1, "wan0"), (1, "lan0")] {
            report.context(&describe(lab.switch(number), interface));
        }
        set_tags(report, &lab, matches!(self.mode, Mode::Auto | Mode::Tc));
        thread::sleep(wait::patient(SETTLE));
        if self.first {
            self.baseline(report, &lab)?;
        }

        let statistics = enable_stats(Stats::RunTime);
        let one = Switch::new(&lab, 1, &Config::new(self.mode.name()))?;
        let two = Switch::new(&lab, 2, &Config { port_mode: "tc", ..Config::new(self.mode.name()) })?;
        thread::sleep(wait::patient(SETTLE));
        let switches = [&one, &two];
        for switch in switches {
            report.context(&switch.hooks());
        }
        report.check(&format!("{} cards: hook", self.mode.name()), self.hook(&one));
        let failures = report.failures();
        everything::run(report, &self.plan("cards"), lab.stations());
        match statistics {
            Ok(_statistics) => {
                report
                    .check(&format!("{} cards: XDP takes known unicast", self.mode.name()), way(&lab, &one));
            }
            Err(error) => {
                report.record(
                    "cards: run counts",
                    &Verdict::Skip(format!("the kernel counts no runs: {error}")),
                );
            }
        }
        for number in [1, 2] {
            report.context(&xdp_counters(lab.switch(number), number));
        }
        if report.failures() > failures {
            switches.iter().for_each(|switch| report.context(&switch.drops()));
        }
        change::all(report, &self.plan("cards"), &lab, switches, self.arguments.flaps, self.arguments.queues);
        if let Some(jumbo) = self.arguments.jumbo {
            self.jumbo(report, &lab, switches, jumbo);
        }
        for switch in [one, two] {
            let number = switch.number;
            let verdict = remains::check(switch, lab.switch(number));
            let verdict = verdict.map(|()| Verdict::Pass("nothing is left".to_owned()));
            report.check(&format!("{} cards: detach s{number}", self.mode.name()), verdict);
        }
        Ok(())
    }

    /// What the cards do without mgre: by themselves, under the kernel's gretap, and under bridges.
    fn baseline(&self, report: &mut Report, lab: &Lab) -> Result<()> {
        report.set_baseline(true);
        let [s1, s2] = [1, 2].map(|number| underlay(lab, number));
        everything::stream(report, "cards alone: underlay", s1, s2, endpoint(2, true), 2 << 20);
        everything::stream(report, "cards alone: underlay", s2, s1, endpoint(1, true), 2 << 20);
        self.gretap_baseline(report, lab)?;
        if let Some(jumbo) = self.arguments.jumbo {
            match set_underlay_mtu(lab, jumbo) {
                Ok(()) => {
                    thread::sleep(wait::patient(SETTLE));
                    long_ping(report, &format!("cards alone, MTU {jumbo}"), lab, jumbo);
                }
                Err(error) => report.context(&format!("MTU {jumbo}: {error:#}")),
            }
            set_underlay_mtu(lab, self.arguments.mtu)?;
        }
        for number in [1, 2] {
            lab.switch(number).ip(
                "link add br0 type bridge mcast_snooping 0\nlink set lan0 master br0\nlink set wan0 master br0\n\
                 link set br0 up",
            )?;
            lab.switch(number).ip("link set wan0 promisc on\nlink set lan0 promisc on")?;
        }
        thread::sleep(wait::patient(SETTLE));
        let plan = Plan { name: "cards under bridges".to_owned(), quick: false, ..self.plan("") };
        // A bridge keeps LLDP to itself; mgre does not, and has no excuse.
        let plan = Plan { left_out: vec!["lldp".to_owned()], ..plan };
        everything::run(report, &plan, lab.stations());
        for number in [1, 2] {
            lab.switch(number).ip("link del br0\nlink set wan0 promisc off\nlink set lan0 promisc off")?;
        }
        report.set_baseline(false);
        Ok(())
    }

    /// The kernel's own GRE over the cards. Some emulations cut GRE's superframes wrongly; then they are not let to.
    fn gretap_baseline(&self, report: &mut Report, lab: &Lab) -> Result<()> {
        let tap = |number: u8| {
            let [local, remote] = [number, 3 - number].map(|one| endpoint(one, true));
            lab.switch(number).ip(&format!(
                "link add gt type gretap local {local} remote {remote} key 9 nopmtudisc\n\
                 addr add 10.8.0.{number}/24 dev gt\nlink set gt up"
            ))
        };
        if let Err(error) = tap(1).and_then(|()| tap(2)) {
            report.record("cards alone: kernel gretap", &Verdict::Skip(format!("{error:#}")));
            return Ok(());
        }
        let stream = || {
            let [s1, s2] = [1, 2].map(|number| underlay(lab, number));
            streams::tcp(&s1, &s2, [10, 8, 0, 2].into(), 2 << 20)
        };
        let mut verdict = stream();
        for features in [&GRE_SEGMENTATION[..], &["tx"]] {
            if matches!(verdict, Ok(Verdict::Pass(_))) {
                break;
            }
            report.check("cards alone: kernel gretap", verdict);
            for (number, feature) in
                [1, 2].into_iter().flat_map(|number| features.iter().map(move |one| (number, one)))
            {
                lab.switch(number).run(&["ethtool", "-K", "wan0", feature, "off"]).ok();
            }
            report.context(&format!("{} of wan0 off from now on", features.join(", ")));
            verdict = stream();
        }
        report.check("cards alone: kernel gretap, as it is now", verdict);
        for number in [1, 2] {
            lab.switch(number).ip("link del gt")?;
        }
        Ok(())
    }

    fn hook(&self, switch: &Switch) -> Result<Verdict> {
        let (underlay, port) = switch.hook()?;
        let detail = format!("underlay {underlay}, port {port}");
        Ok(match self.mode {
            Mode::Native | Mode::Generic => {
                Verdict::when(underlay.starts_with("xdp") && port.starts_with("xdp"), detail)
            }
            Mode::Auto | Mode::Tc => Verdict::Pass(detail),
        })
    }

    fn jumbo(&self, report: &mut Report, lab: &Lab, switches: [&Switch; 2], jumbo: u32) {
        let name = format!("{} cards, MTU {jumbo}", self.mode.name());
        let set = || -> Result<()> {
            set_underlay_mtu(lab, jumbo)?;
            lab.set_mtu(jumbo - OVERHEAD)
        };
        if driver(lab.switch(1), "wan0") == LOSES_LONG_FRAMES {
            let why =
                format!("{LOSES_LONG_FRAMES} loses long frames once it had an XDP program, without mgre too");
            report.record(&name, &Verdict::Skip(why));
            return;
        }
        let mut done = set();
        if let Err(error) = &done {
            report.context(&format!("MTU {jumbo} with XDP: {error:#}; now without"));
            set_tags(report, lab, true);
            thread::sleep(wait::patient(SETTLE));
            done = set();
        }
        if let Err(error) = done {
            report.record(&name, &Verdict::Skip(format!("the card refuses: {error:#}")));
            return;
        }
        thread::sleep(wait::patient(SETTLE));
        switches.iter().for_each(|switch| report.context(&switch.hooks()));
        if !long_ping(report, &name, lab, jumbo) {
            return;
        }
        let plan = Plan { mtu: jumbo - OVERHEAD, quick: true, vlan: false, name, ..self.plan("") };
        everything::run(report, &plan, lab.stations());
    }
}

/// Sets the MTU of the underlay's cards.
fn set_underlay_mtu(lab: &Lab, mtu: u32) -> Result<()> {
    [1, 2].into_iter().try_for_each(|number| lab.switch(number).ip(&format!("link set wan0 mtu {mtu}")))
}

/// Packets that fill the underlay's MTU, from card to card; whether they come back.
fn long_ping(report: &mut Report, name: &str, lab: &Lab, mtu: u32) -> bool {
    let pings = underlay(lab, 1).pings(endpoint(2, true), 3, mtu - 28, &["-M", "do"]);
    let passed = matches!(pings, Ok(Verdict::Pass(_)));
    report.check(&format!("{name}: ping of {mtu} bytes from card to card"), pings);
    passed
}

/// The driver of an interface, as `ethtool -i` says it.
fn driver(netns: &Netns, interface: &str) -> String {
    let text = netns.run(&["ethtool", "-i", interface]).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("driver: ")).unwrap_or_default().to_owned()
}

/// A switch as a station of the underlay.
fn underlay(lab: &Lab, number: u8) -> Station<'_> {
    Station { netns: lab.switch(number), number, interface: "wan0" }
}

/// Has the switches' cards take VLAN tags off the frames that they receive, as most do by themselves, or leave them
/// there, without which they get no XDP.
fn set_tags(report: &mut Report, lab: &Lab, taken_off: bool) {
    let value = if taken_off { "on" } else { "off" };
    for (number, interface) in [(1, "wan0"), (1, "lan0"), (2, "wan0")] {
        match lab.switch(number).run(&["ethtool", "-K", interface, "rxvlan", value]) {
            Ok(_) => report.context(&format!("s{number} {interface}: rxvlan {value} from now on")),
            Err(error) => report.context(&format!("s{number} {interface}: rxvlan stays as it is: {error:#}")),
        }
    }
}

/// What there is to know of a card.
fn describe(netns: &Netns, interface: &str) -> String {
    let run = |option: &str| netns.run(&["ethtool", option, interface]).unwrap_or_default();
    let queues: Vec<String> = run("-l").lines().rev().take(4).map(|line| line.replace('\t', " ")).collect();
    let wanted = ["rx-vlan-offload", "tx-checksumming", "tcp-segmentation-offload", "tx-gre-segmentation"];
    let features = run("-k");
    let features: Vec<&str> = features
        .lines()
        .map(str::trim)
        .filter(|line| wanted.iter().any(|name| line.starts_with(name)))
        .collect();
    let driver = driver(netns, interface);
    format!("{interface}: driver: {driver}; {}; queues now: {}", features.join(", "), queues.join(", "))
}

/// The driver's own counts of what XDP did.
fn xdp_counters(netns: &Netns, number: u8) -> String {
    let text = netns.run(&["ethtool", "-S", "wan0"]).unwrap_or_default();
    let counts = text.lines().map(str::trim).filter(|line| line.contains("xdp") && !line.ends_with(": 0"));
    format!("s{number} wan0: {}", counts.collect::<Vec<_>>().join(", "))
}

/// How often the programs of a daemon ran, by name.
fn runs(switch: &Switch) -> Result<BTreeMap<String, u64>> {
    let ids = remains::programs_of(&switch.daemon)?;
    let mut runs = BTreeMap::new();
    for program in loaded_programs().flatten().filter(|program| ids.contains(&program.id())) {
        let name = program.name_as_str().unwrap_or_default().to_owned();
        *runs.entry(name).or_default() += program.run_count();
    }
    ensure!(!runs.is_empty(), "none of its programs is loaded");
    Ok(runs)
}

/// Packets that the port took in, and that it delivered, by the daemon's counters.
fn port_packets(switch: &Switch) -> Result<[u64; 2]> {
    let ports = switch.daemon.list(&["port", "show"])?;
    let port = ports.first().context("there is no port")?;
    let count = |key: &str| port[key].as_u64().with_context(|| format!("{key} is no number: {port}"));
    Ok([count("receive_packets")?, count("transmit_packets")?])
}

/// Whether XDP's programs alone see packets between stations that know each other.
fn way(lab: &Lab, switch: &Switch) -> Result<Verdict> {
    let (underlay, port) = switch.hook()?;
    if !underlay.starts_with("xdp") || !port.starts_with("xdp") {
        return Ok(Verdict::Skip(format!("XDP is not on both interfaces: underlay {underlay}, port {port}")));
    }
    let [one, two] = lab.stations();
    one.know(&two)?;
    two.know(&one)?;
    one.ping(two.ipv4().into(), 3, 56, &[])?;
    let (before, counted) = (runs(switch)?, port_packets(switch)?);
    let count = PINGS.to_string();
    let address = two.ipv4().to_string();
    let pings =
        mgre_tests::traffic::ping(lab.host(1), &["-q", "-c", &count, "-i", "0.01", "-W", "8", &address])
            .context("ping")?;
    let mut ran: BTreeMap<String, u64> = runs(switch)?;
    ran.iter_mut().for_each(|(name, runs)| *runs -= before.get(name).copied().unwrap_or(0).min(*runs));
    let counted: Vec<u64> = port_packets(switch)?.iter().zip(counted).map(|(now, was)| now - was).collect();
    let sum = |is_xdp: bool| -> u64 {
        let wanted = |name: &&String| match name.as_str() {
            name if name.starts_with("mgre_x") => is_xdp,
            name => !is_xdp && (name.starts_with("mgre_port") || name.starts_with("mgre_underlay")),
        };
        ran.keys().filter(wanted).map(|name| ran[name]).sum()
    };
    let (early, late) = (sum(true), sum(false));
    for station in [one, two] {
        station.forget_neighbors()?;
    }
    let there_and_back = 2 * u64::from(PINGS);
    // Hosts send something of their own now and then.
    let few = u64::from(PINGS) / 10;
    let exact = counted.iter().all(|count| (0..=few).contains(&count.wrapping_sub(PINGS.into())));
    let good = pings.all_came_back() && early >= there_and_back && late < 2 * few && exact;
    let detail = format!(
        "for {} of {PINGS} pings XDP ran {early} times and TC {late} times; the port counts {counted:?} packets",
        pings.received
    );
    Ok(Verdict::when(good, detail))
}

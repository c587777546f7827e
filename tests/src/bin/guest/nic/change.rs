//! Changes of cards while frames are under way.

use std::{thread, time::Duration};

use anyhow::Result;
use mgre_tests::{
    battery::{
        everything::{self, Plan},
        lab::Lab,
        report::{Report, Verdict},
        streams,
        switch::Switch,
    },
    netns::Netns,
    traffic, wait,
};

/// How long a link may take until it carries frames again.
const RECOVERY: Duration = Duration::from_secs(15);
/// Before and after a change.
const MOMENT: Duration = Duration::from_millis(700);
/// Between numbered datagrams.
const INTERVAL: Duration = Duration::from_millis(5);

/// What is done to an interface: words of a command, `DEV` for its name.
type Steps = &'static [&'static str];

/// Offloads of VLAN tags, off and on, and off again at the end: XDP sees tags then.
const VLAN_OFFLOADS: [(&str, Steps); 5] = [
    ("rxvlan off", &["ethtool -K DEV rxvlan off"]),
    ("rxvlan on", &["ethtool -K DEV rxvlan on"]),
    ("txvlan off", &["ethtool -K DEV txvlan off"]),
    ("txvlan on", &["ethtool -K DEV txvlan on"]),
    ("rxvlan off again", &["ethtool -K DEV rxvlan off"]),
];
const FLAPS: [(&str, Steps); 1] = [(
    "link flaps",
    &["ip link set DEV down", "ip link set DEV up", "ip link set DEV down", "ip link set DEV up"],
)];
const QUEUES: [(&str, Steps); 6] = [
    ("short rings", &["ethtool -G DEV rx 128 tx 128"]),
    ("long rings", &["ethtool -G DEV rx 256 tx 256"]),
    ("one queue", &["ethtool -L DEV combined 1"]),
    ("two queues", &["ethtool -L DEV combined 2"]),
    ("negotiation", &["ethtool -r DEV"]),
    ("reset", &["ethtool --reset DEV all"]),
];

/// Makes each change at the first switch's cards, or at its underlay's alone where one tells enough, and looks whether
/// everything still works.
pub(super) fn all(
    report: &mut Report,
    plan: &Plan,
    lab: &Lab,
    switches: [&Switch; 2],
    flaps: bool,
    queues: bool,
) {
    let sets = [(true, &VLAN_OFFLOADS[..]), (flaps, &FLAPS[..]), (queues, &QUEUES[..])];
    let interfaces: &[&str] = if plan.quick { &["wan0"] } else { &["wan0", "lan0"] };
    for (name, steps) in sets.into_iter().filter(|(wanted, _)| *wanted).flat_map(|(_, set)| set) {
        for interface in interfaces {
            let name = format!("{}, {interface} {name}", plan.name);
            match one(lab, interface, steps) {
                Ok(verdict) => {
                    let skipped = matches!(verdict, Verdict::Skip(_));
                    report.record(&name, &verdict);
                    if skipped {
                        continue;
                    }
                }
                Err(error) => {
                    report.record(&name, &Verdict::Fail(format!("{error:#}")));
                }
            }
            report.context(&switches[0].hooks());
            let [one, two] = lab.stations();
            report.check(&format!("{name}: ping"), one.pings(two.ipv4().into(), 5, 56, &[]));
            everything::stream(report, &name, one, two, two.ipv4().into(), plan.bytes);
            everything::stream(report, &name, two, one, one.ipv4().into(), plan.bytes);
            let plan = Plan { name, ..plan.clone() };
            everything::frames(report, &plan, two, one);
        }
    }
}

/// Makes a change while numbered datagrams go both ways. How many are lost is told, no more: a card that resets loses
/// some.
fn one(lab: &Lab, interface: &str, steps: Steps) -> Result<Verdict> {
    let [one, two] = lab.stations();
    one.know(&two)?;
    two.know(&one)?;
    let change = || {
        thread::sleep(MOMENT);
        let refused = steps.iter().find_map(|step| apply(lab.switch(1), interface, step).err());
        if refused.is_none() {
            traffic::wait_reachable(one.netns, &two.ipv4().to_string(), RECOVERY)?;
        }
        thread::sleep(MOMENT);
        Ok(refused)
    };
    let interval = wait::patient(INTERVAL).min(INTERVAL * 4);
    let back = || streams::numbered(&two, &one, interval, change);
    let ((refused, sent_back, lost_back), sent, lost) = streams::numbered(&one, &two, interval, back)?;
    one.forget_neighbors()?;
    two.forget_neighbors()?;
    Ok(match refused {
        Some(error) => Verdict::Skip(format!("the card does not do that: {error:#}")),
        None => {
            Verdict::Pass(format!("lost {} of {sent}, and {} of {sent_back}", lost.len(), lost_back.len()))
        }
    })
}

fn apply(netns: &Netns, interface: &str, step: &str) -> Result<()> {
    let words: Vec<&str> = step.split(' ').map(|word| if word == "DEV" { interface } else { word }).collect();
    netns.run(&words).map(|_| ())
}

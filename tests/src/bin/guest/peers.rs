//! mgre beside what else speaks GRE with Ethernet in it.

use anyhow::Result;
use clap::Args;
use mgre_tests::{
    battery::{
        everything::{self, Plan},
        lab::{Lab, endpoint},
        peer::{Kind, Made, Peer},
        report::{Report, Verdict},
        switch::{Config, Identity, Switch},
    },
    bench::ovs::Datapath,
    topology::KEY,
};

use crate::{Mode, segment};

/// NVGRE's virtual subnet (the key's upper 24 bits).
const VSID: u32 = 5000;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only peers with this in their name; may be repeated
    #[arg(long, value_name = "SUBSTRING")]
    only: Vec<String>,
    /// How mgre attaches; may be repeated
    #[arg(long, value_name = "MODE", default_value = "auto")]
    mode: Vec<Mode>,
    /// One way where two tell little more
    #[arg(long)]
    quick: bool,
}

/// A peer, and what mgre is told to talk to it.
struct Case {
    name: &'static str,
    kind: Kind,
    identity: Identity,
    /// Outer packets are IPv4.
    v4: bool,
    /// What mgre is told of it besides.
    options: &'static [&'static str],
    /// The stations' largest packet.
    mtu: u32,
    /// The peer's underlay veth takes packets whose checksums are to be finished by who gets them.
    unfinished: bool,
    /// The underlay cuts packets of `mtu`.
    cut: bool,
    /// What is long comes from mgre alone: the peer cuts nothing.
    one_way: bool,
}

const fn case(name: &'static str, kind: Kind, mtu: u32) -> Case {
    let identity = Identity::Key(KEY);
    Case { name, kind, identity, v4: true, options: &[], mtu, unfinished: false, cut: false, one_way: false }
}

const fn v6(name: &'static str, words: &'static str, mtu: u32) -> Case {
    Case { v4: false, ..case(name, Kind::Gretap(words), mtu) }
}

const fn told(options: &'static [&'static str], case: Case) -> Case {
    Case { options, ..case }
}

const fn unfinished(case: Case) -> Case {
    Case { unfinished: true, ..case }
}

const fn cut(case: Case) -> Case {
    Case { cut: true, options: &["--df", "unset"], ..case }
}

const fn one_way(case: Case) -> Case {
    Case { one_way: true, ..case }
}

const fn keyless(case: Case) -> Case {
    Case { identity: Identity::Keyless, ..case }
}

/// Every one of them. The MTUs are what 1500 bytes leave of IP, GRE with its fields, and the Ethernet header inside.
const CASES: [Case; 29] = [
    case("gretap key nopmtudisc", Kind::Gretap("key 7 nopmtudisc"), 1458),
    case("gretap key pmtudisc", Kind::Gretap("key 7"), 1458),
    keyless(case("gretap keyless", Kind::Gretap("nopmtudisc"), 1462)),
    told(&["--csum"], case("gretap csum", Kind::Gretap("key 7 csum nopmtudisc"), 1454)),
    told(
        &["--csum"],
        unfinished(case("gretap csum, unfinished by the peer", Kind::Gretap("key 7 csum nopmtudisc"), 1454)),
    ),
    told(&["--seq"], case("gretap seq", Kind::Gretap("key 7 seq nopmtudisc"), 1454)),
    told(&["--csum", "--seq"], case("gretap csum seq", Kind::Gretap("key 7 csum seq nopmtudisc"), 1450)),
    told(
        &["--csum", "--seq"],
        unfinished(case(
            "gretap csum seq, unfinished by the peer",
            Kind::Gretap("key 7 csum seq nopmtudisc"),
            1450,
        )),
    ),
    case("gretap with ocsum oseq, mgre without", Kind::Gretap("key 7 oseq ocsum nopmtudisc"), 1450),
    told(
        &["--tos", "inherit", "--df", "inherit"],
        case("gretap tos inherit ttl inherit", Kind::Gretap("key 7 tos inherit ttl inherit"), 1458),
    ),
    case("gretap external key", Kind::External { id: 7, csum: false, matching: "enc_key_id 7" }, 1458),
    case("gretap external csum", Kind::External { id: 7, csum: true, matching: "enc_key_id 7" }, 1454),
    Case {
        identity: Identity::Vsid(VSID),
        ..case(
            "gretap external NVGRE",
            // The flow id that mgre puts into the key's last byte is another one for each flow.
            Kind::External { id: VSID << 8, csum: false, matching: "enc_src_ip 10.0.0.1" },
            1458,
        )
    },
    v6("ip6gretap encaplimit none", "key 7 encaplimit none", 1438),
    v6("ip6gretap encaplimit 4", "key 7", 1430),
    unfinished(v6("ip6gretap encaplimit 4, unfinished by the peer", "key 7", 1430)),
    told(&["--csum", "--seq"], v6("ip6gretap csum seq", "key 7 csum seq encaplimit none", 1430)),
    told(&["--encap", "gre-udp"], case("gretap in fou", Kind::Fou("key 7 nopmtudisc"), 1450)),
    told(
        &["--encap", "gre-udp"],
        case("gretap in fou with UDP checksums", Kind::Fou("key 7 nopmtudisc encap-csum"), 1450),
    ),
    // Without ignore-df, gretap forbids what the packet inside forbids, and drops what it may not cut.
    cut(case("gretap, outer fragments", Kind::Gretap("key 7 nopmtudisc ignore-df"), 1500)),
    one_way(cut(v6("ip6gretap, outer fragments", "key 7 encaplimit none", 1500))),
    case("OVS kernel key", Kind::Ovs(Datapath::Kernel, &["options:key=7"]), 1458),
    keyless(case("OVS kernel keyless", Kind::Ovs(Datapath::Kernel, &[]), 1462)),
    case(
        "OVS kernel csum, mgre without",
        Kind::Ovs(Datapath::Kernel, &["options:key=7", "options:csum=true"]),
        1454,
    ),
    told(
        &["--seq"],
        case("OVS kernel seq", Kind::Ovs(Datapath::Kernel, &["options:key=7", "options:seq=true"]), 1454),
    ),
    case("OVS userspace key", Kind::Ovs(Datapath::Userspace, &["options:key=7"]), 1458),
    keyless(case("OVS userspace keyless", Kind::Ovs(Datapath::Userspace, &[]), 1462)),
    told(
        &["--csum"],
        case(
            "OVS userspace csum",
            Kind::Ovs(Datapath::Userspace, &["options:key=7", "options:csum=true"]),
            1454,
        ),
    ),
    told(
        &["--seq"],
        case(
            "OVS userspace seq",
            Kind::Ovs(Datapath::Userspace, &["options:key=7", "options:seq=true"]),
            1454,
        ),
    ),
];

/// Names of cases that are not run, and why.
const NEVER: [(&str, &str); 3] = [
    (
        "gretap in gue",
        "GUE has a header of its own between UDP and GRE; mgre's gre-udp is RFC 8086, which has none",
    ),
    (
        "gretap without csum, mgre with it",
        "the kernel drops packets with a checksum where it was not told of one, and the other way round (rx_crc_errors)",
    ),
    (
        "OVS kernel csum, mgre with it",
        "the kernel's datapath sends checksums and takes none: its tunnel device was not told of them",
    ),
];

pub(crate) fn run(report: &mut Report, arguments: &Arguments) {
    let wanted = |name: &str| {
        arguments.only.is_empty() || arguments.only.iter().any(|part| name.contains(part.as_str()))
    };
    for mode in &arguments.mode {
        for case in CASES.iter().filter(|case| wanted(case.name)) {
            let name = format!("{} {}", mode.name(), case.name);
            let result = one(report, &name, case, *mode, arguments.quick);
            report.ensure(&name, result);
        }
        for (name, why) in NEVER.iter().filter(|(name, _)| wanted(name)) {
            report.record(&format!("{} {name}", mode.name()), &Verdict::Skip((*why).to_owned()));
        }
        if wanted(segment::NAME) {
            let name = format!("{} {}", mode.name(), segment::NAME);
            let result = segment::run(report, &name, *mode, arguments.quick);
            report.ensure(&name, result);
        }
    }
}

fn one(report: &mut Report, name: &str, case: &Case, mode: Mode, quick: bool) -> Result<()> {
    let failures = report.failures();
    let lab = Lab::new(case.mtu)?;
    let far = lab.switch(2);
    let userspace = matches!(case.kind, Kind::Ovs(Datapath::Userspace, _));
    if !case.unfinished {
        // Else a veth's other end gets GRE checksums that nobody has finished.
        far.run(&["ethtool", "-K", "wan0", "tx", "off"])?;
    }
    let mut plan = plan(name, case, mode, quick);
    plan.set_offloads(&lab.stations(), plan.offloads[0])?;
    if userspace {
        // It takes frames as they are: with their checksums, and none longer than the MTU.
        lab.switch(1).run(&["ethtool", "-K", "wan0", "tx", "off", "tso", "off", "gso", "off"])?;
        plan.offloads = &[false];
    }
    let peer = match Peer::build(far, case.kind, endpoint(2, case.v4), endpoint(1, case.v4))? {
        Made::Peer(peer) => peer,
        Made::Missing(why) => {
            report.record(name, &Verdict::Skip(why));
            return Ok(());
        }
    };
    if case.cut {
        far.ip("link set gt mtu 1500")?;
    }
    let config =
        Config { v4: case.v4, identity: case.identity, peer: case.options, ..Config::new(mode.name()) };
    let spoke = Switch::new(&lab, 1, &config)?;
    everything::run(report, &plan, lab.stations());
    if report.failures() > failures {
        report.context(&spoke.hooks());
        report.context(&spoke.drops());
        report.context(&peer.counters(far));
    }
    Ok(())
}

fn plan(name: &str, case: &Case, mode: Mode, quick: bool) -> Plan {
    let nvgre = matches!(case.identity, Identity::Vsid(_));
    // A bridge keeps LLDP to one link (IEEE 802.1Q 8.6.3), as Open vSwitch does by itself; what goes by tc goes on.
    let mut left_out = match case.kind {
        Kind::External { .. } => Vec::new(),
        _ => vec!["lldp".to_owned()],
    };
    if nvgre {
        // RFC 7637 3.2: no tags inside.
        left_out.push("vlan".to_owned());
    }
    if case.cut {
        // IPv6 that does not fit is not cut: its sender is told.
        left_out.push(format!("ipv6 udp {}", case.mtu - 48));
    }
    Plan {
        quick,
        offloads: mode.offloads(),
        polls: mode.is_xdp(),
        left_out,
        dont_fragment: !case.cut,
        warm_up: matches!(case.kind, Kind::Ovs(..)),
        vlan: !nvgre,
        one_way: case.one_way,
        ..Plan::new(name, case.mtu)
    }
}

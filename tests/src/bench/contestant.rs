//! The contestants, each in namespaces of its own with the same hosts and the same links.
//!
//! ```text
//!  h1               s1                 s2               h2
//!  eth0 ----- lan0 [  ] wan0 ---- wan0 [  ] lan0 ----- eth0        10.77.0.1, 10.77.0.2 on the hosts
//! ```
//!
//! For `direct`, the two eth0 are the ends of one veth pair.

use std::{io, net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use nix::net::if_::if_nametoindex;
use serde_json::Value;

use super::{
    assemble,
    bpf::{self, DeviceMap, Hook, Link, Program},
    ovs::{self, Ovs},
};
use crate::{
    daemon::{Daemon, Options},
    metrics::Metrics,
    netns::{self, Netns},
    packet::{Mac, mac_text},
    traffic, wait,
};

/// The hosts' largest packet, the same for all: what VXLAN leaves of 1500 bytes.
pub const HOST_MTU: u32 = 1450;
/// How long a path may take until it carries something.
const REACHABLE_LIMIT: Duration = Duration::from_secs(10);
/// How long addresses may take until they are learned.
const LEARN_LIMIT: Duration = Duration::from_secs(2);

/// What takes frames from one host to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// mgre: GRE with a key, TCX at both ends.
    Mgre,
    /// The same with native XDP, and TCX behind it for what XDP passes. For frames alone: beside XDP a veth carries no
    /// superframes and no unfinished checksums.
    MgreXdp,
    /// A bridge at each end and no tunnel between them.
    Bridges,
    /// A bridge at each end, and the kernel's VXLAN.
    Vxlan,
    /// The bridges as the kernel makes them, going through netfilter where it has that built in.
    #[value(name = "bridges-nf")]
    BridgesDefault,
    /// The same for bridges and VXLAN.
    #[value(name = "vxlan-nf")]
    VxlanDefault,
    /// A TCX program at each end that redirects whatever comes, unread: the limit of TCX.
    Redirect,
    /// An XDP program at each end that redirects whatever comes, unread: the limit of XDP.
    RedirectXdp,
    /// Open vSwitch's userspace datapath: GRE with a key.
    Ovs,
    /// A veth pair and nothing else: the limit of the generator, the sink and TCP.
    Direct,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Mgre,
        Self::MgreXdp,
        Self::Bridges,
        Self::Vxlan,
        Self::BridgesDefault,
        Self::VxlanDefault,
        Self::Redirect,
        Self::RedirectXdp,
        Self::Ovs,
        Self::Direct,
    ];

    /// Its name in tables.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Mgre => "mgre (TCX)",
            Self::MgreXdp => "mgre (XDP)",
            Self::Bridges => "two bridges, no tunnel",
            Self::Vxlan => "vxlan + bridge",
            Self::BridgesDefault => "two bridges, netfilter",
            Self::VxlanDefault => "vxlan + bridge, netfilter",
            Self::Redirect => "bare TCX redirect",
            Self::RedirectXdp => "bare XDP redirect",
            Self::Ovs => "Open vSwitch, userspace",
            Self::Direct => "direct veth",
        }
    }

    /// Its name in JSON and on the command line.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Mgre => "mgre",
            Self::MgreXdp => "mgre-xdp",
            Self::Bridges => "bridges",
            Self::Vxlan => "vxlan",
            Self::BridgesDefault => "bridges-nf",
            Self::VxlanDefault => "vxlan-nf",
            Self::Redirect => "redirect",
            Self::RedirectXdp => "redirect-xdp",
            Self::Ovs => "ovs",
            Self::Direct => "direct",
        }
    }

    /// Whether it is one of the others with a setting that is less in its favour.
    pub const fn is_variant(self) -> bool {
        matches!(self, Self::BridgesDefault | Self::VxlanDefault)
    }

    /// Why it cannot take part here, if so.
    pub fn missing(self) -> Option<String> {
        if self == Self::Ovs { ovs::missing() } else { None }
    }

    /// Whether what carries frames is XDP programs.
    pub const fn is_xdp(self) -> bool {
        matches!(self, Self::MgreXdp | Self::RedirectXdp)
    }
}

/// A contestant, ready to carry frames.
#[derive(Debug)]
pub struct Contestant {
    /// Which.
    pub kind: Kind,
    // Before the namespaces, so that they end first.
    daemons: Vec<Daemon>,
    ovs: Vec<Ovs>,
    links: Vec<Link>,
    switches: Vec<Netns>,
    hosts: [Netns; 2],
}

impl Contestant {
    /// Builds it.
    ///
    /// # Errors
    /// Whatever could not be made.
    pub fn build(kind: Kind) -> Result<Self> {
        let label = |what: &str| format!("{}-{what}", kind.key());
        let hosts = [Netns::new(&label("h1"))?, Netns::new(&label("h2"))?];
        let (daemons, ovs, links, switches) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut this = Self { kind, daemons, ovs, links, switches, hosts };
        if kind != Kind::Direct {
            this.switches = vec![Netns::new(&label("s1"))?, Netns::new(&label("s2"))?];
        }
        this.wire()?;
        match kind {
            Kind::Mgre => this.start_mgre("tc", "tcx")?,
            Kind::MgreXdp => this.start_mgre("native", "xdp+tcx")?,
            Kind::Bridges | Kind::BridgesDefault => {
                this.make_bridges("link set wan0 master br0\nlink set wan0 type bridge_slave flood off")?
            }
            Kind::Vxlan | Kind::VxlanDefault => this.make_vxlan()?,
            Kind::Redirect | Kind::RedirectXdp => this.attach_redirects()?,
            Kind::Ovs => this.start_ovs()?,
            Kind::Direct => {}
        }
        // As on physical interfaces. A veth has it off at first.
        this.set_gro("on")?;
        traffic::wait_reachable(&this.hosts[0], &host_ip(2).to_string(), REACHABLE_LIMIT)
            .with_context(|| format!("{} does not carry a ping", kind.title()))?;
        Ok(this)
    }

    /// A host: 1 or 2.
    ///
    /// # Panics
    /// It is neither.
    pub fn host(&self, number: u8) -> &Netns {
        &self.hosts[usize::from(number) - 1]
    }

    /// The daemons, of mgre.
    pub fn daemons(&self) -> &[Daemon] {
        &self.daemons
    }

    /// Namespaces and interfaces of the link in the middle.
    pub fn middle(&self) -> [(&Netns, &'static str); 2] {
        match &self.switches[..] {
            [s1, s2] => [(s1, "wan0"), (s2, "wan0")],
            _ => [(&self.hosts[0], "eth0"), (&self.hosts[1], "eth0")],
        }
    }

    /// Namespace and interface at the other end of h1's eth0.
    pub fn beside_h1(&self) -> (&Netns, &'static str) {
        match &self.switches[..] {
            [s1, ..] => (s1, "lan0"),
            _ => (&self.hosts[1], "eth0"),
        }
    }

    /// Turns GRO on or off, on every interface.
    ///
    /// # Errors
    /// ethtool's.
    pub fn set_gro(&self, value: &str) -> Result<()> {
        let hosts = self.hosts.iter().map(|host| (host, "eth0"));
        let mut interfaces: Vec<_> = hosts.collect();
        // Open vSwitch cannot use superframes.
        let switches = if self.kind == Kind::Ovs { &[][..] } else { &self.switches };
        for netns in switches {
            interfaces.extend([(netns, "lan0"), (netns, "wan0")]);
            if matches!(self.kind, Kind::Vxlan | Kind::VxlanDefault) {
                interfaces.push((netns, "vxlan0"));
            }
        }
        let set = |(netns, interface): (&Netns, &str)| {
            netns.run(&["ethtool", "-K", interface, "gro", value]).map(|_| ())
        };
        interfaces.into_iter().try_for_each(set)
    }

    fn wire(&self) -> Result<()> {
        let all = self.hosts.iter().chain(&self.switches);
        all.clone().try_for_each(|netns| netns.sysctl("ipv6/conf/default/disable_ipv6", "1"))?;
        let eth0 = |number| {
            format!("eth0 address {} netns {}", mac_text(host_mac(number)), self.host(number).name())
        };
        match &self.switches[..] {
            [s1, s2] => {
                netns::ip(&format!(
                    "link add wan0 netns {0} type veth peer name wan0 netns {1}\n\
                     link add lan0 netns {0} type veth peer name {2}\n\
                     link add lan0 netns {1} type veth peer name {3}",
                    s1.name(),
                    s2.name(),
                    eth0(1),
                    eth0(2)
                ))?;
                for (number, netns) in [(1, s1), (2, s2)] {
                    netns.ip(&format!(
                        "addr add {}/24 dev wan0\nlink set wan0 up\nlink set lan0 up",
                        endpoint(number)
                    ))?;
                }
            }
            _ => netns::ip(&format!("link add {} type veth peer name {}", eth0(1), eth0(2)))?,
        }
        for number in [1, 2] {
            let host = self.host(number);
            let ip = host_ip(number);
            host.ip(&format!("link set eth0 mtu {HOST_MTU}\naddr add {ip}/24 dev eth0\nlink set eth0 up"))?;
        }
        Ok(())
    }

    /// In a mode, which must end at these hooks.
    fn start_mgre(&mut self, mode: &str, hook: &str) -> Result<()> {
        for (netns, number) in self.switches.iter().zip([1, 2]) {
            let mut daemon = Daemon::start(netns, Options::default())?;
            daemon.hide_log();
            let (local, remote) = (endpoint(number).to_string(), endpoint(3 - number).to_string());
            let commands: [&[&str]; 4] = [
                &["underlay", "add", "wan0", "--local", &local, "--mode", mode],
                &["segment", "add", "bench", "--key", "7"],
                &["port", "add", "bench", "lan0", "--mode", mode],
                &["peer", "add", "other", &remote, "--segment", "bench"],
            ];
            for command in commands {
                daemon.mgre(command).with_context(|| daemon.log())?;
            }
            let hooks = [
                &daemon.json(&["status"])?["underlays"][0]["hook"],
                &daemon.list(&["port", "show"])?[0]["hook"],
            ]
            .map(|value| value.as_str().unwrap_or("none").to_owned());
            ensure!(hooks == [hook, hook], "mgre in mode {mode} is at {hooks:?}, not at {hook}");
            self.daemons.push(daemon);
        }
        self.daemons.iter().try_for_each(|daemon| {
            wait::until("the peer is up", REACHABLE_LIMIT, || {
                Ok(daemon.list(&["peer", "show"])?.iter().all(|peer| peer["state"] == "up"))
            })
            .map(|_| ())
        })
    }

    /// `uplink` makes the bridge's second port. Neither floods what it does not know the way of into it.
    fn make_bridges(&self, uplink: &str) -> Result<()> {
        for netns in &self.switches {
            // Bridges without netfilter are faster. Not there is as good as off.
            let bare = matches!(self.kind, Kind::Bridges | Kind::Vxlan);
            let families: &[&str] = if bare { &["iptables", "ip6tables", "arptables"] } else { &[] };
            for family in families {
                netns.sysctl(&format!("bridge/bridge-nf-call-{family}"), "0").or_else(absent)?;
            }
            netns.ip(&format!(
                "link add br0 type bridge mcast_snooping 0\nlink set lan0 master br0\n{uplink}\nlink set br0 up"
            ))?;
        }
        Ok(())
    }

    fn make_vxlan(&self) -> Result<()> {
        for (netns, number) in self.switches.iter().zip([1, 2]) {
            netns.ip(&format!(
                "link add vxlan0 type vxlan id 7 local {} remote {} dstport 4789 dev wan0\nlink set vxlan0 up",
                endpoint(number),
                endpoint(3 - number)
            ))?;
        }
        self.make_bridges("link set vxlan0 master br0\nlink set vxlan0 type bridge_slave flood off")
    }

    fn start_ovs(&mut self) -> Result<()> {
        for (netns, number) in self.switches.iter().zip([1, 2]) {
            // It takes frames as they are: with their checksums, and none longer than the MTU.
            let host = &self.hosts[usize::from(number) - 1];
            host.run(&["ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off"])?;
            self.ovs.push(Ovs::start(netns, endpoint(number), endpoint(3 - number))?);
        }
        Ok(())
    }

    fn attach_redirects(&mut self) -> Result<()> {
        let attach = if self.kind.is_xdp() { attach_xdp_redirect } else { attach_tcx_redirect };
        for netns in &self.switches {
            for (from, to) in [("lan0", "wan0"), ("wan0", "lan0")] {
                self.links.push(netns.enter(|| attach(from, to))??);
            }
        }
        Ok(())
    }

    /// Has both hosts' addresses learned by everyone, and says what was flooded so far, so that
    /// [`Contestant::check_unicast`] can tell afterwards that nothing more was.
    ///
    /// # Errors
    /// They are not learned.
    pub fn teach(&self) -> Result<f64> {
        traffic::wait_reachable(&self.hosts[1], &host_ip(1).to_string(), REACHABLE_LIMIT)?;
        let what = format!("{} has learned both hosts", self.kind.title());
        wait::until(&what, LEARN_LIMIT, || self.knows_both())?;
        self.flooded()
    }

    fn knows_both(&self) -> Result<bool> {
        let macs = [1, 2].map(|number| mac_text(host_mac(number)));
        let knows =
            |list: &[Value]| macs.iter().all(|mac| list.iter().any(|entry| entry["mac"] == mac.as_str()));
        match self.kind {
            Kind::Mgre | Kind::MgreXdp => {
                let tables = self.daemons.iter().map(|daemon| daemon.list(&["fdb", "show"]));
                Ok(tables.collect::<Result<Vec<_>>>()?.iter().all(|table| knows(table)))
            }
            Kind::Bridges | Kind::Vxlan | Kind::BridgesDefault | Kind::VxlanDefault => {
                for netns in &self.switches {
                    let table: Vec<Value> =
                        serde_json::from_str(&netns.run(&["bridge", "-json", "fdb", "show", "br", "br0"])?)?;
                    if !knows(&table) {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Kind::Ovs => {
                for ovs in &self.ovs {
                    if !ovs.knows(&macs)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Kind::Redirect | Kind::RedirectXdp | Kind::Direct => Ok(true),
        }
    }

    /// Copies that were flooded so far. The bridges do not flood.
    fn flooded(&self) -> Result<f64> {
        let mut copies = 0.0;
        for daemon in &self.daemons {
            let metrics = Metrics::over_socket(&daemon.socket())?;
            let sample = metrics.get("mgre_flood_copies_total", &[("segment", "bench")]);
            copies += sample.context("there is no mgre_flood_copies_total")?;
        }
        Ok(copies)
    }

    /// Fails if there was flooding since `before`, or an address was forgotten.
    ///
    /// # Errors
    /// That; then what was measured is not the forwarding of known unicast.
    pub fn check_unicast(&self, before: f64) -> Result<()> {
        let copies = self.flooded()? - before;
        ensure!(copies == 0.0, "{} flooded {copies} copies", self.kind.title());
        ensure!(self.knows_both()?, "{} has forgotten a host", self.kind.title());
        Ok(())
    }
}

fn attach_tcx_redirect(from: &str, to: &str) -> Result<Link> {
    let program = assemble::redirect(if_nametoindex(to)?);
    Program::load(bpf::Kind::Classifier, &program)?.attach(Hook::TcxIngress, from)
}

/// By a device map, as mgre does: a little faster than by number.
fn attach_xdp_redirect(from: &str, to: &str) -> Result<Link> {
    // The program holds the map.
    let map = DeviceMap::new(to)?;
    Program::load(bpf::Kind::Xdp, &assemble::redirect_by_map(map.fd()))?.attach(Hook::Xdp, from)
}

/// Takes a setting that this kernel does not have for done.
fn absent(error: anyhow::Error) -> Result<()> {
    match error.downcast_ref::<io::Error>() {
        Some(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}

/// A host's MAC address.
pub fn host_mac(number: u8) -> Mac {
    [0x02, 0, 0, 0, number, 0x10]
}

/// A host's IP address.
pub fn host_ip(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

/// A switch's address in the underlay.
fn endpoint(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contestant_has_one_short_name() {
        for kind in Kind::ALL {
            let value = kind.to_possible_value().expect("none is hidden");
            assert_eq!(value.get_name(), kind.key());
        }
    }
}

//! The contestants, each in namespaces of its own with the same hosts and the same links.
//!
//! ```text
//!  h1               s1                 s2               h2
//!  eth0 ----- lan0 [  ] wan0 ---- wan0 [  ] lan0 ----- eth0        10.77.0.1, 10.77.0.2 on the hosts
//! ```
//!
//! For `direct`, the two eth0 are the ends of one veth pair.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nametoindex;
use serde_json::Value;

use super::{
    assemble,
    bpf::{self, DeviceMap, Hook, Link, Program},
    kind::Kind,
    ovs::Ovs,
};
use crate::{
    daemon::{Daemon, Options},
    metrics::Metrics,
    netns::{self, Netns},
    packet::{Mac, mac_text},
    traffic, wait,
};

/// The hosts' largest packet, the same for all: what VXLAN over IPv6 leaves of 1500 bytes.
pub const HOST_MTU: u32 = 1430;
/// How long a path may take until it carries something.
const REACHABLE_LIMIT: Duration = Duration::from_secs(10);
/// How long addresses may take until they are learned.
const LEARN_LIMIT: Duration = Duration::from_secs(2);

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
    /// Builds it, with this program as the other build of mgre.
    ///
    /// # Errors
    /// Whatever could not be made.
    pub fn build(kind: Kind, old: Option<&Path>) -> Result<Self> {
        let label = |what: &str| format!("{}-{what}", kind.key());
        let hosts = [Netns::new(&label("h1"))?, Netns::new(&label("h2"))?];
        let (daemons, ovs, links, switches) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut this = Self { kind, daemons, ovs, links, switches, hosts };
        if kind != Kind::Direct {
            this.switches = vec![Netns::new(&label("s1"))?, Netns::new(&label("s2"))?];
        }
        this.wire()?;
        match kind {
            Kind::Mgre | Kind::MgreV6 | Kind::MgreXdp | Kind::MgreXdpV6 => this.start_mgre(None)?,
            Kind::OldMgre | Kind::OldMgreXdp => {
                this.start_mgre(Some(old.context("--old names no build")?))?
            }
            Kind::Bridges | Kind::BridgesDefault => {
                this.make_bridges("link set wan0 master br0\nlink set wan0 type bridge_slave flood off")?
            }
            Kind::Vxlan | Kind::VxlanV6 | Kind::VxlanDefault => this.make_vxlan()?,
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
            if self.kind.is_vxlan() {
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
                    let local = self.endpoint(number);
                    let network =
                        if local.is_ipv4() { format!("{local}/24") } else { format!("{local}/64 nodad") };
                    if self.kind.is_v6() {
                        netns.sysctl("ipv6/conf/wan0/disable_ipv6", "0")?;
                    }
                    // No neighbour is asked whether it is still there while frames are counted: what the stack
                    // does then wakes ksoftirqd, which gets no turn beside the generator, and queues run over.
                    let version = if self.kind.is_v6() { "ipv6" } else { "ipv4" };
                    netns.sysctl(&format!("{version}/neigh/wan0/base_reachable_time_ms"), "3600000")?;
                    netns.ip(&format!("addr add {network} dev wan0\nlink set wan0 up\nlink set lan0 up"))?;
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

    /// Of this build, or of another one.
    fn start_mgre(&mut self, program: Option<&Path>) -> Result<()> {
        let (mode, hook) = if self.kind.is_xdp() { ("native", "xdp+tcx") } else { ("tc", "tcx") };
        for (netns, number) in self.switches.iter().zip([1, 2]) {
            let options = Options { program: program.map(Path::to_owned), ..Options::default() };
            let mut daemon = Daemon::start(netns, options)?;
            daemon.hide_log();
            let (local, remote) = (self.endpoint(number).to_string(), self.endpoint(3 - number).to_string());
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
            let bare = !matches!(self.kind, Kind::BridgesDefault | Kind::VxlanDefault);
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
                self.endpoint(number),
                self.endpoint(3 - number)
            ))?;
        }
        self.make_bridges("link set vxlan0 master br0\nlink set vxlan0 type bridge_slave flood off")
    }

    fn start_ovs(&mut self) -> Result<()> {
        for (netns, number) in self.switches.iter().zip([1, 2]) {
            // It takes frames as they are: with their checksums, and none longer than the MTU.
            let host = &self.hosts[usize::from(number) - 1];
            host.run(&["ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off"])?;
            self.ovs.push(Ovs::start(netns, endpoint_v4(number), endpoint_v4(3 - number))?);
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
        for daemon in &self.daemons {
            if !knows(&daemon.list(&["fdb", "show"])?) {
                return Ok(false);
            }
        }
        for ovs in &self.ovs {
            if !ovs.knows(&macs)? {
                return Ok(false);
            }
        }
        let bridges = if self.kind.is_bridged() { &self.switches[..] } else { &[] };
        for netns in bridges {
            let table = netns.run(&["bridge", "-json", "fdb", "show", "br", "br0"])?;
            if !knows(&serde_json::from_str::<Vec<Value>>(&table)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A switch's address in the underlay.
    fn endpoint(&self, number: u8) -> IpAddr {
        if self.kind.is_v6() {
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into()
        } else {
            endpoint_v4(number).into()
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

fn endpoint_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

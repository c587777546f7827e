//! Spokes, hosts and an underlay between them.
//!
//! ```text
//!  host 1            spoke 1              core            spoke 2            host 2
//!  eth0 ----- lan0 [ mgre ] wan0 ----- s1 [    ] s2 ----- wan0 [ mgre ] lan0 ----- eth0
//!  10.77.0.1         10.0.1.1    10.0.1.254      10.0.2.254    10.0.2.1            10.77.0.2
//! ```
//!
//! The core is a bridge (then the spokes' addresses are 10.0.0.1, 10.0.0.2, ... of one network) or a router with a
//! network for each spoke. Over IPv6 they are fd00::1, fd00::2, ..., and fd00:0:0:1::1, fd00:0:0:2::1, .... MAC
//! addresses say whose they are: `02:00:00:00:SPOKE:WHAT`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    thread,
};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    capture,
    daemon::{Daemon, Options, Tc},
    gre::{Outer, v6},
    netns::{self, Netns},
    packet::mac_text,
    spoke::{CORE, HOST, LAN, WAN, mac},
};

pub use crate::spoke::Spoke;

/// The segment that every host is in.
pub const SEGMENT: &str = "lan";
/// Its GRE key, where it has one.
pub const KEY: u32 = 7;
/// What is between the spokes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underlay {
    /// A bridge.
    Switched,
    /// A router.
    Routed,
}

/// Which addresses the spokes have in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Both, but the last spoke has IPv6 alone. Those that have both use IPv4.
    Mixed,
}

/// How to build.
#[derive(Clone, Debug)]
pub struct Layout {
    /// How many spokes.
    pub spokes: u8,
    /// What is between them.
    pub underlay: Underlay,
    /// Its addresses.
    pub family: Family,
    /// The segment's GRE key.
    pub key: Option<u32>,
    /// The segment's virtual subnet id, which makes it one of NVGRE: then it has no other key.
    pub vsid: Option<u32>,
    /// What every peer is told besides.
    pub options: &'static [&'static str],
    /// How to attach to the underlay and the port.
    pub mode: &'static str,
    /// Whether to set the daemons up; else they have been told nothing.
    pub configure: bool,
    /// Where daemons serve metrics over TCP, each in its own namespace.
    pub metrics: Option<SocketAddr>,
    /// How daemons attach programs, if not by their own choice.
    pub tc: Option<Tc>,
    /// Names of namespaces begin so, if they are not to have names of their own.
    pub prefix: Option<String>,
    /// Where the daemons' folders are, if they are not to be temporary.
    pub folder: Option<PathBuf>,
}

impl Layout {
    /// The usual.
    pub fn new(spokes: u8, underlay: Underlay) -> Self {
        Self {
            spokes,
            underlay,
            family: Family::V4,
            key: Some(KEY),
            vsid: None,
            options: &[],
            mode: "auto",
            configure: true,
            metrics: None,
            tc: None,
            prefix: None,
            folder: None,
        }
    }

    /// The largest packet of a host: 1500 bytes less IP, what is between it and GRE, GRE, and the inner Ethernet
    /// header.
    pub fn mtu(&self) -> u32 {
        let ip = if self.family == Family::V4 { 20 } else { 40 };
        let key = if self.key.is_some() || self.vsid.is_some() { 4 } else { 0 };
        let option = |words: &[&str], bytes| {
            if self.options.windows(words.len()).any(|some| some == words) { bytes } else { 0 }
        };
        let options = option(&["--csum"], 4) + option(&["--seq"], 4) + option(&["--encap", "gre-udp"], 8);
        1500 - ip - 4 - key - options - 14
    }

    /// Whether a spoke has addresses of IPv4, and of IPv6, in the underlay.
    fn families(&self, number: u8) -> (bool, bool) {
        match self.family {
            Family::V4 => (true, false),
            Family::V6 => (false, true),
            Family::Mixed => (number != self.spokes, true),
        }
    }

    fn netns(&self, label: &str) -> Result<Netns> {
        match &self.prefix {
            Some(prefix) => Netns::with_name(format!("{prefix}{label}")),
            None => Netns::new(label),
        }
    }

    /// Builds it.
    ///
    /// # Errors
    /// Whatever could not be made.
    pub fn build(self) -> Result<Spokes> {
        let core = self.netns("core")?;
        self.prepare_core(&core)?;
        let mut places = Vec::new();
        for number in 1..=self.spokes {
            let spoke = self.netns(&format!("spoke{number}"))?;
            let host = self.netns(&format!("host{number}"))?;
            self.wire(&core, &spoke, &host, number)?;
            places.push((number, spoke, host));
        }
        // At the same time: each takes the verifier its while.
        let layout = &self;
        let spokes = thread::scope(|scope| {
            let threads: Vec<_> = places
                .into_iter()
                .map(|(number, netns, host)| {
                    scope.spawn(move || -> Result<Spoke> {
                        let daemon = layout.start(&netns, number)?;
                        Ok(Spoke { daemon, number, netns, host })
                    })
                })
                .collect();
            let results =
                threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?);
            results.collect::<Result<Vec<_>>>()
        })?;
        let spokes = Spokes { spokes, core, layout: self };
        if spokes.layout.configure {
            spokes.wait_up()?;
        }
        Ok(spokes)
    }

    fn prepare_core(&self, core: &Netns) -> Result<()> {
        let quiet = self.family == Family::V4 || self.underlay == Underlay::Switched;
        core.sysctl("ipv6/conf/default/disable_ipv6", if quiet { "1" } else { "0" })?;
        match self.underlay {
            Underlay::Switched => core
                .ip("link add br0 address 02:00:00:00:00:fe type bridge mcast_snooping 0\nlink set br0 up"),
            Underlay::Routed => {
                core.sysctl("ipv6/conf/all/forwarding", "1")?;
                core.sysctl("ipv4/ip_forward", "1")
            }
        }
    }

    fn wire(&self, core: &Netns, spoke: &Netns, host: &Netns, number: u8) -> Result<()> {
        spoke.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        let mac = |what| mac_text(mac(number, what));
        let (wan, lan, eth, far) = (mac(WAN), mac(LAN), mac(HOST), mac(CORE));
        let (spoke_name, host_name, core_name) = (spoke.name(), host.name(), core.name());
        netns::ip(&format!(
            "link add wan0 netns {spoke_name} address {wan} type veth peer name s{number} address {far} netns {core_name}\n\
             link add lan0 netns {spoke_name} address {lan} type veth peer name eth0 address {eth} netns {host_name}"
        ))?;
        if self.families(number).1 {
            spoke.sysctl("ipv6/conf/wan0/disable_ipv6", "0")?;
        }
        spoke.ip("link set wan0 up\nlink set lan0 up")?;
        match self.underlay {
            Underlay::Switched => core.ip(&format!("link set s{number} master br0 up"))?,
            Underlay::Routed => core.ip(&format!("link set s{number} up"))?,
        }
        for local in self.locals(number) {
            let prefix = if local.is_ipv4() { "24" } else { "64 nodad" };
            spoke.ip(&format!("addr add {local}/{prefix} dev wan0"))?;
            if self.underlay == Underlay::Routed {
                let gateway = gateway(number, local.is_ipv4());
                core.ip(&format!("addr add {gateway}/{prefix} dev s{number}"))?;
                spoke.ip(&format!("route add default via {gateway} dev wan0"))?;
            }
        }
        host.ip(&format!(
            "link set eth0 mtu {}\naddr add 10.77.0.{number}/24 dev eth0\n\
             addr add fd77::{number}/64 dev eth0 nodad\nlink set eth0 up",
            self.mtu()
        ))
    }

    fn start(&self, netns: &Netns, number: u8) -> Result<Daemon> {
        let options = Options { metrics: self.metrics, tc: self.tc, ..Options::default() };
        let daemon = match &self.folder {
            Some(folder) => Daemon::start_in(netns, options, &folder.join(format!("spoke{number}")))?,
            None => Daemon::start(netns, options)?,
        };
        if self.configure {
            self.set_up(&daemon, number).with_context(|| format!("spoke {number}: {}", daemon.log()))?;
        }
        Ok(daemon)
    }

    /// As a user would, command by command.
    fn set_up(&self, daemon: &Daemon, number: u8) -> Result<()> {
        for local in self.locals(number) {
            daemon.mgre(&["underlay", "add", "wan0", "--local", &local.to_string(), "--mode", self.mode])?;
        }
        let (key, vsid) = (self.key.unwrap_or(0).to_string(), self.vsid.unwrap_or(0).to_string());
        let told: &[&str] = match (self.key, self.vsid) {
            (_, Some(_)) => &["--vsid", &vsid],
            (Some(_), None) => &["--key", &key],
            (None, None) => &[],
        };
        daemon.mgre(&[&["segment", "add", SEGMENT], told].concat())?;
        daemon.mgre(&["port", "add", SEGMENT, "lan0", "--mode", self.mode])?;
        for other in (1..=self.spokes).filter(|other| *other != number) {
            let remote = self.remote(number, other).to_string();
            let (name, add) = (peer_name(other), ["peer", "add"]);
            let words: [&[&str]; 3] = [&add, &[&name, &remote, "--segment", SEGMENT], self.options];
            daemon.mgre(&words.concat())?;
        }
        Ok(())
    }

    /// The underlay address of a spoke; of two, the IPv4 one.
    pub fn endpoint(&self, number: u8) -> IpAddr {
        let v4 = self.families(number).0;
        match (self.underlay, v4) {
            (Underlay::Switched, true) => Ipv4Addr::new(10, 0, 0, number).into(),
            (Underlay::Routed, true) => Ipv4Addr::new(10, 0, number, 1).into(),
            (Underlay::Switched, false) => v6(0, number.into()),
            (Underlay::Routed, false) => v6(number.into(), 1),
        }
    }

    /// All its underlay addresses.
    pub fn locals(&self, number: u8) -> Vec<IpAddr> {
        let only_v6 = Self { family: Family::V6, ..self.clone() };
        let first = self.endpoint(number);
        let second = only_v6.endpoint(number);
        if first.is_ipv4() && self.families(number).1 { vec![first, second] } else { vec![first] }
    }

    /// The underlay address by which one spoke knows another.
    pub fn remote(&self, number: u8, other: u8) -> IpAddr {
        let has_v4 = self.families(number).0;
        self.locals(other).into_iter().find(|local| local.is_ipv4() == has_v4).unwrap_or(self.endpoint(other))
    }
}

/// The core's address in a spoke's network of its own.
fn gateway(number: u8, v4: bool) -> IpAddr {
    if v4 { Ipv4Addr::new(10, 0, number, 254).into() } else { v6(number.into(), 0xfe) }
}

/// What other spokes call a spoke.
pub fn peer_name(number: u8) -> String {
    format!("spoke{number}")
}

/// Spokes with their hosts, and the core between them.
#[derive(Debug)]
pub struct Spokes {
    spokes: Vec<Spoke>,
    /// The bridge or router.
    pub core: Netns,
    /// As it was built.
    pub layout: Layout,
}

impl Spokes {
    /// Builds spokes that are all peers of each other in one segment.
    ///
    /// # Errors
    /// Whatever could not be made.
    pub fn new(spokes: u8, underlay: Underlay) -> Result<Self> {
        Layout::new(spokes, underlay).build()
    }

    /// A spoke by its number.
    ///
    /// # Panics
    /// There are not as many.
    pub fn spoke(&self, number: u8) -> &Spoke {
        &self.spokes[usize::from(number) - 1]
    }

    /// A spoke by its number, to change it.
    ///
    /// # Panics
    /// There are not as many.
    pub fn spoke_mut(&mut self, number: u8) -> &mut Spoke {
        &mut self.spokes[usize::from(number) - 1]
    }

    /// All spokes.
    pub fn iter(&self) -> impl Iterator<Item = &Spoke> {
        self.spokes.iter()
    }

    /// All spokes, to take them apart.
    pub fn into_parts(self) -> (Vec<Spoke>, Netns) {
        (self.spokes, self.core)
    }

    /// Makes the link between the core and a spoke one that carries packets up to so many bytes. A router tells who
    /// sends larger ones.
    ///
    /// # Errors
    /// `ip`'s.
    pub fn narrow(&self, number: u8, mtu: u32) -> Result<()> {
        self.core.ip(&format!("link set s{number} mtu {mtu}"))?;
        self.spoke(number).netns.ip(&format!("link set wan0 mtu {mtu}"))
    }

    /// A packet as another spoke sends it to this one, by hand: what is to arrive at its `wan0`, if the core sends it
    /// out of the interface that leads there.
    pub fn outer(&self, from: u8, to: u8) -> Outer {
        let spoke = self.spoke(to);
        let (source, destination) = (self.layout.remote(to, from), self.layout.remote(from, to));
        let key = self.layout.vsid.map_or(self.layout.key, |vsid| Some(vsid << 8));
        Outer::new((spoke.core_mac(), spoke.wan_mac()), source, destination, key)
    }

    /// Sends frames to a spoke's `wan0`.
    ///
    /// # Errors
    /// The kernel takes none, or not all of one.
    pub fn send_to<B: AsRef<[u8]> + Sync>(&self, number: u8, frames: &[B]) -> Result<()> {
        capture::send(&self.core, &format!("s{number}"), frames)
    }

    /// Waits until every peer is up.
    ///
    /// # Errors
    /// One is not soon.
    pub fn wait_up(&self) -> Result<()> {
        self.spokes.iter().try_for_each(Spoke::wait_up)
    }
}

//! Spokes, hosts and an underlay between them.
//!
//! ```text
//!  host 1            spoke 1              core            spoke 2            host 2
//!  eth0 ----- lan0 [ mgre ] wan0 ----- s1 [    ] s2 ----- wan0 [ mgre ] lan0 ----- eth0
//!  10.77.0.1         10.0.1.1    10.0.1.254      10.0.2.254    10.0.2.1            10.77.0.2
//! ```
//!
//! The core is a bridge (then the spokes' addresses are 10.0.0.1, 10.0.0.2, ... of one network) or a router with a
//! network for each spoke. MAC addresses say whose they are: `02:00:00:00:SPOKE:WHAT`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    thread,
};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    daemon::{Daemon, Options},
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

/// How to build.
#[derive(Clone, Debug)]
pub struct Layout {
    /// How many spokes.
    pub spokes: u8,
    /// What is between them.
    pub underlay: Underlay,
    /// The segment's GRE key.
    pub key: Option<u32>,
    /// Whether to set the daemons up; else they have been told nothing.
    pub configure: bool,
    /// Where daemons serve metrics over TCP, each in its own namespace.
    pub metrics: Option<SocketAddr>,
    /// Names of namespaces begin so, if they are not to have names of their own.
    pub prefix: Option<String>,
    /// Where the daemons' folders are, if they are not to be temporary.
    pub folder: Option<PathBuf>,
}

impl Layout {
    /// The usual.
    pub fn new(spokes: u8, underlay: Underlay) -> Self {
        Self { spokes, underlay, key: Some(KEY), configure: true, metrics: None, prefix: None, folder: None }
    }

    /// The largest packet of a host: 1500 bytes less IPv4, GRE, its key and the inner Ethernet header.
    pub fn mtu(&self) -> u32 {
        1500 - 20 - 4 - 14 - if self.key.is_some() { 4 } else { 0 }
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
        core.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        match self.underlay {
            Underlay::Switched => core
                .ip("link add br0 address 02:00:00:00:00:fe type bridge mcast_snooping 0\nlink set br0 up"),
            Underlay::Routed => core.sysctl("ipv4/ip_forward", "1"),
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
        let local = self.endpoint(number);
        match self.underlay {
            Underlay::Switched => {
                core.ip(&format!("link set s{number} master br0 up"))?;
                spoke.ip(&format!("addr add {local}/24 dev wan0\nlink set wan0 up\nlink set lan0 up"))?;
            }
            Underlay::Routed => {
                let gateway = Ipv4Addr::new(10, 0, number, 254);
                core.ip(&format!("addr add {gateway}/24 dev s{number}\nlink set s{number} up"))?;
                spoke.ip(&format!(
                    "addr add {local}/24 dev wan0\nlink set wan0 up\nlink set lan0 up\n\
                     route add default via {gateway}"
                ))?;
            }
        }
        host.ip(&format!(
            "link set eth0 mtu {}\naddr add 10.77.0.{number}/24 dev eth0\n\
             addr add fd77::{number}/64 dev eth0 nodad\nlink set eth0 up",
            self.mtu()
        ))
    }

    fn start(&self, netns: &Netns, number: u8) -> Result<Daemon> {
        let options = Options { metrics: self.metrics, ..Options::default() };
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
        let local = self.endpoint(number).to_string();
        daemon.mgre(&["underlay", "add", "wan0", "--local", &local])?;
        match self.key {
            Some(key) => daemon.mgre(&["segment", "add", SEGMENT, "--key", &key.to_string()])?,
            None => daemon.mgre(&["segment", "add", SEGMENT])?,
        };
        daemon.mgre(&["port", "add", SEGMENT, "lan0"])?;
        for other in (1..=self.spokes).filter(|other| *other != number) {
            let remote = self.endpoint(other).to_string();
            daemon.mgre(&["peer", "add", &peer_name(other), &remote, "--segment", SEGMENT])?;
        }
        Ok(())
    }

    /// The underlay address of a spoke.
    pub fn endpoint(&self, number: u8) -> Ipv4Addr {
        match self.underlay {
            Underlay::Switched => Ipv4Addr::new(10, 0, 0, number),
            Underlay::Routed => Ipv4Addr::new(10, 0, number, 1),
        }
    }
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

    /// Waits until every peer is up.
    ///
    /// # Errors
    /// One is not soon.
    pub fn wait_up(&self) -> Result<()> {
        self.spokes.iter().try_for_each(Spoke::wait_up)
    }
}

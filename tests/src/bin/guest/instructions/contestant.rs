//! Who carries the frames.

use std::{fs, net::IpAddr};

use anyhow::{Context as _, Result, ensure};
use mgre_tests::{
    battery::{
        lab::{Lab, endpoint},
        peer::{self, Peer},
        switch::{Config, PEER, Switch},
    },
    bench::{
        assemble,
        bpf::{self, Counter, Hook, Link, Program},
        ovs::Datapath,
    },
    capture,
    packet::{BROADCAST, mac_text, marked},
    topology::SEGMENT,
    wait,
};
use nix::net::if_::if_nametoindex;

/// The stations' largest packet, the same for all.
const MTU: u32 = 1400;

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bridge,
    Gretap,
    Vxlan,
    Ovs,
    MgreTc,
    MgreXdp,
}

impl Kind {
    pub(super) const ALL: [Self; 6] =
        [Self::Bridge, Self::Gretap, Self::Vxlan, Self::Ovs, Self::MgreTc, Self::MgreXdp];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge, no tunnel",
            Self::Gretap => "gretap and bridge",
            Self::Vxlan => "vxlan and bridge",
            Self::Ovs => "Open vSwitch GRE",
            Self::MgreTc => "mgre, TC",
            Self::MgreXdp => "mgre, XDP",
        }
    }
}

/// Where frames come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entrance {
    Socket,
    Driver,
}

impl Entrance {
    pub(super) const ALL: [Self; 2] = [Self::Socket, Self::Driver];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Socket => "a packet socket",
            Self::Driver => "the driver",
        }
    }
}

/// What came of building one.
pub(super) enum Made {
    /// It is there.
    Contestant(Contestant),
    /// Something is missing here.
    Missing(String),
}

/// One that is ready to carry frames.
pub(super) struct Contestant {
    kind: Kind,
    // First, so that they end before their namespaces do.
    switches: Vec<Switch>,
    _peers: Vec<Peer>,
    sink: Option<(Counter, Link)>,
    _pass: Option<Link>,
    pub(super) lab: Lab,
}

impl Contestant {
    pub(super) fn build(kind: Kind, entrance: Entrance) -> Result<Made> {
        let lab = Lab::new(MTU)?;
        for number in [1, 2] {
            // Nobody sends anything unasked.
            lab.host(number).sysctl("ipv6/conf/all/disable_ipv6", "1")?;
            lab.switch(number).sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        }
        let macs = [1, 2].map(|number| wan_mac(&lab, number));
        for (number, mac) in [(1, &macs[1]), (2, &macs[0])] {
            let IpAddr::V4(remote) = endpoint(3 - number, true) else { continue };
            let mac = mac.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
            lab.switch(number).ip(&format!("neigh replace {remote} lladdr {mac} dev wan0 nud permanent"))?;
        }
        let mut this = Self { kind, switches: Vec::new(), _peers: Vec::new(), sink: None, _pass: None, lab };
        this.make_sink()?;
        if entrance == Entrance::Driver && kind != Kind::MgreXdp {
            // A veth takes XDP's buffers only where a program is.
            let attach = || Program::load(bpf::Kind::Xdp, &assemble::pass())?.attach(Hook::Xdp, "lan0");
            this._pass = Some(this.lab.switch(1).enter(attach)??);
        }
        match kind {
            Kind::Bridge => this.bridges("link set wan0 master br0")?,
            Kind::Vxlan => {
                for number in [1, 2] {
                    let [local, remote] = [number, 3 - number].map(|one| endpoint(one, true));
                    this.lab.switch(number).ip(&format!(
                        "link add gt type vxlan id 7 local {local} remote {remote} dstport 4789 dev wan0\n\
                         link set gt up"
                    ))?;
                }
                this.bridges("link set gt master br0")?;
            }
            Kind::Gretap => return this.with_peers(peer::Kind::Gretap("key 7 nopmtudisc")),
            Kind::Ovs => return this.with_peers(peer::Kind::Ovs(Datapath::Kernel, &["options:key=7"])),
            Kind::MgreTc => this.mgre("tc")?,
            Kind::MgreXdp => this.mgre("native")?,
        }
        Ok(Made::Contestant(this))
    }

    /// Frames end at h2 where they cost least: in the driver, for XDP, else before the stack.
    fn make_sink(&mut self) -> Result<()> {
        let h2 = self.lab.host(2);
        if self.kind == Kind::MgreXdp {
            let counter = Counter::new()?;
            let program = assemble::sink(bpf::Kind::Xdp, counter.fd());
            let link = h2.enter(|| Program::load(bpf::Kind::Xdp, &program)?.attach(Hook::Xdp, "eth0"))??;
            self.sink = Some((counter, link));
            return Ok(());
        }
        h2.run(&["tc", "qdisc", "add", "dev", "eth0", "clsact"])?;
        h2.run(&["tc", "filter", "add", "dev", "eth0", "ingress", "matchall", "action", "drop"])?;
        Ok(())
    }

    fn bridges(&self, uplink: &str) -> Result<()> {
        [1, 2].iter().try_for_each(|number| {
            self.lab.switch(*number).ip(&format!(
                "link add br0 type bridge mcast_snooping 0\nlink set lan0 master br0\n{uplink}\nlink set br0 up"
            ))
        })
    }

    fn with_peers(mut self, kind: peer::Kind) -> Result<Made> {
        for number in [1, 2] {
            let [local, remote] = [number, 3 - number].map(|one| endpoint(one, true));
            match Peer::build(self.lab.switch(number), kind, local, remote)? {
                peer::Made::Peer(peer) => self._peers.push(peer),
                peer::Made::Missing(why) => return Ok(Made::Missing(why)),
            }
        }
        Ok(Made::Contestant(self))
    }

    fn mgre(&mut self, mode: &str) -> Result<()> {
        for number in [1, 2] {
            let switch = Switch::new(&self.lab, number, &Config::new(mode))?;
            let hook = switch.hook()?;
            let wanted = |hook: &str| hook.starts_with("xdp") == (mode == "native");
            ensure!(wanted(&hook.0) && wanted(&hook.1), "mgre in mode {mode} is at {hook:?}");
            for station in self.lab.stations() {
                let (kind, name) =
                    if station.number == number { ("--port", "lan0") } else { ("--peer", PEER) };
                switch.daemon.mgre(&["fdb", "add", SEGMENT, &mac_text(station.mac()), kind, name])?;
            }
            self.switches.push(switch);
        }
        Ok(())
    }

    /// Lets every switch learn where both stations are, until one of the frames that are measured is delivered.
    pub(super) fn introduce(&self, measured: &[u8]) -> Result<()> {
        let [one, two] = self.lab.stations();
        for (from, to) in [(one, two), (two, one)] {
            let frame = marked(BROADCAST, from.mac(), "here");
            let mut capture = None;
            if to.number == 1 {
                capture = Some(capture::Capture::start(to.netns, to.interface)?);
            }
            capture::send(from.netns, from.interface, &[&frame])?;
            if let Some(capture) = capture {
                // What h2 gets, its sink takes before anybody sees it, but for packet sockets behind TC.
                capture.wait_arrival("a broadcast frame of station 2", &frame)?;
            }
        }
        let before = self.delivered()?;
        wait::until("a frame is delivered", wait::SOON, || {
            capture::send(one.netns, one.interface, &[measured])?;
            Ok(self.delivered()? > before)
        })
        .map(|_| ())
    }

    /// Frames that arrived at h2, until now.
    pub(super) fn delivered(&self) -> Result<u64> {
        if let Some((counter, _)) = &self.sink {
            return counter.read();
        }
        let text = self.lab.host(2).enter(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
        let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).context("no eth0")?;
        // Receive: bytes, packets, ...
        Ok(line.split_whitespace().nth(1).context("no packets")?.parse()?)
    }

    /// Lets so many frames come in from the driver's side, and says how long that took for each, in ns.
    pub(super) fn generate(&self, frame: &[u8], frames: u32, budget: u32) -> Result<f64> {
        let sent = Counter::new()?;
        self.lab.host(1).enter(|| {
            let ifindex = if_nametoindex("eth0")?;
            let program = assemble::generator(sent.fd(), &assemble::redirect(ifindex));
            let program = Program::load(bpf::Kind::Xdp, &program)?;
            Ok(f64::from(program.run_live(frame, ifindex, frames, budget)?))
        })?
    }

    /// Whether frames went the way that is measured.
    pub(super) fn check(&self) -> Result<()> {
        if self.kind == Kind::MgreXdp {
            let redirected = self.lab.switch(2).xdp_redirected("wan0")?;
            ensure!(redirected > 0, "XDP redirected nothing");
        }
        Ok(())
    }
}

fn wan_mac(lab: &Lab, number: u8) -> Result<String> {
    let text = lab.switch(number).run(&["ip", "-json", "link", "show", "wan0"])?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    Ok(links[0]["address"].as_str().context("wan0 has no address")?.to_owned())
}

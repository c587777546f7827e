//! mgre as one of a lab's switches.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::lab::{Lab, endpoint};
use crate::{
    daemon::{Daemon, Options},
    topology::{KEY, SEGMENT},
    wait,
};

/// What the other switch is called.
pub const PEER: &str = "far";
/// How long a peer may take until it is up.
const UP_LIMIT: Duration = Duration::from_secs(10);

/// What a segment's packets are told by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// GRE's key.
    Key(u32),
    /// NVGRE's virtual subnet.
    Vsid(u32),
    /// Nothing.
    Keyless,
}

/// How a spoke is set up.
#[derive(Clone, Debug)]
pub struct Config<'a> {
    /// How to attach to the underlay.
    pub mode: &'a str,
    /// How to attach to the port.
    pub port_mode: &'a str,
    /// Outer packets are IPv4.
    pub v4: bool,
    /// The segment's.
    pub identity: Identity,
    /// What the peer is told besides.
    pub peer: &'a [&'a str],
}

impl<'a> Config<'a> {
    /// The usual.
    pub fn new(mode: &'a str) -> Self {
        Self { mode, port_mode: mode, v4: true, identity: Identity::Key(KEY), peer: &[] }
    }
}

/// A daemon, and how long it took to start.
#[derive(Debug)]
pub struct Switch {
    /// The daemon.
    pub daemon: Daemon,
    /// Until it said that it was ready.
    pub started: Duration,
    /// Which of the lab's.
    pub number: u8,
}

impl Switch {
    /// Starts one that knows nothing.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(lab: &Lab, number: u8) -> Result<Self> {
        let start = Instant::now();
        let mut daemon = Daemon::start(lab.switch(number), Options::default())?;
        daemon.hide_log();
        Ok(Self { daemon, started: start.elapsed(), number })
    }

    /// Starts one, and sets it up as an operator would, command by command.
    ///
    /// # Errors
    /// It does not start, or refuses something.
    pub fn new(lab: &Lab, number: u8, config: &Config<'_>) -> Result<Self> {
        let this = Self::start(lab, number)?;
        this.set_up(config).with_context(|| this.daemon.log())?;
        Ok(this)
    }

    fn set_up(&self, config: &Config<'_>) -> Result<()> {
        let [local, remote] = [self.number, 3 - self.number].map(|one| endpoint(one, config.v4).to_string());
        self.daemon.mgre(&["underlay", "add", "wan0", "--local", &local, "--mode", config.mode])?;
        let (option, value) = match config.identity {
            Identity::Key(key) => ("--key", key.to_string()),
            Identity::Vsid(vsid) => ("--vsid", vsid.to_string()),
            Identity::Keyless => ("", String::new()),
        };
        let identity: &[&str] = if option.is_empty() { &[] } else { &[option, &value] };
        self.daemon.mgre(&[&["segment", "add", SEGMENT][..], identity].concat())?;
        self.daemon.mgre(&["port", "add", SEGMENT, "lan0", "--mode", config.port_mode])?;
        let peer = ["peer", "add", PEER, &remote, "--segment", SEGMENT];
        self.daemon.mgre(&[&peer[..], config.peer].concat())?;
        self.wait_up()
    }

    /// Waits until its peer is up.
    ///
    /// # Errors
    /// It is not soon.
    pub fn wait_up(&self) -> Result<()> {
        wait::until(&format!("the peer of spoke {} is up", self.number), UP_LIMIT, || {
            Ok(self.daemon.list(&["peer", "show"])?.iter().all(|peer| peer["state"] == "up"))
        })
        .map(|_| ())
    }

    /// Changes what its peer is told.
    ///
    /// # Errors
    /// The daemon's.
    pub fn set_peer(&self, words: &[&str]) -> Result<()> {
        self.daemon.mgre(&[&["peer", "set", PEER][..], words].concat()).map(|_| ())
    }

    /// Where it is attached, and why there: underlays and ports, a line each.
    pub fn hooks(&self) -> String {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
        let mut lines = Vec::new();
        let status = self.daemon.json(&["status"]).unwrap_or_default();
        let underlays = status["underlays"].as_array().cloned().unwrap_or_default();
        let ports = self.daemon.list(&["port", "show"]).unwrap_or_default();
        for (value, name) in underlays
            .iter()
            .map(|value| (value, "interface"))
            .chain(ports.iter().map(|value| (value, "name")))
        {
            let [name, hook, reason] = [name, "hook", "reason"].map(|key| text(&value[key]));
            lines.push(format!("s{} {name}: {hook} ({reason})", self.number));
        }
        lines.join("\n")
    }

    /// Hook of the underlay, and of the port.
    ///
    /// # Errors
    /// The daemon's.
    pub fn hook(&self) -> Result<(String, String)> {
        let status = self.daemon.json(&["status"])?;
        let ports = self.daemon.list(&["port", "show"])?;
        let text = |value: &serde_json::Value| value["hook"].as_str().unwrap_or_default().to_owned();
        Ok((text(&status["underlays"][0]), ports.first().map(text).unwrap_or_default()))
    }

    /// What it dropped.
    pub fn drops(&self) -> String {
        let text = self.daemon.mgre(&["stats", "--drops"]).unwrap_or_else(|error| error.to_string());
        text.lines().map(|line| format!("s{}: {line}\n", self.number)).collect()
    }
}

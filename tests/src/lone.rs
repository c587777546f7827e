//! One daemon with an underlay and a port, and nobody at the other ends.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    daemon::{Daemon, Options},
    netns::Netns,
    packet::{Mac, mac_text},
    topology::SEGMENT,
    wait,
};

/// The MAC address of whoever is said to be at 10.0.0.2 and 10.0.0.3 on `wan0`.
pub const NEIGHBOR: Mac = [0x02, 0, 0, 0, 0xfe, 0x02];

/// The MAC address of `wan0`.
pub const WAN: Mac = [0x02, 0, 0, 0, 0xfe, 0x01];

/// A daemon in a namespace with interfaces `wan0` (10.0.0.1/24), whose other end is `core0`, and `lan0`, whose other
/// end is `host0`.
#[derive(Debug)]
pub struct Lone {
    // First, so that it ends before its namespace does.
    /// The daemon.
    pub daemon: Daemon,
    /// Where it is.
    pub netns: Netns,
    /// The folder of a daemon that was not started in one of its own.
    _folder: TempDir,
}

impl Lone {
    /// Makes the namespace and starts the daemon, which is told nothing. `prepare` is called with the daemon's folder
    /// before it starts.
    ///
    /// # Errors
    /// Whatever cannot be made.
    pub fn prepared<T>(options: Options, prepare: impl FnOnce(&Path) -> Result<T>) -> Result<(Self, T)> {
        let netns = Netns::new("lone")?;
        netns.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        netns.ip(&format!(
            "link add wan0 address {} type veth peer name core0 address {}\nlink add lan0 type veth peer name host0\n\
             addr add 10.0.0.1/24 dev wan0",
            mac_text(WAN),
            mac_text(NEIGHBOR)
        ))?;
        for name in ["wan0", "core0", "lan0", "host0"] {
            netns.ip(&format!("link set {name} up"))?;
        }
        for neighbor in ["10.0.0.2", "10.0.0.3"] {
            netns
                .ip(&format!("neigh add {neighbor} lladdr {} dev wan0 nud permanent", mac_text(NEIGHBOR)))?;
        }
        let folder = tempfile::Builder::new().prefix("mgre-test-").tempdir()?;
        let prepared = prepare(folder.path())?;
        let daemon = Daemon::start_in(&netns, options, folder.path())?;
        Ok((Self { daemon, netns, _folder: folder }, prepared))
    }

    /// The same, with the underlay, a segment, a port and the peer `b` at 10.0.0.2.
    ///
    /// # Errors
    /// Whatever cannot be made.
    pub fn new(options: Options) -> Result<Self> {
        let (lone, ()) = Self::prepared(options, |_| Ok(()))?;
        lone.set_up()?;
        Ok(lone)
    }

    /// Tells the daemon what [`Self::new`] does.
    ///
    /// # Errors
    /// The daemon's.
    pub fn set_up(&self) -> Result<()> {
        for words in [
            &["underlay", "add", "wan0", "--local", "10.0.0.1"][..],
            &["segment", "add", SEGMENT, "--key", "7"],
            &["port", "add", SEGMENT, "lan0"],
            &["peer", "add", "b", "10.0.0.2", "--segment", SEGMENT],
        ] {
            self.daemon.mgre(words)?;
        }
        self.wait_up()
    }

    /// Waits until every peer is up.
    ///
    /// # Errors
    /// One is not soon.
    pub fn wait_up(&self) -> Result<()> {
        wait::until("the peers are up", wait::SOON, || {
            Ok(self.daemon.list(&["peer", "show"])?.iter().all(|peer| peer["state"] == "up"))
        })
        .map(|_| ())
        .with_context(|| self.daemon.mgre(&["peer", "show"]).unwrap_or_default())
    }

    /// A peer, as `peer show` gives it.
    ///
    /// # Errors
    /// The daemon's, or there is no such peer.
    pub fn peer(&self, name: &str) -> Result<Value> {
        let peers = self.daemon.list(&["peer", "show"])?;
        peers
            .into_iter()
            .find(|peer| peer["name"] == name)
            .with_context(|| format!("there is no peer {name}"))
    }

    /// A port's state.
    ///
    /// # Errors
    /// The daemon's, or there is no such port.
    pub fn port_state(&self, name: &str) -> Result<String> {
        let ports = self.daemon.list(&["port", "show"])?;
        let port = ports.into_iter().find(|port| port["name"] == name);
        Ok(port.with_context(|| format!("there is no port {name}"))?["state"]
            .as_str()
            .unwrap_or_default()
            .into())
    }
}

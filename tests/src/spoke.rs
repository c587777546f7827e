//! A spoke with the host behind it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};

use crate::{
    daemon::Daemon,
    netns::{self, Netns},
    packet::{Mac, mac_text},
    topology::peer_name,
    wait,
};

// The last byte of a MAC address: whose it is.
pub(crate) const WAN: u8 = 0x01;
pub(crate) const LAN: u8 = 0x02;
pub(crate) const HOST: u8 = 0x10;
pub(crate) const CORE: u8 = 0xfe;

/// A MAC address that says whose it is.
pub(crate) fn mac(number: u8, what: u8) -> Mac {
    [0x02, 0, 0, 0, number, what]
}

/// A spoke with the host behind it.
#[derive(Debug)]
pub struct Spoke {
    // First, so that it ends before its namespace does.
    /// Its daemon.
    pub daemon: Daemon,
    /// 1, 2, ...
    pub number: u8,
    /// Where it is.
    pub netns: Netns,
    /// The host behind `lan0`; its interface is `eth0`.
    pub host: Netns,
}

impl Spoke {
    /// Its name in the configuration of the others.
    pub fn name(&self) -> String {
        peer_name(self.number)
    }

    /// The host's MAC address.
    pub fn host_mac(&self) -> Mac {
        mac(self.number, HOST)
    }

    /// The MAC address of `wan0`.
    pub fn wan_mac(&self) -> Mac {
        mac(self.number, WAN)
    }

    /// The MAC address of the core's interface to it.
    pub fn core_mac(&self) -> Mac {
        mac(self.number, CORE)
    }

    /// The host's address.
    pub fn host_ip(&self) -> String {
        self.host_ipv4().to_string()
    }

    /// The host's address.
    pub fn host_ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number)
    }

    /// The host's IPv6 address.
    pub fn host_ipv6(&self) -> String {
        self.host_address(false).to_string()
    }

    /// The host's address of IPv4, or of IPv6.
    pub fn host_address(&self, v4: bool) -> IpAddr {
        if v4 {
            self.host_ipv4().into()
        } else {
            Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, self.number.into()).into()
        }
    }

    /// The host, as one end of a datagram.
    pub fn host_end(&self, v4: bool) -> (Mac, IpAddr) {
        (self.host_mac(), self.host_address(v4))
    }

    /// Adds a further interface to the spoke, a host of its own behind it: `eth0`, of this MAC and without address.
    ///
    /// # Errors
    /// The name is taken.
    pub fn add_host(&self, interface: &str, mac: Mac) -> Result<Netns> {
        let host = Netns::new(interface)?;
        self.attach(&host, interface, mac)?;
        Ok(host)
    }

    /// Connects a host to an interface that the spoke did not have.
    ///
    /// # Errors
    /// The name is taken, or the host has an `eth0`.
    pub fn attach(&self, host: &Netns, interface: &str, mac: Mac) -> Result<()> {
        netns::ip(&format!(
            "link add {interface} netns {} type veth peer name eth0 address {} netns {}",
            self.netns.name(),
            mac_text(mac),
            host.name()
        ))?;
        self.netns.ip(&format!("link set {interface} up"))?;
        host.ip("link set eth0 mtu 1458 up")
    }

    /// The FDB entry of a MAC address, as `fdb show` gives it.
    ///
    /// # Errors
    /// The daemon's.
    pub fn fdb(&self, mac: Mac) -> Result<Option<serde_json::Value>> {
        let mac = mac_text(mac);
        Ok(self.daemon.list(&["fdb", "show"])?.into_iter().find(|entry| entry["mac"] == mac.as_str()))
    }

    /// Waits until a MAC address is known to be behind a peer.
    ///
    /// # Errors
    /// It is not soon.
    pub fn wait_fdb_peer(&self, mac: Mac, peer: &str) -> Result<()> {
        self.wait_fdb(mac, "peer", peer)
    }

    /// Waits until a MAC address is known to be behind a port.
    ///
    /// # Errors
    /// It is not soon.
    pub fn wait_fdb_port(&self, mac: Mac, port: &str) -> Result<()> {
        self.wait_fdb(mac, "port", port)
    }

    fn wait_fdb(&self, mac: Mac, kind: &str, name: &str) -> Result<()> {
        let what = format!("spoke {} has {} at {kind} {name}", self.number, mac_text(mac));
        wait::until(&what, wait::SOON, || Ok(self.fdb(mac)?.is_some_and(|entry| entry[kind] == name)))
            .map(|_| ())
            .with_context(|| self.daemon.mgre(&["fdb", "show"]).unwrap_or_default())
            .with_context(|| self.daemon.mgre(&["status"]).unwrap_or_default())
            .with_context(|| self.daemon.mgre(&["stats"]).unwrap_or_default())
    }

    /// How many frames were dropped for a reason, over all peers, ports and directions.
    ///
    /// # Errors
    /// The daemon's.
    pub fn drops(&self, reason: &str) -> Result<u64> {
        let rows = self.daemon.list(&["stats", "--drops"])?;
        Ok(rows.iter().filter(|row| row["reason"] == reason).filter_map(|row| row["packets"].as_u64()).sum())
    }

    /// Waits until so many frames were dropped for a reason.
    ///
    /// # Errors
    /// There are fewer, or more.
    pub fn wait_drops(&self, reason: &str, count: u64) -> Result<()> {
        let what = format!("{count} dropped for {reason} at spoke {}", self.number);
        wait::until(&what, wait::SOON, || Ok(self.drops(reason)? == count))
            .map(|_| ())
            .with_context(|| self.daemon.mgre(&["stats", "--drops"]).unwrap_or_default())
    }

    /// A peer, as `peer show` gives it.
    ///
    /// # Errors
    /// The daemon's, or there is no such peer.
    pub fn peer(&self, name: &str) -> Result<serde_json::Value> {
        let peers = self.daemon.list(&["peer", "show"])?;
        peers
            .into_iter()
            .find(|peer| peer["name"] == name)
            .with_context(|| format!("there is no peer {name}"))
    }

    /// The sum of a counter over all peers.
    ///
    /// # Errors
    /// The daemon's.
    pub fn peers_sum(&self, counter: &str) -> Result<u64> {
        let peers = self.daemon.list(&["peer", "show"])?;
        Ok(peers.iter().filter_map(|peer| peer[counter].as_u64()).sum())
    }

    /// Waits until every peer is up.
    ///
    /// # Errors
    /// One is not soon.
    pub fn wait_up(&self) -> Result<()> {
        wait::until(&format!("the peers of spoke {} are up", self.number), wait::SOON, || {
            Ok(self.daemon.list(&["peer", "show"])?.iter().all(|peer| peer["state"] == "up"))
        })
        .map(|_| ())
    }
}

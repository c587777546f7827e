//! A station: a host behind a switch, with addresses by its number.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::report::Verdict;
use crate::{
    netns::Netns,
    spoke::{self, Spoke},
    traffic, wait,
};

/// The VLAN of [`Station::vlan_addresses`].
pub const VLAN: u16 = 100;
/// Between echo requests.
const INTERVAL: &str = "0.2";
/// How long the last answer may take, however slow the machine is.
const MOST_WAIT: Duration = Duration::from_secs(8);
/// What a host can leave to its interface.
const OFFLOADS: [&str; 5] = ["tx", "sg", "tso", "gso", "txvlan"];

/// A host and its interface. Addresses are those of [`crate::topology`]'s hosts: 10.77.0.N and fd77::N.
#[derive(Clone, Copy, Debug)]
pub struct Station<'a> {
    /// Where it is.
    pub netns: &'a Netns,
    /// 1, 2, ...
    pub number: u8,
    /// Its interface.
    pub interface: &'a str,
}

impl<'a> Station<'a> {
    /// The host behind a spoke.
    pub fn of(spoke: &'a Spoke) -> Self {
        Self { netns: &spoke.host, number: spoke.number, interface: "eth0" }
    }

    /// Its MAC address.
    pub fn mac(&self) -> crate::packet::Mac {
        spoke::mac(self.number, spoke::HOST)
    }

    /// Its IPv4 address.
    pub fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number)
    }

    /// Its IPv6 address.
    pub fn ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, self.number.into())
    }

    /// Both.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.ipv4().into(), self.ipv6().into()]
    }

    /// Its addresses in the VLAN.
    pub fn vlan_addresses(&self) -> [IpAddr; 2] {
        let v6 = Ipv6Addr::new(0xfd77, VLAN, 0, 0, 0, 0, 0, self.number.into());
        [Ipv4Addr::new(10, 78, 0, self.number).into(), v6.into()]
    }

    /// Forgets its neighbours.
    ///
    /// # Errors
    /// `ip`'s.
    pub fn forget_neighbors(&self) -> Result<()> {
        ["-4", "-6"].iter().try_for_each(|family| {
            self.netns.run(&["ip", family, "neigh", "flush", "nud", "all", "dev", self.interface]).map(|_| ())
        })
    }

    /// Forgets what it was told of paths.
    ///
    /// # Errors
    /// `ip`'s.
    pub fn forget_paths(&self) -> Result<()> {
        ["-4", "-6"]
            .iter()
            .try_for_each(|family| self.netns.run(&["ip", family, "route", "flush", "cache"]).map(|_| ()))
    }

    /// Knows another one's MAC address for good.
    ///
    /// # Errors
    /// `ip`'s.
    pub fn know(&self, other: &Self) -> Result<()> {
        let mac = crate::packet::mac_text(other.mac());
        let interface = self.interface;
        self.netns.ip(&format!(
            "neigh replace {} lladdr {mac} dev {interface} nud permanent\n\
             neigh replace {} lladdr {mac} dev {interface} nud permanent",
            other.ipv4(),
            other.ipv6()
        ))
    }

    /// Sets the largest packet that it sends.
    ///
    /// # Errors
    /// `ip`'s.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        self.netns.ip(&format!("link set {} mtu {mtu}", self.interface))
    }

    /// Lets the interface finish checksums, cut superframes and set VLAN tags, or not. What an interface cannot change
    /// stays.
    pub fn set_offloads(&self, on: bool) {
        let value = if on { "on" } else { "off" };
        for name in OFFLOADS {
            self.netns.run(&["ethtool", "-K", self.interface, name, value]).ok();
        }
    }

    /// Lets the interface put packets together, which makes a veth poll; one that polls can be redirected to.
    ///
    /// # Errors
    /// `ethtool`'s.
    pub fn set_gro(&self, on: bool) -> Result<()> {
        let value = if on { "on" } else { "off" };
        self.netns.run(&["ethtool", "-K", self.interface, "gro", value]).map(|_| ())
    }

    /// Sends `count` echo requests with so many bytes, and wants as many answers.
    ///
    /// # Errors
    /// `ping` cannot be run.
    pub fn pings(&self, address: IpAddr, count: u32, bytes: u32, more: &[&str]) -> Result<Verdict> {
        let pings = self.ping(address, count, bytes, more)?;
        Ok(Verdict::when(pings.all_came_back(), format!("{}/{}", pings.received, pings.sent)))
    }

    /// Sends `count` echo requests with so many bytes.
    ///
    /// # Errors
    /// `ping` cannot be run.
    pub fn ping(&self, address: IpAddr, count: u32, bytes: u32, more: &[&str]) -> Result<traffic::Pings> {
        let (count, bytes, address) = (count.to_string(), bytes.to_string(), address.to_string());
        let wait = wait::patient(Duration::from_secs(2)).min(MOST_WAIT).as_secs().to_string();
        let fixed = ["-q", "-c", &count, "-i", INTERVAL, "-W", &wait, "-s", &bytes];
        traffic::ping(self.netns, &[&fixed[..], more, &[&address]].concat())
            .with_context(|| format!("station {} to {address}", self.number))
    }
}

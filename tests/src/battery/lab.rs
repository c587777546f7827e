//! Two stations, each behind a switch, and an underlay between the switches.
//!
//! ```text
//!  h1               s1                 s2               h2
//!  eth0 ----- lan0 [  ] wan0 ---- wan0 [  ] lan0 ----- eth0
//! ```
//!
//! What s1 and s2 are is up to whoever builds it. Underlay addresses are 10.0.0.N and fd00::N.

use std::net::IpAddr;

use anyhow::Result;
use serde_json::Value;

use super::station::Station;
use crate::{
    gre,
    netns::{self, Netns},
    packet::mac_text,
    spoke::{HOST, LAN, WAN, mac},
    wait,
};

/// What has addresses on an emulated card begins so; 01 is h1's, 02 s1's port, 03 and 04 the underlay.
const CARDS: &str = "52:54:00:00:01:";

/// The namespaces. Whoever runs in them must end before this does.
#[derive(Debug)]
pub struct Lab {
    hosts: [Netns; 2],
    switches: [Netns; 2],
}

impl Lab {
    /// Veth pairs all the way. The stations' largest packet is `mtu`.
    ///
    /// # Errors
    /// Whatever could not be made.
    pub fn new(mtu: u32) -> Result<Self> {
        Self::with_underlay(mtu, 1500)
    }

    /// The same, with another MTU of the underlay.
    ///
    /// # Errors
    /// Whatever could not be made.
    pub fn with_underlay(mtu: u32, underlay_mtu: u32) -> Result<Self> {
        let this = Self::empty()?;
        let [s1, s2] = this.switches.each_ref().map(Netns::name);
        let [mac1, mac2] = [1, 2].map(|number| mac_text(mac(number, WAN)));
        netns::ip(&format!(
            "link add wan0 netns {s1} mtu {underlay_mtu} address {mac1} type veth \
             peer name wan0 netns {s2} mtu {underlay_mtu} address {mac2}"
        ))?;
        this.wire(1, mtu)?;
        this.wire(2, mtu)?;
        this.address(true)?;
        Ok(this)
    }

    /// Emulated cards, by their MAC addresses, but for h2, which has a veth.
    ///
    /// # Errors
    /// There are no such cards, or they refuse their MTU.
    pub fn with_cards(mtu: u32, underlay_mtu: u32) -> Result<Self> {
        let this = Self::empty()?;
        let places = [
            ("01", &this.hosts[0], "eth0", mtu),
            ("02", &this.switches[0], "lan0", mtu),
            ("03", &this.switches[0], "wan0", underlay_mtu),
            ("04", &this.switches[1], "wan0", underlay_mtu),
        ];
        for (last, netns, name, mtu) in places {
            // One that was in another namespace comes back when that is gone.
            let card = wait::value(&format!("there is a card {CARDS}{last}"), wait::SOON, || card(last))?;
            netns::ip(&format!("link set {card} down\nlink set {card} netns {} name {name}", netns.name()))?;
            netns.ip(&format!("link set {name} mtu {mtu}"))?;
        }
        this.hosts[0].ip(&format!("link set eth0 address {}", mac_text(mac(1, HOST))))?;
        this.switches[0].ip("link set lan0 up")?;
        this.wire(2, mtu)?;
        this.address(false)?;
        Ok(this)
    }

    fn empty() -> Result<Self> {
        let hosts = [Netns::new("h1")?, Netns::new("h2")?];
        let switches = [Netns::new("s1")?, Netns::new("s2")?];
        for netns in hosts.iter().chain(&switches) {
            for scope in ["all", "default"] {
                netns.sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
            }
        }
        Ok(Self { hosts, switches })
    }

    fn wire(&self, number: u8, mtu: u32) -> Result<()> {
        let [lan, eth] = [LAN, HOST].map(|what| mac_text(mac(number, what)));
        let (host, switch) = (self.host(number).name(), self.switch(number).name());
        netns::ip(&format!(
            "link add lan0 netns {switch} mtu {mtu} address {lan} type veth \
             peer name eth0 netns {host} mtu {mtu} address {eth}"
        ))?;
        self.switch(number).ip("link set lan0 up")
    }

    fn address(&self, quiet: bool) -> Result<()> {
        for number in [1, 2] {
            let (station, switch) = (self.station(number), self.switch(number));
            if quiet {
                switch.sysctl("ipv6/conf/lan0/disable_ipv6", "1")?;
            }
            let [v4, v6] = station.addresses();
            station.netns.ip(&format!(
                "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up"
            ))?;
            let [v4, v6] = [true, false].map(|is_v4| endpoint(number, is_v4));
            switch.ip(&format!(
                "addr add {v4}/24 dev wan0\naddr add {v6}/64 dev wan0 nodad\nlink set wan0 up"
            ))?;
        }
        Ok(())
    }

    /// A host's namespace: 1 or 2.
    ///
    /// # Panics
    /// It is neither.
    pub fn host(&self, number: u8) -> &Netns {
        &self.hosts[usize::from(number) - 1]
    }

    /// A switch's namespace: 1 or 2.
    ///
    /// # Panics
    /// It is neither.
    pub fn switch(&self, number: u8) -> &Netns {
        &self.switches[usize::from(number) - 1]
    }

    /// A station: 1 or 2.
    ///
    /// # Panics
    /// It is neither.
    pub fn station(&self, number: u8) -> Station<'_> {
        Station { netns: self.host(number), number, interface: "eth0" }
    }

    /// Both.
    pub fn stations(&self) -> [Station<'_>; 2] {
        [self.station(1), self.station(2)]
    }

    /// Sets the largest packet of both stations, and of the ports that they are plugged into.
    ///
    /// # Errors
    /// An interface refuses it.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        for number in [1, 2] {
            self.switch(number).ip(&format!("link set lan0 mtu {mtu}"))?;
            self.station(number).set_mtu(mtu)?;
        }
        Ok(())
    }
}

/// The underlay address of a switch.
pub const fn endpoint(number: u8, v4: bool) -> IpAddr {
    if v4 { IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, number)) } else { gre::v6(0, number as u16) }
}

/// The card of this namespace whose MAC address ends so.
///
/// # Errors
/// `ip`'s.
pub fn card(last: &str) -> Result<Option<String>> {
    let text = netns::run(std::process::Command::new("ip").args(["-json", "link", "show"]))?;
    let links: Vec<Value> = serde_json::from_str(&text)?;
    let address = format!("{CARDS}{last}");
    let is = |link: &Value, key: &str| link[key] == address.as_str();
    let found = links.iter().find(|link| is(link, "permaddr") || is(link, "address"));
    Ok(found.and_then(|link| Some(link["ifname"].as_str()?.to_owned())))
}

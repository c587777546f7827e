//! The stations' VLAN, by interfaces of the kernel's or, where it has none, by programs that tag and untag everything.

use anyhow::{Context as _, Result, bail};

use super::station::{Station, VLAN};
use crate::vlan::Tagging;

/// Two stations in the VLAN, until dropped.
#[derive(Debug)]
pub struct Tagged<'a> {
    stations: [Station<'a>; 2],
    tagging: Vec<Tagging>,
}

impl<'a> Tagged<'a> {
    /// Gives both an address there; packets with their tag fill `mtu`.
    ///
    /// # Errors
    /// This kernel can do it neither way.
    pub fn new(stations: [Station<'a>; 2], mtu: u32) -> Result<Self> {
        let mut this = Self { stations, tagging: Vec::new() };
        let Err(no_interface) = this.add_interfaces(mtu) else { return Ok(this) };
        this.remove_interfaces();
        if let Err(no_program) = this.attach(mtu) {
            bail!("no VLAN interfaces ({no_interface:#}) and no programs in their place ({no_program:#})");
        }
        Ok(this)
    }

    fn add_interfaces(&self, mtu: u32) -> Result<()> {
        for station in &self.stations {
            let (interface, [v4, v6]) = (station.interface, station.vlan_addresses());
            let mtu = mtu - 4;
            station.netns.ip(&format!(
                "link add link {interface} name {interface}.{VLAN} mtu {mtu} type vlan id {VLAN}\n\
                 link set {interface}.{VLAN} up\n\
                 addr add {v4}/24 dev {interface}.{VLAN}\naddr add {v6}/64 dev {interface}.{VLAN} nodad"
            ))?;
        }
        Ok(())
    }

    fn remove_interfaces(&self) {
        for station in &self.stations {
            let interface = format!("{}.{VLAN}", station.interface);
            // There may be none.
            station.netns.run(&["ip", "link", "del", &interface]).ok();
        }
    }

    fn attach(&mut self, mtu: u32) -> Result<()> {
        for station in &self.stations {
            let (interface, [v4, v6]) = (station.interface, station.vlan_addresses());
            // Room for the tag, by the routes: the interface itself does not know of it.
            let (mtu, v4_network, v6_network) = (mtu - 4, "10.78.0.0/24", format!("fd77:{VLAN:x}::/64"));
            station
                .netns
                .ip(&format!(
                    "addr add {v4}/24 dev {interface}\naddr add {v6}/64 dev {interface} nodad\n\
                     route replace {v4_network} dev {interface} proto kernel scope link src {v4} mtu {mtu}\n\
                     route change {v6_network} dev {interface} proto kernel metric 256 mtu {mtu}"
                ))
                .context("addresses")?;
            self.tagging.push(Tagging::new(station.netns, interface, &[(0x8100, VLAN)])?);
        }
        Ok(())
    }
}

impl Drop for Tagged<'_> {
    fn drop(&mut self) {
        if self.tagging.is_empty() {
            return self.remove_interfaces();
        }
        self.tagging.clear();
        for station in &self.stations {
            let [v4, v6] = station.vlan_addresses();
            let commands = format!("addr del {v4}/24 dev {0}\naddr del {v6}/64 dev {0}", station.interface);
            if let Err(error) = station.netns.ip(&commands) {
                eprintln!("addresses of VLAN {VLAN} stay: {error:#}");
            }
        }
    }
}

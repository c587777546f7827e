//! Others that speak GRE with Ethernet in it, as the other switch.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};

use crate::{
    bench::ovs::{Datapath, Ovs},
    gre::GRE_UDP_PORT,
    netns::Netns,
};

/// The tunnel's interface.
const TUNNEL: &str = "gt";
/// What `ip` says where the kernel lacks something.
const LACKING: [&str; 5] =
    ["Unknown device type", "not supported", "not found", "No such file or directory", "unknown qdisc"];

/// Which one, and how it is told to do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel's gretap (over IPv6 ip6gretap) in a bridge, with what `ip` is told besides.
    Gretap(&'static str),
    /// The same in UDP, by foo-over-UDP.
    Fou(&'static str),
    /// A gretap that `tc` tells what to send and to whom: the tunnel's id, `csum` or `nocsum`, and what packets are
    /// told by.
    External {
        /// The id that packets are sent with.
        id: u32,
        /// Whether they have checksums.
        csum: bool,
        /// What `flower` matches of those received.
        matching: &'static str,
    },
    /// Open vSwitch, with its tunnel's options.
    Ovs(Datapath, &'static [&'static str]),
}

/// What came of making one.
#[derive(Debug)]
pub enum Made {
    /// It runs.
    Peer(Peer),
    /// Something is missing here.
    Missing(String),
}

/// One that runs. Its interfaces end with the namespace.
#[derive(Debug)]
pub struct Peer {
    ovs: Option<Ovs>,
}

impl Peer {
    /// Makes one in a namespace with wan0, an underlay interface with address `local`, and lan0, the port.
    ///
    /// # Errors
    /// It cannot be made though nothing is missing.
    pub fn build(netns: &Netns, kind: Kind, local: IpAddr, remote: IpAddr) -> Result<Made> {
        let made = match kind {
            Kind::Gretap(words) => gretap(netns, local, remote, words),
            Kind::Fou(words) => fou(netns, local, remote, words),
            Kind::External { id, csum, matching } => external(netns, local, remote, id, csum, matching),
            Kind::Ovs(datapath, options) => match (datapath.missing(), local, remote) {
                (Some(missing), ..) => return Ok(Made::Missing(missing)),
                (None, IpAddr::V4(local), IpAddr::V4(remote)) => {
                    let ovs = Ovs::start_with(netns, datapath, local, remote, options)?;
                    return Ok(Made::Peer(Self { ovs: Some(ovs) }));
                }
                _ => bail!("Open vSwitch over IPv6 is not among the cases"),
            },
        };
        match made {
            Ok(()) => Ok(Made::Peer(Self { ovs: None })),
            Err(error) => {
                let text = format!("{error:#}");
                if LACKING.iter().any(|words| text.contains(words)) {
                    return Ok(Made::Missing(format!("the kernel lacks it: {text}")));
                }
                Err(error)
            }
        }
    }

    /// Whether it knows that this address is behind its tunnel.
    ///
    /// # Errors
    /// It does not say.
    pub fn knows(&self, netns: &Netns, mac: &str) -> Result<bool> {
        match &self.ovs {
            Some(ovs) => ovs.knows(&[mac.to_owned()]),
            None => {
                let table = netns.run(&["bridge", "fdb", "show", "dev", TUNNEL])?;
                Ok(table.lines().any(|line| line.starts_with(mac)))
            }
        }
    }

    /// Its own counters, for who wants to know why something fails.
    pub fn counters(&self, netns: &Netns) -> String {
        let run = |words: &[&str]| netns.run(words).unwrap_or_default();
        let mut text = run(&["ip", "-s", "-s", "link", "show", "wan0"]);
        match &self.ovs {
            Some(ovs) => text += &ovs.counters(),
            None => text += &run(&["ip", "-s", "-s", "link", "show", TUNNEL]),
        }
        // Reassembly, checksums and unknown protocols of the kernel's IP.
        for file in ["/proc/thread-self/net/snmp", "/proc/thread-self/net/snmp6"] {
            let counters = netns.enter(|| std::fs::read_to_string(file)).ok().and_then(Result::ok);
            text.extend(counters.iter().flat_map(|text| nonzero(text)));
        }
        text
    }
}

/// IP's counters that are not zero, a line each.
fn nonzero(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // /proc/net/snmp6: one a line.
            [name, value] if name.starts_with("Ip6") && value != "0" => {
                found.push(format!("{name} {value}\n"))
            }
            // /proc/net/snmp: a line of names and one of values.
            ["Ip:", ref rest @ ..] if names.is_empty() => names = rest.to_vec(),
            ["Ip:", ref values @ ..] => {
                let pairs = names.iter().zip(values).filter(|(_, value)| **value != "0");
                found.extend(pairs.map(|(name, value)| format!("Ip{name} {value}\n")));
            }
            _ => {}
        }
    }
    found
}

/// A bridge with the tunnel and the port in it.
fn bridge(netns: &Netns) -> Result<()> {
    netns.ip(&format!(
        "link add br0 type bridge mcast_snooping 0\nlink set {TUNNEL} master br0 up\n\
         link set lan0 master br0\nlink set br0 up"
    ))
}

fn gretap(netns: &Netns, local: IpAddr, remote: IpAddr, words: &str) -> Result<()> {
    let kind = if local.is_ipv4() { "gretap" } else { "ip6gretap" };
    netns.ip(&format!("link add {TUNNEL} type {kind} local {local} remote {remote} {words}"))?;
    bridge(netns)
}

fn fou(netns: &Netns, local: IpAddr, remote: IpAddr, words: &str) -> Result<()> {
    // As for other kinds of devices, but this one's family is not asked for.
    std::process::Command::new("modprobe").arg("fou").output().ok();
    let port = GRE_UDP_PORT.to_string();
    netns.run(&["ip", "fou", "add", "port", &port, "ipproto", "47"]).context("foo-over-UDP")?;
    gretap(netns, local, remote, &format!("{words} encap fou encap-sport auto encap-dport {port}"))
}

fn external(netns: &Netns, local: IpAddr, remote: IpAddr, id: u32, csum: bool, matching: &str) -> Result<()> {
    netns.ip(&format!("link add {TUNNEL} type gretap external\nlink set {TUNNEL} up"))?;
    let csum = if csum { "csum" } else { "nocsum" };
    for command in [
        "qdisc add dev lan0 clsact".to_owned(),
        format!("qdisc add dev {TUNNEL} clsact"),
        format!(
            "filter add dev lan0 ingress matchall action tunnel_key set id {id} src_ip {local} dst_ip {remote} \
             {csum} action mirred egress redirect dev {TUNNEL}"
        ),
        format!(
            "filter add dev {TUNNEL} ingress protocol all flower {matching} action tunnel_key unset \
             action mirred egress redirect dev lan0"
        ),
    ] {
        let words: Vec<&str> = std::iter::once("tc").chain(command.split_whitespace()).collect();
        netns.run(&words)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_their_names() {
        let snmp = "Ip: Forwarding InHdrErrors InUnknownProtos\nIp: 1 0 7\nTcp: A\nTcp: 1\n";
        assert_eq!(nonzero(snmp), ["IpForwarding 1\n", "IpInUnknownProtos 7\n"]);
        assert_eq!(nonzero("Ip6InReceives 3\nIp6InHdrErrors 0\nIcmp6InMsgs 4\n"), ["Ip6InReceives 3\n"]);
    }
}

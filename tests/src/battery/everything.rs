//! Everything that two stations do with each other.

use std::net::IpAddr;

use anyhow::Result;

use super::{
    exact,
    report::{Report, Verdict},
    station::Station,
    streams,
    tagged::Tagged,
};

/// Bytes of an IP header and an ICMP echo header.
const V4_ECHO: u32 = 20 + 8;
const V6_ECHO: u32 = 40 + 8;

/// What to do, and how much of it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the names of checks begin with.
    pub name: String,
    /// The stations' largest packet.
    pub mtu: u32,
    /// One way where two tell little more.
    pub quick: bool,
    /// Bytes of a TCP stream.
    pub bytes: usize,
    /// With the stations' offloads on, off, or both.
    pub offloads: &'static [bool],
    /// Whether the stations' interfaces poll always, as XDP's redirects want it, or go with the offloads.
    pub polls: bool,
    /// Frames that whoever is between the stations does not forward: what their names begin with.
    pub left_out: Vec<String>,
    /// Whether full packets forbid their fragmentation.
    pub dont_fragment: bool,
    /// Whether one frame in each direction may be lost before the others are counted.
    pub warm_up: bool,
    /// Whether VLAN tags go through.
    pub vlan: bool,
    /// Whether only frames of the first station are long.
    pub one_way: bool,
}

impl Plan {
    /// Everything.
    pub fn new(name: impl Into<String>, mtu: u32) -> Self {
        Self {
            name: name.into(),
            mtu,
            quick: false,
            bytes: 2 << 20,
            offloads: &[true, false],
            polls: false,
            left_out: Vec::new(),
            dont_fragment: true,
            warm_up: false,
            vlan: true,
            one_way: false,
        }
    }

    /// Sets the stations' offloads.
    ///
    /// # Errors
    /// `ethtool`'s.
    pub fn set_offloads(&self, stations: &[Station<'_>], on: bool) -> Result<()> {
        for station in stations {
            station.set_offloads(on);
            station.set_gro(on || self.polls)?;
        }
        Ok(())
    }
}

/// Goes through all of it.
pub fn run(report: &mut Report, plan: &Plan, [one, two]: [Station<'_>; 2]) {
    let name = &plan.name;
    let offloads = plan.offloads.first().is_none_or(|on| *on);
    report.ensure(&format!("{name}: offloads"), plan.set_offloads(&[one, two], offloads));
    for station in [one, two] {
        report.ensure(&format!("{name}: neighbours"), station.forget_neighbors());
    }
    if plan.warm_up {
        for address in two.addresses() {
            one.ping(address, 2, 56, &[]).ok();
        }
    }
    let mut alive = report.check(&format!("{name}: ARP and ping"), one.pings(two.ipv4().into(), 3, 56, &[]));
    alive |= report.check(&format!("{name}: ND and ping"), two.pings(one.ipv6().into(), 3, 56, &[]));
    if !alive {
        // Whether anything at all gets through.
        frames(report, plan, one, two);
        frames(report, plan, two, one);
        return;
    }
    if plan.one_way {
        return frames(report, plan, one, two);
    }
    full_pings(report, plan, one, two);
    frames(report, plan, one, two);
    if !plan.quick {
        frames(report, plan, two, one);
    }
    for on in plan.offloads {
        report.ensure(&format!("{name}: offloads"), plan.set_offloads(&[one, two], *on));
        let name = format!("{name}: offloads {}", if *on { "on" } else { "off" });
        let families: &[usize] = if plan.quick && !*on { &[0] } else { &[0, 1] };
        for family in families {
            stream(report, &name, one, two, two.addresses()[*family], plan.bytes);
            stream(report, &name, two, one, one.addresses()[*family], plan.bytes);
        }
    }
    report.ensure(&format!("{name}: offloads"), plan.set_offloads(&[one, two], offloads));
    if plan.vlan {
        tagged(report, plan, one, two);
    }
}

/// Packets that fill the MTU, those that do not fit by a byte, and long ones.
fn full_pings(report: &mut Report, plan: &Plan, one: Station<'_>, two: Station<'_>) {
    let Plan { name, mtu, .. } = plan;
    let df: &[&str] = if plan.dont_fragment { &["-M", "do"] } else { &["-M", "dont"] };
    for (address, headers) in two.addresses().into_iter().zip([V4_ECHO, V6_ECHO]) {
        if !plan.dont_fragment {
            // IPv6 that is too long is not cut: its sender is told, and cuts what it sends then.
            one.ping(address, 1, mtu - headers, df).ok();
        }
        let check = one.pings(address, 2, mtu - headers, df);
        report.check(&format!("{name}: ping of {mtu} bytes to {address}"), check);
        if plan.dont_fragment {
            // The host itself refuses it: its interface has this MTU.
            let result = one.ping(address, 1, mtu - headers + 1, &["-M", "do"]);
            let verdict = result.map(|pings| Verdict::when(pings.received == 0, "none came back"));
            report.check(&format!("{name}: ping of {} bytes to {address} does not fit", mtu + 1), verdict);
        }
    }
    let name = format!("{name}: ping of 5000 bytes, cut by the host");
    report.check(&name, one.pings(two.ipv4().into(), 2, 5000 - V4_ECHO, &["-M", "dont"]));
}

/// Frames byte for byte.
pub fn frames(report: &mut Report, plan: &Plan, from: Station<'_>, to: Station<'_>) {
    let name = format!("{}: frames {}>{}", plan.name, from.number, to.number);
    let excused = report.excused_frames(&name);
    let outcome = exact::check(&from, &to, plan.mtu, &plan.left_out, &excused);
    let verdict = outcome.map(|outcome| report.excuse_frames(&name, outcome.faulty(), outcome.verdict()));
    report.check(&name, verdict);
}

/// A stream to an address.
pub fn stream(
    report: &mut Report,
    name: &str,
    from: Station<'_>,
    to: Station<'_>,
    address: IpAddr,
    bytes: usize,
) -> bool {
    let name = format!("{name}: TCP {}>{} {address}", from.number, to.number);
    report.check(&name, streams::tcp(&from, &to, address, bytes))
}

fn tagged(report: &mut Report, plan: &Plan, one: Station<'_>, two: Station<'_>) {
    let name = format!("{}: VLAN", plan.name);
    let _tagged = match Tagged::new([one, two], plan.mtu) {
        Ok(tagged) => tagged,
        Err(error) => {
            report.record(&name, &Verdict::Skip(format!("{error:#}")));
            return;
        }
    };
    for station in [one, two] {
        report.ensure(&format!("{name}: neighbours"), station.forget_neighbors());
    }
    let (ours, theirs) = (one.vlan_addresses(), two.vlan_addresses());
    for address in theirs {
        report.check(&format!("{name}: ping {address}"), one.pings(address, 2, 56, &[]));
    }
    let df = if plan.dont_fragment { "do" } else { "dont" };
    let full = one.pings(theirs[0], 2, plan.mtu - 4 - V4_ECHO, &["-M", df]);
    report.check(&format!("{name}: ping of {} bytes", plan.mtu - 4), full);
    stream(report, &name, one, two, theirs[0], plan.bytes);
    stream(report, &name, two, one, ours[0], plan.bytes);
    stream(report, &name, one, two, theirs[1], plan.bytes);
}

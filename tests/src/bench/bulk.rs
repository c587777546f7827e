//! Bulk TCP: one stream, from h1 to h2.

use std::thread;

use anyhow::{Result, anyhow, ensure};

use super::{
    contestant::{Contestant, HOST_MTU, host_ip},
    cpu, machine,
    race::Sample,
};
use crate::{netns::Netns, traffic};

/// No header around a host's packet is longer.
const MAX_OVERHEAD: f64 = 84.0;

/// One round of `seconds`.
///
/// # Errors
/// iperf3 fails, or superframes crossed the middle though it is in wire mode.
pub fn measure(contestant: &Contestant, seconds: u32, wire: bool) -> Result<Sample> {
    let address = host_ip(2).to_string();
    let before = Counters::of(contestant)?;
    // The sender and the receiver on CPUs of their own, where there are two.
    let cpus = format!("{},{}", machine::busy_cpu(), machine::quiet_cpu());
    let iperf3 = || {
        machine::hurry();
        traffic::iperf3(contestant.host(1), contestant.host(2), &address, seconds, &["-A", &cpus])
    };
    let meter = cpu::Meter::start()?;
    // On a thread of its own: who was put first stays so.
    let run =
        thread::scope(|scope| scope.spawn(iperf3).join()).map_err(|_| anyhow!("a thread panicked"))??;
    let cpu_ns = Some(meter.busy()?.as_secs_f64() * 1e9 / run.bytes.max(1.0));
    let after = Counters::of(contestant)?;
    let bytes_per_packet = (after.bytes - before.bytes) / (after.packets - before.packets).max(1.0);
    if wire {
        let most = f64::from(HOST_MTU) + MAX_OVERHEAD;
        ensure!(bytes_per_packet <= most, "packets of {bytes_per_packet:.0} bytes cross the middle");
    }
    let value = run.bits_per_second / 1e9;
    Ok(Sample { value, bytes_per_packet: Some(bytes_per_packet), cpu_ns, ..Sample::default() })
}

/// What left the middle's first interface.
struct Counters {
    packets: f64,
    bytes: f64,
}

impl Counters {
    fn of(contestant: &Contestant) -> Result<Self> {
        let [(netns, interface), _] = contestant.middle();
        let text = netns.run(&["ip", "-json", "-statistics", "link", "show", interface])?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        let number = |name: &str| links[0]["stats64"]["tx"][name].as_f64().unwrap_or(0.0);
        Ok(Self { packets: number("packets"), bytes: number("bytes") })
    }
}

/// Packets of the hosts' MTU cross the middle while this lives, as they would on a physical link: its interfaces cut no
/// superframes later than there.
#[derive(Debug)]
pub struct WireMode<'a>(&'a [&'a Contestant]);

impl<'a> WireMode<'a> {
    /// Turns segmentation off.
    ///
    /// # Errors
    /// ethtool's.
    pub fn new(contestants: &'a [&'a Contestant]) -> Result<Self> {
        let this = Self(contestants);
        this.set("off")?;
        Ok(this)
    }

    fn set(&self, value: &str) -> Result<()> {
        let middles = self.0.iter().flat_map(|contestant| contestant.middle());
        middles.into_iter().try_for_each(|(netns, interface)| segmentation(netns, interface, value))
    }
}

impl Drop for WireMode<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.set("on") {
            eprintln!("{error:#}");
        }
    }
}

fn segmentation(netns: &Netns, interface: &str, value: &str) -> Result<()> {
    // Not `gso`: where TCP itself sends out of this interface (direct veth), that would have it make small packets
    // from the start. Everywhere else it would change nothing.
    netns.run(&["ethtool", "-K", interface, "tso", value]).map(|_| ())
}

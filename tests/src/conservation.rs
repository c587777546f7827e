//! Nothing vanishes: what a spoke's counters add up to (`docs/counters.md`).
//!
//! All terms are of one scrape of `/metrics`. While frames are under way they do not add up, so it is asked until they
//! do.

use std::{collections::BTreeMap, fmt, net::IpAddr, thread, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    capture::Capture,
    gre::IP_PROTOCOL_GRE,
    metrics::Metrics,
    netns::Netns,
    topology::{Spoke, Spokes},
    wait,
};

/// Frames of a spoke, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Received from ports and peers.
    pub received: i64,
    /// Sent to ports and peers.
    pub sent: i64,
    /// Dropped, those that belong to nobody left out.
    pub dropped: i64,
    /// Of those dropped, what was lost between the ends of the slow interface's pair; counted by the daemon.
    pub overflowed: i64,
    /// Flooded.
    pub flooded: i64,
    /// Copies made of those.
    pub copies: i64,
    /// Copies of those that could not be made.
    pub lost: i64,
    /// Made by the daemon.
    pub made: i64,
    /// Of those received, those from peers.
    pub from_peers: i64,
    /// Of those, what the kernel had put together and the daemon gave to the datapath.
    pub reassembled: i64,
    /// Packets from the underlay that belong to nobody, or that the kernel got.
    pub of_nobody: i64,
}

impl Terms {
    /// Since the spoke's datapath began, but for what the daemon made before it was started again.
    ///
    /// # Errors
    /// The daemon's.
    pub fn read(spoke: &Spoke) -> Result<Self> {
        let metrics = Metrics::over_socket(&spoke.daemon.socket())?;
        let sum = |names: &[&str], labels: &[(&str, &str)]| -> i64 {
            names.iter().flat_map(|name| metrics.all(name, labels)).map(|sample| sample.value as i64).sum()
        };
        let overflowed = sum(&["mgre_slow_path_packets_total"], &[("event", "overflowed")]);
        Ok(Self {
            received: sum(&["mgre_peer_receive_packets_total", "mgre_port_receive_packets_total"], &[]),
            sent: sum(&["mgre_peer_transmit_packets_total", "mgre_port_transmit_packets_total"], &[]),
            dropped: sum(&["mgre_peer_drops_total", "mgre_port_drops_total"], &[]) + overflowed,
            overflowed,
            flooded: sum(&["mgre_flood_frames_total"], &[]),
            copies: sum(&["mgre_flood_copies_total"], &[]),
            lost: sum(&["mgre_flood_lost_total"], &[]),
            made: sum(&["mgre_slow_path_packets_total"], &[("event", "icmp_sent")]),
            from_peers: sum(&["mgre_peer_receive_packets_total"], &[]),
            reassembled: sum(&["mgre_slow_path_packets_total"], &[("event", "reinjected")]),
            of_nobody: sum(&["mgre_drops_total"], &[("direction", "receive")]),
        })
    }

    /// More frames in than out; none if nothing vanished and nothing counts twice.
    pub const fn missing(self) -> i64 {
        self.received + self.made + self.copies + self.lost - self.sent - self.flooded - self.dropped
    }

    /// Packets that must have come from the underlay.
    const fn packets(self) -> i64 {
        self.from_peers - self.reassembled + self.of_nobody
    }

    /// What the daemon counts, and not the datapath.
    fn of_daemon(self) -> Self {
        Self {
            made: self.made,
            reassembled: self.reassembled,
            dropped: self.overflowed,
            overflowed: self.overflowed,
            ..Self::default()
        }
    }

    const fn since(self, before: Self) -> Self {
        Self {
            received: self.received - before.received,
            sent: self.sent - before.sent,
            dropped: self.dropped - before.dropped,
            overflowed: self.overflowed - before.overflowed,
            flooded: self.flooded - before.flooded,
            copies: self.copies - before.copies,
            lost: self.lost - before.lost,
            made: self.made - before.made,
            from_peers: self.from_peers - before.from_peers,
            reassembled: self.reassembled - before.reassembled,
            of_nobody: self.of_nobody - before.of_nobody,
        }
    }
}

impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { received, sent, dropped, flooded, copies, lost, made, .. } = self;
        write!(f, "{received} received + {made} made + {copies} copies + {lost} lost copies ")?;
        write!(f, "= {sent} sent + {flooded} flooded + {dropped} dropped + {} missing", self.missing())
    }
}

/// The books of all spokes, from a moment on.
#[derive(Debug)]
pub struct Books {
    /// By number.
    spokes: BTreeMap<u8, Book>,
}

/// Nothing is under way if nothing came for so long.
const QUIET: Duration = Duration::from_millis(30);

/// A spoke's.
#[derive(Debug)]
struct Book {
    /// How it stood in the beginning. What daemons counted before they were started again is taken off.
    before: Terms,
    /// What the host had sent and received.
    host: Link,
    /// What its port had.
    port: Link,
    /// GRE packets that come from the underlay.
    wire: Capture,
}

impl Book {
    /// Opens one at a moment when nothing is under way: hosts look for routers and report groups when they like.
    fn open(spoke: &Spoke, spokes: &Spokes) -> Result<Self> {
        let mut opened = None;
        wait::until("nothing is under way", wait::SOON, || {
            let locals = spokes.layout.locals(spoke.number);
            let ours = move |frame: &[u8]| locals.iter().any(|local| is_gre_to(frame, *local));
            let wire = Capture::start_where(&spoke.netns, "wan0", ours)?;
            let read = || -> Result<_> {
                Ok((Terms::read(spoke)?, Link::read(&spoke.host, "eth0")?, port_of(spoke)?))
            };
            let (before, host, port) = read()?;
            thread::sleep(QUIET);
            let quiet = read()? == (before, host, port) && wire.count(|_| true) == 0;
            opened = quiet.then_some(Self { before, host, port, wire });
            Ok(quiet)
        })?;
        opened.context("it was opened")
    }
}

impl Books {
    /// Opens them. Nothing may be under way.
    ///
    /// # Errors
    /// A daemon's.
    pub fn open(spokes: &Spokes) -> Result<Self> {
        let books = spokes.iter().map(|spoke| Ok((spoke.number, Book::open(spoke, spokes)?)));
        Ok(Self { spokes: books.collect::<Result<_>>()? })
    }

    /// Starts a spoke's daemon again. What that counted itself it counts anew.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self, spokes: &mut Spokes, number: u8) -> Result<()> {
        let counted = Terms::read(spokes.spoke(number))?.of_daemon();
        let daemon = &mut spokes.spoke_mut(number).daemon;
        daemon.stop()?;
        daemon.start_again()?;
        if let Some(book) = self.spokes.get_mut(&number) {
            book.before = book.before.since(counted);
        }
        Ok(())
    }

    /// What has come since to a spoke.
    ///
    /// # Errors
    /// The daemon's.
    pub fn terms(&self, spoke: &Spoke) -> Result<Terms> {
        Ok(Terms::read(spoke)?.since(self.of(spoke)?.before))
    }

    fn of(&self, spoke: &Spoke) -> Result<&Book> {
        self.spokes.get(&spoke.number).context("no books of this spoke")
    }

    /// Checks the balance of each spoke, once all that is under way has come to an end.
    ///
    /// # Errors
    /// Frames are missing, or there are more than there were; says which spoke's, and all its counters.
    pub fn check(&self, spokes: &Spokes) -> Result<()> {
        spokes.iter().try_for_each(|spoke| balance(spoke, || self.terms(spoke)))
    }

    /// Checks that each packet that came from the underlay is a peer's, or counted as nobody's.
    ///
    /// # Errors
    /// It is not.
    pub fn check_underlay(&self, spokes: &Spokes) -> Result<()> {
        for spoke in spokes.iter() {
            let mut counts = (0, 0);
            wait::until("packets are counted", wait::SOON, || {
                let came = self.of(spoke)?.wire.count(|packet| !packet.outgoing);
                counts = (i64::try_from(came)?, self.terms(spoke)?.packets());
                Ok(counts.0 == counts.1)
            })
            .with_context(|| {
                format!("spoke {}: {} packets came, {} are counted", spoke.number, counts.0, counts.1)
            })?;
        }
        Ok(())
    }

    /// Checks that what each host sent was received by its port `lan0`, and that what the port sent was received by the
    /// host.
    ///
    /// # Errors
    /// It was not.
    pub fn check_hosts(&self, spokes: &Spokes) -> Result<()> {
        for spoke in spokes.iter() {
            let Book { host, port, .. } = self.of(spoke)?;
            let mut found = (Link::default(), Link::default());
            wait::until("host and port agree", wait::SOON, || {
                found = (Link::read(&spoke.host, "eth0")?.since(*host), port_of(spoke)?.since(*port));
                Ok((found.0.sent, found.0.received) == (found.1.received, found.1.sent))
            })
            .with_context(|| format!("host {}: {:?}, its port: {:?}", spoke.number, found.0, found.1))?;
        }
        Ok(())
    }
}

/// Checks the balance of each spoke since it began. No port and no peer was removed since then: their counters went
/// with them.
///
/// # Errors
/// As [`Books::check`].
pub fn check(spokes: &Spokes) -> Result<()> {
    spokes.iter().try_for_each(|spoke| balance(spoke, || Terms::read(spoke)))
}

fn balance(spoke: &Spoke, read: impl Fn() -> Result<Terms>) -> Result<()> {
    let mut terms = Terms::default();
    wait::until("nothing is missing", wait::SOON, || {
        terms = read()?;
        Ok(terms.missing() == 0)
    })
    .map(|_| ())
    .with_context(|| spoke.daemon.mgre(&["stats", "--drops"]).unwrap_or_default())
    .with_context(|| spoke.daemon.mgre(&["stats"]).unwrap_or_default())
    .with_context(|| format!("spoke {}: {terms}", spoke.number))
}

/// Whether a frame is a packet to an address that is GRE, or a fragment of one.
fn is_gre_to(frame: &[u8], local: IpAddr) -> bool {
    let (protocol, to) = match frame.get(12..14) {
        Some([0x08, 0x00]) => (frame.get(23), frame.get(30..34)),
        Some([0x86, 0xdd]) => (frame.get(20), frame.get(38..54)),
        _ => return false,
    };
    let to_us = match local {
        IpAddr::V4(local) => to == Some(&local.octets()[..]),
        IpAddr::V6(local) => to == Some(&local.octets()[..]),
    };
    // An IPv6 fragment says inside what it is one of.
    let is_gre = protocol == Some(&IP_PROTOCOL_GRE)
        || protocol == Some(&IPV6_FRAGMENT) && frame.get(54) == Some(&IP_PROTOCOL_GRE);
    to_us && is_gre
}

/// IPv6's next header of fragments.
const IPV6_FRAGMENT: u8 = 44;

/// Checks that what a spoke sent to another is what that one received from it. Frames that are cut or put together on
/// the way count differently at the ends.
///
/// # Errors
/// It is not.
pub fn check_peer(from: &Spoke, to: &Spoke) -> Result<()> {
    let count = |spoke: &Spoke, name: &str, key: &str| spoke.peer(name)?[key].as_u64().context("no count");
    let mut counts = (0, 0);
    wait::until("what was sent has arrived", wait::SOON, || {
        counts = (count(from, &to.name(), "tx_packets")?, count(to, &from.name(), "rx_packets")?);
        Ok(counts.0 == counts.1)
    })
    .map(|_| ())
    .with_context(|| format!("{} sent {} to {}, {} arrived", from.name(), counts.0, to.name(), counts.1))
}

/// Frames over an interface, by its own count or by a port's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Sent.
    pub sent: u64,
    /// Received.
    pub received: u64,
}

impl Link {
    /// By the interface's driver.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn read(netns: &Netns, interface: &str) -> Result<Self> {
        let text = netns.run(&["ip", "-json", "-statistics", "link", "show", interface])?;
        let links: Value = serde_json::from_str(&text)?;
        let number = |way: &str| links[0]["stats64"][way]["packets"].as_u64().context("no statistics");
        Ok(Self { sent: number("tx")?, received: number("rx")? })
    }

    const fn since(self, before: Self) -> Self {
        Self { sent: self.sent - before.sent, received: self.received - before.received }
    }
}

/// What the port to a spoke's host has counted.
fn port_of(spoke: &Spoke) -> Result<Link> {
    let metrics = Metrics::over_socket(&spoke.daemon.socket())?;
    let number = |name: &str| -> Result<u64> {
        Ok(metrics.get(name, &[("port", "lan0")]).context("no port lan0")? as u64)
    };
    Ok(Link {
        sent: number("mgre_port_transmit_packets_total")?,
        received: number("mgre_port_receive_packets_total")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing() {
        let terms = Terms {
            received: 10,
            sent: 8,
            flooded: 1,
            copies: 3,
            lost: 1,
            dropped: 6,
            made: 1,
            ..Terms::default()
        };
        assert_eq!(terms.missing(), 0);
        assert_eq!(Terms { received: 11, ..terms }.missing(), 1);
        assert_eq!(Terms { sent: 9, ..terms }.missing(), -1);
        assert_eq!(terms.since(terms), Terms::default());
    }
}

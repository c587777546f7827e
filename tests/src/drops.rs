//! Drop counters, by each way of reading them.

use std::{collections::BTreeMap, fmt, os::unix::net::UnixStream};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{daemon::Daemon, metrics::Metrics, metrics::get, wait};

/// Whose counters a frame counts in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whose {
    /// No peer's and no port's.
    Nobody,
    /// A peer's, in a segment.
    Peer(String, String),
    /// A port's, which is in a segment.
    Port(String, String),
}

/// One counter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counter {
    /// Whose it is.
    pub whose: Whose,
    /// `receive` or `transmit`.
    pub direction: String,
    /// The reason's name.
    pub reason: String,
}

impl fmt::Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { whose, direction, reason } = self;
        match whose {
            Whose::Nobody => write!(f, "{reason}, {direction}, of nobody"),
            Whose::Peer(name, segment) => write!(f, "{reason}, {direction}, of peer {name} in {segment}"),
            Whose::Port(name, segment) => write!(f, "{reason}, {direction}, of port {name} in {segment}"),
        }
    }
}

/// Counters that are not zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops(pub BTreeMap<Counter, u64>);

impl Drops {
    /// What all ways of reading them say, once they say the same.
    ///
    /// # Errors
    /// They do not soon, or one of them cannot be read.
    pub fn read(daemon: &Daemon) -> Result<Self> {
        let mut ways = Vec::new();
        let agreed = wait::value("all ways of reading drops agree", wait::SOON, || {
            ways = vec![Self::by_text(daemon)?, Self::by_json(daemon)?, Self::by_api(daemon)?];
            ways.push(Self::by_metrics(daemon)?);
            Ok(ways.iter().all(|way| *way == ways[0]).then(|| ways[0].clone()))
        });
        agreed.with_context(|| format!("by text, JSON, API and metrics: {ways:#?}"))
    }

    /// `mgre stats --drops`.
    ///
    /// # Errors
    /// It fails, or is no such table.
    pub fn by_text(daemon: &Daemon) -> Result<Self> {
        let text = daemon.mgre(&["stats", "--drops"])?;
        let mut lines = text.lines();
        let head: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
        let columns = ["REASON", "DIRECTION", "PEER", "PORT", "SEGMENT", "PACKETS", "MEANING"];
        ensure!(head == columns, "columns {head:?}");
        lines.map(|line| row_of_text(line).with_context(|| line.to_owned())).collect()
    }

    /// `mgre -j stats --drops`.
    ///
    /// # Errors
    /// It fails, or is no list of counters.
    pub fn by_json(daemon: &Daemon) -> Result<Self> {
        daemon.list(&["stats", "--drops"])?.iter().map(row_of_json).collect()
    }

    /// `GET /v1/stats`.
    ///
    /// # Errors
    /// It fails, or has no list of counters.
    pub fn by_api(daemon: &Daemon) -> Result<Self> {
        let stats: Value = serde_json::from_str(&get(UnixStream::connect(daemon.socket())?, "/v1/stats")?)?;
        stats["drops"].as_array().context("no drops")?.iter().map(row_of_json).collect()
    }

    /// `GET /metrics`.
    ///
    /// # Errors
    /// It fails, or a series has no such labels.
    pub fn by_metrics(daemon: &Daemon) -> Result<Self> {
        let metrics = Metrics::over_socket(&daemon.socket())?;
        let families = ["mgre_drops_total", "mgre_peer_drops_total", "mgre_port_drops_total"];
        let samples = metrics.samples.iter().filter(|sample| families.contains(&sample.name.as_str()));
        samples
            .filter(|sample| sample.value != 0.0)
            .map(|sample| {
                let [peer, port, segment, direction, reason] =
                    ["peer", "port", "segment", "direction", "reason"]
                        .map(|name| sample.labels.get(name).map(String::as_str));
                let (direction, reason) = direction.zip(reason).context("a label is missing")?;
                // Whole numbers far below 2^53.
                Ok((counter(peer, port, segment, direction, reason)?, sample.value as u64))
            })
            .collect()
    }

    /// What has come to it since.
    ///
    /// # Errors
    /// A counter is less than it was.
    pub fn since(&self, before: &Self) -> Result<Self> {
        if let Some((counter, _)) = before.0.iter().find(|(counter, count)| self.get(counter) < **count) {
            bail!("{counter}: {} before, {} now", before.get(counter), self.get(counter));
        }
        let grown = self.0.iter().map(|(counter, count)| (counter.clone(), count - before.get(counter)));
        Ok(Self(grown.filter(|(_, count)| *count > 0).collect()))
    }

    /// One counter.
    pub fn get(&self, counter: &Counter) -> u64 {
        self.0.get(counter).copied().unwrap_or(0)
    }

    /// The sum of those that `wanted` accepts.
    pub fn sum(&self, wanted: impl Fn(&Counter) -> bool) -> u64 {
        self.0.iter().filter(|(counter, _)| wanted(counter)).map(|(_, count)| count).sum()
    }
}

impl FromIterator<(Counter, u64)> for Drops {
    fn from_iter<I: IntoIterator<Item = (Counter, u64)>>(counters: I) -> Self {
        Self(counters.into_iter().collect())
    }
}

impl fmt::Display for Drops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(counter, count)| writeln!(f, "{count} {counter}"))
    }
}

fn counter(
    peer: Option<&str>,
    port: Option<&str>,
    segment: Option<&str>,
    direction: &str,
    reason: &str,
) -> Result<Counter> {
    let whose = match (peer, port, segment) {
        (None, None, None) => Whose::Nobody,
        (Some(peer), None, Some(segment)) => Whose::Peer(peer.into(), segment.into()),
        (None, Some(port), Some(segment)) => Whose::Port(port.into(), segment.into()),
        _ => bail!("whose? {peer:?} {port:?} {segment:?}"),
    };
    Ok(Counter { whose, direction: direction.into(), reason: reason.into() })
}

fn row_of_text(line: &str) -> Result<(Counter, u64)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [reason, direction, peer, port, segment, packets, ..] = words[..] else { bail!("too few columns") };
    let [peer, port, segment] = [peer, port, segment].map(|name| (name != "-").then_some(name));
    Ok((counter(peer, port, segment, direction, reason)?, packets.parse()?))
}

fn row_of_json(row: &Value) -> Result<(Counter, u64)> {
    let text = |key: &str| row[key].as_str();
    let reason = text("reason").context("no reason")?;
    let direction = text("direction").context("no direction")?;
    let packets = row["packets"].as_u64().context("no packets")?;
    Ok((counter(text("peer"), text("port"), text("segment"), direction, reason)?, packets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_table() {
        let line = "ecn  receive  spoke1  -  lan  3  Congestion marked outside.";
        let (counter, count) = row_of_text(line).expect("a row");
        assert_eq!((counter.whose, count), (Whose::Peer("spoke1".into(), "lan".into()), 3));
        let (counter, _) = row_of_text("malformed receive - - - 1 Cut short.").expect("a row");
        assert_eq!(counter.whose, Whose::Nobody);
        assert!(row_of_text("malformed receive spoke1 - - 1 Cut short.").is_err());
    }

    #[test]
    fn only_what_grew_has_grown() {
        let one = row_of_text("ecn receive spoke1 - lan 3 x").expect("a row");
        let other = row_of_text("ecn receive spoke2 - lan 3 x").expect("a row");
        let before = Drops::from_iter([one.clone()]);
        let after = Drops::from_iter([one, other.clone()]);
        assert_eq!(after.since(&before).expect("more"), Drops::from_iter([other]));
        assert!(before.since(&after).is_err());
    }
}

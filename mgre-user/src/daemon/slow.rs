//! The engine's part in the slow path: the pair of interfaces, and what routers say of paths.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use std::{fs, io};

use mgre_common::wire::MacAddr;

use super::engine::Engine;
use super::interfaces::alias;
use super::observe::Stale;
use crate::api::messages::SlowPathView;
use crate::netlink::Link;
use crate::slow::Pair;
use crate::slow::counters::Happening;
use crate::slow::quote::{Narrow, Said};

/// Outer packets that the kernel put together may be as long as any.
const MTU: u32 = 65_535;
/// An interface's name is shorter than 16 bytes; so much of it is the instance's.
const INSTANCE_MOST: usize = 8;

/// What an end is for, as its name ends.
const ENDS: [&str; 2] = ["i", "o"];

/// The names of both ends: the one that the datapath sends out of, and the other.
fn names(instance: &str) -> [String; 2] {
    ENDS.map(|end| match instance {
        short if short.len() <= INSTANCE_MOST => format!("mgre-{short}-{end}"),
        long => format!("mgre-{:08x}-{end}", crc32fast::hash(long.as_bytes())),
    })
}

/// The pair, if both ends are there and ours.
fn pair<'a>(
    link: impl Fn(&str) -> Option<&'a Link>,
    names: &[String; 2],
    alias: &str,
) -> Option<(Pair, bool)> {
    let [inner, outer] = names.each_ref().map(|name| link(name).filter(|link| is_ours(link, alias)));
    let (inner, outer) = (inner?, outer?);
    let whole = inner.peer_index == Some(outer.index) && outer.peer_index == Some(inner.index);
    let end = |link: &Link| Some((link.index, link.mac?)) as Option<(u32, MacAddr)>;
    let fit = inner.up && outer.up && inner.mtu == MTU && outer.mtu == MTU;
    whole.then_some((Pair { inner: end(inner)?, outer: end(outer)? }, fit))
}

fn is_ours(link: &Link, alias: &str) -> bool {
    link.kind.as_deref() == Some("veth") && link.alias.as_deref() == Some(alias)
}

/// Which CPUs take what an interface receives (`rps_cpus`): one takes everything, where nothing may overtake anything.
const ONE_CPU: &str = "1";
/// Each takes what it sent.
const EACH_ITS_OWN: &str = "0";

/// Says which CPUs take what an interface receives.
///
/// # Errors
/// `classes` is not of this network namespace, or cannot be written.
fn steer(classes: &Path, name: &str, index: u32, cpus: &str) -> io::Result<()> {
    let interface = classes.join(name);
    if fs::read_to_string(interface.join("ifindex"))?.trim().parse() != Ok(index) {
        return Err(io::ErrorKind::NotFound.into());
    }
    for queue in fs::read_dir(interface.join("queues"))? {
        let queue = queue?.path();
        if queue.join("rps_cpus").exists() {
            fs::write(queue.join("rps_cpus"), cpus)?;
        }
    }
    Ok(())
}

/// The mark of an instance on its pair. It is not that of the host's interfaces, which a port may be.
pub(super) fn pair_alias(instance: &str) -> String {
    format!("{}:slow", alias(instance))
}

/// How a pair of interfaces is used.
#[derive(Debug)]
pub(super) struct PairUse {
    /// Whether frames keep their order, as far as that was said.
    ordered: Option<bool>,
    /// Frames that the kernel had no room for when that was looked at last.
    dropped: Arc<AtomicU64>,
}

/// That was never looked at.
const UNKNOWN: u64 = u64::MAX;

impl PairUse {
    /// Of a pair that was just made: nothing was lost in it.
    fn made() -> Self {
        Self { ordered: None, dropped: Arc::new(AtomicU64::new(0)) }
    }
}

impl Default for PairUse {
    fn default() -> Self {
        Self { ordered: None, dropped: Arc::new(AtomicU64::new(UNKNOWN)) }
    }
}

impl Engine {
    fn pair_alias(&self) -> String {
        pair_alias(&self.options.instance)
    }

    /// Makes sure that the pair is there, and up. Without it everything goes on but the slow path.
    pub(super) async fn keep_pair(&mut self) {
        let made = self.make_pair().await;
        let why = made.err();
        if let Some(why) = why.as_ref().filter(|why| self.no_pair.as_ref() != Some(*why)) {
            tracing::warn!("no slow path: {why}");
        }
        self.no_pair = why;
    }

    async fn make_pair(&mut self) -> Result<(), String> {
        let (names, alias) = (names(&self.options.instance), self.pair_alias());
        let found = pair(|name| self.observed.link(name), &names, &alias);
        self.observed.slow = found.map(|(pair, _)| pair);
        if let Some((_, true)) = found {
            return Ok(());
        }
        // Half a pair, or one that somebody changed.
        for name in &names {
            match self.observed.link(name) {
                Some(link) if is_ours(link, &alias) => self.delete_interfaces(&[link.index]).await,
                Some(_) => return Err(format!("there is an interface named {name} that is not mgre's")),
                None => {}
            }
        }
        self.observed.slow = None;
        let [inner, outer] = names.each_ref().map(String::as_str);
        self.netlink.create_pair([inner, outer], MTU, &alias).await.map_err(|error| error.to_string())?;
        self.refresh(&Stale::links()).await.map_err(|error| error.to_string())?;
        let made = pair(|name| self.observed.link(name), &names, &alias);
        self.observed.slow = made.map(|(pair, _)| pair);
        self.pair_use = PairUse::made();
        made.map(drop).ok_or_else(|| format!("{inner} is gone again"))
    }

    /// Has frames keep their order in the pair, if some peer gets sequence numbers: they get them where they come out,
    /// and the peer drops what is late (RFC 2890 2.2). That is more than one CPU can take from others that send as fast
    /// as they can, so without such a peer each goes on with its own.
    pub(super) fn steer_pair(&mut self) {
        let Some(pair) = self.observed.slow else { return };
        let ordered = self.slow.keeps_order();
        if self.pair_use.ordered == Some(ordered) {
            return;
        }
        self.pair_use.ordered = Some(ordered);
        let [_, outer] = names(&self.options.instance);
        let cpus = if ordered { ONE_CPU } else { EACH_ITS_OWN };
        if let Err(error) = steer(Path::new("/sys/class/net"), &outer, pair.outer.0, cpus)
            && ordered
        {
            tracing::debug!(%error, "frames with sequence numbers may overtake each other");
        }
    }

    /// Counts the frames that were lost in the pair; the kernel does, for each interface.
    pub(super) fn count_overflows(&self) {
        let Some(pair) = self.observed.slow else { return };
        let (netlink, counters) = (self.netlink.clone(), self.slow.counters().clone());
        let last = Arc::clone(&self.pair_use.dropped);
        tokio::spawn(async move {
            let Ok(Some(now)) = netlink.received_and_dropped([pair.inner.0, pair.outer.0]).await else {
                return;
            };
            // What was lost before this daemon is not its own to count. The latest answer may come before others.
            if last.compare_exchange(UNKNOWN, now, Ordering::Relaxed, Ordering::Relaxed).is_err() {
                let before = last.fetch_max(now, Ordering::Relaxed);
                counters.add(Happening::Overflowed, now.saturating_sub(before));
            }
        });
    }

    /// Removes the pair.
    pub(super) async fn remove_pair(&mut self) {
        if let Some(pair) = self.observed.slow.take() {
            self.delete_interfaces(&[pair.inner.0]).await;
        }
    }

    /// Takes note of what a router said of a path.
    pub(super) fn note_path(&mut self, said: Said) {
        match said {
            Said::Narrow(narrow) => self.note_narrow(narrow),
            Said::NoWay { remote } => {
                let news = self.detour(remote);
                let happening = if news { Happening::IcmpReceived } else { Happening::IcmpIgnored };
                self.slow.counters().count(happening);
            }
        }
    }

    fn note_narrow(&mut self, narrow: Narrow) {
        let Narrow { remote, mtu } = narrow;
        let route = self.observed.routes.get(&remote).copied().flatten();
        let link = route.and_then(|route| self.observed.links.get(&route.ifindex));
        let wide = link.is_some_and(|link| mtu < link.mtu)
            && route.and_then(|route| route.mtu).is_none_or(|now| mtu < now);
        let news = wide && self.paths.lower(remote, mtu, Instant::now());
        self.slow.counters().count(if news { Happening::IcmpReceived } else { Happening::IcmpIgnored });
        if news {
            tracing::info!("the path to {remote} takes packets of {mtu} bytes");
            self.observed.path_mtu.insert(remote, mtu);
            self.stale.told = true;
            self.catch_up_soon();
        }
    }

    pub(super) fn slow_path_view(&self) -> SlowPathView {
        let count = |happening| self.slow.counters().get(happening);
        SlowPathView {
            problems: self.no_pair.iter().cloned().chain(self.slow.failures()).collect(),
            reassembled: count(Happening::Reassembled),
            reinjected: count(Happening::Reinjected),
            refused: count(Happening::Refused),
            fragmented: count(Happening::Fragmented),
            icmp_sent: count(Happening::IcmpSent),
            icmp_suppressed: count(Happening::IcmpSuppressed),
            icmp_received: count(Happening::IcmpReceived),
            icmp_ignored: count(Happening::IcmpIgnored),
            overflowed: count(Happening::Overflowed),
        }
    }

    /// Tries paths again that were narrow long ago.
    pub(super) fn forget_paths(&mut self) {
        for remote in self.paths.forget(Instant::now()) {
            tracing::info!("the path to {remote} is tried with longer packets again");
            self.observed.path_mtu.remove(&remote);
            self.stale.told = true;
            self.catch_up_soon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIAS: &str = "mgre:default:slow";

    fn ends() -> [Link; 2] {
        let names = names("default");
        let end = |index: u32, name: &String| Link {
            index,
            name: name.clone(),
            mac: Some(MacAddr([2, 0, 0, 0, 0, index as u8])),
            mtu: MTU,
            up: true,
            kind: Some("veth".into()),
            alias: Some(ALIAS.into()),
            peer_index: Some(3 - index),
            ..Link::default()
        };
        [end(1, &names[0]), end(2, &names[1])]
    }

    fn found(ends: &[Link]) -> Option<(u32, u32, bool)> {
        let link = |name: &str| ends.iter().find(|link| link.name == name);
        pair(link, &names("default"), ALIAS).map(|(pair, fit)| (pair.inner.0, pair.outer.0, fit))
    }

    #[test]
    fn names_fit_and_differ() {
        assert_eq!(names("default"), ["mgre-default-i", "mgre-default-o"]);
        let long = ["an-instance-with-a-long-name", "another-instance-with-a-long-name", "lab", "12345678"];
        let all: std::collections::BTreeSet<String> = long.iter().flat_map(|name| names(name)).collect();
        assert_eq!(all.len(), 2 * long.len());
        assert!(all.iter().all(|name| name.len() < libc::IFNAMSIZ), "{all:?}");
    }

    #[test]
    fn every_receive_queue_of_the_right_interface_is_steered() {
        let folder = tempfile::tempdir().expect("a folder");
        let queue = |name: &str| folder.path().join("end/queues").join(name);
        for name in ["rx-0", "rx-1", "tx-0"] {
            fs::create_dir_all(queue(name)).expect("made");
        }
        fs::write(folder.path().join("end/ifindex"), "7\n").expect("written");
        for name in ["rx-0", "rx-1"] {
            fs::write(queue(name).join("rps_cpus"), "0\n").expect("written");
        }
        assert!(steer(folder.path(), "end", 8, "1").is_err(), "one of the same name elsewhere");
        assert_eq!(fs::read_to_string(queue("rx-0").join("rps_cpus")).expect("read"), "0\n");
        steer(folder.path(), "end", 7, "1").expect("steered");
        for name in ["rx-0", "rx-1"] {
            assert_eq!(fs::read_to_string(queue(name).join("rps_cpus")).expect("read"), "1");
        }
        assert!(!queue("tx-0").join("rps_cpus").exists());
        assert!(steer(folder.path(), "none", 7, "1").is_err());
    }

    #[test]
    fn only_a_whole_pair_of_ours_is_taken() {
        assert_eq!(found(&ends()), Some((1, 2, true)));
        assert_eq!(found(&ends()[..1]), None);
        type Spoil = fn(&mut Link);
        let spoils: [Spoil; 6] = [
            |link| link.alias = None,
            |link| link.alias = Some("mgre:default".into()),
            |link| link.kind = Some("dummy".into()),
            |link| link.peer_index = Some(9),
            |link| link.peer_index = None,
            |link| link.mac = None,
        ];
        for spoil in spoils {
            for end in 0..2 {
                let mut ends = ends();
                spoil(&mut ends[end]);
                assert_eq!(found(&ends), None);
            }
        }
        let changes: [Spoil; 2] = [|link| link.up = false, |link| link.mtu = 1500];
        for change in changes {
            let mut ends = ends();
            change(&mut ends[1]);
            assert_eq!(found(&ends), Some((1, 2, false)));
        }
    }
}

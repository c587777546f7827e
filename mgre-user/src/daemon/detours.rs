//! Uplinks that do not lead to a peer, as a router on the way said, and what is done about it for a while: the peer is
//! reached by another uplink. The kernel's own choice among several next hops takes no note of such messages.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::engine::Engine;
use crate::plan::Uplinks;

/// How long the kernel's choice is not tried again the first time; twice as long each further time.
const FIRST: Duration = Duration::from_secs(30);
/// The longest that that becomes.
const MOST: Duration = Duration::from_secs(480);

/// How long another uplink is used before it may be given up in turn: routers speak of packets that left before.
const PATIENCE: Duration = Duration::from_secs(1);

/// Which interface is not used, since when, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Detour {
    avoided: u32,
    since: Instant,
    until: Instant,
    lasts: Duration,
}

/// Detours by endpoint.
#[derive(Debug, Default)]
pub(super) struct Detours(BTreeMap<IpAddr, Detour>);

impl Detours {
    /// Begins one that avoids an interface. False if there is one already.
    fn begin(&mut self, remote: IpAddr, avoided: u32, now: Instant) -> bool {
        let lasts = match self.0.get(&remote) {
            None => FIRST,
            Some(before) if now >= before.until => (before.lasts * 2).min(MOST),
            Some(before) if before.avoided != avoided && now >= before.since + PATIENCE => before.lasts,
            Some(_) => return false,
        };
        self.0.insert(remote, Detour { avoided, since: now, until: now + lasts, lasts });
        true
    }

    /// Those that are over. How long they lasted is remembered for as long again.
    fn over(&mut self, now: Instant) -> Vec<IpAddr> {
        self.0.retain(|_, detour| now < detour.until + detour.lasts);
        self.0.iter().filter(|(_, detour)| detour.until <= now).map(|(remote, _)| *remote).collect()
    }
}

impl Engine {
    /// Takes another uplink to an endpoint, if there is one and it may lead there. Says whether that is so.
    pub(super) fn detour(&mut self, remote: IpAddr) -> bool {
        let Some(route) = self.observed.routes.get(&remote).copied().flatten() else { return false };
        let uplinks = Uplinks::new(&self.state, &self.observed);
        let others = uplinks.detours(remote, route.ifindex);
        if others.is_empty() || !self.detours.begin(remote, route.ifindex, Instant::now()) {
            return false;
        }
        let name = self.observed.links.get(&route.ifindex).map_or("?", |link| &link.name);
        tracing::info!("a router says that {remote} cannot be reached by {name}: trying another underlay");
        self.observed.avoided.insert(remote, route.ifindex);
        self.stale.some_routes.insert(remote);
        self.catch_up_soon();
        true
    }

    /// Tries the kernel's choice again where that was some time ago.
    pub(super) fn end_detours(&mut self) {
        for remote in self.detours.over(Instant::now()) {
            if self.observed.avoided.remove(&remote).is_some() && self.observed.routes.contains_key(&remote) {
                self.stale.some_routes.insert(remote);
                self.catch_up_soon();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detours_are_longer_each_time_and_forgotten() {
        let remote: IpAddr = [192, 0, 2, 1].into();
        let (mut detours, mut now) = (Detours::default(), Instant::now());
        for seconds in [30, 60, 120, 240, 480, 480] {
            assert!(detours.begin(remote, 7, now));
            assert!(!detours.begin(remote, 7, now + PATIENCE), "there is one");
            assert!(detours.over(now + Duration::from_secs(seconds - 1)).is_empty());
            now += Duration::from_secs(seconds);
            assert_eq!(detours.over(now), [remote]);
        }
        now += MOST;
        assert!(detours.over(now).is_empty());
        assert!(detours.begin(remote, 7, now));
        assert_eq!(detours.over(now + FIRST), [remote]);
    }

    #[test]
    fn a_detour_that_leads_nowhere_is_left_too() {
        let remote: IpAddr = [192, 0, 2, 1].into();
        let (mut detours, now) = (Detours::default(), Instant::now());
        assert!(detours.begin(remote, 7, now));
        assert!(!detours.begin(remote, 8, now), "not at once");
        assert!(detours.begin(remote, 8, now + PATIENCE));
        assert!(!detours.begin(remote, 8, now + 2 * PATIENCE));
        assert!(detours.over(now + FIRST).is_empty());
        assert_eq!(detours.over(now + PATIENCE + FIRST), [remote], "as long as the first");
    }
}

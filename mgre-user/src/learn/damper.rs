//! Addresses that are seen in two places by turns: loops, and addresses used twice.
//!
//! An address that moves too often is *held* where it was before that began: whoever takes
//! another's address came later, and of the copies of a frame that goes round in a loop the
//! first to arrive has come the shortest way, so that what the spokes of a loop hold makes a
//! tree. It is held while both places go on speaking, and let go when there has been quiet for
//! a while, which is longer each time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use mgre_common::fdb::FdbKey;
use mgre_common::target::Target;

use super::Sighting;

/// Moves of one address in [`DAMPING_SECONDS`] after which it is held.
pub const DAMPING_MOVES: u32 = 5;

/// How long moves are counted, and how long it has to be quiet the first time before an
/// address is let go.
pub const DAMPING_SECONDS: u32 = 10;

/// An address was seen lately, if it was so many seconds ago: the clock's last step, or the one before.
const FRESH_SECONDS: u32 = 2;

/// The longest that it ever has to be quiet.
const MAX_QUIET_SECONDS: u32 = 300;

/// For so long it is remembered that an address was held.
const MEMORY_SECONDS: u32 = 600;

/// Addresses that are remembered at most. The moves of further ones are not counted.
const MAX_ADDRESSES: usize = 65_536;

/// Remembers which addresses moved lately, and which are held.
#[derive(Debug, Default)]
pub struct Damper {
    addresses: HashMap<FdbKey, Flaps>,
}

/// What is remembered of one address.
#[derive(Debug)]
struct Flaps {
    /// Moves since then.
    moves: u32,
    since: u32,
    /// Where it was before, and where else it was seen last.
    home: Target,
    other: Target,
    /// When it was last seen elsewhere, if it is held.
    disputed: Option<u32>,
    /// How long it has to be quiet; zero: it was not held before.
    quiet: u32,
}

/// An address that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Segment and address.
    pub key: FdbKey,
    /// Where it is held.
    pub home: Target,
    /// Where else it was seen.
    pub other: Target,
    /// How long it has to be quiet until it is let go.
    pub quiet_seconds: u32,
}

impl Damper {
    /// Notes a move at a time by the clock; says where the address is to be held, if it is.
    pub fn moves(&mut self, key: FdbKey, from: Target, to: Target, now: u32) -> Option<Target> {
        let full = self.addresses.len() >= MAX_ADDRESSES;
        let flaps = match self.addresses.entry(key) {
            Entry::Vacant(_) if full => return None,
            Entry::Vacant(entry) => entry.insert(Flaps::new(from, to, now, 0)),
            Entry::Occupied(entry) => entry.into_mut(),
        };
        if now.saturating_sub(flaps.since) >= DAMPING_SECONDS || flaps.disputed.is_some() {
            *flaps = Flaps::new(from, to, now, flaps.quiet);
        }
        flaps.moves += 1;
        flaps.other = if to == flaps.home { from } else { to };
        if flaps.moves <= DAMPING_MOVES {
            return None;
        }
        flaps.disputed = Some(now);
        flaps.quiet = (2 * flaps.quiet).clamp(DAMPING_SECONDS, MAX_QUIET_SECONDS);
        Some(flaps.home)
    }

    /// Notes that an address is seen elsewhere while it is held; says whether it stays where it
    /// is, and was last seen at this time.
    ///
    /// It does if it was seen there lately: within ten seconds, for a frame to many may be a copy
    /// that went round; within two, for one that was for a station has come the way that works.
    pub fn stays(&mut self, sighting: &Sighting, seen: u32) -> bool {
        let lately = if sighting.stopped { DAMPING_SECONDS } else { FRESH_SECONDS };
        if let Some(flaps) = self.addresses.get_mut(&sighting.key) {
            flaps.disputed = Some(sighting.now);
            flaps.other = sighting.source;
        }
        sighting.now.saturating_sub(seen) < lately
    }

    /// Notes that an address that is held is held elsewhere now.
    pub fn relocate(&mut self, key: FdbKey, to: Target) {
        if let Some(flaps) = self.addresses.get_mut(&key) {
            flaps.other = flaps.home;
            flaps.home = to;
        }
    }

    /// Begins anew with an address.
    pub fn forget_address(&mut self, key: FdbKey) {
        self.addresses.remove(&key);
    }

    /// Forgets what is long past; gives the addresses that are to be let go.
    pub fn forget(&mut self, now: u32) -> Vec<FdbKey> {
        let mut free = Vec::new();
        for (key, flaps) in &mut self.addresses {
            if flaps.disputed.is_some_and(|disputed| now.saturating_sub(disputed) >= flaps.quiet) {
                flaps.disputed = None;
                flaps.moves = 0;
                flaps.since = now;
                free.push(*key);
            }
        }
        self.addresses.retain(|_, flaps| {
            let memory = if flaps.quiet == 0 { DAMPING_SECONDS } else { MEMORY_SECONDS };
            flaps.disputed.is_some() || now.saturating_sub(flaps.since) < memory
        });
        free
    }

    /// An address, if it is held.
    pub fn hold(&self, key: FdbKey) -> Option<Hold> {
        self.addresses.get(&key).and_then(|flaps| flaps.hold(key))
    }

    /// Addresses that are held now.
    pub fn held(&self) -> impl Iterator<Item = Hold> {
        self.addresses.iter().filter_map(|(key, flaps)| flaps.hold(*key))
    }
}

impl Flaps {
    const fn new(home: Target, other: Target, now: u32, quiet: u32) -> Self {
        Self { moves: 0, since: now, home, other, disputed: None, quiet }
    }

    fn hold(&self, key: FdbKey) -> Option<Hold> {
        let Self { home, other, quiet, .. } = *self;
        self.disputed.map(|_| Hold { key, home, other, quiet_seconds: quiet })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mgre_common::wire::MacAddr;

    const HERE: Target = Target::port(1);
    const ONE: Target = Target::adjacency(1);
    const OTHER: Target = Target::adjacency(2);

    fn key(number: u8) -> FdbKey {
        FdbKey::new(1, MacAddr([2, 0, 0, 0, 0, number]))
    }

    fn sighting(now: u32) -> Sighting {
        Sighting { key: key(1), source: OTHER, stopped: false, now }
    }

    /// Moves it to and fro until it is held; where, and how many moves it took.
    fn flap(damper: &mut Damper, from: Target, to: Target, now: u32) -> (Target, u32) {
        let mut places = [from, to];
        for moves in 1..100 {
            if let Some(home) = damper.moves(key(1), places[0], places[1], now) {
                return (home, moves);
            }
            places.swap(0, 1);
        }
        panic!("it was never held");
    }

    #[test]
    fn it_is_held_where_it_was_before() {
        for (from, to, home) in [(ONE, OTHER, ONE), (HERE, ONE, HERE), (ONE, HERE, ONE)] {
            let mut damper = Damper::default();
            assert_eq!(flap(&mut damper, from, to, 7), (home, DAMPING_MOVES + 1));
            let hold = damper.hold(key(1)).expect("held");
            assert_eq!((hold.home, hold.quiet_seconds), (home, DAMPING_SECONDS));
            assert_ne!(hold.other, home);
            assert_eq!(damper.hold(key(2)), None);
        }
    }

    #[test]
    fn now_and_then_it_may_move() {
        let mut damper = Damper::default();
        for now in (0..1000).step_by(2) {
            assert_eq!(damper.moves(key(1), ONE, OTHER, now), None, "{now}");
        }
    }

    #[test]
    fn it_is_let_go_when_there_is_quiet() {
        let mut damper = Damper::default();
        flap(&mut damper, ONE, OTHER, 100);
        for now in 101..150 {
            assert!(damper.stays(&sighting(now), now));
            assert_eq!(damper.forget(now), []);
        }
        assert_eq!(damper.forget(149 + DAMPING_SECONDS - 1), []);
        assert_eq!(damper.forget(149 + DAMPING_SECONDS), [key(1)]);
        assert_eq!(damper.forget(200), []);
        assert_eq!(damper.held().count(), 0);
    }

    #[test]
    fn each_time_it_takes_longer_and_that_is_forgotten() {
        let mut damper = Damper::default();
        let mut now = 0;
        for quiet in [10, 20, 40, 80, 160, 300, 300] {
            flap(&mut damper, ONE, OTHER, now);
            assert_eq!(damper.hold(key(1)).expect("held").quiet_seconds, quiet);
            assert_eq!(damper.forget(now + quiet - 1), []);
            now += quiet;
            assert_eq!(damper.forget(now), [key(1)]);
        }
        damper.forget(now + MEMORY_SECONDS);
        flap(&mut damper, ONE, OTHER, now + MEMORY_SECONDS);
        assert_eq!(damper.hold(key(1)).expect("held").quiet_seconds, DAMPING_SECONDS);
    }

    #[test]
    fn who_is_not_heard_of_any_more_does_not_keep_it() {
        let mut damper = Damper::default();
        flap(&mut damper, ONE, OTHER, 50);
        let to_many = |now| Sighting { stopped: true, ..sighting(now) };
        assert!(damper.stays(&sighting(51), 50) && damper.stays(&to_many(59), 50));
        assert!(!damper.stays(&sighting(52), 50) && !damper.stays(&to_many(60), 50));
        damper.relocate(key(1), OTHER);
        let hold = damper.hold(key(1)).expect("held");
        assert_eq!((hold.home, hold.other), (OTHER, ONE));
    }

    #[test]
    fn memory_is_bounded() {
        let mut damper = Damper::default();
        for number in 0..2 * MAX_ADDRESSES as u32 {
            let [a, b, c, d] = number.to_be_bytes();
            damper.moves(FdbKey::new(1, MacAddr([2, 0, a, b, c, d])), ONE, OTHER, 0);
        }
        assert_eq!(damper.addresses.len(), MAX_ADDRESSES);
        damper.forget(DAMPING_SECONDS);
        assert_eq!(damper.addresses.len(), 0);
    }
}

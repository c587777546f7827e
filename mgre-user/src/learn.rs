//! What to make of a learn event. Pure: the engine carries the decisions out.

use std::collections::HashMap;

use mgre_common::fdb::FdbKey;
use mgre_common::target::Target;

/// Moves of one address in [`DAMPING_SECONDS`] after which it is held where it is.
pub const DAMPING_MOVES: u32 = 5;

/// How long moves are counted, and how long an address that moved too often is held.
pub const DAMPING_SECONDS: u32 = 10;

/// What the FDB holds for the event's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing.
    Nothing,
    /// An entry that was learned.
    Learned(Target),
    /// An entry that was given, which never moves.
    Fixed,
}

/// How many addresses were learned, and how many may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Learned so far.
    pub learned: u32,
    /// The most.
    pub limit: u32,
}

impl Quota {
    /// Whether no more may be learned.
    pub const fn is_full(self) -> bool {
        self.learned >= self.limit
    }
}

/// What to do about an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: the FDB says so already, or says otherwise for good.
    Nothing,
    /// Add the entry.
    Learn,
    /// Point the entry to where the address was seen.
    Move,
    /// Leave it where it is: it moves too often.
    Damp,
    /// Do not learn it: its peer or its segment holds as many as it may.
    Refuse,
}

/// Remembers which addresses moved lately.
#[derive(Debug, Default)]
pub struct Damper {
    moves: HashMap<FdbKey, Moves>,
}

#[derive(Debug)]
struct Moves {
    count: u32,
    since: u32,
}

impl Damper {
    /// Notes a move at a time by the clock; says whether it may take place.
    fn admit(&mut self, key: FdbKey, now: u32) -> bool {
        let moves = self.moves.entry(key).or_insert(Moves { count: 0, since: now });
        if now.saturating_sub(moves.since) >= DAMPING_SECONDS {
            *moves = Moves { count: 0, since: now };
        }
        moves.count = moves.count.saturating_add(1);
        if moves.count == DAMPING_MOVES + 1 {
            // Held from here on, not from the first move.
            moves.since = now;
        }
        moves.count <= DAMPING_MOVES
    }

    /// Forgets moves that are long past.
    pub fn forget(&mut self, now: u32) {
        self.moves.retain(|_, moves| now.saturating_sub(moves.since) < DAMPING_SECONDS);
    }

    /// Addresses that are held now.
    pub fn held(&self) -> usize {
        self.moves.values().filter(|moves| moves.count > DAMPING_MOVES).count()
    }
}

/// Decides. `source` is where the address was seen, `peer` the quota of that
/// place's peer (none for a port), `segment` that of its segment.
pub fn decide(
    damper: &mut Damper,
    key: FdbKey,
    source: Target,
    known: Known,
    peer: Option<Quota>,
    segment: Quota,
    now: u32,
) -> Decision {
    if !key.mac().is_station() || source.is_none() {
        return Decision::Nothing;
    }
    match known {
        Known::Fixed => Decision::Nothing,
        Known::Learned(target) if target == source => Decision::Nothing,
        Known::Learned(_) if peer.is_some_and(Quota::is_full) => Decision::Refuse,
        Known::Learned(_) if damper.admit(key, now) => Decision::Move,
        Known::Learned(_) => Decision::Damp,
        Known::Nothing if segment.is_full() || peer.is_some_and(Quota::is_full) => Decision::Refuse,
        Known::Nothing => Decision::Learn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mgre_common::wire::MacAddr;

    const HERE: Target = Target::port(1);
    const THERE: Target = Target::adjacency(1);
    const FREE: Quota = Quota { learned: 0, limit: 10 };
    const FULL: Quota = Quota { learned: 10, limit: 10 };

    fn key() -> FdbKey {
        FdbKey::new(1, MacAddr([2, 0, 0, 0, 0, 1]))
    }

    fn decide_once(known: Known, source: Target, peer: Option<Quota>, segment: Quota) -> Decision {
        decide(&mut Damper::default(), key(), source, known, peer, segment, 0)
    }

    #[test]
    fn new_addresses_are_learned_within_limits() {
        assert_eq!(decide_once(Known::Nothing, HERE, None, FREE), Decision::Learn);
        assert_eq!(decide_once(Known::Nothing, THERE, Some(FREE), FREE), Decision::Learn);
        assert_eq!(decide_once(Known::Nothing, THERE, Some(FULL), FREE), Decision::Refuse);
        assert_eq!(decide_once(Known::Nothing, THERE, Some(FREE), FULL), Decision::Refuse);
    }

    #[test]
    fn known_addresses_move_but_fixed_ones_do_not() {
        assert_eq!(decide_once(Known::Learned(HERE), THERE, Some(FREE), FULL), Decision::Move);
        assert_eq!(decide_once(Known::Learned(HERE), THERE, Some(FULL), FREE), Decision::Refuse);
        assert_eq!(decide_once(Known::Learned(HERE), HERE, None, FREE), Decision::Nothing);
        assert_eq!(decide_once(Known::Fixed, THERE, Some(FREE), FREE), Decision::Nothing);
    }

    #[test]
    fn group_and_zero_addresses_are_never_learned() {
        for mac in [MacAddr::BROADCAST, MacAddr::ZERO, MacAddr([1, 0, 0x5e, 0, 0, 1])] {
            let key = FdbKey::new(1, mac);
            let decision = decide(&mut Damper::default(), key, HERE, Known::Nothing, None, FREE, 0);
            assert_eq!(decision, Decision::Nothing, "{mac}");
        }
    }

    #[test]
    fn an_address_that_flaps_is_held_and_then_let_go() {
        let mut damper = Damper::default();
        let mut flap = |now| decide(&mut damper, key(), THERE, Known::Learned(HERE), None, FREE, now);
        for _ in 0..DAMPING_MOVES {
            assert_eq!(flap(3), Decision::Move);
        }
        assert_eq!(flap(4), Decision::Damp);
        assert_eq!(flap(4 + DAMPING_SECONDS - 1), Decision::Damp);
        assert_eq!(flap(4 + DAMPING_SECONDS), Decision::Move);
        damper.forget(100);
        assert_eq!(damper.held(), 0);
    }
}

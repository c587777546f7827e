//! What to make of a learn event. Pure: the engine carries the decisions out.

mod damper;

use mgre_common::fdb::FdbKey;
use mgre_common::target::Target;

pub use damper::{DAMPING_MOVES, DAMPING_SECONDS, Damper, Hold};

/// What the FDB holds for the event's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing.
    Nothing,
    /// An entry that was learned.
    Learned(Target),
    /// One that is held where it is, and when it was seen there last, by the clock.
    Held(Target, u32),
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
    /// It moves too often: point it there, and hold it.
    Hold(Target),
    /// Leave it where it is held.
    Stay,
    /// Do not learn it: its peer or its segment holds as many as it may.
    Refuse,
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
        Known::Learned(target) | Known::Held(target, _) if target == source => Decision::Nothing,
        Known::Held(_, seen) if damper.disputes(key, seen, source, now) => Decision::Stay,
        Known::Learned(_) | Known::Held(..) if peer.is_some_and(Quota::is_full) => Decision::Refuse,
        Known::Held(..) => {
            damper.forget_address(key);
            Decision::Move
        }
        Known::Learned(target) => match damper.moves(key, target, source, now) {
            None => Decision::Move,
            Some(home) => Decision::Hold(home),
        },
        Known::Nothing if segment.is_full() || peer.is_some_and(Quota::is_full) => Decision::Refuse,
        Known::Nothing => {
            damper.forget_address(key);
            Decision::Learn
        }
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
    fn an_address_that_flaps_is_held_while_both_places_speak() {
        let mut damper = Damper::default();
        let mut see = |source, known, now| decide(&mut damper, key(), source, known, None, FREE, now);
        for _ in 0..DAMPING_MOVES {
            assert_eq!(see(THERE, Known::Learned(HERE), 3), Decision::Move);
        }
        assert_eq!(see(THERE, Known::Learned(HERE), 4), Decision::Hold(HERE));
        assert_eq!(see(HERE, Known::Held(HERE, 4), 4), Decision::Nothing);
        assert_eq!(see(THERE, Known::Held(HERE, 12), 13), Decision::Stay);
        // Where it is held it has not been heard of for a while: it went.
        assert_eq!(see(THERE, Known::Held(HERE, 12), 12 + DAMPING_SECONDS), Decision::Move);
        assert_eq!(damper.held().count(), 0);
    }

    #[test]
    fn a_held_address_does_not_go_to_a_full_peer() {
        let mut damper = Damper::default();
        let known = Known::Held(HERE, 0);
        assert_eq!(decide(&mut damper, key(), THERE, known, Some(FULL), FREE, 100), Decision::Refuse);
    }
}

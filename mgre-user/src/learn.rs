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

/// What was seen.
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    /// The address.
    pub key: FdbKey,
    /// Where it was seen.
    pub source: Target,
    /// Whether the frame was dropped: one for many, from an address that is held elsewhere.
    pub stopped: bool,
    /// When, by the clock.
    pub now: u32,
}

/// Decides. `peer` is the quota of the place's peer (none for a port), `segment` that of its segment.
pub fn decide(
    damper: &mut Damper,
    sighting: Sighting,
    known: Known,
    peer: Option<Quota>,
    segment: Quota,
) -> Decision {
    let Sighting { key, source, now, .. } = sighting;
    if !key.mac().is_station() || source.is_none() {
        return Decision::Nothing;
    }
    let peer_is_full = peer.is_some_and(Quota::is_full);
    match known {
        Known::Fixed => Decision::Nothing,
        Known::Learned(target) | Known::Held(target, _) if target == source => Decision::Nothing,
        Known::Held(_, seen) if damper.stays(&sighting, seen) => Decision::Stay,
        Known::Learned(_) | Known::Held(..) if peer_is_full => Decision::Refuse,
        Known::Held(..) => {
            damper.relocate(key, source);
            Decision::Move
        }
        Known::Learned(target) => match damper.moves(key, target, source, now) {
            None => Decision::Move,
            Some(home) => Decision::Hold(home),
        },
        Known::Nothing if segment.is_full() || peer_is_full => Decision::Refuse,
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

    fn sighting(source: Target, now: u32) -> Sighting {
        Sighting { key: key(), source, stopped: false, now }
    }

    fn decide_once(known: Known, source: Target, peer: Option<Quota>, segment: Quota) -> Decision {
        decide(&mut Damper::default(), sighting(source, 0), known, peer, segment)
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
            let sighting = Sighting { key: FdbKey::new(1, mac), ..sighting(HERE, 0) };
            let decision = decide(&mut Damper::default(), sighting, Known::Nothing, None, FREE);
            assert_eq!(decision, Decision::Nothing, "{mac}");
        }
    }

    #[test]
    fn an_address_that_flaps_is_held_while_both_places_speak() {
        let mut damper = Damper::default();
        let mut see = |source, known, now, stopped| {
            decide(&mut damper, Sighting { stopped, ..sighting(source, now) }, known, None, FREE)
        };
        for _ in 0..DAMPING_MOVES {
            assert_eq!(see(THERE, Known::Learned(HERE), 3, false), Decision::Move);
        }
        assert_eq!(see(THERE, Known::Learned(HERE), 4, false), Decision::Hold(HERE));
        assert_eq!(see(HERE, Known::Held(HERE, 4), 4, false), Decision::Nothing);
        // It speaks to one, and is still heard of where it is held; then it is not.
        assert_eq!(see(THERE, Known::Held(HERE, 12), 13, false), Decision::Stay);
        assert_eq!(see(THERE, Known::Held(HERE, 12), 14, false), Decision::Move);
        assert_eq!(see(THERE, Known::Held(THERE, 14), 14, false), Decision::Nothing);
        // To all: that may be a copy of what was said elsewhere.
        assert_eq!(see(HERE, Known::Held(THERE, 14), 23, true), Decision::Stay);
        assert_eq!(see(HERE, Known::Held(THERE, 14), 14 + DAMPING_SECONDS, true), Decision::Move);
        assert_eq!(damper.hold(key()).expect("it is held all the while").home, HERE);
    }

    #[test]
    fn a_held_address_does_not_go_to_a_full_peer() {
        let known = Known::Held(HERE, 0);
        let decision = decide(&mut Damper::default(), sighting(THERE, 100), known, Some(FULL), FREE);
        assert_eq!(decision, Decision::Refuse);
    }
}

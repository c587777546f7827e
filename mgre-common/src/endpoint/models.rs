//! The memory protocol, in every order of its loads and stores; see the FDB's models ([`crate::fdb`]) for what a reader
//! is, and what it means that a slot rests.

use loom::sync::Arc;
use loom::{model, thread};

use super::*;

/// Two peers in one segment, as most are: one word is another.
const ONE: EndpointWords = EndpointWords([0, 1, 0, 2, 7]);
const OTHER: EndpointWords = EndpointWords([0, 3, 0, 2, 7]);

const OF_ONE: Owner = Owner { adjacency: 0, segment: 1, flags: 0 };
const OF_OTHER: Owner = Owner { adjacency: 5, segment: 1, flags: 0 };

/// What a program makes of a packet: none is a miss.
fn look_up(slot: &EndpointSlot, words: &EndpointWords) -> Option<Owner> {
    if slot.holds(words) { slot.owner() } else { None }
}

/// Writes while a program looks an endpoint up, and then waits for the program.
fn during(
    slot: &Arc<EndpointSlot>,
    words: EndpointWords,
    write: impl FnOnce(&EndpointSlot),
) -> Option<Owner> {
    let reader = {
        let slot = Arc::clone(slot);
        thread::spawn(move || look_up(&slot, &words))
    };
    write(slot);
    reader.join().expect("the reader ends")
}

#[test]
fn an_endpoint_that_is_entered_appears_whole() {
    model(|| {
        let slot = Arc::new(EndpointSlot::default());
        let found = during(&slot, ONE, |slot| slot.insert(&ONE, OF_ONE));
        assert!([None, Some(OF_ONE)].contains(&found), "{found:?}");
        assert_eq!((look_up(&slot, &ONE), look_up(&slot, &OTHER)), (Some(OF_ONE), None));
    });
}

#[test]
fn an_endpoint_that_is_given_away_is_one_owners_or_the_others() {
    model(|| {
        let slot = Arc::new(EndpointSlot::default());
        slot.insert(&ONE, OF_ONE);
        let found = during(&slot, ONE, |slot| slot.give(OF_OTHER));
        assert!([Some(OF_ONE), Some(OF_OTHER)].contains(&found), "{found:?}");
    });
}

/// A slot is emptied by `clear`, and used for another endpoint; whether it rests in between is told.
fn use_again(rests: bool, looked_up: EndpointWords, clear: fn(&EndpointSlot)) {
    let slot = Arc::new(EndpointSlot::default());
    slot.insert(&ONE, OF_ONE);
    let reuse = |slot: &EndpointSlot| slot.insert(&OTHER, OF_OTHER);
    let found = if rests {
        let before = during(&slot, looked_up, clear);
        [before, during(&slot, looked_up, reuse)]
    } else {
        let at_once = |slot: &EndpointSlot| {
            clear(slot);
            reuse(slot);
        };
        [during(&slot, looked_up, at_once), None]
    };
    let right = if looked_up == ONE { OF_ONE } else { OF_OTHER };
    assert!(found.iter().flatten().all(|owner| *owner == right), "another's packet: {found:?}");
    assert_eq!((look_up(&slot, &ONE), look_up(&slot, &OTHER)), (None, Some(OF_OTHER)));
}

#[test]
fn a_slot_that_has_rested_gives_nobodys_packet_to_another() {
    model(|| use_again(true, ONE, EndpointSlot::clear));
    model(|| use_again(true, OTHER, EndpointSlot::clear));
}

#[test]
#[should_panic(expected = "another's packet")]
fn a_slot_that_has_not_rested_gives_its_old_peers_packet_to_the_new_owner() {
    model(|| use_again(false, ONE, EndpointSlot::clear));
}

#[test]
#[should_panic(expected = "another's packet")]
fn a_slot_whose_words_are_left_gives_its_old_peers_packet_to_the_new_owner() {
    model(|| use_again(true, ONE, |slot| slot.words[WORDS - 1].store(0, Ordering::Release)));
}

#[test]
#[should_panic(expected = "another's packet")]
fn a_slot_whose_owner_is_left_gives_its_new_peers_packet_to_the_old_owner() {
    model(|| {
        use_again(true, OTHER, |slot| slot.words.iter().for_each(|word| word.store(0, Ordering::Release)));
    });
}

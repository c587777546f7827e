//! What to make of what hosts say of their addresses. Pure: the engine carries the decisions out.
//!
//! A claim of an address that is free is believed, and so is one that takes the address from
//! another MAC address: hosts change theirs, and addresses move to other hosts. Where that goes
//! to and fro, two hosts have one address; then nobody answers for them until they are done.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use mgre_common::fdb::FdbKey;
use mgre_common::neighbor::{Binding, MAX_NEIGHBORS, NeighborKey};
use mgre_common::target::Target;
use mgre_common::wire::MacAddr;

#[cfg(test)]
mod tests;

/// The most addresses that are believed of one port or one peer in a segment.
pub const PER_SOURCE: u32 = 4096;
/// The most addresses of one MAC address.
pub const PER_MAC: usize = 64;
/// Changes of the MAC address in [`CHANGES_SECONDS`] by which an address is two hosts'.
pub const DUPLICATE_CHANGES: u32 = 3;
/// How long changes are counted.
pub const CHANGES_SECONDS: u32 = 10;
/// For how long nobody answers for two hosts with one address, once they have been quiet.
pub const DUPLICATE_SECONDS: u32 = 30;
/// An entry is looked at no later than so many seconds after the last look: the ageing time may change.
const LOOK_SECONDS: u32 = 30;

/// Somebody says that he has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The address.
    pub key: NeighborKey,
    /// His MAC address, and flags.
    pub binding: Binding,
    /// Where he is.
    pub source: Target,
}

impl Claim {
    /// His MAC address in the segment.
    pub const fn host(&self) -> FdbKey {
        host(&self.key, self.binding)
    }
}

/// The MAC address of a binding, as the FDB has it.
const fn host(key: &NeighborKey, binding: Binding) -> FdbKey {
    FdbKey::new(key.segment, binding.mac())
}

/// What to do about a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Write it down.
    Learn,
    /// Write it down again: nobody contests it any more, or a flag changed.
    Renew,
    /// Write it down in the place of this one.
    Move(MacAddr),
    /// Nobody is to answer from now on: this one has the address, too.
    Duplicate(MacAddr),
    /// Nothing: who has the address is in dispute.
    Wait,
    /// Nothing: there are too many.
    Refuse,
}

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// Who has it.
    pub binding: Binding,
    /// Where he said so.
    source: Target,
    /// Two hosts say that they have it.
    dispute: Option<Dispute>,
    /// When it is to be looked at.
    due: u32,
}

impl Neighbor {
    /// Whether two hosts say that they have it.
    pub const fn is_duplicate(&self) -> bool {
        self.dispute.is_some()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dispute {
    /// Who said so last.
    last: MacAddr,
    until: u32,
}

#[derive(Debug)]
struct Changes {
    count: u32,
    since: u32,
}

/// All that is known.
#[derive(Debug, Default)]
pub struct Neighbors {
    entries: HashMap<NeighborKey, Neighbor>,
    by_host: HashMap<FdbKey, HashSet<NeighborKey>>,
    by_source: HashMap<Target, u32>,
    by_segment: HashMap<u16, u32>,
    changes: HashMap<NeighborKey, Changes>,
    disputes: HashSet<NeighborKey>,
    /// When each entry is to be looked at; some of them are gone.
    due: BinaryHeap<Reverse<(u32, NeighborKey)>>,
}

impl Neighbors {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many there are in a segment.
    pub fn count_in(&self, segment: u16) -> u32 {
        self.by_segment.get(&segment).copied().unwrap_or(0)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&NeighborKey, &Neighbor)> {
        self.entries.iter()
    }

    /// Takes note of a claim at a time by the clock, and decides.
    pub fn hear(&mut self, claim: &Claim, now: u32) -> Decision {
        let mac = claim.binding.mac();
        let Some(known) = self.entries.get_mut(&claim.key) else {
            if self.entries.len() >= MAX_NEIGHBORS as usize || !self.may_have_more(claim) {
                return Decision::Refuse;
            }
            let Claim { key, binding, source } = *claim;
            let due = now + LOOK_SECONDS;
            self.due.push(Reverse((due, key)));
            self.entries.insert(key, Neighbor { binding, source, dispute: None, due });
            self.count(claim);
            return Decision::Learn;
        };
        if let Some(dispute) = &mut known.dispute {
            if dispute.last != mac {
                *dispute = Dispute { last: mac, until: now + DUPLICATE_SECONDS };
            }
            return Decision::Wait;
        }
        let before = known.binding.mac();
        if before == mac {
            known.binding = claim.binding;
            return Decision::Renew;
        }
        if self.changes_too_often(claim.key, now) {
            let dispute = Dispute { last: mac, until: now + DUPLICATE_SECONDS };
            if let Some(known) = self.entries.get_mut(&claim.key) {
                known.dispute = Some(dispute);
            }
            self.disputes.insert(claim.key);
            return Decision::Duplicate(before);
        }
        if !self.may_have_more(claim) {
            return Decision::Refuse;
        }
        if let Some(known) = self.entries.get_mut(&claim.key) {
            let old = *known;
            *known = Neighbor { binding: claim.binding, source: claim.source, ..old };
            self.discount(&claim.key, &old);
            self.count(claim);
        }
        Decision::Move(before)
    }

    /// Whether a host, and where it is, may have more addresses.
    fn may_have_more(&self, claim: &Claim) -> bool {
        let from_source = self.by_source.get(&claim.source).copied().unwrap_or(0);
        let of_host = self.by_host.get(&claim.host()).map_or(0, HashSet::len);
        from_source < PER_SOURCE && of_host < PER_MAC
    }

    fn changes_too_often(&mut self, key: NeighborKey, now: u32) -> bool {
        let changes = self.changes.entry(key).or_insert(Changes { count: 0, since: now });
        if now.saturating_sub(changes.since) >= CHANGES_SECONDS {
            *changes = Changes { count: 0, since: now };
        }
        changes.count += 1;
        changes.count >= DUPLICATE_CHANGES
    }

    fn count(&mut self, claim: &Claim) {
        self.by_host.entry(claim.host()).or_default().insert(claim.key);
        *self.by_source.entry(claim.source).or_default() += 1;
        *self.by_segment.entry(claim.key.segment).or_default() += 1;
    }

    /// Forgets an address.
    pub fn remove(&mut self, key: &NeighborKey) -> Option<Neighbor> {
        let known = self.entries.remove(key)?;
        self.discount(key, &known);
        self.disputes.remove(key);
        Some(known)
    }

    fn discount(&mut self, key: &NeighborKey, known: &Neighbor) {
        let host = host(key, known.binding);
        if let Some(addresses) = self.by_host.get_mut(&host) {
            addresses.remove(key);
            if addresses.is_empty() {
                self.by_host.remove(&host);
            }
        }
        decrement(&mut self.by_source, known.source);
        decrement(&mut self.by_segment, key.segment);
    }

    /// The addresses of a host.
    pub fn of_host(&self, host: FdbKey) -> Vec<NeighborKey> {
        self.by_host.get(&host).into_iter().flatten().copied().collect()
    }

    /// The addresses in a segment.
    pub fn in_segment(&self, segment: u16) -> Vec<NeighborKey> {
        self.entries.keys().filter(|key| key.segment == segment).copied().collect()
    }

    /// The next address that is to be looked at, if its time has come.
    pub fn next_due(&mut self, now: u32) -> Option<NeighborKey> {
        while let Some(Reverse((due, key))) = self.due.peek().copied() {
            if due > now {
                return None;
            }
            self.due.pop();
            // It may be forgotten since, or have become known anew.
            if self.entries.get(&key).is_some_and(|known| known.due == due) {
                return Some(key);
            }
        }
        None
    }

    /// Says when an address that was looked at is to be looked at again, where it is to be forgotten
    /// when it was not seen for so long; false: now.
    pub fn stays(&mut self, key: NeighborKey, seen: u32, aging_seconds: u32, now: u32) -> bool {
        let end = seen.saturating_add(aging_seconds);
        if end <= now {
            return false;
        }
        let due = end.min(now + LOOK_SECONDS);
        if let Some(known) = self.entries.get_mut(&key) {
            known.due = due;
            self.due.push(Reverse((due, key)));
        }
        true
    }

    /// Forgets changes that are long past; says which disputes have ended: what is known of these
    /// addresses is to be forgotten, and who has them, he may say.
    pub fn settle(&mut self, now: u32) -> Vec<NeighborKey> {
        self.changes.retain(|_, changes| now.saturating_sub(changes.since) < CHANGES_SECONDS);
        let ended = |key: &&NeighborKey| {
            let dispute = self.entries.get(*key).and_then(|known| known.dispute);
            dispute.is_none_or(|dispute| dispute.until <= now)
        };
        self.disputes.iter().filter(ended).copied().collect()
    }
}

fn decrement<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

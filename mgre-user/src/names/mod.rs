//! Endpoints given as DNS names: when to ask for a name, and which of its addresses to use. Pure: `lookup` asks.
//!
//! An address in use stays in use for as long as the answers have it, whatever order they come in. Where it cannot be
//! reached, another one is tried. An answer that does not come, or says that there is no such name, takes nothing
//! away: the last addresses are kept, also from one daemon to the next (`saved`).

pub mod lookup;
pub mod saved;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::plan::Endpoints;

/// An answer is not asked for again sooner, however short its time to live is, nor later: `/etc/hosts` has none.
const TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(300);
/// How soon a name that does not resolve is asked for again the first time; twice as long each further time.
const RETRY: Duration = Duration::from_secs(5);
/// The longest that that becomes.
const RETRY_MOST: Duration = Duration::from_secs(60);
/// Names that are asked for at one time. Each may take a few descriptors.
const AT_ONCE: usize = 12;

/// What came of asking for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its IPv4 addresses; none if that is not known.
    pub v4: Option<Vec<Ipv4Addr>>,
    /// Its IPv6 addresses.
    pub v6: Option<Vec<Ipv6Addr>>,
    /// For how long that holds.
    pub ttl: Duration,
    /// Why there is no address, or not all are known.
    pub problem: Option<String>,
}

impl Answer {
    fn has_address(&self) -> bool {
        let some = |count: Option<usize>| count.is_some_and(|count| count > 0);
        some(self.v4.as_ref().map(Vec::len)) || some(self.v6.as_ref().map(Vec::len))
    }
}

/// How a name stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It is asked for then.
    Due(Instant),
    /// It waits until fewer names are asked for.
    Waiting,
    /// It is being asked for.
    Asked,
}

/// What is known of a name.
#[derive(Debug)]
struct Known {
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
    used: Endpoints,
    turn: Turn,
    /// How often in a row it did not resolve.
    failures: u32,
    /// Whether somebody wants it, as far as was seen.
    wanted: bool,
}

impl Known {
    fn new() -> Self {
        let used = Endpoints::default();
        Self { v4: Vec::new(), v6: Vec::new(), used, turn: Turn::Waiting, failures: 0, wanted: true }
    }

    /// Uses what the answer has; what was in use before, if it has that.
    fn choose(&mut self) {
        let Endpoints { v4, v6, v6_first } = self.used;
        let v4 = v4.filter(|used| self.v4.contains(used)).or_else(|| self.v4.first().copied());
        let v6 = v6.filter(|used| self.v6.contains(used)).or_else(|| self.v6.first().copied());
        self.used = Endpoints { v4, v6, v6_first: v6_first && v6.is_some() };
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.iter().copied().map(IpAddr::V4).chain(self.v6.iter().copied().map(IpAddr::V6))
    }
}

/// What is known of all names.
#[derive(Debug, Default)]
pub struct Book {
    known: HashMap<String, Known>,
    /// Names that wait, those that are new in front.
    waiting: VecDeque<String>,
    asked: usize,
    /// Something is to be saved.
    changed: bool,
}

impl Book {
    /// With addresses that names had: of each IP version, the first one is in use.
    pub fn remembering(names: impl IntoIterator<Item = (String, Vec<IpAddr>)>) -> Self {
        let mut book = Self::default();
        for (name, addresses) in names {
            let mut known = Known::new();
            for address in &addresses {
                match address {
                    IpAddr::V4(address) => known.v4.push(*address),
                    IpAddr::V6(address) => known.v6.push(*address),
                }
            }
            known.choose();
            known.used.v6_first = addresses.first().is_some_and(IpAddr::is_ipv6);
            book.waiting.push_back(name.clone());
            book.known.insert(name, known);
        }
        book
    }

    /// What is in use of each name that has an address.
    pub fn in_use(&self) -> impl Iterator<Item = (&str, Endpoints)> {
        let used = self.known.iter().map(|(name, known)| (name.as_str(), known.used));
        used.filter(|(_, used)| *used != Endpoints::default())
    }

    /// Takes note of the names that are wanted. Says which are wanted no more, and forgets them.
    pub fn want<'a>(&mut self, names: impl Iterator<Item = &'a str>, now: Instant) -> Vec<String> {
        self.known.values_mut().for_each(|known| known.wanted = false);
        for name in names {
            match self.known.get_mut(name) {
                Some(known) => {
                    known.wanted = true;
                    if matches!(known.turn, Turn::Due(due) if due <= now) {
                        known.turn = Turn::Waiting;
                        self.waiting.push_back(name.to_owned());
                    }
                }
                None => {
                    self.known.insert(name.to_owned(), Known::new());
                    self.waiting.push_front(name.to_owned());
                }
            }
        }
        // What is asked for is forgotten when it is answered.
        let gone = |known: &Known| !known.wanted && known.turn != Turn::Asked;
        let gone: Vec<String> =
            self.known.iter().filter(|(_, known)| gone(known)).map(|(name, _)| name.clone()).collect();
        for name in &gone {
            self.known.remove(name);
            self.changed = true;
        }
        gone
    }

    /// The next name to ask for, if there is one and not too many are asked for already.
    pub fn next_to_ask(&mut self) -> Option<String> {
        while self.asked < AT_ONCE {
            let name = self.waiting.pop_front()?;
            // It may be gone.
            if let Some(known) = self.known.get_mut(&name).filter(|known| known.turn == Turn::Waiting) {
                known.turn = Turn::Asked;
                self.asked += 1;
                return Some(name);
            }
        }
        None
    }

    /// Takes an answer. Says what to use of the name from now on if that is news, and how often in a row it has not
    /// resolved.
    pub fn answer(&mut self, name: &str, answer: Answer, now: Instant) -> (Option<Endpoints>, u32) {
        self.asked = self.asked.saturating_sub(1);
        let Some(known) = self.known.get_mut(name) else { return (None, 0) };
        let before = (known.v4.clone(), known.v6.clone(), known.used);
        let resolved = answer.has_address();
        if resolved {
            known.v4 = answer.v4.unwrap_or_else(|| before.0.clone());
            known.v6 = answer.v6.unwrap_or_else(|| before.1.clone());
            known.failures = 0;
            known.choose();
            let ttl = answer.ttl.clamp(*TTL.start(), *TTL.end());
            known.turn = Turn::Due(now + ttl);
            self.changed |= (&known.v4, &known.v6) != (&before.0, &before.1);
        } else {
            let retry = RETRY.saturating_mul(1 << known.failures.min(8)).min(RETRY_MOST);
            known.failures += 1;
            known.turn = Turn::Due(now + retry);
        }
        self.changed |= known.used != before.2;
        ((known.used != before.2).then_some(known.used), known.failures)
    }

    /// Takes an address for a name that is not known: it is in use until the name resolves.
    pub fn assume(&mut self, name: &str, address: IpAddr) -> Endpoints {
        let known = self.known.entry(name.to_owned()).or_insert_with(|| {
            self.waiting.push_front(name.to_owned());
            Known::new()
        });
        if known.used == Endpoints::default() {
            match address {
                IpAddr::V4(address) => known.v4 = vec![address],
                IpAddr::V6(address) => known.v6 = vec![address],
            }
            known.choose();
            self.changed = true;
        }
        known.used
    }

    /// Whether there is another address to try.
    pub fn has_choice(&self, name: &str) -> bool {
        self.known.get(name).is_some_and(|known| known.v4.len() + known.v6.len() > 1)
    }

    /// Goes on to the next address of a name, of those that are usable. None if there is no other.
    pub fn try_another(
        &mut self,
        name: &str,
        dead: IpAddr,
        usable: impl Fn(IpAddr) -> bool,
    ) -> Option<Endpoints> {
        let known = self.known.get_mut(name)?;
        let all: Vec<IpAddr> =
            known.addresses().filter(|address| *address == dead || usable(*address)).collect();
        let place = all.iter().position(|address| *address == dead)?;
        let next = all[(place + 1) % all.len()];
        if next == dead {
            return None;
        }
        match next {
            IpAddr::V4(address) => known.used.v4 = Some(address),
            IpAddr::V6(address) => known.used.v6 = Some(address),
        }
        known.used.v6_first = next.is_ipv6();
        self.changed = true;
        Some(known.used)
    }

    /// What is to be saved, if it changed since this was asked last: names and their addresses, those in use first.
    pub fn take_changes(&mut self) -> Option<Vec<(String, Vec<IpAddr>)>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let entry = |(name, known): (&String, &Known)| {
            let mut addresses: Vec<IpAddr> = known.used.iter().collect();
            addresses
                .extend(known.addresses().filter(|address| !known.used.iter().any(|used| used == *address)));
            (name.clone(), addresses)
        };
        Some(self.known.iter().map(entry).filter(|(_, addresses)| !addresses.is_empty()).collect())
    }

    /// Has the next [`Self::take_changes`] say everything again: it could not be saved.
    pub fn keep_changes(&mut self) {
        self.changed = true;
    }
}

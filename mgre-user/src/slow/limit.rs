//! How often something is done.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Senders that are remembered at most.
const SENDERS: usize = 1024;

/// A rate, and how much may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The time that earns one.
    pub every: Duration,
    /// How many may come at once.
    pub burst: u32,
}

/// A token bucket, as the time at which it is full again.
#[derive(Clone, Copy, Debug)]
pub struct Bucket(Instant);

impl Bucket {
    /// A full one.
    pub const fn new(now: Instant) -> Self {
        Self(now)
    }

    /// Takes one token, if there is one.
    pub fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let enough = self.has(rate, now);
        if enough {
            self.0 = self.0.max(now) + rate.every;
        }
        enough
    }

    fn has(&self, rate: Rate, now: Instant) -> bool {
        self.0.saturating_duration_since(now) + rate.every <= rate.every * rate.burst
    }

    fn is_full(&self, now: Instant) -> bool {
        self.0 <= now
    }
}

/// A limit for each sender, and one for all together.
#[derive(Debug)]
pub struct Limit<K> {
    each: Rate,
    all: Rate,
    senders: HashMap<K, Bucket>,
    total: Bucket,
}

impl<K: Eq + Hash> Limit<K> {
    /// With these rates.
    pub fn new(each: Rate, all: Rate, now: Instant) -> Self {
        Self { each, all, senders: HashMap::new(), total: Bucket::new(now) }
    }

    /// Whether something may be done for a sender now. What one sender may not costs the others nothing.
    pub fn take(&mut self, sender: K, now: Instant) -> bool {
        if !self.total.has(self.all, now) {
            return false;
        }
        if self.senders.len() >= SENDERS && !self.senders.contains_key(&sender) {
            // A full bucket says what no bucket says.
            self.senders.retain(|_, bucket| !bucket.is_full(now));
            if self.senders.len() >= SENDERS {
                return false;
            }
        }
        let bucket = self.senders.entry(sender).or_insert(Bucket::new(now));
        bucket.take(self.each, now) && self.total.take(self.all, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EACH: Rate = Rate { every: Duration::from_millis(100), burst: 3 };

    fn taken(limit: &mut Limit<u32>, sender: u32, now: Instant) -> usize {
        (0..100).filter(|_| limit.take(sender, now)).count()
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut limit = Limit::new(EACH, Rate { every: Duration::from_millis(1), burst: 1000 }, start);
        assert_eq!(taken(&mut limit, 1, start), 3);
        assert_eq!(taken(&mut limit, 1, start + Duration::from_millis(99)), 0);
        assert_eq!(taken(&mut limit, 1, start + Duration::from_millis(200)), 2);
        // Another has its own.
        assert_eq!(taken(&mut limit, 2, start + Duration::from_millis(200)), 3);
        assert_eq!(taken(&mut limit, 1, start + Duration::from_secs(60)), 3, "no more than a burst");
    }

    #[test]
    fn all_together_have_a_limit() {
        let start = Instant::now();
        let mut limit = Limit::new(EACH, Rate { every: Duration::from_millis(10), burst: 5 }, start);
        assert_eq!(taken(&mut limit, 1, start), 3);
        // What is refused to one does not count for all.
        assert_eq!(taken(&mut limit, 2, start), 2);
        assert_eq!(taken(&mut limit, 3, start), 0);
        assert_eq!(taken(&mut limit, 3, start + Duration::from_millis(20)), 2);
    }

    #[test]
    fn invented_senders_take_no_memory() {
        let start = Instant::now();
        let mut limit = Limit::new(EACH, Rate { every: Duration::from_nanos(1), burst: 1 << 20 }, start);
        let taken = (0..10 * SENDERS as u32).filter(|sender| limit.take(*sender, start)).count();
        assert_eq!((taken, limit.senders.len()), (SENDERS, SENDERS));
        // Those that were quiet make room.
        assert!(limit.take(u32::MAX, start + Duration::from_secs(1)));
        assert_eq!(limit.senders.len(), 1);
    }
}

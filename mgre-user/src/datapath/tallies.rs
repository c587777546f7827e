//! The daemon's own numbers, in a map that the next daemon goes on from.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use mgre_common::tally::{Pause, Tally, instance};
use nix::time::{ClockId, clock_gettime};

use super::shared::SharedArray;

/// The numbers.
#[derive(Debug)]
pub struct Tallies(SharedArray<Tally>);

impl Tallies {
    /// Over the map.
    pub const fn new(map: SharedArray<Tally>) -> Self {
        Self(map)
    }

    /// A number ([`mgre_common::tally::segment`]) of a segment.
    pub fn of(&self, segment: u16, which: usize) -> u64 {
        self.0.get(segment.into()).map_or(0, |tally| tally.numbers[which].load(Ordering::Relaxed))
    }

    /// One more for a segment.
    pub fn count(&self, segment: u16, which: usize) {
        if let Some(tally) = self.0.get(segment.into()) {
            tally.numbers[which].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A segment's numbers begin anew: its id is another's.
    pub fn clear(&self, segment: u16) {
        if let Some(tally) = self.0.get(segment.into()) {
            tally.numbers.iter().for_each(|number| number.store(0, Ordering::Relaxed));
        }
    }

    /// Addresses that the datapath reported.
    pub fn events(&self) -> u64 {
        self.of(0, instance::EVENTS)
    }

    /// One more of those.
    pub fn count_event(&self) {
        self.count(0, instance::EVENTS);
    }

    /// The daemon lives.
    ///
    /// # Errors
    /// The system has no clock that counts on while it sleeps.
    pub fn beat(&self) -> Result<()> {
        if let Some(tally) = self.0.get(0) {
            tally.numbers[instance::ALIVE].store(boot_seconds()?, Ordering::Relaxed);
        }
        Ok(())
    }

    /// When the clock stood still, the latest first.
    pub fn pauses(&self) -> Vec<Pause> {
        let pauses = instance::PAUSES.map(|which| Pause::from_bits(self.of(0, which)));
        pauses.take_while(|pause| pause.seconds != 0).collect()
    }

    /// Goes on from the numbers of an earlier daemon, whose clock stopped at `clock`.
    ///
    /// # Errors
    /// As [`Self::beat`].
    pub(super) fn inherit(&self, from: &Self, segments: impl Iterator<Item = u16>, clock: u32) -> Result<()> {
        for segment in segments.chain([0]) {
            let (from, to) = (from.0.get(segment.into()), self.0.get(segment.into()));
            for (from, to) in from.iter().zip(&to).flat_map(|(from, to)| from.numbers.iter().zip(&to.numbers))
            {
                to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        let since = self.of(0, instance::ALIVE);
        let seconds = boot_seconds()?.saturating_sub(since);
        if since != 0 && seconds > 0 {
            let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
            self.set_pauses(&noted(self.pauses(), Pause { at: clock, seconds }));
        }
        self.beat()
    }

    fn set_pauses(&self, pauses: &[Pause]) {
        let Some(tally) = self.0.get(0) else { return };
        let words = pauses.iter().map(|pause| pause.to_bits()).chain(std::iter::repeat(0));
        for (which, word) in instance::PAUSES.zip(words) {
            tally.numbers[which].store(word, Ordering::Relaxed);
        }
    }
}

/// With one more in front. Of those that there is no room for, the oldest two become one.
fn noted(mut pauses: Vec<Pause>, new: Pause) -> Vec<Pause> {
    pauses.insert(0, new);
    while pauses.len() > instance::PAUSES.len() {
        let oldest = pauses.pop().unwrap_or_default();
        if let Some(last) = pauses.last_mut() {
            last.seconds = last.seconds.saturating_add(oldest.seconds);
        }
    }
    pauses
}

/// How long something was ago that the clock gives a time for, in seconds. What was at the moment that the clock stood
/// still may have been at any time until it went on.
pub fn seconds_ago(at: u64, now: u32, pauses: &[Pause]) -> u64 {
    let stood_still = pauses.iter().filter(|pause| at < u64::from(pause.at));
    u64::from(now).saturating_sub(at) + stood_still.map(|pause| u64::from(pause.seconds)).sum::<u64>()
}

fn boot_seconds() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).context("no boot clock")?;
    Ok(u64::try_from(now.tv_sec())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn pause(at: u32, seconds: u32) -> Pause {
        Pause { at, seconds }
    }

    #[test]
    fn the_time_without_a_daemon_counts_for_what_was_before_it() {
        let pauses = [pause(100, 30), pause(40, 5)];
        assert_eq!(seconds_ago(10, 110, &pauses), 100 + 35);
        assert_eq!(seconds_ago(39, 110, &pauses), 71 + 35);
        assert_eq!(seconds_ago(40, 110, &pauses), 70 + 30, "in the pause or before it");
        assert_eq!(seconds_ago(100, 110, &pauses), 10);
        assert_eq!(seconds_ago(109, 110, &pauses), 1);
        assert_eq!(seconds_ago(111, 110, &pauses), 0);
    }

    #[test]
    fn the_oldest_pauses_become_one() {
        let mut pauses = Vec::new();
        for number in 1..=8 {
            pauses = noted(pauses, pause(number * 10, number));
        }
        assert_eq!(
            pauses,
            [(80, 8), (70, 7), (60, 6), (50, 5), (40, 4), (30, 6)].map(|(at, s)| pause(at, s))
        );
    }

    #[test]
    fn numbers_go_on_and_begin_anew() {
        let memory = || Tallies::new(SharedArray::anonymous(8));
        let (old, new) = (memory(), memory());
        old.beat().expect("a clock");
        old.count_event();
        old.count(3, 1);
        old.count(3, 1);
        old.count(4, 0);
        new.inherit(&old, [3].into_iter(), 9).expect("a clock");
        assert_eq!((new.events(), new.of(3, 1), new.of(4, 0)), (1, 2, 0), "those of segments that there are");
        assert!(new.pauses().len() <= 1);
        new.clear(3);
        assert_eq!((new.events(), new.of(3, 1)), (1, 0));
    }
}

//! Notifications of the kernel that were lost.

use std::time::{Duration, Instant};

/// They are told of so often at most: a storm of changes may go on.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// How often notifications were lost.
#[derive(Debug, Default)]
pub(super) struct Losses {
    count: u64,
    said: Option<Instant>,
}

impl Losses {
    /// Some were lost, and everything is looked at again.
    pub(super) fn note(&mut self) {
        self.count += 1;
        if self.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            self.said = Some(Instant::now());
            tracing::warn!(
                times = self.count,
                "the kernel's notifications came faster than they were read: looking at everything again"
            );
        }
    }

    /// How often that was.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }
}

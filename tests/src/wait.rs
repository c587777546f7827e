//! Waiting for something, but not for ever.

use std::{
    env, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long something may take that is done at once where the machine has nothing else to do, and within the second
/// that a host waits between two questions for an address.
pub const SOON: Duration = Duration::from_secs(10);
/// How often to look.
const INTERVAL: Duration = Duration::from_millis(20);
/// How many times as slow as a usual one the machine is: emulated processors are, by ten times or more.
const PATIENCE: &str = "MGRE_TEST_PATIENCE";

/// A deadline of a usual machine, as long as it is on this one. Not a time that is the daemon's or the kernel's own,
/// such as for how long an entry lives.
pub fn patient(limit: Duration) -> Duration {
    limit * patience()
}

/// A silence that shows on a usual machine that nothing comes, as long as it is on this one. It is many round trips
/// long to begin with, and always waited for to its end, so that it need not grow as deadlines do.
pub fn quiet(silence: Duration) -> Duration {
    silence.mul_f64(f64::from(patience()).sqrt())
}

/// The least of a rate on a usual machine, as little as it is on this one.
pub fn rate(least: f64) -> f64 {
    least / f64::from(patience())
}

fn patience() -> u32 {
    env::var(PATIENCE).ok().and_then(|factor| factor.parse().ok()).unwrap_or(1).max(1)
}

/// Looks until `done` holds, and says how long that took. The limit is one of a usual machine.
///
/// # Errors
/// It did not hold within `limit`, or looking failed.
pub fn until(what: &str, limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let limit = patient(limit);
    let start = Instant::now();
    loop {
        if done()? {
            return Ok(start.elapsed());
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain for: {what}");
        }
        thread::sleep(INTERVAL);
    }
}

/// Looks until `look` gives a value. The limit is one of a usual machine.
///
/// # Errors
/// It gave none within `limit`, or looking failed.
pub fn value<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let mut found = None;
    until(what, limit, || {
        found = look()?;
        Ok(found.is_some())
    })?;
    match found {
        Some(found) => Ok(found),
        None => bail!("{what}: there is nothing"),
    }
}

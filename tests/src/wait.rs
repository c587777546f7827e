//! Waiting for something, but not for ever.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long something may take that is done at once where the machine has nothing else to do, and within the second that
/// a host waits between two questions for an address.
pub const SOON: Duration = Duration::from_secs(10);
/// How often to look.
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks until `done` holds, and says how long that took.
///
/// # Errors
/// It did not hold within `limit`, or looking failed.
pub fn until(what: &str, limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<Duration> {
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

/// Looks until `look` gives a value.
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

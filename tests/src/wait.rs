//! Waiting for something, but not for ever.

use std::{
    env,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long something may take that is done at once where the machine has nothing else to do, and within the second that
/// a host waits between two questions for an address.
pub const SOON: Duration = Duration::from_secs(10);
/// How often to look.
const INTERVAL: Duration = Duration::from_millis(20);

/// How many times as long as on an ordinary machine everything may take: `MGRE_TEST_PATIENCE`, a whole number, or 1. An
/// emulated machine is ten to twenty times as slow.
pub fn patience() -> u32 {
    static PATIENCE: OnceLock<u32> = OnceLock::new();
    *PATIENCE.get_or_init(|| {
        let given = env::var("MGRE_TEST_PATIENCE").ok().and_then(|text| text.parse().ok());
        given.unwrap_or(1).max(1)
    })
}

/// A time limit for this machine, from one for an ordinary machine.
pub fn patient(limit: Duration) -> Duration {
    limit * patience()
}

/// Looks until `done` holds, and says how long that took. `limit` is for an ordinary machine ([`patient`]).
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

//! CPU time: that of the whole machine, whoever's it is.
//!
//! What a frame costs is spent in interrupts, in kernel threads and in whatever ran when an interrupt came, so no
//! process's own time holds it. Time that a CPU is not idle does. It holds the rest of the machine's work too, and that
//! of the generator and the sink, which are the same for all.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// Of the times in /proc/stat (`USER_HZ`): the kernel gives all programs these, whatever its own tick is.
const TICK: Duration = Duration::from_millis(10);
/// The columns of a line of /proc/stat that are not work done here: idle, waiting for a disk, and stolen by other
/// virtual machines.
const NOT_BUSY: [usize; 3] = [3, 4, 7];

/// Since when, and how long CPUs had been idle then.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    start: Instant,
    idle: Duration,
}

impl Meter {
    /// From now on.
    ///
    /// # Errors
    /// /proc/stat cannot be read.
    pub fn start() -> Result<Self> {
        Ok(Self { start: Instant::now(), idle: read()?.0 })
    }

    /// How long CPUs were busy since, all together. Good to some 10 ms for each CPU.
    ///
    /// # Errors
    /// /proc/stat cannot be read.
    pub fn busy(self) -> Result<Duration> {
        let (idle, cpus) = read()?;
        // Not the sum of the busy columns: those are sampled by the tick, and idle times are not.
        Ok((self.start.elapsed() * cpus).saturating_sub(idle.saturating_sub(self.idle)))
    }
}

fn read() -> Result<(Duration, u32)> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    parse(&text).context("/proc/stat makes no sense")
}

/// How long CPUs were not busy, and how many there are.
fn parse(text: &str) -> Option<(Duration, u32)> {
    let columns: Vec<u32> = text
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    let idle = NOT_BUSY.iter().map(|index| columns.get(*index)).sum::<Option<u32>>()?;
    let cpus = text.lines().skip(1).take_while(|line| line.starts_with("cpu")).count();
    Some((TICK * idle, u32::try_from(cpus).ok()?))
}

#[cfg(test)]
mod tests {
    use std::hint;

    use super::*;

    #[test]
    fn idle_times_and_cpus() {
        let text = "cpu  10 20 30 400 5 6 7 8 0 0\ncpu0 1 1 1 1\ncpu1 1 1 1 1\nintr 0\n";
        assert_eq!(parse(text), Some((Duration::from_millis(4130), 2)));
        assert_eq!(parse("cpu  1 2\n"), None);
    }

    #[test]
    fn work_is_seen() {
        let meter = Meter::start().expect("/proc/stat");
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(200) {
            hint::spin_loop();
        }
        let busy = meter.busy().expect("/proc/stat");
        // Not all of it where others want the CPU, or a virtual machine's is taken away.
        assert!(busy >= Duration::from_millis(50), "{busy:?}");
    }
}

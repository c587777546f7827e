//! What a process uses, and how to stop it for a while.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
    },
    unistd::{Pid, SysconfVar, sysconf},
};

/// A process that is stopped (SIGSTOP), until this is dropped.
#[derive(Debug)]
pub struct Paused(Pid);

impl Paused {
    /// Stops a process.
    ///
    /// # Errors
    /// There is none.
    pub fn new(process: u32) -> Result<Self> {
        let process = Pid::from_raw(i32::try_from(process)?);
        kill(process, Signal::SIGSTOP)?;
        Ok(Self(process))
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        if let Err(error) = kill(self.0, Signal::SIGCONT) {
            eprintln!("process {} cannot go on: {error}", self.0);
        }
    }
}

/// Memory of a process that is resident and its own, in KiB: that of shared tables is not.
///
/// # Errors
/// It is gone.
pub fn anonymous_kilobytes(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let value = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(value.trim().trim_end_matches(" kB").parse()?)
}

/// How many descriptors a process has.
///
/// # Errors
/// It is gone.
pub fn descriptors(process: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{process}/fd"))?.count())
}

/// How long a process has been on a CPU.
///
/// # Errors
/// It is gone.
pub fn cpu_time(process: u32) -> Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, which may have anything in it, ends with the last bracket.
    let fields: Vec<&str> = text.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
    let ticks = |index: usize| -> Result<u64> { Ok(fields.get(index).context("too few fields")?.parse()?) };
    let hertz = sysconf(SysconfVar::CLK_TCK)?.context("no clock")?;
    // Fields 14 and 15 of proc_pid_stat(5), of which the first two are gone.
    Ok(Duration::from_secs_f64((ticks(11)? + ticks(12)?) as f64 / hertz as f64))
}

/// Lets this process have as many descriptors as it may, and says how many that is.
///
/// # Errors
/// The kernel does not say.
pub fn raise_descriptors() -> Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

//! What a process uses, and how to stop it for a while.

use std::{
    fs,
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::{
    sched::{CpuSet, sched_setaffinity},
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

/// How long a command may take that has no limit of its own.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(300);

/// Runs a command to its end and returns what it wrote. One that does not end within `limit` is killed.
///
/// # Errors
/// It cannot be started, or does not end.
pub fn output(command: &mut Command, limit: Duration) -> Result<Output> {
    let text = command_text(command);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.with_context(|| format!("cannot start {text}"))?;
    let process = Pid::from_raw(i32::try_from(child.id())?);
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(limit) {
        Ok(output) => Ok(output?),
        Err(_) => {
            kill(process, Signal::SIGKILL)?;
            bail!("{text} does not end within {limit:?}")
        }
    }
}

/// A command as one would type it.
pub fn command_text(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
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

/// Does something on one CPU, in threads that are started for it as well; on any, where there is no such CPU.
///
/// # Errors
/// What is done fails.
pub fn on_cpu<T: Send>(cpu: usize, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut set = CpuSet::new();
            if set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).is_err() {
                eprintln!("there is no CPU {cpu}");
            }
            act()
        });
        thread.join().map_err(|_| anyhow!("a thread panicked"))?
    })
}

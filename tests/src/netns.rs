//! Network namespaces that clean up after themselves.

use std::{
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

use crate::{
    process::{self, command_text},
    wait,
};

/// Where `ip netns` keeps namespaces.
const FOLDER: &str = "/run/netns";
/// What names of namespaces that tests make begin with; the process's id follows.
const PREFIX: &str = "mgre-t";

/// A network namespace under a name that `ip netns` shows, deleted when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    keep: bool,
}

impl Netns {
    /// Makes a namespace with a name of its own that ends in `label`, its loopback up.
    ///
    /// # Errors
    /// What `ip netns` says.
    pub fn new(label: &str) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        static CLEAN: Once = Once::new();
        CLEAN.call_once(remove_stale);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        Self::with_name(format!("{PREFIX}{}-{number}-{label}", std::process::id()))
    }

    /// Makes a namespace with this name.
    ///
    /// # Errors
    /// What `ip netns` says; it exists, for one.
    pub fn with_name(name: String) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let netns = Self { name, keep: false };
        netns.enter(quiet_sysctls)??;
        netns.run(&["ip", "link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves it there when dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// The file that names it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(FOLDER).join(&self.name)
    }

    /// A command that will run in it. Not by `ip netns exec`, which hides what is mounted under /sys.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program).stdin(Stdio::null());
        command
    }

    /// Runs a command in it and returns what it wrote to standard output.
    ///
    /// # Errors
    /// It failed; says what it wrote to standard error.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let (program, arguments) = words.split_first().context("no command")?;
        run(self.command(program).args(arguments))
    }

    /// Runs `ip` in it with one command per line.
    ///
    /// # Errors
    /// The first that failed.
    pub fn ip(&self, commands: &str) -> Result<()> {
        ip_batch(self.command("ip"), commands).with_context(|| format!("in namespace {}", self.name))
    }

    /// Calls a function on a thread in the namespace. What it opens (sockets) stays in the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn enter<T: Send>(&self, function: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("namespace {}", self.name))?;
        thread::scope(|scope| {
            let thread = scope.spawn(|| -> Result<T> {
                setns(file, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
                Ok(function())
            });
            thread.join().map_err(|_| anyhow!("a thread in namespace {} panicked", self.name))?
        })
    }

    /// Packets that an XDP program on one of its interfaces redirected, by the driver's count.
    ///
    /// # Errors
    /// ethtool's.
    pub fn xdp_redirected(&self, interface: &str) -> Result<u64> {
        let statistics = self.run(&["ethtool", "-S", interface])?;
        let counts = statistics.lines().filter_map(|line| line.trim().split_once(": "));
        let redirects = counts.filter(|(name, _)| name.ends_with("xdp_redirect"));
        Ok(redirects.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum())
    }

    /// Sets a setting below `/proc/sys/net`.
    ///
    /// # Errors
    /// There is no such setting, or it cannot have this value.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let file = format!("/proc/sys/net/{name}");
        self.enter(|| fs::write(&file, value))?.with_context(|| format!("cannot write {value} to {file}"))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = run(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("namespace {} stays: {error:#}", self.name);
        }
    }
}

/// Nobody speaks unasked: no duplicate address detection, router solicitations or advertisements.
fn quiet_sysctls() -> Result<()> {
    for scope in ["all", "default"] {
        for (name, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("router_solicitations", "0")] {
            let file = format!("/proc/sys/net/ipv6/conf/{scope}/{name}");
            match fs::write(&file, value) {
                // A kernel without IPv6.
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).context(file);
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Runs `ip` in this namespace with one command per line.
///
/// # Errors
/// The first that failed.
pub fn ip(commands: &str) -> Result<()> {
    ip_batch(Command::new("ip"), commands)
}

fn ip_batch(mut command: Command, commands: &str) -> Result<()> {
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start ip")?;
    child.stdin.take().context("no standard input")?.write_all(commands.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip -batch: {}\n{}", String::from_utf8_lossy(&output.stderr).trim(), commands.trim());
    }
    Ok(())
}

/// Runs a command to its end and returns what it wrote to standard output.
///
/// # Errors
/// It failed; says what it wrote to standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = process::output(command, wait::patient(process::COMMAND_LIMIT))?;
    check(command, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn check(command: &Command, output: &Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    bail!("{} failed ({}): {} {}", command_text(command), output.status, stderr.trim(), stdout.trim())
}

/// Deletes namespaces of test programs that were killed.
fn remove_stale() {
    let Ok(entries) = fs::read_dir(FOLDER) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if process.is_some_and(|process| !PathBuf::from(format!("/proc/{process}")).exists()) {
            // Another test program may be doing the same right now.
            run(Command::new("ip").args(["netns", "del", &name])).ok();
        }
    }
}

//! A demo that was left up: how to look around in it, and how to remove it.

use std::{
    fs,
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use mgre_tests::{daemon, netns, netns::Netns, topology::Spokes};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// What the names of its namespaces begin with.
pub(crate) const PREFIX: &str = "mgre-demo-";
/// Where its daemons' folders are.
pub(crate) const FOLDER: &str = "/run/mgre-demo";

/// Fails if there is one.
pub(crate) fn refuse_second() -> Result<()> {
    if Path::new(FOLDER).exists() || !namespaces()?.is_empty() {
        bail!("a demo is up already; cargo xtask demo --cleanup removes it");
    }
    Ok(())
}

/// Leaves everything up.
pub(crate) fn leave(spokes: Spokes, laptop: Option<Netns>) {
    let (spokes, core) = spokes.into_parts();
    for spoke in spokes {
        spoke.daemon.keep();
        for mut netns in [spoke.netns, spoke.host] {
            netns.keep();
        }
    }
    for mut netns in laptop.into_iter().chain([core]) {
        netns.keep();
    }
}

/// Says what to type next.
pub(crate) fn explain() {
    let mgre = daemon::program().map_or_else(|_| "mgre".to_owned(), |path| path.display().to_string());
    println!(
        "
It stays up. To look around (as root):

  what a spoke knows     {mgre} --run-dir {FOLDER}/spoke1/run fdb show
                         {mgre} --run-dir {FOLDER}/spoke1/run peer show
                         {mgre} --run-dir {FOLDER}/spoke1/run monitor
  be a host              nsenter --net=/run/netns/{PREFIX}host1 ping 10.77.0.2
  see the wire           nsenter --net=/run/netns/{PREFIX}spoke1 tcpdump -eni wan0 proto gre
  its metrics            nsenter --net=/run/netns/{PREFIX}spoke1 curl http://127.0.0.1:9747/metrics
  a daemon's log         less {FOLDER}/spoke1/log
  remove all of it       cargo xtask demo --cleanup"
    );
}

/// Removes one that did not come up whole.
pub(crate) fn remove_if(kept: bool) {
    if kept && let Err(error) = remove() {
        eprintln!("error: {error:#}");
    }
}

/// Removes one that was left up.
pub(crate) fn remove() -> Result<()> {
    let namespaces = namespaces()?;
    if !Path::new(FOLDER).exists() && namespaces.is_empty() {
        println!("There is no demo to remove.");
        return Ok(());
    }
    if let Ok(entries) = fs::read_dir(FOLDER) {
        for entry in entries {
            remove_spoke(&entry?.path())?;
        }
        fs::remove_dir_all(FOLDER).with_context(|| format!("cannot remove {FOLDER}"))?;
    }
    for name in &namespaces {
        netns::run(Command::new("ip").args(["netns", "del", name]))?;
    }
    println!("Removed {} namespaces, their daemons and {FOLDER}.", namespaces.len());
    Ok(())
}

/// Stops a spoke's daemon and unmounts what it pinned to, which detaches everything.
fn remove_spoke(folder: &Path) -> Result<()> {
    if let Some(process) = process(folder) {
        kill(Pid::from_raw(process), Signal::SIGTERM)?;
        let start = Instant::now();
        while is_ours(process, folder) {
            if start.elapsed() > Duration::from_secs(5) {
                bail!("process {process} does not end");
            }
            sleep(Duration::from_millis(20));
        }
    }
    let bpffs = folder.join("bpf");
    match umount2(&bpffs, MntFlags::MNT_DETACH) {
        // Not mounted.
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot unmount {}", bpffs.display())),
    }
}

/// The daemon of a spoke, if it runs: its lock says which process it is, if that still is one of ours.
fn process(folder: &Path) -> Option<i32> {
    let process = fs::read_to_string(folder.join("run/default.lock")).ok()?.trim().parse().ok()?;
    is_ours(process, folder).then_some(process)
}

/// Whether a process was started for this folder.
fn is_ours(process: i32, folder: &Path) -> bool {
    let arguments = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let run = folder.join("run");
    arguments.split(|byte| *byte == 0).any(|argument| argument == run.as_os_str().as_encoded_bytes())
}

fn namespaces() -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(PREFIX) {
            names.push(name);
        }
    }
    Ok(names)
}

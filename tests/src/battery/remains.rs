//! What a daemon leaves in the kernel once it was told to detach.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::programs::loaded_programs;
use serde_json::Value;

use super::switch::Switch;
use crate::{daemon::Daemon, netns::Netns, wait};

/// How long the kernel may take to free programs whose last user is gone.
const FREED_LIMIT: Duration = Duration::from_secs(10);

/// Has a daemon detach and end, and finds nothing of it left.
///
/// # Errors
/// Something is left; or the daemon does not do as it is told.
pub fn check(mut switch: Switch, netns: &Netns) -> Result<()> {
    let programs = programs_of(&switch.daemon)?;
    switch.daemon.mgre(&["detach"])?;
    let status = switch.daemon.wait()?;
    ensure!(status.success(), "the daemon ended with {status}\n{}", switch.daemon.log());

    let links: Vec<Value> = serde_json::from_str(&netns.run(&["ip", "-json", "link", "show"])?)?;
    let names: Vec<&str> = links.iter().filter_map(|link| link["ifname"].as_str()).collect();
    ensure!(!names.iter().any(|name| name.starts_with("mgre")), "interfaces: {names:?}");
    ensure!(!netns.run(&["ip", "link", "show"])?.contains("prog/xdp"), "an XDP program is still attached");
    for interface in ["wan0", "lan0"] {
        for hook in ["ingress", "egress"] {
            let filters = netns.run(&["tc", "filter", "show", "dev", interface, hook]).unwrap_or_default();
            ensure!(!filters.contains("mgre"), "filters of {interface}: {filters}");
        }
    }
    // The kernel keeps files of its own beside.
    let pins = pins(&switch.daemon.bpffs().join("mgre"))?;
    ensure!(pins.is_empty(), "pinned: {}", pins.join(" "));
    let left = || -> Result<BTreeSet<u32>> {
        let loaded: BTreeSet<u32> = loaded_programs().flatten().map(|program| program.id()).collect();
        Ok(loaded.intersection(&programs).copied().collect())
    };
    if wait::until("its programs are freed", FREED_LIMIT, || Ok(left()?.is_empty())).is_err() {
        anyhow::bail!("programs {:?} are still loaded", left()?);
    }
    Ok(())
}

/// The eBPF programs that a daemon holds, by their numbers.
///
/// # Errors
/// It does not run, or holds none.
pub fn programs_of(daemon: &Daemon) -> Result<BTreeSet<u32>> {
    let folder = format!("/proc/{}/fdinfo", daemon.pid().context("the daemon does not run")?);
    let mut programs = BTreeSet::new();
    for entry in fs::read_dir(folder)?.flatten() {
        // One may be closed meanwhile.
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let ids = text.lines().filter_map(|line| line.strip_prefix("prog_id:")?.trim().parse::<u32>().ok());
        programs.extend(ids);
    }
    ensure!(!programs.is_empty(), "the daemon holds no programs");
    Ok(programs)
}

/// Files below a folder, at any depth; none where there is no folder.
fn pins(folder: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    if !folder.exists() {
        return Ok(files);
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(pins(&entry.path())?);
        } else {
            files.push(entry.path().display().to_string());
        }
    }
    Ok(files)
}

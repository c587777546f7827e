//! Where an instance's links are pinned: `mgre/vSCHEMA/INSTANCE/links` in the bpf file system.
//!
//! A daemon of another schema kept its pins in a directory of its own. Its programs are replaced as an earlier daemon's
//! of the same schema are, but nothing is taken out of its tables, which look different.

use std::ffi::CString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::programs::links::{FdLink, PinnedLink};

use super::calls::is_calls;
use crate::plan::Hook;

impl Hook {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Underlay => "underlay",
            Self::Port => "port",
            Self::HostPort => "host-port",
            Self::XdpUnderlay => "xdp-underlay",
            Self::XdpPort => "xdp-port",
            Self::Slow => "slow",
        }
    }
}

/// What a link's pin is called.
pub(super) fn name(ifindex: u32, hook: Hook) -> String {
    format!("{ifindex}-{}", hook.name())
}

fn parse(name: &str) -> Option<(u32, Hook)> {
    let (ifindex, hook) = name.split_once('-')?;
    let hook = Hook::ALL.into_iter().find(|candidate| candidate.name() == hook)?;
    Some((ifindex.parse().ok()?, hook))
}

/// The links that are pinned in a directory.
///
/// # Errors
/// The directory cannot be read.
pub(super) fn pinned_in(directory: &Path) -> Result<Vec<(u32, Hook)>> {
    let names = entries(directory)?.into_iter();
    Ok(names.filter_map(|path| parse(path.file_name()?.to_str()?)).collect())
}

/// The directories in which daemons of the same instance and of other schemas left something.
///
/// # Errors
/// A directory cannot be read.
pub(super) fn elsewhere(directory: &Path) -> Result<Vec<PathBuf>> {
    let Some(instance) = directory.parent() else { return Ok(Vec::new()) };
    let (Some(name), Some(schema)) = (instance.file_name(), instance.parent()) else { return Ok(Vec::new()) };
    let Some(base) = schema.parent() else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for other in entries(base)?.into_iter().filter(|other| other != schema) {
        let links = other.join(name).join("links");
        if !entries(&links)?.is_empty() {
            found.push(links);
        }
    }
    Ok(found)
}

/// A pin with a link's name in one of those.
///
/// # Errors
/// A directory cannot be read.
pub(super) fn elsewhere_named(directory: &Path, ifindex: u32, hook: Hook) -> Result<Option<PathBuf>> {
    let named = elsewhere(directory)?.into_iter().map(|other| other.join(name(ifindex, hook)));
    Ok(named.into_iter().find(|pin| pin.exists()))
}

/// The link that is pinned somewhere. What is there and is none, somebody else put there: it is put aside.
///
/// # Errors
/// It cannot be opened, or put aside.
pub(super) fn own_link(pin: &Path) -> Result<Option<FdLink>> {
    let what = match fs::symlink_metadata(pin) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Ok(there) if there.is_dir() => "a directory",
        _ if is_link(pin).with_context(|| format!("cannot open {}", pin.display()))? => {
            let pinned = PinnedLink::from_pin(pin);
            let link = pinned.with_context(|| format!("cannot open {}", pin.display()))?;
            return Ok(Some(FdLink::from(link)));
        }
        _ => "no link",
    };
    // The file system allows no dots in names.
    let name = pin.file_name().unwrap_or_default().to_string_lossy();
    let free = (0_u32..1000).map(|number| pin.with_file_name(format!("{name}-foreign{number}")));
    let aside = free.into_iter().find(|aside| !aside.exists()).context("no free name")?;
    tracing::warn!("{} is {what}, and not mgre's: put aside as {}", pin.display(), aside.display());
    fs::rename(pin, &aside).with_context(|| format!("cannot put {} aside", pin.display()))?;
    Ok(None)
}

/// Whether a pin is a link's, not a map's or a program's: the kernel gives a descriptor for each, and what that
/// is, its entry in proc says.
fn is_link(pin: &Path) -> io::Result<bool> {
    /// `BPF_OBJ_GET` of include/uapi/linux/bpf.h, and its part of `union bpf_attr`.
    const BPF_OBJ_GET: libc::c_int = 7;
    #[repr(C)]
    struct Attributes {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attributes = Attributes { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: both are there during the call, and the kernel is told how much of them there is.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attributes, size_of::<Attributes>()) };
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let said = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    Ok(said.lines().any(|line| line.starts_with("link_type:")))
}

/// Removes all pins in a directory, and the directory. Says whether there were any.
///
/// # Errors
/// A pin or a directory cannot be removed.
pub(super) fn remove_all(links: &Path) -> Result<bool> {
    let pins: Vec<PathBuf> = entries(links)?.into_iter().filter(|pin| !pin.is_dir()).collect();
    // Links come before the programs that theirs go on in.
    let (calls, others): (Vec<_>, Vec<_>) = pins.iter().partition(|pin| is_calls(pin));
    others.into_iter().chain(calls).try_for_each(|pin| remove_file(pin))?;
    remove_directories(links)?;
    Ok(!pins.is_empty())
}

/// What is in a directory; nothing if there is none.
pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", directory.display())),
    };
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Removes a pin directory and those above it that are then empty, up to mgre's own.
pub(super) fn remove_directories(directory: &Path) -> Result<()> {
    let mut directory = directory;
    // links, the instance, the schema version, mgre.
    for _ in 0..4 {
        match fs::remove_dir(directory) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => return Ok(()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot remove {}", directory.display()));
            }
        }
        let Some(parent) = directory.parent() else { return Ok(()) };
        directory = parent;
    }
    Ok(())
}

/// Removes a file, if it is there.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_names() {
        for hook in Hook::ALL {
            assert_eq!(parse(&name(7, hook)), Some((7, hook)));
        }
        assert_eq!(parse("7-xdp-else"), None);
        assert_eq!(parse("seven-port"), None);
    }
}

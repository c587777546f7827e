//! Which network namespace a daemon is in, told apart from all others of this boot and of others.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::libc;
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

/// The calling thread's network namespace, and where `ip netns` keeps others.
const OWN: &str = "/proc/thread-self/ns/net";
const NAMED: &str = "/run/netns";
/// What is another after each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A network namespace. Inodes are given out again, so that there is more to go by; older versions noted no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Namespace {
    #[serde(rename = "namespace")]
    inode: u64,
    /// Of the boot that it was there in.
    #[serde(default)]
    boot_id: Option<String>,
    /// The kernel's number for it, which is used once in a boot; none before Linux 5.14.
    #[serde(default)]
    cookie: Option<u64>,
}

impl Namespace {
    /// The calling thread's.
    ///
    /// # Errors
    /// There is no /proc.
    pub(super) fn own() -> Result<Self> {
        let inode = fs::metadata(OWN).with_context(|| format!("cannot look at {OWN}"))?.ino();
        let boot_id = fs::read_to_string(BOOT_ID).ok().map(|id| id.trim().to_owned());
        Ok(Self { inode, boot_id, cookie: cookie().ok() })
    }

    /// Whether it is this one, as far as both say.
    fn is(&self, other: &Self) -> bool {
        fn agree<T: PartialEq>(one: &Option<T>, other: &Option<T>) -> bool {
            one.is_none() || other.is_none() || one == other
        }
        self.inode == other.inode
            && agree(&self.boot_id, &other.boot_id)
            && agree(&self.cookie, &other.cookie)
    }

    /// Moves the calling thread there. False if the namespace is gone; then the thread stays where it is.
    ///
    /// # Errors
    /// It is there, and cannot be entered.
    pub(super) fn enter(&self) -> Result<bool> {
        let own = Self::own()?;
        if own.inode == self.inode {
            return Ok(own.is(self));
        }
        let Some(path) = self.find()? else { return Ok(false) };
        let open =
            |path: &PathBuf| File::open(path).with_context(|| format!("cannot open {}", path.display()));
        let (there, back) = (open(&path)?, open(&OWN.into())?);
        setns(there, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter the daemon's network namespace, {}", path.display()))?;
        if Self::own()?.is(self) {
            return Ok(true);
        }
        setns(back, CloneFlags::CLONE_NEWNET).context("cannot go back to the network namespace")?;
        Ok(false)
    }

    /// Where one with its inode is to be had.
    fn find(&self) -> Result<Option<PathBuf>> {
        let named = match fs::read_dir(NAMED) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {NAMED}")),
        };
        let of_processes = fs::read_dir("/proc")?.flatten().map(|entry| entry.path().join("ns/net"));
        let is = |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.ino() == self.inode);
        Ok(named.into_iter().chain(of_processes).find(is))
    }
}

/// The kernel's number for the calling thread's namespace.
fn cookie() -> io::Result<u64> {
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the kernel writes `length` bytes at most, which `cookie` has, and how many these were to `length`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_got_anothers_inode_is_not_it() {
        let own = Namespace::own().expect("there is one");
        assert!(own.enter().expect("it is here"));
        let noted: Namespace =
            serde_json::from_str(&format!("{{\"namespace\": {}}}", own.inode)).expect("an older version's");
        assert!(noted.enter().expect("nothing says otherwise"));
        let later = Namespace { boot_id: Some("another".into()), ..own.clone() };
        assert!(!later.enter().expect("gone"));
        let other = Namespace { cookie: Some(u64::MAX), ..own.clone() };
        assert_eq!(other.enter().expect("looks"), own.cookie.is_none());
        assert!(!Namespace { inode: 1, ..own }.enter().expect("gone"));
    }
}

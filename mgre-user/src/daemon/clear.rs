//! Takes off what a daemon left that runs no more: `mgre detach` without one.

use std::fs;
use std::path::{Path, PathBuf, absolute};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::runtime::Builder;

use super::interfaces::alias;
use super::namespace::Namespace;
use super::slow::pair_alias;
use super::store::{self, Store};
use super::system;
use crate::api::socket::{InstanceLock, StateLock, socket_path};
use crate::datapath::attach;
use crate::netlink::Netlink;

/// Whose traces to remove, and where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clear {
    /// Name of the instance.
    pub instance: String,
    /// Directory of the socket and the lock file.
    pub run_dir: PathBuf,
    /// Directory of the saved state, if not the one that the daemon noted, nor the usual one.
    pub state_dir: Option<PathBuf>,
    /// Where the bpf file system is mounted, likewise.
    pub bpffs: Option<PathBuf>,
}

/// What a daemon notes beside its socket, for whoever has to clean up after it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Places {
    state_dir: PathBuf,
    bpffs: PathBuf,
    /// Its network namespace.
    #[serde(flatten)]
    namespace: Namespace,
}

impl Places {
    fn path(run_dir: &Path, instance: &str) -> PathBuf {
        run_dir.join(format!("{instance}.places"))
    }

    /// Notes where a daemon keeps what it needs.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn note(options: &super::Options) -> Result<()> {
        let places = Self {
            state_dir: absolute(&options.state_dir)?,
            bpffs: absolute(&options.bpffs)?,
            namespace: Namespace::own()?,
        };
        let path = Self::path(&options.run_dir, &options.instance);
        store::replace(&path, &serde_json::to_vec(&places)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Forgets it: nothing is left to clean up.
    pub(super) fn forget(run_dir: &Path, instance: &str) {
        // It may never have been noted.
        fs::remove_file(Self::path(run_dir, instance)).ok();
    }

    fn read(run_dir: &Path, instance: &str) -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::path(run_dir, instance)).ok()?).ok()
    }
}

/// Removes from the kernel what an instance's daemon left there, and puts its saved state aside. False if there is
/// nothing, or this process may not.
///
/// # Errors
/// A daemon runs, or something cannot be removed.
pub fn clear(options: &Clear) -> Result<bool> {
    let Clear { instance, run_dir, .. } = options;
    if !system::lacking()?.is_empty() {
        return Ok(false);
    }
    let places = Places::read(run_dir, instance);
    let choose = |given: &Option<PathBuf>, noted: Option<&PathBuf>, usual: &str| {
        given.clone().or_else(|| noted.cloned()).unwrap_or_else(|| usual.into())
    };
    let bpffs = choose(&options.bpffs, places.as_ref().map(|places| &places.bpffs), super::BPFFS);
    let state_dir =
        choose(&options.state_dir, places.as_ref().map(|places| &places.state_dir), super::STATE_DIR);
    let _lock = if run_dir.exists() { Some(InstanceLock::acquire(run_dir, instance)?) } else { None };
    let _state_lock = if state_dir.is_dir() { StateLock::acquire(&state_dir, instance)? } else { None };
    let there = places.as_ref().map_or(Ok(true), |places| places.namespace.enter())?;
    let pins = bpffs.join("mgre");
    let mut found = if there {
        attach::clear(instance, &pins)?
    } else {
        // What is in the caller's namespace by the same name is somebody else's.
        tracing::warn!("the daemon's network namespace is gone, and what was in it: only files are cleared");
        attach::clear_pins(instance, &pins)?
    };
    let mut promiscuous = Default::default();
    if state_dir.is_dir() {
        let mut store = Store::open(&state_dir, instance)?;
        match store.load() {
            Ok(saved) => promiscuous = saved.promiscuous,
            // It is put aside unread.
            Err(error) => tracing::warn!("{error:#}"),
        }
        found |= store.put_aside()?;
    }
    if there {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        found |= runtime.block_on(clear_interfaces(instance, &promiscuous))?;
    }
    Places::forget(run_dir, instance);
    // One that was killed leaves it.
    fs::remove_file(socket_path(run_dir, instance)).ok();
    Ok(found)
}

/// Deletes the interfaces that the instance made, and lets go of others and of neighbours.
async fn clear_interfaces(instance: &str, promiscuous: &std::collections::BTreeSet<String>) -> Result<bool> {
    let netlink = Netlink::connect()?;
    let marks = [alias(instance), pair_alias(instance)];
    let mut found = false;
    for link in netlink.links().await? {
        if link.alias.as_ref().is_some_and(|alias| marks.contains(alias)) {
            found = true;
            match netlink.delete_link(link.index).await {
                // Either end of a pair takes the other with it.
                Ok(()) | Err(crate::netlink::Error::NoSuchIndex(_)) => {}
                Err(error) => return Err(error.into()),
            }
        } else if promiscuous.contains(&link.name) && link.promiscuous {
            netlink.set_promiscuous(link.index, false).await?;
        }
    }
    if found {
        // Another instance asks for its own again within seconds.
        netlink.release_all_neighbors().await?;
    }
    Ok(found)
}

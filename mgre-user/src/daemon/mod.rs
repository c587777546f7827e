//! The daemon.

use std::net::SocketAddr;
use std::path::PathBuf;

/// How to run the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Name of the instance.
    pub instance: String,
    /// Directory of the socket and the lock file.
    pub run_dir: PathBuf,
    /// Directory of the saved state.
    pub state_dir: PathBuf,
    /// Where the bpf file system is mounted.
    pub bpffs: PathBuf,
    /// Where to serve metrics over TCP, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// The configuration to apply at the start.
    pub config: Option<PathBuf>,
    /// FDB entries to have room for.
    pub fdb_entries: u32,
    /// Adjacencies to have room for.
    pub adjacencies: u32,
}

/// Runs until it is told to stop.
///
/// # Errors
/// What keeps it from running.
pub async fn run(options: Options) -> anyhow::Result<()> {
    anyhow::bail!("the daemon of instance {} cannot run yet", options.instance)
}

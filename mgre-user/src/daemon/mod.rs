//! The daemon.
//!
//! - `engine`: the one task that owns everything, and its loop;
//! - `transact`: changes of the wanted state; `check`: what they ask of the kernel;
//! - `detours`: uplinks that do not lead to a peer;
//! - `host`, `interfaces`, `neighbors`: what the kernel is asked for; `resting`: ids that are free again;
//! - `learning`: events from the datapath, and ageing; `limits`: how many addresses; `index`: names by id;
//! - `claims`: which instance has which underlay address;
//! - `requests`, `numbers`: answers for the API;
//! - `slow`: the slow path's pair of interfaces, and what routers say of paths;
//! - `states`: what underlays and ports are, and by which name;
//! - `observe`, `names`: the picture of the kernel, and of DNS names; `losses`: notifications that did not come;
//! - `clear`: what `detach` does without a daemon; `namespace`: in which network namespace that is;
//! - `store`, `snapshot`, `journal`: the saved state; `system`: what must be there before a start; `kernel`: what may
//!   be missing.

mod attached;
mod check;
mod claims;
mod clear;
mod detours;
mod engine;
mod follow;
mod host;
mod index;
mod interfaces;
mod journal;
mod kernel;
mod learning;
mod limits;
mod listing;
mod loops;
mod losses;
mod names;
mod namespace;
mod neighbors;
mod numbers;
mod observe;
mod requests;
mod resting;
mod room;
mod slow;
mod snapshot;
mod states;
mod store;
mod suppression;
mod system;
mod transact;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use mgre_common::SCHEMA_VERSION;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::clear::Places;
pub use self::clear::{Clear, clear};
use self::engine::{Engine, Parts};
use self::kernel::Kernel;
use self::store::Store;
use crate::api::messages::{Applied, Handle};
use crate::api::{server, socket};
use crate::datapath::Datapath;
use crate::datapath::attach::Placement;
use crate::datapath::link::kernel_has_tcx;
use crate::datapath::load::{Capacity, load};
use crate::datapath::refusal::explain;
use crate::model::Document;
use crate::netlink::Netlink;
use crate::object::object;
use crate::plan::TcHook;
use crate::slow::Slow;

/// Where the state is saved by itself.
pub const STATE_DIR: &str = "/var/lib/mgre";
/// Where the bpf file system is by itself.
pub const BPFFS: &str = "/sys/fs/bpf";

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
    /// How programs for socket buffers are to be attached.
    pub tc_attach: TcAttach,
    /// Where to write what the verifier says of a program that the kernel refuses, if not beside the socket.
    pub verifier_log: Option<PathBuf>,
}

/// How programs for socket buffers are to be attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum TcAttach {
    /// By TCX where the kernel has it
    #[default]
    Auto,
    /// By TCX links (Linux 6.6 or newer)
    Tcx,
    /// By filters on a clsact qdisc
    Clsact,
}

impl TcAttach {
    /// What that is on a kernel that has TCX, or not.
    fn hook(self, has_tcx: bool) -> Result<TcHook> {
        match self {
            Self::Tcx if !has_tcx => {
                bail!("this kernel has no TCX, which came with Linux 6.6: --tc-attach auto or clsact")
            }
            Self::Auto if !has_tcx => Ok(TcHook::Clsact),
            Self::Auto | Self::Tcx => Ok(TcHook::Tcx),
            Self::Clsact => Ok(TcHook::Clsact),
        }
    }
}

impl Options {
    /// Where links are pinned.
    fn pins(&self) -> PathBuf {
        self.bpffs.join("mgre").join(format!("v{SCHEMA_VERSION}")).join(&self.instance).join("links")
    }

    fn placement(&self, tc: TcHook) -> Placement {
        // Not in a directory of this instance or schema: an interface has one qdisc.
        let qdiscs = self.bpffs.join("mgre").join("qdiscs");
        Placement { instance: self.instance.clone(), tc, pins: self.pins(), qdiscs }
    }
}

/// Runs until it is told to stop, by a signal or by `mgre detach`.
///
/// The programs stay attached when it stops, but after `detach`.
///
/// # Errors
/// What keeps it from running.
pub async fn run(options: Options) -> Result<()> {
    system::give_memory_back();
    system::raise_descriptor_limit();
    // From here on it ends nothing.
    let hangup = signal(SignalKind::hangup())?;
    let object = object()?;
    system::check_privileges()?;
    let release = system::kernel_release()?;
    system::check_kernel(&release)?;
    let lock = socket::InstanceLock::acquire(&options.run_dir, &options.instance)?;
    let mut store = Store::open(&options.state_dir, &options.instance)?;
    let lock = lock.with_state(socket::StateLock::acquire(&options.state_dir, &options.instance)?);
    system::ensure_bpffs(&options.bpffs)?;
    Places::note(&options)?;
    let metrics = match options.metrics {
        Some(address) => Some(TcpListener::bind(address).await.with_context(|| {
            format!("cannot serve metrics on {address} (--metrics off, or another address)")
        })?),
        None => None,
    };
    let config = options.config.as_ref().map(|path| read_config(path)).transpose()?;
    let saved = store.load()?;
    let highest = saved.state.adjacencies().map(|(id, ..)| id).max();
    if let Some(id) = highest.filter(|id| *id >= options.adjacencies) {
        bail!("the saved state needs --adjacencies of {} at least", id + 1);
    }

    let capacity = Capacity { fdb_entries: options.fdb_entries, adjacencies: options.adjacencies };
    let mut loaded = load(object, capacity).map_err(|error| {
        let log = options.verifier_log.clone();
        let log = log.unwrap_or_else(|| options.run_dir.join(format!("{}.verifier.log", options.instance)));
        let lacking = system::lacking().unwrap_or_default().to_vec();
        explain(error, object, capacity, &release, lacking, &log)
    })?;
    let tcx = kernel_has_tcx()?;
    let tc = options.tc_attach.hook(tcx)?;
    let kernel = Kernel {
        release,
        tcx,
        strip_flags: loaded.config.strip_flags,
        tells_features: crate::netlink::tells_xdp_features()?,
        waits_for_programs: kernel::waits_for_programs(),
    };
    kernel.warn();
    let ring = loaded.events.take().context("the event ring is taken")?;
    let slow = Slow::new(loaded.too_big.take()).context("cannot wait for frames that are too big")?;
    let datapath = Datapath::new(loaded, options.placement(tc), options.fdb_entries)?;
    let (handle, requests, events) = Handle::new();
    let mut engine = Engine::new(Parts {
        options: options.clone(),
        kernel,
        state: saved.state,
        promiscuous: saved.promiscuous,
        store,
        netlink: Netlink::connect()?,
        datapath,
        events,
        ring,
        slow,
    })?;
    let monitor = engine.open_monitor()?;
    engine.start().await?;
    if let Some(document) = config {
        if document.is_empty() && engine.has_state() {
            tracing::warn!(
                "the configuration (--config) is empty: what is saved stays in force; to remove everything, say so \
                 (mgre apply --allow-empty FILE)"
            );
        } else {
            report(
                engine.configure(Box::new(document)).await.context("the configuration cannot be applied")?,
            );
        }
    }

    let socket = socket::Socket::bind(&options.run_dir, &options.instance, lock)?;
    let reloads = tokio::spawn(reload(hangup, options.config, handle.clone()));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = server::serve(socket, metrics, handle, async {
        stopped.await.ok();
    });
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    announce()?;
    let work = async {
        let shutdown = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let result = engine.run(requests, monitor, shutdown).await;
        // The server may have ended by itself.
        stop.send(()).ok();
        result
    };
    let (result, ()) = tokio::join!(work, server);
    reloads.abort();
    result
}

/// Takes the configuration anew at each SIGHUP. One that cannot be applied changes nothing.
async fn reload(mut hangup: Signal, config: Option<PathBuf>, engine: Handle) {
    while hangup.recv().await.is_some() {
        let Some(path) = &config else {
            tracing::info!("SIGHUP: no configuration (--config) to read again");
            continue;
        };
        tell(&[NotifyState::Reloading]);
        let applied = match read_config(path) {
            Ok(document) => engine.reload(document).await.map_err(anyhow::Error::from),
            Err(error) => Err(error),
        };
        match applied {
            Ok(applied) => {
                tracing::info!("SIGHUP: {} is in force", path.display());
                report(applied);
            }
            Err(error) => tracing::error!("SIGHUP: nothing was changed: {error:#}"),
        }
        tell(&[NotifyState::Ready]);
    }
}

/// Logs what a configuration changed.
fn report(applied: Applied) {
    applied.changed.iter().for_each(|line| tracing::info!("{line}"));
    applied.warnings.iter().for_each(|line| tracing::warn!("{line}"));
}

fn tell(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("cannot tell the service manager: {error}");
    }
}

/// Says that requests are served.
fn announce() -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    out.flush()?;
    sd_notify::notify(&[NotifyState::Ready]).context("cannot tell the service manager")?;
    Ok(())
}

fn read_config(path: &std::path::Path) -> Result<Document> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Document::from_toml(&text).with_context(|| format!("cannot understand {}", path.display()))
}

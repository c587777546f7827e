//! The netlink operations against the running kernel.
//!
//! Each test runs in a network namespace of its own that lives only as long as the test's thread, so nothing
//! has a name and nothing is left behind, not even by a panic.

#![expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]

mod links;
mod monitor;
mod neighbors;

use std::io::Write as _;
use std::net::IpAddr;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use mgre_common::wire::MacAddr;
use mgre_user::netlink::{Address, Change, Error, Link, Lookup, Monitor, Netlink};
use nix::sched::{CloneFlags, unshare};

const NEAR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const FAR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

/// Runs a test in a new network namespace, on a runtime that stays on the thread.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP: needs root to make a network namespace");
        return;
    }
    let result = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Whether the kernel tells what interfaces can do with XDP. Where it does not, says so for the running test, and not
/// by `eprintln!`, which the test harness keeps for itself where a test passes.
fn tells_features() -> bool {
    let tells = mgre_user::netlink::tells_xdp_features().unwrap();
    if !tells {
        let thread = thread::current();
        let why = "this kernel does not tell what takes redirected frames (Linux 6.3)";
        writeln!(std::io::stderr(), "SKIP {}: {why}", thread.name().unwrap_or("?")).ok();
    }
    tells
}

/// `ip` in the calling thread's namespace.
fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The line that `ip neighbour` shows for an address.
fn ip_neighbour(address: IpAddr) -> String {
    ip(&format!("neigh show {address} dev near"))
}

/// A setting below /proc/sys/net of the calling thread's namespace.
fn set(path: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap();
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

async fn link(netlink: &Netlink, name: &str) -> Link {
    netlink.link_by_name(name).await.unwrap()
}

async fn names(netlink: &Netlink) -> Vec<String> {
    let mut names: Vec<_> = netlink.links().await.unwrap().into_iter().map(|link| link.name).collect();
    names.sort();
    names
}

type Job = Box<dyn FnOnce() + Send>;

/// Another namespace, held by a thread that does what it is told. Interface `far` in it, with 192.0.2.2/24
/// and 2001:db8::2/64, faces `near` in the calling thread's namespace.
struct Far {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Far {
    fn new() -> Self {
        let (tid_sender, tid) = mpsc::channel();
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tid_sender.send(nix::unistd::gettid()).unwrap();
            queue.iter().for_each(|job| job());
        });
        let tid = tid.recv().unwrap();
        ip(&format!("link add near address {NEAR_MAC} type veth peer far address {FAR_MAC} netns {tid}"));
        ip("link set near up");
        ip("addr add 192.0.2.1/24 dev near");
        ip("addr add 2001:db8::1/64 dev near nodad");
        let far = Self { jobs: Some(jobs), thread: Some(thread) };
        far.run(|| {
            ip("link set far up");
            ip("addr add 192.0.2.2/24 dev far");
            ip("addr add 2001:db8::2/64 dev far nodad");
        });
        far
    }

    /// Does something in that namespace and waits for its end.
    fn run(&self, job: impl FnOnce() + Send + 'static) {
        let (done, wait) = mpsc::channel();
        let job = move || {
            job();
            done.send(()).unwrap();
        };
        self.jobs.as_ref().unwrap().send(Box::new(job)).unwrap();
        wait.recv().unwrap();
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking());
        }
    }
}

/// Waits until `condition` holds, for at most `limit`.
async fn eventually(limit: Duration, mut condition: impl AsyncFnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < limit {
        if condition().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

/// Whether a change that `wanted` picks comes within `limit`.
async fn next(monitor: &mut Monitor, limit: Duration, wanted: impl Fn(Change) -> bool) -> bool {
    let search = async { while !wanted(monitor.next().await.unwrap()) {} };
    tokio::time::timeout(limit, search).await.is_ok()
}

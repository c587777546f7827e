//! The slow path's sockets and tasks against the running kernel, without the datapath: the tests stand at the
//! ends of the pair in its place.
//!
//! Each test runs in a network namespace of its own that lives only as long as the test's thread; what faces it
//! is another.

#![expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]

mod errors;
mod receive;
mod send;

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use mgre_common::endpoint::{EndpointKey, endpoint_address, endpoint_key, endpoint_kind};
use mgre_common::table::Template;
use mgre_common::template::{DontFragment, Encapsulation, Key, Link, Outer, Tos};
use mgre_common::wire::MacAddr;
use mgre_user::netlink::Netlink;
use mgre_user::plan::{AdjacencyRecord, EndpointOwner, Plan};
use mgre_user::slow::counters::Happening;
use mgre_user::slow::{Pair, Slow};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

const OURS: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const THEIRS: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
/// Addresses of the other side that are no peer's.
const STRANGERS: [&str; 2] = ["192.0.2.3", "2001:db8::3"];
const GRE: i32 = 47;

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

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An adjacency of the family, its path 1400 bytes wide.
fn outer(v6: bool, encapsulation: Encapsulation) -> Outer {
    Outer {
        source: address(OURS[usize::from(v6)]),
        destination: address(THEIRS[usize::from(v6)]),
        ttl: 64,
        tos: Tos::Fixed(0),
        dont_fragment: DontFragment::Unset,
        key: Key::Plain(7),
        checksum: false,
        sequence: false,
        encapsulation,
    }
}

fn template(outer: &Outer) -> Template {
    let link = Link { ifindex: 1, source_mac: MacAddr::ZERO, destination_mac: None, mtu: 1400 };
    Template::new(outer, Some(&link))
}

fn plan(outers: &[Outer]) -> Plan {
    let mut plan = Plan::default();
    for (id, outer) in (0_u32..).zip(outers) {
        let [remote, local] = [outer.destination, outer.source].map(endpoint_address);
        let (kind, key) = endpoint_key(outer.key);
        let owner = EndpointOwner { adjacency: id, flags: 0 };
        let nobody = EndpointOwner::default();
        plan.endpoints.insert(EndpointKey { remote, local, key, kind }, owner);
        plan.endpoints.insert(EndpointKey { remote, local, key: 0, kind: endpoint_kind::KNOWN }, nobody);
        let ours = EndpointKey { remote: [0; 4], local, key: 0, kind: endpoint_kind::LOCAL };
        plan.endpoints.insert(ours, nobody);
        plan.adjacencies
            .insert(id, AdjacencyRecord { segment: 1, flags: 0, storm_limit: 0, template: template(outer) });
    }
    plan
}

type Job = Box<dyn FnOnce() + Send>;

/// The other side: a namespace held by a thread that does what it is told.
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
        ip(&format!("link add near type veth peer far netns {}", tid.recv().unwrap()));
        ip("link set lo up");
        ip("link set near up");
        ip(&format!("addr add {}/24 dev near", OURS[0]));
        ip(&format!("addr add {}/64 dev near nodad", OURS[1]));
        let far = Self { jobs: Some(jobs), thread: Some(thread) };
        far.run(|| {
            ip("link set far up");
            for there in [THEIRS, STRANGERS] {
                ip(&format!("addr add {}/24 dev far", there[0]));
                ip(&format!("addr add {}/64 dev far nodad", there[1]));
            }
        });
        far
    }

    /// Does something in that namespace and waits for its end.
    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, wait) = mpsc::channel();
        self.jobs.as_ref().unwrap().send(Box::new(move || done.send(job()).unwrap())).unwrap();
        wait.recv().unwrap()
    }

    /// A socket there for a protocol, bound to an address.
    fn socket(&self, kind: Type, protocol: i32, local: &'static str, port: u16) -> Socket {
        self.run(move || {
            let local = SocketAddr::new(address(local), port);
            let socket =
                Socket::new(Domain::for_address(local), kind, Some(Protocol::from(protocol))).unwrap();
            socket.bind(&local.into()).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket
        })
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

/// The slow path, and the other side.
struct World {
    slow: Slow,
    pair: Pair,
    far: Far,
}

impl World {
    async fn new(outers: &[Outer]) -> Self {
        let far = Far::new();
        let netlink = Netlink::connect().unwrap();
        let (inner, outer) = netlink.create_pair(["inner", "outer"], 65_535, "test").await.unwrap();
        let pair =
            Pair { inner: (inner.index, inner.mac.unwrap()), outer: (outer.index, outer.mac.unwrap()) };
        let mut slow = Slow::new(None).unwrap();
        slow.follow(&plan(outers), Some(pair));
        assert_eq!(slow.failures().collect::<Vec<_>>(), Vec::<String>::new());
        Self { slow, pair, far }
    }

    fn count(&self, happening: Happening) -> u64 {
        self.slow.counters().get(happening)
    }

    /// Waits for a count, and makes sure that it stays.
    async fn counted(&self, happening: Happening, wanted: u64) {
        let start = Instant::now();
        while self.count(happening) < wanted && start.elapsed() < Duration::from_secs(5) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(self.count(happening), wanted, "{happening:?} in {:?}", self.slow.counters());
    }
}

/// A socket for all that an interface receives and sends, or to send with.
fn packet_socket(ifindex: u32) -> Socket {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).unwrap();
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the storage is zeroed, and has room for every kind of address.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = ifindex as i32;
    // SAFETY: the storage holds an address of that length.
    let address = unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) };
    socket.bind(&address).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket
}

/// The next bytes of a socket; none if none come in time.
fn next(mut socket: &Socket) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 70_000];
    let length = socket.read(&mut buffer).ok()?;
    buffer.truncate(length);
    Some(buffer)
}

/// GRE with key 7 and so many bytes behind it.
fn gre(length: usize) -> Vec<u8> {
    let mut gre = vec![0x20, 0, 0x65, 0x58, 0, 0, 0, 7];
    gre.extend((0..length).map(|index| (index % 251) as u8));
    gre
}

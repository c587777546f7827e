//! The slow path: what the datapath cannot do.
//!
//! | file | what |
//! | --- | --- |
//! | `icmp`, `limit` | what senders of packets that are too big are told, and how often; pure |
//! | `quote`, `pmtu` | what routers say of packets of ours that were too big; pure |
//! | `fragment` | cuts outer packets; pure |
//! | `outer` | makes outer packets plain that the kernel put together; pure |
//! | `known` | what is known of peers; pure |
//! | `socket` | the sockets |
//! | `too_big`, `errors`, `receive`, `send` | the tasks that go between sockets and datapath |
//! | `counters` | what they count |
//!
//! Datapath and tasks meet in a pair of veth interfaces, of which `mgre_slow` runs on both ends. What the datapath
//! gives away leaves by the inner end and arrives at the outer one; what it is given is sent out of the outer
//! end and arrives at the inner one. A frame with a mark is one of a segment, and the mark says where to; one
//! without is an outer packet. Nothing else may use the pair: its ends have no addresses.
//!
//! Each task waits for its own socket and shares no lock with the engine that is held for longer than a look.
//! What comes faster than a task takes it is lost in the socket's buffer.

pub mod counters;
mod errors;
pub mod fragment;
mod frames;
pub mod icmp;
pub mod known;
pub mod limit;
pub mod outer;
pub mod pmtu;
pub mod quote;
mod receive;
mod send;
mod socket;
mod too_big;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use mgre_common::wire::MacAddr;
use nix::sys::socket::{MsgFlags, recv};
use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use self::counters::Counters;
use self::errors::Listener;
pub(crate) use self::frames::FrameSender;
use self::known::Known;
use self::quote::Said;
use self::receive::{Kind, Receiver};
use self::send::Cutter;
use self::too_big::Teller;
use crate::plan::Plan;

/// The longest frame: an IPv6 packet as long as one can be, with Ethernet header and tags.
const PACKET_MOST: usize = 65535 + 40 + 32;
/// Messages of routers that wait for the engine at most.
const QUEUE: usize = 64;
/// How soon what could not be begun is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// The two ends of the pair: index and address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    /// What the datapath sends out of.
    pub inner: (u32, MacAddr),
    /// What the daemon sends out of.
    pub outer: (u32, MacAddr),
}

/// What every task has.
#[derive(Clone)]
struct Shared {
    known: watch::Receiver<Known>,
    counters: Counters,
}

/// A task, by what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    /// For one of our addresses, and whether others than peers have a use for GRE there.
    Gre(IpAddr, bool, Pair),
    GreInUdp(IpAddr, bool, Pair),
    Errors {
        v6: bool,
    },
    Cut(Pair),
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gre(local, ..) => write!(f, "receive GRE for {local}"),
            Self::GreInUdp(local, ..) => write!(f, "receive GRE in UDP for {local}"),
            Self::Errors { v6: false } => f.write_str("receive ICMP"),
            Self::Errors { v6: true } => f.write_str("receive ICMPv6"),
            Self::Cut(_) => f.write_str("send fragments"),
        }
    }
}

/// A task that ends when nobody has this any more.
struct Task(AbortHandle);

impl Task {
    fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work).abort_handle())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The slow path of one instance, as the engine has it.
pub struct Slow {
    known: watch::Sender<Known>,
    pair: watch::Sender<Option<Pair>>,
    counters: Counters,
    said: (mpsc::Sender<Said>, mpsc::Receiver<Said>),
    tasks: BTreeMap<Work, Task>,
    /// What could not be begun, when that was, and why.
    failed: BTreeMap<Work, (Instant, String)>,
    /// Tells senders. None if there is nothing to be told.
    _teller: Option<Task>,
}

impl fmt::Debug for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slow").field("tasks", &self.tasks.keys()).finish_non_exhaustive()
    }
}

impl Slow {
    /// With the datapath's ring of frames that are too big. Must be called where tasks can be spawned.
    ///
    /// # Errors
    /// The ring cannot be waited for.
    pub fn new(ring: Option<RingBuf<MapData>>) -> io::Result<Self> {
        let (known, _) = watch::channel(Known::default());
        let (pair, pair_seen) = watch::channel(None);
        let counters = Counters::default();
        let teller = ring.map(|ring| Teller::new(ring, pair_seen, counters.clone())).transpose()?;
        Ok(Self {
            known,
            pair,
            counters,
            said: mpsc::channel(QUEUE),
            tasks: BTreeMap::new(),
            failed: BTreeMap::new(),
            _teller: teller.map(|teller| Task::spawn(teller.run())),
        })
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What does not work, one line each.
    pub fn failures(&self) -> impl Iterator<Item = String> {
        self.failed.iter().map(|(work, (_, why))| format!("cannot {work}: {why}"))
    }

    /// The next thing that a router says of a path.
    pub async fn said(&mut self) -> Said {
        match self.said.1.recv().await {
            Some(said) => said,
            // Not while `self` holds a sender.
            None => std::future::pending().await,
        }
    }

    /// Goes by what the datapath holds now.
    pub fn follow(&mut self, plan: &Plan, pair: Option<Pair>) {
        self.known.send_modify(|known| known.follow(plan));
        self.pair.send_if_modified(|there| std::mem::replace(there, pair) != pair);
        let wanted = self.wanted();
        self.tasks.retain(|work, _| wanted.contains(work));
        self.failed.retain(|work, _| wanted.contains(work));
        let now = Instant::now();
        for work in wanted {
            let waits = self.failed.get(&work).is_some_and(|(since, _)| *since + RETRY > now);
            if !waits && !self.tasks.contains_key(&work) {
                self.begin(work, now);
            }
        }
    }

    /// Whether frames may not overtake each other in the pair.
    pub fn keeps_order(&self) -> bool {
        self.known.borrow().has_numbered()
    }

    /// Tries again what could not be begun.
    pub fn try_again(&mut self) {
        let now = Instant::now();
        let due = self.failed.iter().filter(|(_, (since, _))| *since + RETRY <= now);
        let due: Vec<Work> = due.map(|(work, _)| *work).collect();
        due.into_iter().for_each(|work| self.begin(work, now));
    }

    fn wanted(&self) -> Vec<Work> {
        let (known, pair) = (self.known.borrow(), *self.pair.borrow());
        let mut wanted = Vec::new();
        for (local, shared) in known.locals() {
            wanted.push(Work::Errors { v6: local.is_ipv6() });
            if let Some(pair) = pair {
                wanted.push(Work::Gre(local, shared, pair));
                if known.has_udp() {
                    wanted.push(Work::GreInUdp(local, shared, pair));
                }
            }
        }
        wanted.extend(pair.map(Work::Cut));
        wanted
    }

    fn begin(&mut self, work: Work, now: Instant) {
        let shared = Shared { known: self.known.subscribe(), counters: self.counters.clone() };
        let receive = |kind, (local, is_shared), pair| {
            let receiver = Receiver::new(kind, local, is_shared, pair, shared.clone());
            receiver.map(|receiver| Task::spawn(receiver.run()))
        };
        let task = match work {
            Work::Gre(local, is_shared, pair) => receive(Kind::Gre, (local, is_shared), pair),
            Work::GreInUdp(local, is_shared, pair) => receive(Kind::GreInUdp, (local, is_shared), pair),
            Work::Errors { v6 } => {
                let listener = Listener::new(v6, self.said.0.clone(), shared);
                listener.map(|listener| Task::spawn(listener.run()))
            }
            Work::Cut(pair) => Cutter::new(pair.outer.0, shared).map(|cutter| Task::spawn(cutter.run())),
        };
        match task {
            Ok(task) => {
                self.failed.remove(&work);
                self.tasks.insert(work, task);
            }
            Err(error) => {
                let why = error.to_string();
                if self.failed.insert(work, (now, why)).is_none() {
                    tracing::warn!("cannot {work}: {error}");
                }
            }
        }
    }
}

/// Has the runtime say when a socket can be read.
fn readable(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a socket is open and names the same file until it is dropped, which AsyncFd does only
    // after taking it out of the reactor.
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    registered.map_err(|error| error.into_parts().1)
}

fn read(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
}

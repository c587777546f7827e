//! What mgre's tests, demo and benchmarks share.
//!
//! - [`skip`]: whether a test can run here;
//! - [`netns`]: network namespaces that clean up after themselves;
//! - [`daemon`]: the `mgre` daemon in one of them, and its command line;
//! - [`topology`]: spokes, hosts and an underlay between them; [`spoke`]: one of them;
//! - [`packet`]: frames to send, and what is in frames that were captured;
//! - [`gre`]: GRE packets, captured and made by hand; [`icmp`]: messages about packets that are too big;
//! - [`battery`]: what two stations do with each other, whoever is between them;
//! - [`mod@bench`]: mgre beside what the kernel offers;
//! - [`hostile`]: a peer that means no good;
//! - [`model`]: what must come of a frame, apart from the pipeline; [`fuzz`]: both, and the kernel, on millions of
//!   frames;
//! - [`vlan`]: hosts whose frames have VLAN tags;
//! - [`capture`]: raw frames to and from an interface;
//! - [`traffic`]: ping and iperf3;
//! - [`tcx`]: how many programs are attached to an interface; [`clsact`]: its TC filters;
//! - [`numbered`]: frames of which each is to arrive once;
//! - [`lone`]: one daemon, and nobody to talk to; [`disk`]: file systems that are full; [`dns`]: a name server;
//! - [`process`]: what a process uses, and how to stop it for a while; [`http`]: requests by hand;
//! - [`metrics`]: the Prometheus text; [`drops`]: what was dropped, by each way of reading it;
//! - [`conservation`]: whether nothing vanished;
//! - [`tables`]: those of a datapath that runs;
//! - [`wait`]: waiting for something, but not for ever.
//!
//! Packets are made and read here and by `etherparse`, never by mgre's own code: a mistake there must not hide itself.

pub mod battery;
pub mod bench;
pub mod capture;
pub mod clsact;
pub mod conservation;
pub mod daemon;
pub mod disk;
pub mod dns;
pub mod drops;
pub mod fuzz;
pub mod gre;
pub mod hostile;
pub mod http;
pub mod icmp;
pub mod lone;
pub mod metrics;
pub mod model;
pub mod monitor;
pub mod netns;
pub mod numbered;
pub mod packet;
pub mod process;
pub mod skip;
pub mod spoke;
pub mod tables;
pub mod tcx;
pub mod topology;
pub mod traffic;
pub mod vlan;
pub mod wait;

//! mgre's pipeline: what happens to a frame, as code that runs on the host in a
//! test exactly as it runs in the kernel.
//!
//! ```text
//! parse -> decide -> forward | flood -> count
//! ```
//!
//! - [`frame`]: the trait for a frame that can be read, resized and sent;
//! - [`tables`]: the trait for what the pipeline may look up and count;
//! - [`inner`]: what a tunnel must know of the IP packet inside;
//! - [`mss`]: lowers TCP's maximum segment size;
//! - [`stamp`]: what an outer packet has of its own;
//! - [`outer`]: parses and validates the headers outside;
//! - [`decide`]: from a frame and the tables to a [`verdict::Verdict`], no side effects but learning;
//! - [`verdict`]: what is to happen to a frame;
//! - [`stage`]: the hooks at which that is decided;
//! - [`neighbor`]: answers ARP and ND;
//! - [`verify`]: checksums over a whole packet;
//! - [`act`]: carries a verdict out;
//! - [`dress`]: outer headers, where they need not be put on in line;
//! - [`handoff`]: what one program hands over to the next;
//! - `tunnel`: into a tunnel, and what does not fit there;
//! - [`flood`]: head-end replication;
//! - [`express`]: the short way of known unicast through an early hook.
//!
//! The programs in `main.rs` bind the two traits to a socket buffer and to maps.

#![cfg_attr(not(any(test, feature = "host")), no_std)]

pub mod act;
pub mod decide;
pub mod dress;
pub mod express;
pub mod flood;
pub mod frame;
pub mod handoff;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod inner;
pub mod mss;
pub mod neighbor;
pub mod outer;
pub mod stage;
pub mod stamp;
pub mod superframe;
pub mod tables;
#[cfg(test)]
mod tests;
mod tunnel;
pub mod verdict;
pub mod verify;

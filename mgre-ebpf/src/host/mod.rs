//! The pipeline over ordinary memory, for tests on the host.
//!
//! - [`frame`]: a frame in a vector;
//! - [`tables`]: tables in vectors;
//! - [`packet`]: packets made with a crate that is not ours;
//! - [`world`]: a small network, to be put into any tables;
//! - [`cases`]: what goes in and what must come out. The same list is run on the
//!   host and in the kernel, so that the two cannot differ.
//!
//! Everything here panics on misuse; it is for tests only.

pub mod cases;
pub mod frame;
pub mod packet;
pub mod tables;
pub mod world;

//! mgre's daemon and command line, as a library.
//!
//! - [`model`]: the wanted state and how changes turn it into the next one; pure;
//! - [`api`]: the HTTP interface, and the messages between it and the engine;
//! - [`metrics`]: the Prometheus text;
//! - [`cli`]: the command line, a client of the API;
//! - [`daemon`]: the engine that owns state, netlink and datapath.

pub mod api;
pub mod cli;
pub mod daemon;
pub mod metrics;
pub mod model;

//! mgre's daemon and command line, as a library.
//!
//! - [`model`]: the wanted state and how changes turn it into the next one; pure;
//! - [`netlink`]: what the kernel has: links, addresses, routes, neighbours;
//! - [`names`]: endpoints given as DNS names: when to ask, whom, and what to make of the answers;
//! - [`plan`]: from the wanted state and what the kernel has to the datapath's contents; pure;
//! - [`datapath`]: loads, fills and attaches the eBPF programs;
//! - [`object`]: the eBPF object, as built in;
//! - [`daemon`]: the engine that owns them all;
//! - [`api`]: the HTTP interface, and the messages between it and the engine;
//! - [`metrics`]: the Prometheus text;
//! - [`cli`]: the command line, a client of the API.

pub mod api;
pub mod cli;
pub mod daemon;
pub mod datapath;
pub mod learn;
pub mod metrics;
pub mod model;
pub mod names;
pub mod neighbors;
pub mod netlink;
pub mod object;
pub mod plan;
pub mod slow;

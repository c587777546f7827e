//! The HTTP interface, and the messages between it and the engine.
//!
//! - [`messages`]: what the handlers ask of the engine;
//! - [`views`]: what they show;
//! - [`event`]: what happens, as it happens;
//! - [`problem`]: errors as a client sees them (RFC 9457);
//! - [`socket`]: the Unix socket, of which an instance has one;
//! - [`server`]: its connections, and how they end; `activity`: who gives way when there are too many; `stream`: what
//!   goes through one; `lanes`: how much memory they may take;
//! - [`routes`]: which request does what;
//! - [`client`]: the other end, for the command line.

mod activity;
pub mod client;
pub mod event;
mod extract;
mod lanes;
pub mod messages;
pub mod problem;
pub mod routes;
pub mod server;
pub mod socket;
mod stream;
pub mod views;

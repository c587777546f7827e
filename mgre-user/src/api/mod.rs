//! The HTTP interface, and the messages between it and the engine.
//!
//! - [`messages`]: what the handlers ask of the engine;
//! - [`views`]: what they show;
//! - [`event`]: what happens, as it happens;
//! - [`problem`]: errors as a client sees them (RFC 9457).

pub mod event;
pub mod messages;
pub mod problem;
pub mod views;

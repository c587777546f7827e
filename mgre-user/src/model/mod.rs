//! The wanted state: what an operator asked for, as pure data.
//!
//! Nothing here does I/O or looks at the kernel. [`State::apply`] takes a
//! [`Change`] and gives the next state or says in one line why it cannot be;
//! the engine then makes the kernel look like the state.
//!
//! - [`types`]: the small values (`Mode`, `Mtu`, `Cidr`, ...) and their texts; [`locals`]: an underlay's addresses;
//! - [`flooding`]: what may be flooded;
//! - [`state`]: the state and its parts;
//! - [`change`]: one variant for each verb;
//! - [`apply`]: from a state and a change to the next state;
//! - [`check`]: what a name, an address or a number must look like;
//! - [`ids`]: which ids are free; `index`: what follows from a state;
//! - [`config`]: the configuration document;
//! - [`difference`]: two states compared, as lines to read; [`record`]: as data to keep.

pub mod apply;
pub mod change;
pub mod check;
pub mod config;
pub mod difference;
pub mod error;
pub mod flooding;
pub mod ids;
mod index;
pub mod locals;
pub mod record;
pub mod state;
pub mod types;

#[cfg(test)]
mod tests;

pub use change::{Change, PeerSettings, PortSettings, SegmentSettings, UnderlaySettings};
pub use config::Document;
pub use difference::differences;
pub use error::{ErrorKind, ModelError};
pub use flooding::{LinkLocal, StormLimit};
pub use ids::Ids;
pub use locals::Locals;
pub use record::Record;
pub use state::{FdbName, HostInterface, Peer, Port, Segment, State, StaticTarget, Underlay};
pub use types::{Cidr, Df, Encap, ForeignGre, Mode, Mtu, Tos};

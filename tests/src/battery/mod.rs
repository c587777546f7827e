//! What two stations do with each other, whoever is between them.
//!
//! - [`report`]: what checks found;
//! - [`station`]: a host behind a switch; [`lab`]: two of them, and what is between;
//! - [`frames`]: frames of all kinds; [`exact`]: whether they come out as they went in;
//! - [`streams`]: TCP whose bytes are compared, and numbered datagrams;
//! - [`tagged`]: the stations' VLAN;
//! - [`everything`]: all of that, in turn;
//! - [`switch`]: mgre between them; [`remains`]: what it leaves behind; [`peer`]: others in its place.

pub mod everything;
pub mod exact;
pub mod frames;
pub mod lab;
pub mod peer;
pub mod remains;
pub mod report;
pub mod station;
pub mod streams;
pub mod switch;
pub mod tagged;

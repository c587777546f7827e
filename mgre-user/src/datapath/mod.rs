//! The daemon's side of the datapath.

pub mod load;
pub mod shared;

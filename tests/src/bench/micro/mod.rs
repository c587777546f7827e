//! What programs cost by themselves, in test runs: no interface, no queue, no socket buffer.
//!
//! - [`laboratory`]: the programs, their tables, and a clock;
//! - [`addresses`]: which addresses there are, and in which order they are asked for;
//! - [`program`], [`scaling`], [`flood`]: the parts.

pub mod addresses;
pub mod flood;
pub mod laboratory;
pub mod program;
pub mod scaling;

//! The pipeline, the loaded programs and the model of them on millions of frames: where they differ, one is wrong.
//!
//! - [`worlds`]: networks, by number; [`generate`]: frames for them, good and bad;
//! - [`code`]: a network, a frame and a moment as bytes, and as a line of a corpus; [`corpus`]: lines that are kept;
//! - [`host`]: the pipeline over ordinary memory; [`kernel`]: the loaded programs;
//! - [`compare`]: what was seen beside what must be;
//! - [`minimise`]: the smallest frame that still shows a difference;
//! - [`parsers`]: what people and programs write to the daemon;
//! - [`run`]: all of it, again and again, and what it came to.

pub mod code;
pub mod compare;
pub mod corpus;
pub mod generate;
pub mod host;
pub mod kernel;
pub mod minimise;
pub mod parsers;
pub mod run;
pub mod worlds;

use crate::model::Input;

/// A network, by number, and a frame in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The network's number ([`worlds::world`]).
    pub world: u16,
    /// The frame.
    pub input: Input,
}

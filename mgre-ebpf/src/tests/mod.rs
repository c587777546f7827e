//! Tests of the pipeline on the host.

mod cases;
mod failure;
mod flood;
mod mss;
mod neighbors;
mod properties;
mod rfc;
mod state;
mod superframes;

//! Tests of the pipeline on the host.

mod cases;
mod failure;
mod flood;
mod properties;
mod state;

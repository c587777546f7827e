//! Tests of the pipeline on the host.

mod cases;

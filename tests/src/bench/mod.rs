//! mgre beside what the kernel offers, on one machine in one run.
//!
//! - [`contestant`]: who competes, and the links between the hosts;
//! - [`measure`]: rounds of each part: [`small`], [`bulk`], [`latency`];
//! - [`report`], [`statistics`]: what comes of them;
//! - [`machine`]: what they were measured on;
//! - [`programs`]: the size of mgre's programs;
//! - [`bpf`], [`assemble`], [`frame`]: the generator and the sink.

pub mod assemble;
pub mod bpf;
pub mod bulk;
pub mod contestant;
pub mod frame;
pub mod latency;
pub mod machine;
pub mod measure;
pub mod programs;
pub mod report;
pub mod small;
pub mod statistics;
pub mod stop;

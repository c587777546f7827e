//! mgre beside what the kernel offers, on one machine in one run.
//!
//! - [`part`]: what is measured, each part a function that makes a [`report`] of [`table`]s, bars and [`plot`]s;
//! - [`contestant`]: who competes ([`kind`]), and the links between the hosts; [`ovs`]: one of them; [`field`]: those
//!   of a run;
//! - [`race`]: rounds of contestants: [`small`], [`udp`], [`bulk`], [`latency`]; [`statistics`]: what comes of them;
//! - [`old`]: another build of mgre;
//! - [`micro`]: what programs cost by themselves;
//! - [`control`]: the daemon with many peers; [`hostile`]: one of them means no good;
//! - [`machine`]: what they were measured on; [`cpu`]: how long its CPUs were busy;
//! - [`programs`]: the size of mgre's programs;
//! - [`bpf`], [`assemble`], [`frame`]: the generator and the sink.

pub mod assemble;
pub mod bpf;
pub mod bulk;
pub mod contestant;
pub mod control;
pub mod cpu;
pub mod field;
pub mod frame;
pub mod hostile;
pub mod kind;
pub mod latency;
pub mod machine;
pub mod micro;
pub mod old;
pub mod ovs;
pub mod part;
pub mod plot;
pub mod programs;
pub mod race;
pub mod report;
pub mod small;
pub mod statistics;
pub mod stop;
pub mod table;
pub mod udp;

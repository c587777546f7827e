//! The real programs, in the running kernel.
//!
//! - `attach`: what an interface gets when its driver refuses XDP;
//! - `kernel`: loads them, fills their tables and runs them on packets;
//! - `capture`: what comes out of interfaces;
//! - `cases`: the list of cases that the pipeline is tested with on the host;
//! - `fdb`: addresses looked up while the writer changes them;
//! - `flood`: head-end replication;
//! - `refusal`: what is said of a program that the kernel does not take;
//! - `live`: attached to interfaces, with frames that no test run can make.

#![expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]

mod attach;
mod capture;
mod cases;
mod fdb;
mod flood;
mod kernel;
mod live;
mod refusal;

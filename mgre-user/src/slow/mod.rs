//! The slow path: what the datapath cannot do.
//!
//! | file | what |
//! | --- | --- |
//! | `icmp`, `limit` | what senders of packets that are too big are told, and how often; pure |
//! | `quote`, `pmtu` | what routers say of packets of ours that were too big; pure |
//! | `fragment` | cuts outer packets; pure |
//! | `outer` | makes outer packets plain that the kernel put together; pure |
//! | `known` | what is known of peers |
//! | `counters` | counts |

pub mod counters;
pub mod fragment;
pub mod icmp;
pub mod known;
pub mod limit;
pub mod outer;
pub mod pmtu;
pub mod quote;

//! Binds the pipeline's traits to the kernel: [`Maps`] is the tables, [`Skb`] and [`Xdp`] are frames.

mod maps;
mod skb;
mod wire;
mod xdp;

pub(crate) use maps::{Maps, renew_lease};
pub(crate) use skb::{Skb, probe_strip_flags};
pub(crate) use xdp::Xdp;

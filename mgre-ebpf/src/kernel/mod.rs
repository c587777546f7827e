//! Binds the pipeline's traits to the kernel: [`Maps`] is the tables, [`Skb`] a frame.

mod maps;
mod skb;

pub(crate) use maps::Maps;
pub(crate) use skb::{Skb, probe_strip_flags};

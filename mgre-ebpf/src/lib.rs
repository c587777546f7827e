//! mgre's pipeline.
#![cfg_attr(not(test), no_std)]

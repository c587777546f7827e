//! mgre's daemon and command line, as a library.

pub mod netlink;

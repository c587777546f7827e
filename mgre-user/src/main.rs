//! The `mgre` command.
fn main() {}

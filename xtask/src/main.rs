//! mgre's tasks.
fn main() {}

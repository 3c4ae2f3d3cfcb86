//! The load generator of throng.
fn main() {}

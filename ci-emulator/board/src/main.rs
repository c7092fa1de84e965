//! emulate
fn main() {}

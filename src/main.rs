//! The program `tenantgate`.
fn main() {}

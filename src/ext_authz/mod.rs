//! The adapter for Envoy's `ext_authz` filter.
//!
//! Only this module knows the protobuf messages of Envoy, HTTP status numbers and the names of response headers. It
//! makes no decisions about keys.

pub mod codec;
mod origin;
pub mod plain;
pub mod proto;
pub mod service;
pub mod spans;
#[cfg(test)]
mod tests;
pub mod told;
pub mod translate;
mod wire;

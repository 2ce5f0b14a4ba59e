//! The `ext_authz` protocol of Envoy.
//!
//! The door to Envoy's `ext_authz` filter. Its words (protobuf messages, HTTP
//! status numbers, header names that go out) are spoken in here and nowhere else;
//! what is right or wrong about a key is not known in here.

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

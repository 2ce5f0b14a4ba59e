//! The adapter for Envoy's `ext_authz` filter.
//!
//! Only this module knows the protobuf messages of Envoy, HTTP status numbers and the names of response headers. It
//! makes no decisions about keys.

pub mod check_span;
pub mod codec;
pub mod header;
mod origin;
pub mod plain;
pub mod proto;
pub mod rejection;
pub mod response_fields;
pub mod service;
#[cfg(test)]
mod tests;
pub mod translate;
mod wire;

//! The words and the judgement of tenantgate.
//!
//! What a key, a tenant, a request and a rule are, how their texts are read, and the one table by which a request is
//! judged. Everything here is a pure function of its arguments, so that the server, the command line and a module inside
//! Envoy reach the same verdict.
//!
//! Depends on: no I/O, no runtime, no clock of the operating system, no randomness of its own.

// floor 0
pub mod client_address;
pub mod clock;
pub mod invalid;
pub mod key;
pub mod labels;
pub mod network;
pub mod path;
pub mod plan;
pub mod profile;
pub mod record;
pub mod request;
pub mod route;
pub mod scope;
pub mod tenant;
// floor 1
pub mod decision;
pub mod permission;
pub mod policy;

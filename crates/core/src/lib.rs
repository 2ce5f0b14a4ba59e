//! The vocabulary and the decision of tenantgate.
//!
//! Defines keys, tenants, requests and rules, parses their text forms, and holds the one table that decides whether a
//! request is allowed. Everything here is a pure function of its arguments, so that the server, the command line and a
//! module inside Envoy reach the same decision.
//!
//! Depends on: neither I/O, an async runtime, the operating system's clock nor a source of randomness.

// layer 0
pub mod client_address;
pub mod clock;
pub mod invalid;
pub mod key;
pub mod labels;
pub mod network;
pub mod path;
pub mod plan;
pub mod profile;
pub mod public;
pub mod record;
pub mod request;
pub mod route;
pub mod scope;
pub mod tenant;
// layer 1
pub mod decision;
pub mod permission;
pub mod policy;

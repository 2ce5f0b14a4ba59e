//! A module for Envoy 1.40 that repeats the verdicts of a server on the same machine without a call.
//!
//! ```text
//! Envoy ─► abi ─► filter ─► judge ─► the published memory (crate tenantgate-snapshot)
//!                    │                     ▲
//!                    └─ reports ─► link ───┘   one background thread, one Unix socket
//! ```
//!
//! The module decides about proven keys, and about missing, malformed and unknown ones. The `ext_authz` filter behind
//! it decides about all other requests, and about all requests in any doubt. That filter runs unless the metadata
//! `envoy.tenantgate`, `decided` is true, which the module writes as the last step of an allow. A fault of the module
//! therefore costs a call, but never allows a request.
//!
//! Depends on: `tenantgate-core` for judgement, `tenantgate-snapshot` for the shared memory. Only `abi` contains
//! foreign calls and `unsafe`.

mod abi;
mod exchange;
mod filter;
mod fingerprint;
mod judge;
mod link;
mod reports;

pub use self::fingerprint::{EXPECTED, fingerprint};

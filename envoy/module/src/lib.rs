//! A module for Envoy 1.40 that repeats the verdicts of a server on the same machine, without a call.
//!
//! ```text
//! Envoy ─► abi ─► filter ─► judge ─► what the server has published (crate tenantgate-snapshot)
//!                    │                     ▲
//!                    └─ reports ─► link ───┘   one background thread, one Unix socket
//! ```
//!
//! The module decides about right keys that were proven, and about missing, malformed and unknown ones. Whatever else it
//! sees, and whenever it is in doubt, it leaves the request to the `ext_authz` filter behind it. That filter runs unless
//! the metadata `envoy.tenantgate`, `decided` is true, and the module writes that with the last call of an allow.
//! So a fault of the module costs a call and never lets a request pass.
//!
//! Depends on: `tenantgate-core` for judgement, `tenantgate-snapshot` for what is published. Foreign calls and `unsafe`
//! are in `abi` alone.

mod abi;
mod exchange;
mod filter;
mod fingerprint;
mod judge;
mod link;
mod reports;

pub use self::fingerprint::{EXPECTED, fingerprint};

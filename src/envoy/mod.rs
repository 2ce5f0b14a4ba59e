//! Checks that an Envoy is set up as tenantgate requires.
//!
//! This adapter sees Envoy as its operator (the admin page) and as its client (requests). The words of Envoy's
//! configuration occur only here. Envoy's calls to tenantgate belong to [`crate::ext_authz`], and the caller gives the
//! names of headers ([`ExpectedConfig`]).
//!
//! ```text
//! admin    the admin page: versions, hosts, counters      ─┐
//! config   the configuration dump: listeners, filters      ├─► findings
//! cluster  the cluster of tenantgate                       │
//! address  how the client's address is detected and sent   │
//! module   the module inside Envoy, if there is one        │
//! probe    a request with forged headers, and a sink      ─┘
//! http     one request, one response
//! verdict  who answered a request: tenantgate, Envoy or the upstream
//! ```

mod address;
pub mod admin;
mod cluster;
mod config;
mod filter;
pub mod http;
mod json;
mod module;
pub mod probe;
pub mod verdict;

use crate::client_address::ClientAddress;

/// The required configuration of Envoy, in the terms of tenantgate.
#[derive(Clone, Copy, Debug)]
pub struct ExpectedConfig<'a> {
    /// The headers with the caller's identity, for the upstream.
    pub identity: &'a [&'a str],
    /// The identity headers that every caller has.
    pub always: &'a [&'a str],
    /// The source of the client's address.
    pub client_address: &'a ClientAddress,
    /// The body of a rejection of a key that is used from outside of its networks.
    pub outside: &'a str,
    /// The header that carries the key.
    pub key_header: &'a str,
    /// Whether keys are also accepted in `authorization`.
    pub bearer: bool,
    /// The gRPC service of the health check.
    pub health_service: &'a str,
    /// The response header that carries the id of a decision.
    pub decision_id: &'a str,
    /// Whether rules for single hosts are in force, and other hosts are allowed.
    pub rules_of_hosts: bool,
    /// The maximum size of a call's header list, in bytes.
    pub header_bytes: u64,
    /// The maximum size of a message, in bytes.
    pub message_bytes: u64,
}

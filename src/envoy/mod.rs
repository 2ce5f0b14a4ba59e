//! What does Envoy do, and is it set up to do it?
//!
//! The door to Envoy from its other side: as its operator, who reads its admin page,
//! and as its client, who sends it requests. The words of Envoy's configuration are
//! spoken here and nowhere else; how Envoy asks us is [`crate::ext_authz`]'s, and
//! what we call our headers is told by the caller ([`Expected`]).
//!
//! ```text
//! admin    the admin page: versions, hosts, counters      ─┐
//! config   the configuration dump: listeners, filters      ├─► findings
//! cluster  the cluster that is asked                       │
//! probe    a request with forged headers, and a sink      ─┘
//! http     one request, one answer
//! verdict  who answered a request: tenantgate, Envoy or the upstream
//! ```

pub mod admin;
mod cluster;
mod config;
mod filter;
pub mod http;
mod json;
pub mod probe;
pub mod verdict;

/// What Envoy has to do for us, in our words.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The headers that tell the upstream who calls.
    pub identity: &'a [&'a str],
    /// The header that carries the key.
    pub key_header: &'a str,
    /// Whether a key may come in `authorization`.
    pub bearer: bool,
    /// The service whose health is asked.
    pub health_service: &'a str,
    /// The response header that carries the id of a decision.
    pub decision_id: &'a str,
    /// Bytes of a call's header list that the server takes.
    pub header_bytes: u64,
    /// Bytes of a message that the server takes.
    pub message_bytes: u64,
}

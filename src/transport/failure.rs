//! The failures of calls and connections that end without a decision.
//!
//! Each has a name for the metrics, and a sentence for the log that says what to do. Clients of Envoy cannot cause
//! them: what they can cause is answered with a response that rejects the request (see [`Unable`]), because Envoy
//! treats any other end of a call as a failure of the server, and allows the request under `failure_mode_allow`. Those
//! responses are logged here, too, because their services do not know the peer.
//! `docs/reference/how-a-check-ends.md` has the complete list.

use std::sync::Arc;
use std::time::Duration;

use tonic::Code;
use tracing::{debug, warn};

use super::Peer;
use crate::clock::Clock;
use crate::rate_limited_log::RateLimitedLog;
use crate::stats::Counter;

/// Why a call gets a response that rejects the request without a decision.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unable {
    /// More calls wait for the same work than the CPU can do.
    QueueFull,
    /// There is no memory for another pending call.
    MemoryFull,
    /// The code that answers the call panicked.
    Panicked,
    /// The call still waits when the server stops.
    Stopping,
    /// The message or the header list is larger than [`super::Limits`] allow.
    TooLarge,
    /// The message, or what the call waits for, did not arrive before the caller's deadline.
    DeadlineExceeded,
}

impl Unable {
    /// Every reason, in the order of their names here.
    pub const ALL: [Self; 6] = [
        Self::QueueFull,
        Self::MemoryFull,
        Self::Panicked,
        Self::Stopping,
        Self::TooLarge,
        Self::DeadlineExceeded,
    ];

    /// Returns the name in logs: the cause that metrics count.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull | Self::MemoryFull => "overloaded",
            Self::Panicked => "internal",
            Self::Stopping | Self::DeadlineExceeded => "deadline_too_short",
            Self::TooLarge => "too_large",
        }
    }

    /// Returns what to do; `None` for what is logged elsewhere, with more details.
    fn advice(self) -> Option<&'static str> {
        match self {
            Self::QueueFull => Some(
                "more first proofs wait than the CPU can do: add cores or replicas, or find the client that is \
                 guessing",
            ),
            Self::MemoryFull => Some(
                "calls that wait need more than --max-pending-bytes: raise it, or find the client that sends so \
                 many or so large requests",
            ),
            Self::Stopping => {
                Some("it still waits while the server stops: let Envoy retry it on another one")
            }
            Self::DeadlineExceeded => Some(
                "its first proof, or the rest of its message, takes longer than its caller waits: set timeout: 2s \
                 in Envoy's grpc_service, or add cores",
            ),
            Self::Panicked | Self::TooLarge => None,
        }
    }
}

/// Why a call ended with a gRPC status instead of a response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CallFailure {
    /// The peer reset the stream before its message had arrived, as Envoy does when its client disconnects.
    Cancelled,
    /// The message is compressed.
    Compressed,
    /// The call ended before its message did.
    Incomplete,
    /// The body is not one length-prefixed message.
    InvalidFraming,
    /// The message cannot be decoded.
    InvalidMessage,
    /// The request is not a gRPC call.
    NotGrpc,
    /// The call names a method that no service here has.
    UnknownMethod,
}

impl CallFailure {
    /// Every failure, in the order of their names.
    pub const ALL: [Self; 7] = [
        Self::Cancelled,
        Self::Compressed,
        Self::Incomplete,
        Self::InvalidFraming,
        Self::InvalidMessage,
        Self::NotGrpc,
        Self::UnknownMethod,
    ];

    /// Returns the name in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Compressed => "compressed",
            Self::Incomplete => "incomplete",
            Self::InvalidFraming => "invalid_framing",
            Self::InvalidMessage => "invalid_message",
            Self::NotGrpc => "not_grpc",
            Self::UnknownMethod => "unknown_method",
        }
    }

    /// Returns the gRPC status of the call, and its message, which is ASCII without `%`.
    pub(super) fn status(self) -> (Code, &'static str) {
        match self {
            Self::Cancelled => (Code::Cancelled, "the call was cancelled"),
            Self::Compressed => {
                (Code::Unimplemented, "compressed messages are not supported: send identity encoding")
            }
            Self::Incomplete => (Code::Internal, "the call ended before its message was complete"),
            Self::InvalidFraming => {
                (Code::Internal, "invalid gRPC framing: expected one length-prefixed message")
            }
            Self::InvalidMessage => (Code::InvalidArgument, "invalid CheckRequest"),
            Self::NotGrpc => (Code::Unimplemented, "not a gRPC call"),
            Self::UnknownMethod => (Code::Unimplemented, "unknown method"),
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Cancelled => "the peer cancelled it",
            Self::Compressed => "disable gRPC compression in the client",
            Self::Incomplete | Self::InvalidFraming => "the client's gRPC implementation is broken",
            Self::InvalidMessage => "the client does not send an envoy.service.auth.v3.CheckRequest",
            Self::NotGrpc => "this port serves gRPC only: use `tenantgate check` or grpcurl",
            Self::UnknownMethod => {
                "the client calls another method than envoy.service.auth.v3.Authorization/Check: set \
                 transport_api_version: V3 in Envoy's ext_authz"
            }
        }
    }
}

/// Why a connection ended, or its handshake failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConnectionFailure {
    /// The client rejected the server's certificate.
    CertificateRefused,
    /// The peer does not answer pings.
    KeepaliveTimeout,
    /// The client certificate is expired, not for clients, or damaged.
    ClientCertificateInvalid,
    /// The client certificate was not issued by an authority in `--client-ca`.
    ClientCertificateUnknownCa,
    /// The client has no certificate.
    ClientCertificateMissing,
    /// The client certificate has none of the names in `--client-san`.
    ClientSanNotAllowed,
    /// The peer did not finish the TLS and HTTP/2 handshakes in time.
    HandshakeTimeout,
    /// The peer speaks HTTP/1.1.
    Http1,
    /// The client does not offer `h2` by ALPN (RFC 7301).
    NoAlpnH2,
    /// The peer speaks neither HTTP/2 nor TLS.
    NotHttp2,
    /// The peer's user id is not in `--unix-peer-uid`.
    PeerUidNotAllowed,
    /// The peer does not use TLS, but the listener does.
    PlaintextOnTls,
    /// The peer closed the connection in the middle of the HTTP/2 preface.
    PrefaceIncomplete,
    /// The peer violates HTTP/2.
    ProtocolError,
    /// The peer does not read its responses.
    ResponsesNotTaken,
    /// The rest of a header list did not arrive in time.
    SlowHeaders,
    /// The TLS handshake failed for another reason.
    TlsError,
    /// The peer uses TLS, but the listener does not.
    TlsOnPlaintext,
    /// The client does not offer TLS 1.2 or 1.3.
    TlsVersion,
}

impl ConnectionFailure {
    /// Every failure, in the order of their names.
    pub const ALL: [Self; 19] = [
        Self::CertificateRefused,
        Self::ClientCertificateInvalid,
        Self::ClientCertificateMissing,
        Self::ClientCertificateUnknownCa,
        Self::ClientSanNotAllowed,
        Self::HandshakeTimeout,
        Self::Http1,
        Self::KeepaliveTimeout,
        Self::NoAlpnH2,
        Self::NotHttp2,
        Self::PeerUidNotAllowed,
        Self::PlaintextOnTls,
        Self::PrefaceIncomplete,
        Self::ProtocolError,
        Self::ResponsesNotTaken,
        Self::SlowHeaders,
        Self::TlsError,
        Self::TlsOnPlaintext,
        Self::TlsVersion,
    ];

    /// Returns the name in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CertificateRefused => "certificate_refused",
            Self::ClientCertificateInvalid => "client_certificate_invalid",
            Self::ClientCertificateMissing => "client_certificate_missing",
            Self::ClientCertificateUnknownCa => "client_certificate_unknown_ca",
            Self::ClientSanNotAllowed => "client_san_not_allowed",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::Http1 => "http1",
            Self::KeepaliveTimeout => "keepalive_timeout",
            Self::NoAlpnH2 => "no_alpn_h2",
            Self::NotHttp2 => "not_http2",
            Self::PeerUidNotAllowed => "peer_uid_not_allowed",
            Self::PlaintextOnTls => "plaintext_on_tls",
            Self::PrefaceIncomplete => "preface_incomplete",
            Self::ProtocolError => "protocol_error",
            Self::ResponsesNotTaken => "responses_not_taken",
            Self::SlowHeaders => "slow_headers",
            Self::TlsError => "tls_error",
            Self::TlsOnPlaintext => "tls_on_plaintext",
            Self::TlsVersion => "tls_version",
        }
    }

    /// Returns whether the connection failed before its first call.
    #[must_use]
    pub fn is_handshake(self) -> bool {
        !matches!(
            self,
            Self::KeepaliveTimeout | Self::ProtocolError | Self::ResponsesNotTaken | Self::SlowHeaders
        )
    }

    fn advice(self) -> &'static str {
        match self {
            Self::CertificateRefused => {
                "the client does not trust the certificate of --tls-cert: add its CA to the client's trusted CAs"
            }
            Self::ClientCertificateInvalid => "renew or replace the client's certificate",
            Self::ClientCertificateMissing => "give the client a certificate that a CA in --client-ca issued",
            Self::ClientCertificateUnknownCa => {
                "the client's certificate was not issued by a CA in --client-ca"
            }
            Self::ClientSanNotAllowed => {
                "the client's certificate has none of the names in --client-san: add one there, or to the certificate"
            }
            Self::HandshakeTimeout => {
                "the handshake took longer than --handshake-timeout: raise it if the client is Envoy, otherwise keep \
                 the client away from this port"
            }
            Self::Http1 => "the client speaks HTTP/1.1: set http2_protocol_options in Envoy's cluster",
            Self::KeepaliveTimeout => {
                "the peer did not answer a ping within --keepalive-timeout: it is gone, or too busy; check its machine and \
                 the network"
            }
            Self::NoAlpnH2 => {
                "the client does not offer h2 by ALPN: set http2_protocol_options in Envoy's cluster"
            }
            Self::NotHttp2 => {
                "the client does not speak HTTP/2: remove proxy_protocol from Envoy's cluster, or keep the client away \
                 from this port"
            }
            Self::PeerUidNotAllowed => "the client's user id is not in --unix-peer-uid",
            Self::PlaintextOnTls => "the client does not use TLS: set a transport_socket in Envoy's cluster",
            Self::PrefaceIncomplete => {
                "the client closed the connection in the middle of the HTTP/2 preface: only Envoy should connect"
            }
            Self::ProtocolError => {
                "the peer violates HTTP/2: only Envoy should connect to this port, so find the client"
            }
            Self::ResponsesNotTaken => "the peer does not read its responses: see --max-pending-bytes",
            Self::SlowHeaders => {
                "a header list did not arrive within --request-timeout: check the network, or find the client"
            }
            Self::TlsError => {
                "the TLS handshake failed: compare the client's TLS settings with --tls-cert and --client-ca"
            }
            Self::TlsOnPlaintext => {
                "the client uses TLS, the listener does not: set --tls-cert and --tls-key, or remove TLS from \
                 Envoy's cluster"
            }
            Self::TlsVersion => {
                "the client does not offer TLS 1.2 or 1.3: allow one of them in Envoy's cluster"
            }
        }
    }
}

/// Counts and logs failures.
#[derive(Debug)]
pub struct Failures {
    calls: [(Counter, RateLimitedLog); CallFailure::ALL.len()],
    connections: [(Counter, RateLimitedLog); ConnectionFailure::ALL.len()],
    /// The services count these.
    unable: [RateLimitedLog; Unable::ALL.len()],
    too_large: RateLimitedLog,
    late: (Counter, RateLimitedLog),
    resets: Arc<Counter>,
}

impl Failures {
    /// Creates counters at zero.
    #[must_use]
    pub fn new(clock: &Arc<dyn Clock>) -> Self {
        // Each kind has its own rate limit, so that a flood of one does not hide another.
        let log = || RateLimitedLog::new(Arc::clone(clock), 1);
        Self {
            calls: std::array::from_fn(|_| (Counter::default(), log())),
            connections: std::array::from_fn(|_| (Counter::default(), log())),
            unable: std::array::from_fn(|_| log()),
            too_large: log(),
            late: (Counter::default(), RateLimitedLog::once_a_minute(Arc::clone(clock))),
            resets: Arc::default(),
        }
    }

    /// Records a call that failed.
    pub(super) fn call(&self, failure: CallFailure, peer: &Peer) {
        let Some((count, log)) = entry(&CallFailure::ALL, &self.calls, &failure) else { return };
        count.add_one();
        let (reason, advice) = (failure.as_str(), failure.advice());
        // Clients of Envoy that disconnect are normal.
        if failure == CallFailure::Cancelled {
            return debug!(%peer, reason, "call failed: {advice}");
        }
        log.write(|left_out| warn!(%peer, reason, left_out, "call failed: {advice}"));
    }

    /// Records a connection that failed. `detail` is the message of the library.
    pub fn connection(&self, failure: ConnectionFailure, peer: &Peer, detail: Option<&str>) {
        let Some((count, log)) = entry(&ConnectionFailure::ALL, &self.connections, &failure) else { return };
        count.add_one();
        let (reason, advice) = (failure.as_str(), failure.advice());
        log.write(|left_out| warn!(%peer, reason, detail, left_out, "connection failed: {advice}"));
    }

    /// Logs a call that gets a response without a decision.
    pub(super) fn unable(&self, why: Unable, peer: &Peer) {
        let log = entry(&Unable::ALL, &self.unable, &why);
        let (Some(log), Some(advice)) = (log, why.advice()) else { return };
        let reason = why.as_str();
        log.write(|left_out| warn!(%peer, reason, left_out, "call not decided: {advice}"));
    }

    /// Logs a call that is rejected because of its size.
    pub(super) fn too_large(&self, peer: &Peer, option: &'static str, bytes: usize, limit: usize) {
        self.too_large.write(|left_out| {
            warn!(
                %peer, bytes, limit, left_out,
                "call rejected with 503: larger than {option}, raise it above what Envoy accepts"
            );
        });
    }

    /// Logs the response to a call that waited, which is late, and counts it if its caller has given up meanwhile.
    pub(super) fn late_answer(&self, late: Duration, given_up: bool, peer: &Peer) {
        let (count, log) = &self.late;
        if given_up {
            count.add_one();
        }
        let late_ms = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
        log.write(|left_out| {
            warn!(
                %peer, late_ms, left_out,
                "calls that wait are answered late, and Envoy may give up before: raise the timeout in Envoy's \
                 grpc_service, or give this server more CPU"
            );
        });
    }

    /// Returns the number of responses whose callers had given up before.
    #[must_use]
    pub fn late_answers(&self) -> u64 {
        self.late.0.value()
    }

    /// Returns the counter of `RST_STREAM` frames: of calls that their callers reset, answered or not.
    #[must_use]
    pub fn resets(&self) -> &Arc<Counter> {
        &self.resets
    }

    /// Returns the number of failed calls by reason.
    pub fn calls(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        CallFailure::ALL
            .iter()
            .zip(&self.calls)
            .map(|(failure, (count, _))| (failure.as_str(), count.value()))
    }

    /// Returns the number of failed connections by reason.
    pub fn connections(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let named = ConnectionFailure::ALL.iter().zip(&self.connections);
        named.map(|(failure, (count, _))| (failure.as_str(), count.value()))
    }
}

fn entry<'a, F: PartialEq, E>(all: &[F], entries: &'a [E], failure: &F) -> Option<&'a E> {
    all.iter().position(|other| other == failure).and_then(|at| entries.get(at))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_failure_has_a_distinct_name_and_advice() {
        let calls: BTreeSet<_> = CallFailure::ALL.map(|f| (f.as_str(), f.status().1)).into();
        assert_eq!(calls.len(), CallFailure::ALL.len());
        assert!(calls.iter().all(|(_, message)| message.is_ascii() && !message.contains('%')));
        let connections: BTreeSet<_> = ConnectionFailure::ALL.map(|f| (f.as_str(), f.advice())).into();
        assert_eq!(connections.len(), ConnectionFailure::ALL.len());
        assert!(CallFailure::ALL.map(CallFailure::as_str).is_sorted());
        assert!(ConnectionFailure::ALL.map(ConnectionFailure::as_str).is_sorted());
    }
}

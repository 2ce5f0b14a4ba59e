//! Who answers Envoy's call?
//!
//! The gRPC service: reads the request, lets the gate decide, says the decision,
//! and keeps the caller's deadline. Every decision gets an id, under which the
//! client's refusal, Envoy's metadata and our log line can be found together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tracing::{debug, info};
use uuid::{Builder, Uuid};

use super::codec::{WireRequest, WireResponse};
use super::translate::{Speech, answer, read};
use crate::clock::{Clock, Timestamp};
use crate::decision::{Decision, Grant, Identity};
use crate::gate::Gate;
use crate::request;

mod generated {
    #![expect(
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes,
        reason = "generated"
    )]
    include!(concat!(env!("OUT_DIR"), "/envoy.service.auth.v3.Authorization.rs"));
}

pub use generated::authorization_server::{Authorization, AuthorizationServer};

/// The name that health checks ask for.
pub const SERVICE_NAME: &str = "envoy.service.auth.v3.Authorization";

/// How requests are read and decisions said.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How requests are read.
    pub request: request::Options,
    /// How decisions are said.
    pub speech: Speech,
}

/// `envoy.service.auth.v3.Authorization`.
pub struct AuthorizationService {
    gate: Arc<Gate>,
    options: Options,
    log: DecisionLog,
}

impl AuthorizationService {
    /// The service on this gate.
    #[must_use]
    pub fn new(gate: Arc<Gate>, clock: Arc<dyn Clock>, options: Options) -> Self {
        Self { gate, options, log: DecisionLog::new(clock) }
    }
}

#[async_trait::async_trait]
impl Authorization for AuthorizationService {
    async fn check(&self, request: Request<WireRequest>) -> Result<Response<WireResponse>, Status> {
        let deadline = deadline(request.metadata());
        let message = request.into_inner().0;
        let asked =
            read(&message, &self.options.request).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let say = |decision: &Decision<'_>| {
            let id = decision_id(self.log.clock.now());
            self.log.write(decision, id);
            WireResponse(answer(decision, id, asked.bearer, &self.options.speech))
        };
        Ok(Response::new(self.gate.check(&asked, deadline, say).await))
    }
}

/// A `UUIDv7` (RFC 9562 §5.7) of this instant. The library's own takes a lock that all threads share and asks the
/// operating system for every one; each thread has a generator here, which is as hard to guess.
fn decision_id(now: Timestamp) -> Uuid {
    let millis = u64::try_from(now.0 / 1_000).unwrap_or(0);
    Builder::from_unix_timestamp_millis(millis, &rand::random()).into_uuid()
}

/// When an answer must be on its way so that the caller still gets it: a fifth of `grpc-timeout` before its
/// end, but 5 ms at least and 25 ms at most.
fn deadline(metadata: &MetadataMap) -> Option<Instant> {
    let timeout = grpc_timeout(metadata.get("grpc-timeout")?.to_str().ok()?)?;
    let margin = (timeout / 5).clamp(Duration::from_millis(5), Duration::from_millis(25));
    Instant::now().checked_add(timeout.saturating_sub(margin))
}

/// `grpc-timeout` as <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md> has it: at most eight
/// digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount.saturating_mul(3_600))),
        "M" => Some(Duration::from_secs(amount.saturating_mul(60))),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

/// One line for each refusal, but no more than [`DecisionLog::LINES`] a second: a flood of bad requests must
/// not become a flood of log. What is left out is counted and said.
struct DecisionLog {
    clock: Arc<dyn Clock>,
    /// The second that is counted for, and how many lines it had.
    second: AtomicU64,
    lines: AtomicU64,
}

impl DecisionLog {
    const LINES: u64 = 50;

    fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, second: AtomicU64::new(0), lines: AtomicU64::new(0) }
    }

    fn write(&self, decision: &Decision<'_>, id: Uuid) {
        let (word, reason, identity) = match decision {
            Decision::Allow(Grant::Public) => {
                return debug!(decision.id = %id, decision = "allow", reason = "public", "decided");
            }
            Decision::Allow(Grant::Tenant(key, tenant)) => {
                return debug!(decision.id = %id, decision = "allow", reason = "ok", tenant.id = %tenant.id.0,
                    key.id = %key.id.0, "decided");
            }
            Decision::Deny(denial) => ("deny", denial.reason.as_str(), denial.identity),
            Decision::Unable(fault, identity) => ("unable", fault.as_str(), *identity),
        };
        if !self.has_room() {
            return;
        }
        if let Some(Identity { key, .. }) = identity {
            info!(decision.id = %id, decision = word, reason, tenant.id = %key.tenant_id.0, key.id = %key.id.0,
                key.prefix = %key.prefix, "refused");
        } else {
            info!(decision.id = %id, decision = word, reason, "refused");
        }
    }

    fn has_room(&self) -> bool {
        let now = self.clock.uptime().as_secs();
        if self.second.swap(now, Relaxed) != now {
            let unsaid = self.lines.swap(0, Relaxed).saturating_sub(Self::LINES);
            if unsaid > 0 {
                info!(refusals = unsaid, "more refusals than lines, the metrics have them all");
            }
        }
        self.lines.fetch_add(1, Relaxed) < Self::LINES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn grpc_timeouts_are_read_as_the_protocol_has_them() {
        for (text, expected) in [
            ("200m", Some(Duration::from_millis(200))),
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_hours(99_999_999))),
            ("5M", Some(Duration::from_mins(5))),
            ("7u", Some(Duration::from_micros(7))),
            ("7n", Some(Duration::from_nanos(7))),
            ("", None),
            ("m", None),
            ("123456789m", None),
            ("-1m", None),
            ("1.5S", None),
            ("5", None),
            ("5é", None),
        ] {
            assert_eq!(grpc_timeout(text), expected, "{text}");
        }
    }

    #[test]
    fn a_decision_id_is_of_its_millisecond_and_never_twice_the_same() {
        let ids: std::collections::HashSet<_> =
            (0..1_000).map(|_| decision_id(Timestamp(1_700_000_000_123_999))).collect();
        assert_eq!(ids.len(), 1_000);
        for id in ids {
            assert!(id.to_string().starts_with("018bcfe5-687b-7") && id.get_version_num() == 7);
            assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
        }
    }

    #[test]
    fn a_flood_of_refusals_is_not_a_flood_of_log() {
        let clock = Arc::new(ManualClock::default());
        let log = DecisionLog::new(Arc::<ManualClock>::clone(&clock));
        assert_eq!((0..1_000).filter(|_| log.has_room()).count(), 50);
        clock.advance(Duration::from_secs(1));
        assert!(log.has_room());
    }
}

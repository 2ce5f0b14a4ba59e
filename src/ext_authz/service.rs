//! Who answers Envoy's call?
//!
//! The gRPC service: reads the request, lets the gate decide, says the decision,
//! and keeps the caller's deadline. Every decision gets an id, under which the
//! client's refusal, Envoy's metadata and our log line can be found together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use tokio::time::Instant;
use tonic::Code;
use tracing::{debug, info};
use uuid::{Builder, Uuid};

use super::origin::origin;
use super::spans::{CheckSpan, Spans};
use super::translate::{ROOM, Speech, answer, read};
use crate::clock::{Clock, Timestamp};
use crate::decision::{Decision, Fault, Grant, Identity, Objection};
use crate::gate::{Gate, Judged};
use crate::grpc::{Frame, Outcome, Refusal, Unary};
use crate::request::{self, AccessRequest};
use crate::shadow::Report;
use crate::trace::Parent;

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
    shadow: Report,
    /// Who keeps spans, if anybody does.
    spans: Option<Arc<dyn Spans>>,
    log: DecisionLog,
}

impl AuthorizationService {
    /// The service on this gate.
    #[must_use]
    pub fn new(gate: Arc<Gate>, clock: Arc<dyn Clock>, shadow: Report, options: Options) -> Self {
        Self { gate, options, shadow, spans: None, log: DecisionLog::new(clock) }
    }

    /// Makes checks part of the traces that callers keep.
    #[must_use]
    pub fn with_spans(self, spans: Option<Arc<dyn Spans>>) -> Self {
        Self { spans, ..self }
    }
}

/// The call was made with something else than a `CheckRequest`.
const NOT_A_CHECK_REQUEST: Refusal = Refusal { code: Code::InvalidArgument, why: "this is no CheckRequest" };

impl Unary for AuthorizationService {
    const PATH: &'static str = "/envoy.service.auth.v3.Authorization/Check";

    fn traces(&self) -> bool {
        self.spans.is_some()
    }

    fn answer_now(&self, message: &[u8], parent: Option<Parent>) -> Option<Outcome> {
        let Ok(asked) = read(message, &self.options.request) else { return Some(Err(NOT_A_CHECK_REQUEST)) };
        let call = self.call(message, parent);
        self.gate.check_now(&asked, |judged| Ok(self.say(judged, &asked, &call)))
    }

    async fn answer(&self, message: Bytes, deadline: Instant, parent: Option<Parent>) -> Outcome {
        let asked = read(&message, &self.options.request).map_err(|_| NOT_A_CHECK_REQUEST)?;
        let call = self.call(&message, parent);
        self.gate.check(&asked, deadline, |judged| Ok(self.say(judged, &asked, &call))).await
    }

    fn broken(&self) -> Frame {
        self.unable(Fault::Internal)
    }

    fn overloaded(&self) -> Frame {
        self.unable(Fault::Overloaded)
    }
}

/// A call, as far as it matters after it was decided.
struct Call<'a> {
    message: &'a [u8],
    /// The trace it is part of, and since when.
    trace: Option<(Parent, Timestamp)>,
}

impl AuthorizationService {
    /// What is said when a request is not even looked at.
    fn unable(&self, fault: Fault) -> Frame {
        let (asked, call) = (AccessRequest::nothing(), self.call(&[], None));
        self.gate.unread(fault, |judged| self.say(judged, &asked, &call))
    }

    fn call<'a>(&self, message: &'a [u8], parent: Option<Parent>) -> Call<'a> {
        Call { message, trace: parent.map(|parent| (parent, self.log.clock.now())) }
    }

    fn say(&self, judged: &Judged<'_>, asked: &AccessRequest<'_>, call: &Call<'_>) -> Frame {
        let (decision, id) = (judged.decision, decision_id(judged.at));
        if let Decision::Allow(Grant::Shadow(objection)) = decision {
            self.shadow.note(objection, &origin(call.message), judged.at);
        }
        self.log.write(decision, id);
        if let (Some(spans), Some((parent, started))) = (&self.spans, call.trace) {
            let ended = self.log.clock.now();
            spans.check(&CheckSpan { parent, started, ended, decision, decision_id: id });
        }
        let speech = &self.options.speech;
        Frame::of(ROOM, |message| answer(message, judged, id, asked.bearer, speech))
    }
}

/// A `UUIDv7` (RFC 9562 §5.7) of this instant. The library's own takes a lock that all threads share and asks the
/// operating system for every one; each thread has a generator here, which is as hard to guess.
fn decision_id(now: Timestamp) -> Uuid {
    let millis = u64::try_from(now.0 / 1_000).unwrap_or(0);
    Builder::from_unix_timestamp_millis(millis, &rand::random()).into_uuid()
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
            Decision::Allow(Grant::Shadow(objection)) => return self.write_objection(objection, id),
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

    fn write_objection(&self, objection: &Objection<'_>, id: Uuid) {
        if !self.has_room() {
            return;
        }
        let key = objection.identity().map(|holder| holder.key);
        let cause = if let Objection::Unable(fault, _) = objection { Some(fault.as_str()) } else { None };
        info!(decision.id = %id, decision = "allow", reason = "shadow", would_deny = objection.as_str(), cause,
            tenant.id = key.map(|key| display(key.tenant_id.0)), key.id = key.map(|key| display(key.id.0)),
            key.prefix = key.map(|key| display(&key.prefix)), "would be refused");
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
    use std::time::Duration;

    use super::*;
    use crate::clock::ManualClock;

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

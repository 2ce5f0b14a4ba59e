//! The gRPC service that answers Envoy's Checks.
//!
//! It parses the request, has the gate decide, renders the response, and respects the caller's deadline. Every
//! decision gets an id, which connects the response to the client, Envoy's metadata and the log line.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::Instant;
use tracing::field::display;
use tracing::{debug, info};
use uuid::{Builder, Uuid};

use super::check_span::{CheckSpan, SpanSink};
use super::origin::{client_address, compact, compact_metadata, origin};
use super::translate::{ROOM, ResponseContent, ResponseOptions, read, write_response};
use crate::client_address::ClientAddress;
use crate::clock::{Clock, Timestamp};
use crate::decision::{Decision, Fault, Grant, Identity, Objection};
use crate::gate::{Gate, Verdict};
use crate::random;
use crate::rate_limited_log::RateLimitedLog;
use crate::refusals::Refusals;
use crate::replica::TenantEntry;
use crate::request;
use crate::shadow::ShadowReport;
use crate::trace::{Parent, TRACEPARENT};
use crate::transport::{CallFailure, Frame, Unable, Unary};

/// The name of the service in gRPC health checks.
pub const SERVICE_NAME: &str = "envoy.service.auth.v3.Authorization";

/// Options of the service.
#[derive(Clone, Debug, Default)]
pub struct AuthorizationOptions {
    /// How requests are parsed.
    pub request: request::RequestOptions,
    /// How responses are rendered.
    pub response: ResponseOptions,
    /// The source of the client's address.
    pub client_address: ClientAddress,
}

/// The service `envoy.service.auth.v3.Authorization`.
pub struct AuthorizationService {
    gate: Arc<Gate>,
    options: AuthorizationOptions,
    shadow: ShadowReport,
    /// Records rejections by decision id; `None` if disabled.
    refusals: Option<Refusals>,
    /// The exporter of spans; `None` without tracing.
    spans: Option<Arc<dyn SpanSink>>,
    log: DecisionLog,
}

impl AuthorizationService {
    /// Creates the service.
    #[must_use]
    pub fn new(
        gate: Arc<Gate>,
        clock: Arc<dyn Clock>,
        shadow: ShadowReport,
        options: AuthorizationOptions,
    ) -> Self {
        Self { gate, options, shadow, refusals: None, spans: None, log: DecisionLog::new(clock) }
    }

    /// Makes the service record rejections by decision id.
    #[must_use]
    pub fn remembering(self, refusals: Refusals) -> Self {
        Self { refusals: Some(refusals), ..self }
    }

    /// Sets the exporter of spans; `None` disables tracing.
    #[must_use]
    pub fn with_spans(self, spans: Option<Arc<dyn SpanSink>>) -> Self {
        Self { spans, ..self }
    }
}

impl Unary for AuthorizationService {
    const PATH: &'static str = "/envoy.service.auth.v3.Authorization/Check";

    fn answer_now(&self, message: &[u8], metadata: &HeaderMap) -> Option<Result<Frame, CallFailure>> {
        let Ok(asked) = read(message, &self.options.request) else {
            return Some(Err(CallFailure::InvalidMessage));
        };
        let (view, call) = (self.gate.view(), CheckCall { message, metadata });
        let verdict = view.judge(&asked, &|| self.address(&call)).ok()?;
        Some(Ok(self.respond(&verdict, view.started(), asked.bearer, &call)))
    }

    async fn answer(
        &self,
        message: Bytes,
        metadata: &HeaderMap,
        deadline: Instant,
    ) -> Result<(Frame, Option<Unable>), CallFailure> {
        let asked = read(&message, &self.options.request).map_err(|_| CallFailure::InvalidMessage)?;
        let call = CheckCall { message: &message, metadata };
        let address = || self.address(&call);
        let view = self.gate.wait_for_verdict(&asked, &address, deadline).await;
        // `wait_for_verdict` returns a view that has a verdict for this request.
        let verdict =
            view.judge(&asked, &address).unwrap_or_else(|_| self.gate.undecidable_verdict(Fault::Internal));
        Ok((self.respond(&verdict, view.started(), asked.bearer, &call), unable_reason(&verdict.decision)))
    }

    fn compact(&self, message: Bytes) -> Bytes {
        compact(&message, &self.options.request, &self.options.client_address).map_or(message, Bytes::from)
    }

    fn compact_metadata(&self, metadata: &HeaderMap) -> HeaderMap {
        compact_metadata(metadata, &self.options.client_address)
    }

    fn unable(&self, why: Unable) -> Frame {
        let (verdict, started) = (self.gate.undecidable_verdict(fault(why)), self.log.clock.uptime());
        self.respond(&verdict, started, false, &CheckCall { message: &[], metadata: &HeaderMap::new() })
    }
}

/// Returns the fault of a call that gets a response without a decision.
fn fault(why: Unable) -> Fault {
    match why {
        Unable::QueueFull | Unable::MemoryFull => Fault::Overloaded,
        Unable::Panicked => Fault::Internal,
        Unable::TooLarge => Fault::TooLarge,
        Unable::Stopping | Unable::DeadlineExceeded => Fault::DeadlineTooShort,
    }
}

/// Returns why a call that waited for a proof got no decision; `None` if it got one.
fn unable_reason(decision: &Decision<'_>) -> Option<Unable> {
    let (Decision::Unable(fault, _) | Decision::Allow(Grant::Shadow(Objection::Unable(fault, _)))) = decision
    else {
        return None;
    };
    match fault {
        Fault::DeadlineTooShort => Some(Unable::DeadlineExceeded),
        Fault::Overloaded => Some(Unable::QueueFull),
        _ => None,
    }
}

/// The parts of a call that are needed after the decision.
struct CheckCall<'a> {
    message: &'a [u8],
    metadata: &'a HeaderMap,
}

impl AuthorizationService {
    /// Returns the address of the client. Called only for keys with networks.
    fn address(&self, call: &CheckCall<'_>) -> Option<IpAddr> {
        client_address(call.message, call.metadata, &self.options.client_address)
    }

    /// Renders the response to a verdict, and logs and records it. `bearer`: whether `authorization` contains a key
    /// or an attempt at one.
    fn respond(&self, verdict: &Verdict<'_>, started: Duration, bearer: bool, call: &CheckCall<'_>) -> Frame {
        let (decision, id) = (&verdict.decision, decision_id(verdict.at));
        let origin = || origin(call.message, call.metadata, &self.options.client_address);
        let objection = if let Decision::Allow(grant) = decision { grant.objection() } else { None };
        if let Some(objection) = &objection {
            self.shadow.note(objection, &origin(), verdict.at);
        }
        self.log.write(decision, id, || origin().address);
        if let Some(refusals) = &self.refusals {
            refusals.note(decision, id, verdict.at);
        }
        let cache = verdict.tenant.map(TenantEntry::responses);
        let response = &self.options.response;
        let content = ResponseContent { decision, terms: verdict.terms, cache };
        let frame = Frame::of(ROOM, |message| write_response(message, &content, id, bearer, response));
        self.gate.record(verdict, started);
        if let Some(spans) = &self.spans {
            self.trace(spans.as_ref(), verdict, started, (id, call));
        }
        frame
    }

    /// Exports the span of the Check, if its trace is sampled.
    fn trace(
        &self,
        spans: &dyn SpanSink,
        verdict: &Verdict<'_>,
        started: Duration,
        (id, call): (Uuid, &CheckCall<'_>),
    ) {
        let Some(parent) = parent(call.metadata) else { return };
        let ended = self.log.clock.now();
        let took = self.log.clock.uptime().saturating_sub(started);
        let decision = &verdict.decision;
        spans.export(&CheckSpan { parent, started: ended.before(took), ended, decision, decision_id: id });
    }
}

/// Returns the caller's span, if its trace is sampled.
fn parent(metadata: &HeaderMap) -> Option<Parent> {
    Parent::sampled(metadata.get(TRACEPARENT)?.as_bytes())
}

/// Generates a `UUIDv7` (RFC 9562 §5.7) for this instant. `Uuid::now_v7` takes a global lock and makes a system call
/// each time; the generator of each thread is as hard to predict.
fn decision_id(now: Timestamp) -> Uuid {
    let millis = u64::try_from(now.0 / 1_000).unwrap_or(0);
    Builder::from_unix_timestamp_millis(millis, &random::bytes()).into_uuid()
}

/// Logs one line for each rejection, at most [`DecisionLog::LINES`] a second.
struct DecisionLog {
    clock: Arc<dyn Clock>,
    limit: RateLimitedLog,
}

impl DecisionLog {
    const LINES: u64 = 50;

    fn new(clock: Arc<dyn Clock>) -> Self {
        Self { limit: RateLimitedLog::new(Arc::clone(&clock), Self::LINES), clock }
    }

    fn write(&self, decision: &Decision<'_>, id: Uuid, client: impl FnOnce() -> Option<IpAddr>) {
        let (word, reason, identity) = match decision {
            Decision::Allow(grant @ (Grant::Public | Grant::Anonymous)) => {
                return debug!(decision.id = %id, decision = "allow", reason = grant.as_str(), "decided");
            }
            Decision::Allow(Grant::Tenant(key, tenant)) => {
                return debug!(decision.id = %id, decision = "allow", reason = "ok", tenant.id = %tenant.id.0,
                    key.id = %key.id.0, "decided");
            }
            Decision::Allow(Grant::Shadow(objection)) => {
                return self.write_objection("shadow", objection, id, client);
            }
            Decision::Allow(Grant::RuleShadow(_, _, denial)) => {
                return self.write_objection("ok", &Objection::Denied(*denial), id, client);
            }
            Decision::Deny(denial) => ("deny", denial.reason.as_str(), denial.identity),
            Decision::Unable(fault, identity) => ("unable", fault.as_str(), *identity),
        };
        self.limit.write(|left_out| {
            log_left_out(left_out);
            let client = client().map(display);
            if let Some(Identity { key, .. }) = identity {
                info!(decision.id = %id, decision = word, reason, tenant.id = %key.tenant_id.0,
                    key.id = %key.id.0, key.prefix = %key.prefix, client.address = client, "refused");
            } else {
                info!(decision.id = %id, decision = word, reason, client.address = client, "refused");
            }
        });
    }

    fn write_objection(
        &self,
        reason: &'static str,
        objection: &Objection<'_>,
        id: Uuid,
        client: impl FnOnce() -> Option<IpAddr>,
    ) {
        self.limit.write(|left_out| {
            log_left_out(left_out);
            let client = client().map(display);
            let key = objection.identity().map(|holder| holder.key);
            let cause =
                if let Objection::Unable(fault, _) = objection { Some(fault.as_str()) } else { None };
            info!(decision.id = %id, decision = "allow", reason, would_deny = objection.as_str(), cause,
                tenant.id = key.map(|key| display(key.tenant_id.0)), key.id = key.map(|key| display(key.id.0)),
                key.prefix = key.map(|key| display(&key.prefix)), client.address = client, "would be refused");
        });
    }
}

fn log_left_out(refusals: u64) {
    if refusals > 0 {
        info!(refusals, "more refusals than lines, the metrics count them all");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_and_the_metrics_of_a_call_have_the_same_cause() {
        for why in Unable::ALL {
            assert_eq!(why.as_str(), fault(why).as_str(), "{why:?}");
        }
        for why in [Unable::QueueFull, Unable::DeadlineExceeded] {
            assert_eq!(unable_reason(&Decision::Unable(fault(why), None)), Some(why));
        }
        assert_eq!(unable_reason(&Decision::Unable(Fault::TooOld, None)), None, "no call waits for that");
    }

    #[test]
    fn decision_ids_contain_the_millisecond_and_are_unique() {
        let ids: std::collections::HashSet<_> =
            (0..1_000).map(|_| decision_id(Timestamp(1_700_000_000_123_999))).collect();
        assert_eq!(ids.len(), 1_000);
        for id in ids {
            assert!(id.to_string().starts_with("018bcfe5-687b-7") && id.get_version_num() == 7);
            assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
        }
    }
}

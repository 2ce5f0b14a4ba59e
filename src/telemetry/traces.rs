//! Adds checks to the traces that Envoy samples.
//!
//! A thread of the OpenTelemetry library sends the spans in batches over OTLP (gRPC). There is no sampling here: Envoy
//! decides, and only checks of sampled traces arrive. Attributes have the names of the log fields; the tenant and the
//! key are present only once they are proven.
//!
//! Spans that cannot be sent are lost. Requests are not affected.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, UNIX_EPOCH};

use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{
    ExporterBuildError, SpanExporter as OtlpExporter, WithExportConfig as _, WithTonicConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, SpanData, SpanExporter};
use tonic::transport::ClientTlsConfig;
use tracing::{debug, info, warn};

use crate::clock::Timestamp;
use crate::decision::{Decision, Grant, Identity, Objection};
use crate::ext_authz::check_span::{CheckSpan, SpanSink};
use crate::stats::Counter;

/// The results of sending spans, for operators.
#[derive(Debug, Default)]
pub struct Stats {
    /// Batches sent.
    pub written: Counter,
    /// Batches that could not be sent and are lost.
    pub failed: Counter,
}

/// Sends spans.
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    stats: Arc<Stats>,
}

impl Traces {
    /// Sends spans to this collector, `http://host:4317` or `https://…`. Must be called on a runtime, which sends them.
    ///
    /// # Errors
    ///
    /// The address is invalid; the error says why.
    pub fn to(endpoint: &str) -> Result<Self, ExporterBuildError> {
        let exporter = OtlpExporter::builder().with_tonic().with_endpoint(endpoint);
        let exporter = if endpoint.starts_with("https:") {
            exporter.with_tls_config(ClientTlsConfig::new().with_native_roots())
        } else {
            exporter
        };
        let exporter = exporter.build()?;
        let (stats, failing) = (Arc::<Stats>::default(), AtomicBool::new(false));
        let watched = Watched { exporter, stats: Arc::clone(&stats), failing };
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(watched).with_resource(resource()).build();
        Ok(Self { tracer: provider.tracer("tenantgate"), provider, stats })
    }

    /// Returns the results so far.
    #[must_use]
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Sends the remaining spans. Blocks for at most `limit`.
    pub fn stop(&self, limit: Duration) {
        // The exporter has logged a failure.
        let _ = self.provider.shutdown_with_timeout(limit);
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").finish_non_exhaustive()
    }
}

/// Reads `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME`. The service name defaults to `tenantgate`.
fn resource() -> Resource {
    let named = Resource::builder().build();
    let name = named.get(&"service.name".into()).map(|name| name.to_string()).unwrap_or_default();
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder().with_attribute(version);
    if name.is_empty() || name.starts_with("unknown_service") {
        resource.with_service_name("tenantgate").build()
    } else {
        resource.build()
    }
}

impl SpanSink for Traces {
    fn export(&self, check: &CheckSpan<'_>) {
        let parent = SpanContext::new(
            TraceId::from(check.parent.trace_id),
            SpanId::from(check.parent.span_id),
            TraceFlags::SAMPLED,
            true,
            TraceState::default(),
        );
        let instant = |at: Timestamp| UNIX_EPOCH + at.since(Timestamp::default());
        let mut span = self
            .tracer
            .span_builder("envoy.service.auth.v3.Authorization/Check")
            .with_kind(SpanKind::Server)
            .with_start_time(instant(check.started))
            .with_attributes(attributes(check))
            .start_with_context(&self.tracer, &Context::new().with_remote_span_context(parent));
        if let Decision::Unable(fault, _) = check.decision {
            span.set_status(Status::error(fault.as_str()));
        }
        span.end_with_timestamp(instant(check.ended));
    }
}

/// Returns the attributes, with the names of the log fields.
fn attributes(check: &CheckSpan<'_>) -> Vec<KeyValue> {
    let (decision, reason, identity) = match check.decision {
        Decision::Allow(Grant::Shadow(objection)) => ("allow", "shadow", objection.identity()),
        Decision::Allow(grant) => {
            let identity = grant.identity().map(|(key, tenant)| Identity { key, tenant: Some(tenant) });
            ("allow", grant.as_str(), identity)
        }
        Decision::Deny(denial) => ("deny", denial.reason.as_str(), denial.identity),
        Decision::Unable(_, identity) => ("unable", "unavailable", *identity),
    };
    let mut all = vec![
        KeyValue::new("rpc.system", "grpc"),
        KeyValue::new("rpc.service", "envoy.service.auth.v3.Authorization"),
        KeyValue::new("rpc.method", "Check"),
        KeyValue::new("decision", decision),
        KeyValue::new("reason", reason),
        KeyValue::new("decision.id", check.decision_id.to_string()),
    ];
    let objection = if let Decision::Allow(grant) = check.decision { grant.objection() } else { None };
    if let Some(objection) = objection {
        all.push(KeyValue::new("would_deny", objection.as_str()));
    }
    if let Decision::Unable(fault, _) | Decision::Allow(Grant::Shadow(Objection::Unable(fault, _))) =
        check.decision
    {
        all.push(KeyValue::new("cause", fault.as_str()));
    }
    if let Some(Identity { key, .. }) = identity {
        all.push(KeyValue::new("tenant.id", key.tenant_id.0.to_string()));
        all.push(KeyValue::new("key.id", key.id.0.to_string()));
        all.push(KeyValue::new("key.prefix", key.prefix.to_string()));
    }
    all
}

/// An exporter that counts failures and logs the first one of each outage.
#[derive(Debug)]
struct Watched {
    exporter: OtlpExporter,
    stats: Arc<Stats>,
    failing: AtomicBool,
}

impl SpanExporter for Watched {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        match &result {
            Ok(()) => {
                self.stats.written.add_one();
                debug!(spans, "spans sent");
                if self.failing.swap(false, Relaxed) {
                    info!("spans are sent again");
                }
            }
            Err(error) => {
                self.stats.failed.add_one();
                // One line per outage, not one per attempt.
                if !self.failing.swap(true, Relaxed) {
                    warn!(%error, spans, "spans could not be sent and are lost");
                }
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, limit: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(limit)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

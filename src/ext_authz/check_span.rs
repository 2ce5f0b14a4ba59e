//! The span of a Check, and the trait of its exporter.
//!
//! Envoy sends the trace of a call and whether it is sampled. If the server exports spans, each Check of a sampled
//! trace becomes a span in that trace. This module does not know how spans are exported.

use uuid::Uuid;

use crate::clock::Timestamp;
use crate::decision::Decision;
use crate::trace::Parent;

/// The span of one Check.
#[derive(Debug)]
pub struct CheckSpan<'a> {
    /// Envoy's span of the call.
    pub parent: Parent,
    /// When the Check started.
    pub started: Timestamp,
    /// When the response was rendered.
    pub ended: Timestamp,
    /// The decision.
    pub decision: &'a Decision<'a>,
    /// The id of the decision.
    pub decision_id: Uuid,
}

/// Receives the spans of Checks, to export them.
pub trait SpanSink: Send + Sync {
    /// Queues a span for export. Must not block.
    fn export(&self, span: &CheckSpan<'_>);
}

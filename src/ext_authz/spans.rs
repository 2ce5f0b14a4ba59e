//! Turns a Check into a span of the trace of its caller.
//!
//! Envoy sends the trace that a call belongs to, and whether it is sampled. A Check of a sampled trace becomes a span, if
//! the server exports spans. How spans are exported is not known here.

use uuid::Uuid;

use crate::clock::Timestamp;
use crate::decision::Decision;
use crate::trace::Parent;

/// A check that was made.
#[derive(Debug)]
pub struct CheckSpan<'a> {
    /// Envoy's own span of the call.
    pub parent: Parent,
    /// When the call came.
    pub started: Timestamp,
    /// When the answer was made.
    pub ended: Timestamp,
    /// What was decided.
    pub decision: &'a Decision<'a>,
    /// Under which id.
    pub decision_id: Uuid,
}

/// Keeps spans.
pub trait Spans: Send + Sync {
    /// Takes a span. Waits for nobody.
    fn check(&self, span: &CheckSpan<'_>);
}

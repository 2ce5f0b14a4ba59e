//! Counts the requests of management, for operators.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;

use crate::telemetry::manage_metrics::{ManageStats, RequestLabels};

/// Counts a request by its route and status.
pub(super) async fn counted(State(stats): State<Arc<ManageStats>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).into();
    let method = name(request.method());
    let response = next.run(request).await;
    stats.latency.record(began.elapsed());
    stats.count(RequestLabels { route, method, status: response.status().as_u16() });
    response
}

/// Returns the name of a method. Clients can invent methods: all that no route has are counted as `other`.
fn name(method: &Method) -> &'static str {
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let names = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
    known.iter().zip(names).find(|(known, _)| *known == method).map_or("other", |(_, name)| name)
}

//! The HTTP endpoints for operators.

use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse as _;
use axum::routing::get;

use crate::health::Health;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::page::PageFormat;

/// Serves `/livez`, `/readyz` and `/metrics`.
pub(super) fn router(health: Health, metrics: Metrics) -> axum::Router {
    let readyz = move || async move {
        let readiness = health.readiness();
        let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, axum::Json(readiness)).into_response()
    };
    let page = move |headers: HeaderMap| async move {
        let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let format = PageFormat::wanted(accept);
        ([(CONTENT_TYPE, format.content_type())], metrics.render(format))
    };
    axum::Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(page))
}

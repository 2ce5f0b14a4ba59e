//! The HTTP endpoints of `tenantgate manage` for operators.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse as _;
use axum::routing::get;
use serde::Serialize;
use tokio::time::timeout;

use super::Plane;
use crate::clock::Timestamp;
use crate::telemetry::manage_metrics;
use crate::telemetry::manage_metrics::ManageStats;
use crate::telemetry::page::PageFormat;

/// How long the database may take to respond before it counts as unavailable.
const DATABASE_WITHIN: Duration = Duration::from_secs(2);

/// The body of `/readyz`.
#[derive(Serialize)]
struct Readiness {
    status: &'static str,
    database: &'static str,
}

/// Serves `/livez`, `/readyz` and `/metrics`.
pub(super) fn router(plane: Arc<Plane>, stats: Arc<ManageStats>, started: Timestamp) -> axum::Router {
    let readyz = move || async move {
        let asked = timeout(DATABASE_WITHIN, plane.admin.ready()).await;
        let (code, verdict, database) = match asked {
            Ok(Ok(())) => (StatusCode::OK, "ready", "connected"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "not_ready", "unavailable"),
        };
        (code, Json(Readiness { status: verdict, database })).into_response()
    };
    let page = move |headers: HeaderMap| async move {
        let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let format = PageFormat::wanted(accept);
        ([(CONTENT_TYPE, format.content_type())], manage_metrics::render(&stats, started, format))
    };
    axum::Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(page))
}

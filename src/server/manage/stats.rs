//! Counts the requests of management, for operators.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;

use crate::stats::{Counter, Histogram};

/// Counts of requests and connections.
#[derive(Debug, Default)]
pub struct Stats {
    /// Requests by route, method and status. A route is the pattern of a path, which contains no tenant and no key.
    requests: Mutex<BTreeMap<Counted, u64>>,
    /// The durations of requests.
    pub latency: Histogram,
    /// Connections that arrived when the limit was reached.
    pub crowded: Counter,
    /// TLS handshakes that failed.
    pub handshakes: Counter,
}

/// The requests that share one count.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Counted {
    /// The route, such as `/v1/tenants/{reference}`; `other` if no route matches the path.
    pub route: Arc<str>,
    /// The method; `other` for a method that no route has.
    pub method: &'static str,
    /// The status.
    pub status: u16,
}

impl Stats {
    fn count(&self, counted: Counted) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry(counted).or_default() += 1;
    }

    /// The counts of requests.
    #[must_use]
    pub fn requests(&self) -> BTreeMap<Counted, u64> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Counts a request by its route and status.
pub(super) async fn counted(State(stats): State<Arc<Stats>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).into();
    let method = name(request.method());
    let response = next.run(request).await;
    stats.latency.record(began.elapsed());
    stats.count(Counted { route, method, status: response.status().as_u16() });
    response
}

/// Returns the name of a method. Clients can invent methods: all that no route has are counted as `other`.
fn name(method: &Method) -> &'static str {
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let names = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
    known.iter().zip(names).find(|(known, _)| *known == method).map_or("other", |(_, name)| name)
}

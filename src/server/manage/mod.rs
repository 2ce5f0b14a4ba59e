//! Management over HTTP: the process `tenantgate manage`.
//!
//! ```text
//! accept ── access: authentication (401, 429) ── handler: permission (403, 404) ── admin ── objects ── response
//! ```
//!
//! It calls the same use cases as the command line ([`crate::admin`]), and its objects are those of `-o json`. Every
//! response has the id of its request, and headers that forbid browsers to execute or store it.

mod access;
mod body;
mod changes;
mod connections;
mod failures;
mod idempotency;
mod objects;
mod openapi;
mod ops;
mod page;
mod precondition;
mod problem;
mod query;
mod reading;
mod stats;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use percent_encoding::percent_decode_str;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use self::changes::{admin_keys, keys, plans, routes, tenants};
use self::connections::{HttpAcceptor, HttpPeer};
use self::failures::WrongKeys;
use self::problem::{Problem, RequestId, with_request_id};
pub use self::reading::{ExplainFn, ExplainedRequest};
use super::acceptor::{bind_tcp, bind_unix, remove_sockets};
use super::tls::Tls;
use super::{ListenAddress, ServeError};
use crate::admin::{Admin, Caller};
use crate::clock::Clock;
use crate::permission::Role;
use crate::random;
use crate::rate_limited_log::RateLimitedLog;
use crate::supervise::{BackgroundTask, Supervisor};
use crate::telemetry::manage_metrics::ManageStats;

/// How long open requests may take to end when the process stops.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The security headers of every response.
const HEADERS: [(HeaderName, &str); 3] = [
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (CACHE_CONTROL, "no-store"),
];

/// The settings of management over HTTP.
pub struct ManageSettings {
    /// The addresses to listen on. Without TLS, only addresses of this machine.
    pub listen: Vec<ListenAddress>,
    /// The mode of Unix sockets.
    pub unix_mode: u32,
    /// TLS for TCP listeners.
    pub tls: Option<Tls>,
    /// User ids whose processes need no key on a Unix socket, and their roles.
    pub trusted: Vec<(u32, Role)>,
    /// The address of health and metrics, for operators.
    pub ops_listen: String,
    /// The use cases.
    pub admin: Admin,
    /// Explains requests.
    pub explain: ExplainFn,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

/// The caller of a request.
type CallerExtension = Extension<Arc<Caller>>;

/// The shared state, as handlers extract it.
type PlaneState = State<Arc<Plane>>;

type JsonResult<T> = Result<Json<T>, Problem>;

/// The state that all requests share.
struct Plane {
    admin: Admin,
    wrong: WrongKeys,
    trusted: Vec<(u32, Role)>,
    explain: ExplainFn,
    counted: page::KeyCountCache,
}

/// Serves until `shutdown` is done, then lets open requests end.
///
/// # Errors
///
/// The database is not available or its schema is too old, or an address cannot be bound.
pub async fn manage(settings: ManageSettings, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
    let ManageSettings { listen, unix_mode, tls, trusted, ops_listen, admin, explain, clock } = settings;
    admin.prepare().await?;
    let (stats, started) = (Arc::new(ManageStats::default()), clock.now());
    let plane = Arc::new(Plane {
        admin,
        wrong: WrongKeys::default(),
        trusted,
        explain,
        counted: page::KeyCountCache::default(),
    });
    let app = router(Arc::clone(&plane), Arc::clone(&stats));
    let log = RateLimitedLog::new(clock, 1);
    let acceptor = Arc::new(HttpAcceptor::new(app, tls.clone(), Arc::clone(&stats), log));
    let (stop, stopping) = watch::channel(false);
    let mut listeners = JoinSet::new();
    for address in &listen {
        let (acceptor, stopping) = (Arc::clone(&acceptor), stopping.clone());
        match address {
            ListenAddress::Tcp(address) => {
                listeners.spawn(acceptor.serve_tcp(bind_tcp(address, "manage").await?, stopping));
            }
            ListenAddress::Unix(path) => {
                let listener = bind_unix(path, unix_mode, "manage").await?;
                listeners.spawn(acceptor.serve_unix(listener, stopping));
            }
        }
    }
    let ops = bind_tcp(&ops_listen, "ops").await?;
    let mut helpers = JoinSet::new();
    helpers.spawn(async move {
        let _ = axum::serve(ops, ops::router(plane, stats, started)).await;
    });
    if let Some(tls) = tls {
        helpers.spawn(async move {
            Supervisor::default().run(BackgroundTask::Certificates, || tls.clone().follow()).await;
        });
    }
    info!("ready");
    shutdown.await;
    info!("stopping");
    // An error means that all listeners have failed.
    let _ = stop.send(true);
    let ended = timeout(DRAIN_WITHIN, async { while listeners.join_next().await.is_some() {} });
    if ended.await.is_err() {
        warn!("requests that are still open after 10 s are aborted");
    }
    remove_sockets(&listen);
    info!("stopped");
    Ok(())
}

fn router(plane: Arc<Plane>, stats: Arc<ManageStats>) -> Router {
    let v1 = Router::new()
        .route("/whoami", get(objects::whoami))
        .route("/tenants", get(objects::tenants).post(tenants::create))
        .route("/tenants/{reference}", get(objects::tenant).patch(tenants::update))
        .route("/tenants/{reference}/suspend", post(tenants::suspend))
        .route("/tenants/{reference}/activate", post(tenants::activate))
        .route("/tenants/{reference}/delete", post(tenants::delete))
        .route("/tenants/{reference}/impact", get(reading::impact))
        .route("/tenants/{reference}/keys", get(reading::keys_of_tenant).post(keys::create))
        .route("/keys", get(reading::keys))
        .route("/keys/{reference}", get(reading::key).patch(keys::patch))
        .route("/keys/{reference}/usage", get(reading::usage_of_key))
        .route("/keys/{reference}/rotate", post(keys::rotate))
        .route("/keys/{reference}/revoke", post(keys::revoke))
        .route("/keys/{reference}/disable", post(keys::disable))
        .route("/keys/{reference}/enable", post(keys::enable))
        .route("/plans", get(objects::plans).post(plans::create))
        .route("/plans/{name}", get(objects::plan).patch(plans::update).delete(plans::delete))
        .route("/routes", get(objects::routes).post(routes::create).put(routes::replace))
        .route("/routes/test", post(reading::test_route))
        .route("/explain", post(reading::explain))
        .route("/routes/{id}", get(objects::route).patch(routes::update).delete(routes::delete))
        .route("/admin_keys", get(objects::admin_keys).post(admin_keys::create))
        .route("/admin_keys/{id}", get(objects::admin_key).patch(admin_keys::update))
        .route("/admin_keys/{id}/revoke", post(admin_keys::revoke))
        .route("/usage", get(reading::usage))
        .route("/audit", get(reading::audit))
        .route("/replicas", get(reading::replicas))
        .fallback(|| async { Problem::not_found() })
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .layer(from_fn(only_utf8))
        // This layer is outside, so that clients without a key learn neither paths nor methods.
        .layer(from_fn_with_state(Arc::clone(&plane), access::authenticated))
        .with_state(Arc::clone(&plane));
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/openapi.json", get(openapi::page))
        .nest("/v1", v1)
        .merge(page::router(plane))
        .fallback(page::not_found)
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .layer(from_fn(with_headers))
        .layer(from_fn_with_state(stats, stats::counted))
}

/// Answers requests whose path is not UTF-8 once it is decoded: no object has such a name.
async fn only_utf8(request: Request, next: Next) -> Response {
    if percent_decode_str(request.uri().path()).decode_utf8().is_ok() {
        next.run(request).await
    } else {
        page::not_found(request).await
    }
}

/// The log line of one request. It has the route, but neither path nor query, which may contain names and secrets.
struct Line {
    began: Instant,
    request_id: String,
    method: Method,
    route: Option<MatchedPath>,
    peer: Option<HttpPeer>,
}

impl Line {
    fn of(request: &Request, id: &RequestId) -> Self {
        let extensions = request.extensions();
        Self {
            began: Instant::now(),
            request_id: id.0.clone(),
            method: request.method().clone(),
            route: extensions.get().cloned(),
            peer: extensions.get().copied(),
        }
    }

    fn write(&self, response: &Response) {
        let caller = response.extensions().get::<Arc<Caller>>();
        let status = response.status().as_u16();
        info!(
            request_id = self.request_id,
            method = %self.method,
            route = self.route.as_ref().map_or("other", MatchedPath::as_str),
            status,
            duration_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            client.address = self.peer.and_then(HttpPeer::address).map(display),
            admin_key = caller.map(|caller| caller.key.name.as_str()),
            "request"
        );
    }
}

/// Gives a request its id, adds the id and the security headers to the response, and logs the request.
async fn with_headers(mut request: Request, next: Next) -> Response {
    let id = RequestId(random::new_id().to_string());
    request.extensions_mut().insert(id.clone());
    let number = HeaderValue::from_str(&id.0);
    let line = Line::of(&request, &id);
    let response = next.run(request).await;
    line.write(&response);
    let mut response = with_request_id(response, id);
    for (name, value) in HEADERS {
        // The page has its own.
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    if let Ok(number) = number {
        response.headers_mut().insert(REQUEST_ID, number);
    }
    response
}

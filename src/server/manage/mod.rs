//! Management over HTTP: a process of its own, `tenantgate manage`.
//!
//! ```text
//! accept ── access: who is it? (401, 429) ── routes: may it? (403, 404) ── admin ── objects ── answer
//! ```
//!
//! It asks the same use cases as the command line ([`crate::admin`]), and its objects are those of `-o json`. Every answer
//! has the id of its request, and headers by which a browser runs nothing of it and keeps nothing.

mod access;
mod failures;
mod objects;
mod problem;
mod query;

use std::future::{Future, IntoFuture as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::get;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};
use uuid::Uuid;

use self::failures::WrongKeys;
use self::problem::{Problem, RequestId, numbered};
use super::acceptor::{bind_tcp, bind_unix, remove_sockets, stopped};
use super::{Address, ServeError};
use crate::admin::Admin;

/// How long open requests may take when the process stops.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);

/// The mode of Unix sockets: owner and group.
const UNIX_MODE: u32 = 0o660;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What every answer says to a browser.
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
    /// Where it listens: on this machine alone.
    pub listen: Vec<Address>,
    /// The use cases.
    pub admin: Admin,
}

/// What all requests share.
struct Plane {
    admin: Admin,
    wrong: WrongKeys,
}

/// Serves until `shutdown` is done, then lets open requests end.
///
/// # Errors
///
/// An address is in use, or the schema of the database is too old.
pub async fn manage(settings: ManageSettings, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
    let ManageSettings { listen, admin } = settings;
    admin.prepare().await?;
    let app = router(Arc::new(Plane { admin, wrong: WrongKeys::default() }));
    let (stop, stopping) = watch::channel(false);
    let mut listeners = JoinSet::new();
    for address in &listen {
        let (app, stopped) = (app.clone(), stopped(stopping.clone()));
        match address {
            Address::Tcp(address) => {
                let listener = bind_tcp(address, "manage").await?;
                let app = app.into_make_service_with_connect_info::<SocketAddr>();
                listeners.spawn(axum::serve(listener, app).with_graceful_shutdown(stopped).into_future());
            }
            Address::Unix(path) => {
                let listener = bind_unix(path, UNIX_MODE, "manage").await?;
                let app = app.into_make_service();
                listeners.spawn(axum::serve(listener, app).with_graceful_shutdown(stopped).into_future());
            }
        }
    }
    info!("ready");
    shutdown.await;
    info!("stopping");
    // Nobody listens if all listeners have failed.
    let _ = stop.send(true);
    let ended = timeout(DRAIN_WITHIN, async { while listeners.join_next().await.is_some() {} });
    if ended.await.is_err() {
        warn!("requests were still open after 10 s and are cut off");
    }
    remove_sockets(&listen);
    info!("stopped");
    Ok(())
}

fn router(plane: Arc<Plane>) -> Router {
    let v1 = Router::new()
        .route("/whoami", get(objects::whoami))
        .route("/tenants", get(objects::tenants))
        .route("/tenants/{reference}", get(objects::tenant))
        .route("/plans", get(objects::plans))
        .route("/plans/{name}", get(objects::plan))
        .route("/routes", get(objects::routes))
        .route("/routes/{id}", get(objects::route))
        .route("/admin_keys", get(objects::admin_keys))
        .route("/admin_keys/{id}", get(objects::admin_key))
        .fallback(|| async { Problem::not_found() })
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        // Whoever has no key learns neither paths nor methods.
        .layer(from_fn_with_state(Arc::clone(&plane), access::authenticated))
        .with_state(plane);
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .nest("/v1", v1)
        .fallback(|| async { Problem::not_found() })
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .layer(from_fn(dressed))
}

/// Gives a request its id, and its answer the headers that every answer has.
async fn dressed(request: Request, next: Next) -> Response {
    let id = RequestId(Uuid::new_v4().to_string());
    let number = HeaderValue::from_str(&id.0);
    let mut response = numbered(next.run(request).await, id);
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if let Ok(number) = number {
        response.headers_mut().insert(REQUEST_ID, number);
    }
    response
}

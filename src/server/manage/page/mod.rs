//! The page: management in a browser, rendered as HTML on the server. It works without JavaScript.
//!
//! ```text
//! request ── visit: is there a session? (else 303 to /sign-in)  did the page itself send it? (else 403)
//!         ── screen: does the session have the permission? (else 403) ── admin
//! ```
//!
//! It calls the same use cases as the API. Every form posts to a path that responds with a redirect, except where a new
//! key is shown once. Actions that a session may not perform are not offered, and are rejected.

mod admin_keys;
mod assets;
mod audit;
mod chart;
mod cookie;
mod failure;
mod form;
mod key;
mod key_edit;
mod key_forms;
mod keys;
mod layout;
mod once;
mod origin;
mod overview;
mod parts;
mod plans;
mod refusals;
mod routes;
mod shell;
mod sign_in;
mod tenant;
mod tenants;
mod usage;
mod visit;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_FRAME_OPTIONS};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};

use self::failure::PageFailure;
pub(super) use self::overview::KeyCountCache;
use super::Plane;
use super::problem::Problem;

/// The maximum size of a form, in bytes.
const LARGEST_FORM: usize = 64 * 1024;

/// `connect-src` is needed because the live search fetches results from this page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// The headers of every response of the page. `X-Frame-Options` is for browsers that do not know `frame-ancestors`.
const HEADERS: [(HeaderName, &str); 5] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (REFERRER_POLICY, "no-referrer"),
    (X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Returns the router for all paths of the page.
pub(super) fn router(plane: Arc<Plane>) -> Router {
    let inside = Router::new()
        .route("/", get(overview::show))
        .route("/tenants", get(tenants::list).post(tenants::create))
        .route("/tenants/new", get(tenants::new))
        .route("/tenants/{tenant}", get(tenant::show))
        .route("/tenants/{tenant}/update", post(tenant::update))
        .route("/tenants/{tenant}/suspend", post(tenant::suspend))
        .route("/tenants/{tenant}/activate", post(tenant::activate))
        .route("/tenants/{tenant}/delete", post(tenant::delete))
        .route("/tenants/{tenant}/keys", post(key_forms::create))
        .route("/tenants/{tenant}/keys/new", get(key_forms::new))
        .route("/keys", get(keys::list))
        .route("/keys/{key}", get(key::show))
        .route("/keys/{key}/edit", get(key_edit::edit))
        .route("/keys/{key}/update", post(key_edit::update))
        .route("/keys/{key}/rotate", post(key_forms::rotate))
        .route("/keys/{key}/disable", post(key_forms::disable))
        .route("/keys/{key}/enable", post(key_forms::enable))
        .route("/keys/{key}/revoke", post(key_forms::revoke))
        .route("/routes", get(routes::list).post(routes::add))
        .route("/routes/{rule}/edit", get(routes::edit))
        .route("/routes/{rule}/update", post(routes::update))
        .route("/routes/{rule}/remove", post(routes::remove))
        .route("/plans", get(plans::list).post(plans::create))
        .route("/plans/{plan}/edit", get(plans::edit))
        .route("/plans/{plan}/update", post(plans::update))
        .route("/plans/{plan}/delete", post(plans::delete))
        .route("/usage", get(usage::show))
        .route("/refusals", get(refusals::show))
        .route("/audit", get(audit::list))
        .route("/admin-keys", get(admin_keys::list).post(admin_keys::create))
        .route("/admin-keys/{key}", get(admin_keys::show))
        .route("/admin-keys/{key}/revoke", post(admin_keys::revoke))
        .route("/admin-keys/{key}/sign-out", post(admin_keys::end_sessions))
        .route("/sessions/{session}/sign-out", post(admin_keys::end_session))
        .route("/sign-out", post(sign_in::sign_out))
        .method_not_allowed_fallback(|| async { PageFailure::method_not_allowed() })
        .layer(from_fn_with_state(Arc::clone(&plane), visit::signed_in));
    Router::new()
        .route("/sign-in", get(sign_in::show).post(sign_in::by_key))
        .route("/login/{token}", get(sign_in::link).post(sign_in::by_link))
        .route(assets::STYLE, get(assets::style))
        .route(assets::SCRIPT, get(assets::script))
        .route(assets::ICON, get(assets::icon))
        .method_not_allowed_fallback(|| async { PageFailure::method_not_allowed() })
        .merge(inside)
        .layer(from_fn(super::only_utf8))
        .layer(DefaultBodyLimit::max(LARGEST_FORM))
        .layer(from_fn(add_headers))
        .with_state(plane)
}

/// Responds to a path that does not exist: with a page for a browser, with a problem document for a program.
pub(super) async fn not_found(request: Request) -> Response {
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("text/html") {
        with_headers(PageFailure::not_found().into_response())
    } else {
        Problem::not_found().into_response()
    }
}

async fn add_headers(request: Request, next: Next) -> Response {
    with_headers(next.run(request).await)
}

fn with_headers(mut response: Response) -> Response {
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().entry(CACHE_CONTROL).or_insert(no_store);
    response
}

//! The style sheet, the script and the icon: three files in the binary.

use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};

/// The path contains the version, so that a new release gets new files.
pub(super) const STYLE: &str = concat!("/assets/", env!("CARGO_PKG_VERSION"), "/page.css");
pub(super) const SCRIPT: &str = concat!("/assets/", env!("CARGO_PKG_VERSION"), "/page.js");
pub(super) const ICON: &str = concat!("/assets/", env!("CARGO_PKG_VERSION"), "/icon.svg");

/// Browsers cache the files for 5 minutes.
const CACHING: HeaderValue = HeaderValue::from_static("public, max-age=300");

fn file(kind: &'static str, text: &'static str) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(kind)), (CACHE_CONTROL, CACHING)], text).into_response()
}

/// Serves the style sheet, also without a session.
pub(super) async fn style() -> Response {
    file("text/css; charset=utf-8", include_str!("page.css"))
}

/// Serves the script, also without a session.
pub(super) async fn script() -> Response {
    file("text/javascript; charset=utf-8", include_str!("page.js"))
}

/// Serves the icon, also without a session.
pub(super) async fn icon() -> Response {
    file("image/svg+xml", include_str!("icon.svg"))
}

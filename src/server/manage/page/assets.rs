//! The style sheet, the script and the icon: three files in the binary.

use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};

/// The version stands in the path, so that a browser may keep the files until the next release.
pub(super) const STYLE: &str = concat!("/assets/", env!("CARGO_PKG_VERSION"), "/page.css");
pub(super) const SCRIPT: &str = concat!("/assets/", env!("CARGO_PKG_VERSION"), "/page.js");
pub(super) const ICON: &str = concat!("/assets/", env!("CARGO_PKG_VERSION"), "/icon.svg");

/// A browser asks again, and gets the same file from its own memory meanwhile.
const KEPT: HeaderValue = HeaderValue::from_static("public, max-age=300");

fn file(kind: &'static str, text: &'static str) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(kind)), (CACHE_CONTROL, KEPT)], text).into_response()
}

pub(super) async fn style() -> Response {
    file("text/css; charset=utf-8", include_str!("page.css"))
}

pub(super) async fn script() -> Response {
    file("text/javascript; charset=utf-8", include_str!("page.js"))
}

pub(super) async fn icon() -> Response {
    file("image/svg+xml", include_str!("icon.svg"))
}

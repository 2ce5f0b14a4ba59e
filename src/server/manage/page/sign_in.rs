//! Sign-in by management key or login link, and sign-out.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::http::header::SET_COOKIE;
use axum::response::{IntoResponse as _, Redirect, Response};
use maud::{Markup, html};

use super::failure::PageFailure;
use super::form::Form;
use super::shell::alone;
use super::visit::{VisitorExtension, browser};
use super::{cookie, origin};
use crate::admin::SignedIn;
use crate::key::format::parse_management;
use crate::server::manage::connections::HttpPeer;
use crate::server::manage::{Plane, PlaneState};
use crate::store::Ending;

/// The peer of the connection, if it is known.
type From = Option<Extension<HttpPeer>>;

/// Shows the form for a management key. Needs no session.
pub(super) async fn show() -> Markup {
    sign_in_page(None)
}

fn sign_in_page(failure: Option<&str>) -> Markup {
    alone(
        "Sign in",
        &html! {
            h1 { "Sign in" }
            @if let Some(text) = failure { p.notice.bad role="alert" { (text) } }
            form method="post" action="/sign-in" {
                label for="key" { "Management key" }
                input #key type="password" name="key" required autocomplete="current-password" autocapitalize="none"
                    spellcheck="false" placeholder="llma_…" autofocus aria-describedby="key-hint";
                p #key-hint.hint { "It begins with " code { "llma_" } ". API keys of customers do not work here." }
                button.primary type="submit" { "Sign in" }
            }
            hr;
            p.hint {
                "Without a key: ask the operator of tenantgate for a link, which this command prints: "
                code { "tenantgate admin-key login-link NAME" } "."
            }
        },
    )
}

/// Signs in with a management key.
pub(super) async fn by_key(
    State(plane): PlaneState,
    peer: From,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, PageFailure> {
    if !origin::is_same_origin(&headers) {
        return Err(PageFailure::foreign());
    }
    let form = Form::read(body);
    let peer = peer.map(|peer| peer.0);
    let signed_in = match parse_management(form.shown("key").as_bytes()) {
        Ok(presented) => plane.admin.sign_in(presented, &browser(&headers, peer)).await?,
        Err(_) => None,
    };
    if let Some(signed_in) = signed_in {
        end_other(&plane, &headers).await?;
        return Ok(welcome(&headers, &signed_in));
    }
    let failure = refused(&plane, peer, "This is not a valid management key.");
    if failure.is_too_many() {
        return Err(failure);
    }
    Ok((failure.status, sign_in_page(Some(&failure.text))).into_response())
}

/// Shows a button that uses the link. Programs that preview links do not press buttons.
pub(super) async fn link(Path(token): Path<String>) -> Markup {
    alone(
        "Sign in",
        &html! {
            h1 { "Sign in" }
            p { "This link signs you in once." }
            form method="post" action={ "/login/" (token) } {
                button.primary type="submit" autofocus { "Continue" }
            }
        },
    )
}

/// Signs in with a login link.
pub(super) async fn by_link(
    State(plane): PlaneState,
    Path(token): Path<String>,
    peer: From,
    headers: HeaderMap,
) -> Result<Response, PageFailure> {
    if !origin::is_same_origin(&headers) {
        return Err(PageFailure::foreign());
    }
    let peer = peer.map(|peer| peer.0);
    match plane.admin.sign_in_by_link(&token, &browser(&headers, peer)).await? {
        Some(signed_in) => end_other(&plane, &headers).await.map(|()| welcome(&headers, &signed_in)),
        None => Err(refused(&plane, peer, "This link was used, or has expired. Ask for another one.")),
    }
}

/// Ends the session that the browser had before, so that it never keeps a session that an attacker planted.
async fn end_other(plane: &Plane, headers: &HeaderMap) -> Result<(), PageFailure> {
    if let Some(old) = cookie::read(headers)
        && let Some((session, _)) = plane.admin.session(old).await?
    {
        plane.admin.end_sessions(Ending::One(session.id)).await?;
    }
    Ok(())
}

fn welcome(headers: &HeaderMap, signed_in: &SignedIn) -> Response {
    let mut response = Redirect::to("/").into_response();
    if let Some(cookie) = cookie::set(headers, &signed_in.token) {
        response.headers_mut().insert(SET_COOKIE, cookie);
    }
    response
}

/// Counts a failed attempt, and rejects further ones if there are too many. Peers of a Unix socket are not counted.
fn refused(plane: &Plane, peer: Option<HttpPeer>, text: &str) -> PageFailure {
    match peer.and_then(HttpPeer::address).map(|address| plane.wrong.count(address, plane.admin.now())) {
        Some(Err(seconds)) => PageFailure::too_many(seconds),
        Some(Ok(())) | None => PageFailure::not_signed_in(text),
    }
}

/// Ends the session.
pub(super) async fn sign_out(
    Extension(visitor): VisitorExtension,
    headers: HeaderMap,
) -> Result<Response, PageFailure> {
    visitor.admin.end_sessions(Ending::One(visitor.session.id)).await?;
    let mut response = Redirect::to("/sign-in").into_response();
    if let Some(cookie) = cookie::clear(&headers) {
        response.headers_mut().insert(SET_COOKIE, cookie);
    }
    Ok(response)
}

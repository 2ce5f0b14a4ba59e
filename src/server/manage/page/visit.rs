//! Finds the session of a request, and rejects changing requests that the page itself did not send.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::USER_AGENT;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Redirect, Response};

use super::failure::PageFailure;
use super::form::Form;
use super::{cookie, origin};
use crate::admin::{Admin, Browser, Caller, ChangeOrigin, ExpectedVersion};
use crate::permission::{About, Permission, Permitted, may};
use crate::server::manage::PlaneState;
use crate::server::manage::connections::HttpPeer;
use crate::server::manage::problem::RequestId;
use crate::store::AdminSession;

/// The management key that is signed in.
pub(super) struct Visitor {
    /// The management key, and what it may do now.
    pub(super) caller: Caller,
    /// The session.
    pub(super) session: AdminSession,
    /// The use cases on behalf of this key. Rows that it may not see are treated as missing.
    pub(super) admin: Admin,
}

impl Visitor {
    /// Returns an error if this visitor does not have the permission.
    pub(super) fn check(&self, permission: Permission, about: About) -> Result<(), PageFailure> {
        PageFailure::of_verdict(may(&self.caller.creator.authority, permission, about))
    }

    /// Returns the use cases for a form: its object changes only if it still has the version that the form showed.
    pub(super) fn admin_for(&self, form: &Form) -> Admin {
        let shown = form.get("version").map(|version| ExpectedVersion::OneOf(vec![version.to_owned()]));
        self.admin.clone().expecting(shown.unwrap_or_default())
    }

    /// Returns whether an action is offered to this visitor.
    pub(super) fn may(&self, permission: Permission, about: About) -> bool {
        may(&self.caller.creator.authority, permission, about) == Permitted::Yes
    }
}

/// Extracts the visitor of a request.
pub(super) type VisitorExtension = axum::Extension<Arc<Visitor>>;

/// Middleware: passes requests with a session on, together with their [`Visitor`]. Redirects others to the sign-in
/// page.
pub(super) async fn signed_in(
    State(plane): PlaneState,
    mut request: Request,
    next: Next,
) -> Result<Response, PageFailure> {
    let Some(value) = cookie::read(request.headers()) else { return Ok(to_sign_in()) };
    if !request.method().is_safe() && !origin::is_same_origin(request.headers()) {
        return Err(PageFailure::foreign());
    }
    let Some((session, caller)) = plane.admin.session(value).await? else {
        return Ok(to_sign_in());
    };
    let log = Arc::new(caller.clone());
    let origin = ChangeOrigin {
        request_id: request.extensions().get::<RequestId>().map(|id| id.0.clone()),
        address: request.extensions().get::<HttpPeer>().copied().and_then(HttpPeer::address),
    };
    let admin = plane.admin.on_behalf(&caller, &origin);
    request.extensions_mut().insert(Arc::new(Visitor { caller, session, admin }));
    let mut response = next.run(request).await;
    // The logging middleware reads it.
    response.extensions_mut().insert(log);
    Ok(response)
}

fn to_sign_in() -> Response {
    Redirect::to("/sign-in").into_response()
}

/// Returns the browser of a request.
pub(super) fn browser(headers: &HeaderMap, peer: Option<HttpPeer>) -> Browser {
    let agent = headers.get(USER_AGENT).map(|agent| String::from_utf8_lossy(agent.as_bytes()).into_owned());
    Browser { address: peer.and_then(HttpPeer::address), user_agent: agent }
}

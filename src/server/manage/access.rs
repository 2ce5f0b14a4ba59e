//! Authenticates callers of the management API and checks their permissions.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use super::Plane;
use super::connections::HttpPeer;
use super::problem::Problem;
use crate::admin::Caller;
use crate::key::format::parse_management;
use crate::permission::{About, Permission, Permitted, may};

/// Authenticates a request by its management key, or without a key as a trusted user of this machine. Passes the caller
/// to the handlers. Other requests get 401 or 429.
pub(super) async fn authenticated(
    State(plane): State<Arc<Plane>>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let peer = request.extensions().get::<HttpPeer>().copied();
    let mut values = request.headers().get_all(AUTHORIZATION).iter();
    let (first, second) = (values.next(), values.next());
    let caller = match (first, second) {
        (None, _) => Some(trusted(&plane, peer).ok_or_else(Problem::unauthorized)?),
        (Some(_), None) => known(&plane, request.headers()).await?,
        // Two headers are ambiguous: another parser could use the other one.
        (Some(_), Some(_)) => None,
    };
    if let Some(caller) = caller {
        let caller = Arc::new(caller);
        request.extensions_mut().insert(Arc::clone(&caller));
        let mut response = next.run(request).await;
        // For the log line.
        response.extensions_mut().insert(caller);
        return Ok(response);
    }
    // Peers of a Unix socket are not limited: the mode of the socket decides who may connect.
    match peer.and_then(HttpPeer::address).map(|address| plane.wrong.count(address, plane.admin.now())) {
        Some(Err(seconds)) => Err(Problem::too_many_failures(seconds)),
        Some(Ok(())) | None => Err(Problem::unauthorized()),
    }
}

/// Returns the caller for a trusted user of this machine.
fn trusted(plane: &Plane, peer: Option<HttpPeer>) -> Option<Caller> {
    let Some(HttpPeer::Unix(Some(uid))) = peer else { return None };
    let (_, role) = plane.trusted.iter().find(|(trusted, _)| *trusted == uid)?;
    Some(Caller::of_user(uid, *role))
}

async fn known(plane: &Plane, headers: &HeaderMap) -> Result<Option<Caller>, Problem> {
    let value = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let Some((scheme, rest)) = value.split_at_checked("Bearer ".len()) else { return Ok(None) };
    if !scheme.eq_ignore_ascii_case(b"Bearer ") {
        return Ok(None);
    }
    let Ok(presented) = parse_management(rest) else { return Ok(None) };
    Ok(plane.admin.authenticate(presented).await?)
}

/// Checks that the caller may do something. Otherwise 403, or 404 if the caller may not know of the object.
pub(super) fn check(caller: &Caller, permission: Permission, about: About) -> Result<(), Problem> {
    match may(&caller.creator.authority, permission, about) {
        Permitted::Yes => Ok(()),
        Permitted::Lacks(permission) => Err(Problem::lacks(permission)),
        Permitted::OnlyForAllTenants(permission) => Err(Problem::only_for_all_tenants(permission)),
        Permitted::NotThere => Err(Problem::not_found()),
    }
}

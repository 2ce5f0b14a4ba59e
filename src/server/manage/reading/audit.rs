//! The handler of the audit log.

use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};

use crate::admin::view::EntryView;
use crate::permission::{About, Permission, Reach};
use crate::server::manage::access::check;
use crate::server::manage::body::instant;
use crate::server::manage::problem::{FieldError, Problem};
use crate::server::manage::query::ListQuery;
use crate::server::manage::{CallerExtension, PlaneState};
use crate::store::AuditFilter;

/// Lists changes, oldest first. A management key for some tenants sees the changes of these tenants and their keys.
pub(in crate::server::manage) async fn audit(
    State(plane): PlaneState,
    Extension(caller): CallerExtension,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    check(&caller, Permission::AuditRead, About::Shared)?;
    let query = ListQuery::read(query.as_deref(), "audit", &["since", "until", "actor", "subject"])?;
    let mut errors = Vec::new();
    let mut at_of = |at: usize, name: &str| {
        let text = query.filter(at)?;
        let read = instant(text);
        read.map_err(|why| errors.push(FieldError::new(format!("/{name}"), "invalid_value", why))).ok()
    };
    let (since, until) = (at_of(0, "since"), at_of(1, "until"));
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    let tenants = match &caller.creator.authority.reach {
        Reach::All => None,
        Reach::Some(tenants) => Some(tenants.iter().copied().collect()),
    };
    let own = |at: usize| query.filter(at).map(str::to_owned);
    let filter = AuditFilter { since, until, actor: own(2), subject: own(3), tenants };
    let after = match query.after().map(str::parse::<i64>) {
        None => 0,
        Some(Ok(after)) => after,
        Some(Err(_)) => return Err(query.bad_token()),
    };
    let mut entries = plane.admin.audit_part(&filter, after, query.size() + 1).await?;
    let more = entries.len() > query.size();
    entries.truncate(query.size());
    let next = entries.last().filter(|_| more).map(|entry| entry.seq.to_string());
    Ok(Json(query.part(entries.iter().map(EntryView::from).collect(), next.as_deref())).into_response())
}

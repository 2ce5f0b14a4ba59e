//! The handlers that read keys.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::{Extension, Json};
use serde::Serialize;
use uuid::Uuid;

use super::seen_by;
use crate::admin::version;
use crate::admin::view::{KeyView, ListedKeyView};
use crate::admin::{Admin, Caller};
use crate::clock::Timestamp;
use crate::duration;
use crate::invalid::InvalidValue;
use crate::key::KeyId;
use crate::labels::parse_label;
use crate::permission::{About, Permission};
use crate::record::KeyState;
use crate::scope::Scopes;
use crate::server::manage::access::check;
use crate::server::manage::body::instant;
use crate::server::manage::precondition::Tagged;
use crate::server::manage::problem::{FieldError, Problem};
use crate::server::manage::query::{ListPage, ListQuery, no_parameters};
use crate::server::manage::{CallerExtension, JsonResult, Plane, PlaneState};
use crate::store::{KeyFilter, KeyPlace};

/// The filters of `key list`.
const FILTERS: [&str; 7] = ["status", "name", "scope", "label", "expires_before", "unused_for", "tenant"];

/// Lists the keys of all tenants that the caller may see.
pub(in crate::server::manage) async fn keys(
    State(plane): PlaneState,
    Extension(caller): CallerExtension,
    RawQuery(query): RawQuery,
) -> JsonResult<ListPage<ListedKeyView>> {
    check(&caller, Permission::KeysRead, About::Shared)?;
    let query = ListQuery::read(query.as_deref(), "keys", &FILTERS)?;
    list(&plane, &caller, &query, query.filter(FILTERS.len() - 1)).await
}

/// Lists the keys of one tenant.
pub(in crate::server::manage) async fn keys_of_tenant(
    State(plane): PlaneState,
    Extension(caller): CallerExtension,
    Path(reference): Path<String>,
    RawQuery(query): RawQuery,
) -> JsonResult<ListPage<ListedKeyView>> {
    check(&caller, Permission::KeysRead, About::Shared)?;
    let list_name = format!("keys of {reference}");
    let query = ListQuery::read(query.as_deref(), &list_name, &FILTERS[..FILTERS.len() - 1])?;
    list(&plane, &caller, &query, Some(&reference)).await
}

async fn list(
    plane: &Plane,
    caller: &Arc<Caller>,
    query: &ListQuery,
    tenant: Option<&str>,
) -> JsonResult<ListPage<ListedKeyView>> {
    let (admin, now) = (seen_by(plane, caller), plane.admin.now());
    let mut filter = filter(query, now)?;
    if let Some(reference) = tenant {
        filter.tenant = Some(admin.tenant_by_id(reference).await?.id);
    }
    let after = query.after().map(|text| place(&admin, text).ok_or_else(|| query.bad_token())).transpose()?;
    let after = after.map(|(created_at, id)| KeyPlace { created_at, id: KeyId(id) });
    let reach = &caller.creator.authority.reach;
    let part = admin.keys_by_creation(&filter, reach, after.as_ref(), query.size()).await?;
    let next = part.next.map(|place| format!("{} {}", place.created_at, place.id.0));
    let items = part.keys.iter().map(|key| ListedKeyView::at(key, now)).collect();
    Ok(Json(query.part(items, next.as_deref())))
}

/// Returns the place in an order of creation that a text names: an instant, as the database writes it, and an id.
pub(in crate::server::manage) fn place(admin: &Admin, text: &str) -> Option<(String, Uuid)> {
    let (created_at, id) = text.rsplit_once(' ')?;
    // SQLite compares texts, whatever they are.
    let fine = admin.is_embedded() || Timestamp::parse_rfc_3339(created_at).is_some();
    let id = Uuid::parse_str(id).ok().filter(|_| fine)?;
    Some((created_at.to_owned(), id))
}

fn filter(query: &ListQuery, now: Timestamp) -> Result<KeyFilter, Problem> {
    let mut errors = Vec::new();
    let [status, _, scope, _, expires_before, unused_for] = [0, 1, 2, 3, 4, 5].map(|at| query.filter(at));
    let mut labels = Vec::new();
    for text in query.filters(3) {
        let label = parse_label(text).map(|(name, value)| (name.to_owned(), value.to_owned()));
        labels.extend(read(Some(text), "label", &mut errors, |_| Ok(label?)));
    }
    let filter = KeyFilter {
        tenant: None,
        state: read(status, "status", &mut errors, KeyState::parse),
        now,
        name: query.filter(1).map(str::to_owned),
        scope: read(scope, "scope", &mut errors, Scopes::parse_one),
        labels,
        expires_before: read(expires_before, "expires_before", &mut errors, |text| {
            instant(text).map_err(Into::into)
        }),
        unused_since: read(unused_for, "unused_for", &mut errors, |text| Ok(duration::parse(text)?))
            .map(|span| now.before(span)),
    };
    if errors.is_empty() { Ok(filter) } else { Err(Problem::invalid(errors)) }
}

fn read<T>(
    text: Option<&str>,
    name: &str,
    errors: &mut Vec<FieldError>,
    read: impl FnOnce(&str) -> Result<T, InvalidValue>,
) -> Option<T> {
    match read(text?) {
        Ok(value) => Some(value),
        Err(why) => {
            errors.push(FieldError::new(format!("/{name}"), "invalid_value", why));
            None
        }
    }
}

/// Shows one key.
pub(in crate::server::manage) async fn key(
    State(plane): PlaneState,
    Extension(caller): CallerExtension,
    Path(reference): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Tagged<KeyView>, Problem> {
    check(&caller, Permission::KeysRead, About::Shared)?;
    no_parameters(query.as_deref())?;
    let admin = seen_by(&plane, &caller);
    let key = admin.key(&reference).await?;
    Ok(Tagged(KeyView::at(&key, admin.now()), version::of_key(&key)))
}

/// The keys that suspending a tenant would affect.
#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::server::manage) struct ImpactView {
    /// Keys that are accepted now.
    live_keys: i64,
    /// Keys, not revoked, that were used in the last 24 hours.
    used_last_day: i64,
}

/// Counts the keys that suspending a tenant would affect.
pub(in crate::server::manage) async fn impact(
    State(plane): PlaneState,
    Extension(caller): CallerExtension,
    Path(reference): Path<String>,
    RawQuery(query): RawQuery,
) -> JsonResult<ImpactView> {
    check(&caller, Permission::TenantsRead, About::Shared)?;
    no_parameters(query.as_deref())?;
    let admin = seen_by(&plane, &caller);
    let tenant = admin.tenant_by_id(&reference).await?;
    let (live_keys, used_last_day) = admin.impact(&tenant).await?;
    Ok(Json(ImpactView { live_keys, used_last_day }))
}

//! The list of keys.

use std::collections::BTreeMap;

use axum::Extension;
use axum::extract::RawQuery;
use maud::{Markup, html};
use uuid::Uuid;

use super::failure::PageFailure;
use super::form::Form;
use super::layout::{NavEntry, page};
use super::parts::{key_pill, next_page, select, table, tenant_choice, when_or};
use super::visit::{Visitor, VisitorExtension};
use crate::admin::{AdminError, LONG, SOON};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::permission::{About, Permission};
use crate::record::{KeyDetails, KeyState};
use crate::server::manage::reading::place;
use crate::store::{KeyFilter, KeyPlace};
use crate::tenant::{Tenant, TenantId};

/// The number of keys on a page.
const SIZE: usize = 50;

/// Tenants by id, to show their names.
pub(super) type Names = BTreeMap<TenantId, Tenant>;

/// Shows the keys that the visitor may see and the filters match, 50 a page. Needs `keys:read`.
pub(super) async fn list(
    Extension(visitor): VisitorExtension,
    RawQuery(query): RawQuery,
) -> Result<Markup, PageFailure> {
    visitor.check(Permission::KeysRead, About::Shared)?;
    let query = Form::read(query.unwrap_or_default());
    let now = visitor.admin.now();
    let (keys, next) = matching(&visitor, &query, now).await?;
    let tenants = visitor.admin.tenants_of(&keys).await?;
    let names: Names = tenants.into_iter().map(|tenant| (tenant.id, tenant)).collect();
    let next = next.map(|place| format!("{} {}", place.created_at, place.id.0));
    let body = html! {
        div.title { h1 { "Keys" } }
        (filters(&visitor, &query).await?)
        div #results {
            p.count role="status" {
                (keys.len()) @if next.is_some() { "+" } @if keys.len() == 1 { " key" } @else { " keys" }
            }
            @if keys.is_empty() {
                p.empty {
                    @if next.is_some() { "No key matches among those that were looked through so far: see the next page." }
                    @else { "No key matches." }
                }
            } @else {
                (table("Keys", &["Name", "Prefix", "Tenant", "Status", "Last used", "Expires"], &rows(&keys, Some(&names), now)))
            }
            (next_page("/keys", &query, next.as_deref()))
        }
    };
    Ok(page(&visitor, NavEntry::Keys, "Keys", &body))
}

/// Returns a page of keys, and the position of the next page.
async fn matching(
    visitor: &Visitor,
    query: &Form,
    now: Timestamp,
) -> Result<(Vec<KeyDetails>, Option<KeyPlace>), PageFailure> {
    let reach = &visitor.caller.creator.authority.reach;
    // A prefix or an id identifies one key, so the other filters do not apply.
    if let Some(reference) = query.get("q").filter(|q| q.starts_with("llmk_") || Uuid::parse_str(q).is_ok()) {
        return match visitor.admin.key(reference).await {
            Ok(key) => Ok((vec![key], None)),
            Err(AdminError::Missing(_)) => Ok((Vec::new(), None)),
            Err(error) => Err(error.into()),
        };
    }
    let tenant = match query.get("tenant") {
        None => None,
        Some(schema) => match visitor.admin.tenant_by_id(schema).await {
            Ok(tenant) => Some(tenant.id),
            Err(AdminError::Missing(_)) => return Ok((Vec::new(), None)),
            Err(error) => return Err(error.into()),
        },
    };
    let filter = KeyFilter {
        tenant,
        state: query.get("state").and_then(|word| KeyState::ALL.into_iter().find(|s| s.as_str() == word)),
        now,
        name: query.get("q").map(str::to_owned),
        scope: query.get("scope").map(str::to_owned),
        labels: Vec::new(),
        expires_before: query.get("expires").map(|_| now.after(SOON)),
        unused_since: query.get("unused").map(|_| now.before(LONG)),
    };
    // These filters concern live keys only.
    let narrowed = filter.expires_before.is_some() || filter.unused_since.is_some();
    let filter = if narrowed && filter.state.is_none() {
        KeyFilter { state: Some(KeyState::Active), ..filter }
    } else {
        filter
    };
    let after = query.get("after").and_then(|text| place(&visitor.admin, text));
    let after = after.map(|(created_at, id)| KeyPlace { created_at, id: KeyId(id) });
    let page = visitor.admin.keys_by_creation(&filter, reach, after.as_ref(), SIZE).await?;
    Ok((page.keys.into_iter().map(|key| key.details).collect(), page.next))
}

async fn filters(visitor: &Visitor, query: &Form) -> Result<Markup, PageFailure> {
    let tenants = tenant_choice(visitor, query).await?;
    let states = [
        ("", "Every status"),
        ("active", "Active"),
        ("disabled", "Disabled"),
        ("expired", "Expired"),
        ("not_yet_valid", "Not yet valid"),
        ("revoked", "Revoked"),
    ];
    Ok(html! {
        form.filters role="search" data-live="results" {
            div.field.grow {
                label for="q" { "Search" }
                input #q type="search" name="q" value=(query.shown("q")) placeholder="Name, prefix or id" autocomplete="off";
            }
            (tenants)
            (select("state", "Status", query.shown("state"), &states))
            (select("expires", "Expiry", query.shown("expires"), &[("", "Any time"), ("30", "Within 30 days")]))
            (select("unused", "Use", query.shown("unused"), &[("", "Any"), ("90", "Not for 90 days")]))
            button type="submit" { "Filter" }
        }
    })
}

/// Renders the rows of a table of keys. With `names`, there is a column for the tenant.
pub(super) fn rows(keys: &[KeyDetails], names: Option<&Names>, now: Timestamp) -> Markup {
    html! {
        @for key in keys {
            tr {
                th scope="row" {
                    a href={ "/keys/" (key.id.0) } { (key.name.as_deref().unwrap_or("(no name)")) }
                }
                td { code { (key.prefix) } }
                @if let Some(names) = names {
                    td { (names.get(&key.tenant_id).map_or("–", |tenant| tenant.name.as_str())) }
                }
                td { (key_pill(key, now)) }
                td { (when_or(key.last_used_at, now, "never")) }
                td { (when_or(key.expires_at, now, "never")) }
            }
        }
    }
}

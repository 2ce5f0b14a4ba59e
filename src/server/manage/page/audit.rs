//! The screen of the audit log.

use axum::Extension;
use axum::extract::RawQuery;
use maud::{Markup, html};
use serde_json::{Map, Value};

use super::failure::PageFailure;
use super::form::Form;
use super::layout::{NavEntry, page};
use super::parts::{Field, when};
use super::visit::{Visitor, VisitorExtension};
use crate::audit::AuditEntry;
use crate::clock::Timestamp;
use crate::permission::{About, Permission, Reach};
use crate::store::AuditFilter;

/// The number of entries on a page.
const SIZE: i64 = 50;

/// The number of entries that are shown with their key.
const OF_ONE: i64 = 10;

/// The number of entries on the overview.
const LATEST: usize = 6;

/// The maximum number of characters of a value.
const VALUE_CHARS: usize = 120;

/// Shows the audit log, newest first, filtered by author and subject. Needs `audit:read`; entries of tenants that the
/// visitor may not see are left out.
pub(super) async fn list(
    Extension(visitor): VisitorExtension,
    RawQuery(query): RawQuery,
) -> Result<Markup, PageFailure> {
    visitor.check(Permission::AuditRead, About::Shared)?;
    let query = Form::read(query.unwrap_or_default());
    let pages = query.get("page").and_then(|page| page.parse().ok()).unwrap_or(0).clamp(0, 10_000);
    let filter = AuditFilter {
        actor: query.get("actor").map(str::to_owned),
        subject: query.get("subject").map(str::to_owned),
        ..AuditFilter::default()
    };
    let entries = visible(&visitor, filter, pages).await?;
    let more = i64::try_from(entries.len()).unwrap_or(i64::MAX) >= SIZE;
    let body = html! {
        h1 { "Audit log" }
        form.filters role="search" data-live="results" {
            (Field { name: "subject", label: "About", value: query.shown("subject"), hint: "", required: false }.show())
            (Field { name: "actor", label: "By", value: query.shown("actor"), hint: "", required: false }.show())
            button type="submit" { "Filter" }
        }
        div #results {
            @if entries.is_empty() { p.empty role="status" { "No change matches." } } @else { (rows(&entries, visitor.admin.now(), true)) }
            nav.pages aria-label="Pages" {
                @if pages > 0 { a.button href={ "/audit?" (query.with("page", &(pages - 1).to_string())) } { "Newer" } }
                @if more { a.button href={ "/audit?" (query.with("page", &(pages + 1).to_string())) } { "Older" } }
            }
        }
    };
    Ok(page(&visitor, NavEntry::Audit, "Audit log", &body))
}

/// Returns the entries that a visitor may see, newest first. If the management key has access to some tenants only,
/// these are entries about those tenants.
async fn visible(visitor: &Visitor, filter: AuditFilter, pages: i64) -> Result<Vec<AuditEntry>, PageFailure> {
    let tenants = match &visitor.caller.creator.authority.reach {
        Reach::All => return Ok(visitor.admin.newest_audit(&filter, pages, SIZE).await?),
        Reach::Some(tenants) => tenants,
    };
    let mut entries = Vec::new();
    for tenant in tenants {
        let of_tenant = AuditFilter { subject: Some(tenant.0.to_string()), ..filter.clone() };
        entries.extend(visitor.admin.newest_audit(&of_tenant, pages, SIZE).await?);
    }
    if let Some(subject) = &filter.subject {
        entries.retain(|entry| entry.subject == *subject);
    }
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.seq));
    Ok(entries)
}

/// Renders the newest entries that a visitor may see.
pub(super) async fn latest(visitor: &Visitor) -> Result<Markup, PageFailure> {
    let mut entries = visible(visitor, AuditFilter::default(), 0).await?;
    entries.truncate(LATEST);
    Ok(rows(&entries, visitor.admin.now(), false))
}

/// Renders the newest entries about one object.
pub(super) async fn entries_of(visitor: &Visitor, subject: &str) -> Result<Markup, PageFailure> {
    let filter = AuditFilter { subject: Some(subject.to_owned()), ..AuditFilter::default() };
    let entries = visitor.admin.newest_audit(&filter, 0, OF_ONE).await?;
    Ok(rows(&entries, visitor.admin.now(), false))
}

fn rows(entries: &[AuditEntry], now: Timestamp, with_subject: bool) -> Markup {
    html! {
        ol.log {
            @for entry in entries {
                li {
                    div.head { (when(entry.at, now)) " " strong { (entry.action) }
                        @if let Some(name) = name(entry) { " " (name) }
                        " by " (entry.actor)
                        @if let Some(address) = &entry.address { span.muted { " from " (address) } } }
                    @if with_subject { div.what { (subject(entry)) } }
                    @let changes = changes(entry);
                    @if !changes.is_empty() {
                        ul.changes { @for change in &changes { li { (change) } } }
                    }
                }
            }
        }
    }
}

/// Returns the name, prefix or path of the changed object.
fn name(entry: &AuditEntry) -> Option<String> {
    let text = entry.after.as_deref().or(entry.before.as_deref())?;
    let Ok(Value::Object(fields)) = serde_json::from_str(text) else { return None };
    let named = ["name", "key_prefix", "path"].into_iter().filter_map(|field| fields.get(field)?.as_str());
    named.filter(|name| !name.is_empty()).map(|name| shown(Some(&Value::from(name)))).next()
}

/// Renders the id of the changed object, as a link if it has a page.
fn subject(entry: &AuditEntry) -> Markup {
    let (subject, kind) = (&entry.subject, entry.action.split('.').next().unwrap_or_default());
    let is_id = uuid::Uuid::parse_str(subject).is_ok();
    let place = match kind {
        "key" if is_id => Some("/keys/"),
        "tenant" if is_id => Some("/tenants/"),
        "admin_key" if is_id => Some("/admin-keys/"),
        _ => None,
    };
    html! {
        @match place {
            Some(place) => a href={ (place) (subject) } { code { (subject) } },
            None => code { (subject) },
        }
    }
}

/// Renders the fields that differ, ordered by name.
fn changes(entry: &AuditEntry) -> Vec<Markup> {
    let fields = |json: &Option<String>| -> Map<String, Value> {
        let value = json.as_deref().and_then(|json| serde_json::from_str(json).ok());
        if let Some(Value::Object(fields)) = value { fields } else { Map::new() }
    };
    let (before, after) = (fields(&entry.before), fields(&entry.after));
    if before.is_empty() || after.is_empty() {
        return Vec::new();
    }
    let mut names: Vec<_> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    let different = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
    let change = |name: &String| {
        let (was, is) = (shown(before.get(name)), shown(after.get(name)));
        html! { span.muted { (name) ": " } (was) " → " (is) }
    };
    different.map(change).collect()
}

fn shown(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => return "–".into(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    match text.char_indices().nth(VALUE_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fields_that_differ_are_shown() {
        let entry = AuditEntry {
            seq: 1,
            at: Timestamp(0),
            actor: "a".into(),
            request_id: None,
            address: None,
            action: "tenant.update".into(),
            subject: "s".into(),
            before: Some(r#"{"name":"Old","status":"active","plan":null}"#.into()),
            after: Some(r#"{"name":"<b>New</b>","status":"active","plan":"gold"}"#.into()),
            hash: String::new(),
        };
        let shown: Vec<_> = changes(&entry).into_iter().map(Markup::into_string).collect();
        assert_eq!(shown.len(), 2);
        assert!(shown[0].contains("Old → &lt;b&gt;New&lt;/b&gt;"), "{shown:?}");
        assert!(shown[1].contains("– → gold"), "{shown:?}");
        assert!(super::shown(Some(&Value::String("é".repeat(500)))).chars().count() <= VALUE_CHARS + 1);
    }
}

//! The first screen: what needs attention. It reads only today's usage.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use maud::{Markup, html};
use tokio::sync::Mutex;

use super::audit::latest;
use super::chart::reasons;
use super::failure::PageFailure;
use super::layout::{NavEntry, page};
use super::parts::{number, pill, when};
use super::refusals;
use super::visit::{Visitor, VisitorExtension};
use crate::admin::Admin;
use crate::clock::Timestamp;
use crate::permission::{About, Permission, Reach};
use crate::server::manage::{Plane, PlaneState};
use crate::store::{KeyCounts, ReplicaState};
use crate::tenant::TenantId;

/// From this number of live keys on, their counts are cached for a minute, because counting reads all of them.
const MANY: u64 = 10_000;
const KEPT_FOR: Duration = Duration::from_mins(1);

/// Cached counts of keys by reach, with the time of each count. A request that counts holds the lock, so that only one
/// request counts at a time.
pub(in crate::server::manage) type KeyCountCache =
    Mutex<BTreeMap<Option<BTreeSet<TenantId>>, (Timestamp, KeyCounts)>>;

/// Returns how many keys need attention. With many keys the numbers are up to a minute old.
async fn key_counts(plane: &Plane, visitor: &Visitor) -> Result<KeyCounts, PageFailure> {
    let (now, reach) = (visitor.admin.now(), &visitor.caller.creator.authority.reach);
    let of = if let Reach::Some(tenants) = reach { Some(tenants.clone()) } else { None };
    let mut kept = plane.counted.lock().await;
    kept.retain(|_, (at, _)| now.since(*at) < KEPT_FOR);
    if let Some((_, counts)) = kept.get(&of) {
        return Ok(*counts);
    }
    let counts = visitor.admin.key_counts(reach).await?;
    if counts.live > MANY {
        kept.insert(of, (now, counts));
    }
    Ok(counts)
}

/// Shows the start page. Needs no permission; each part is left out if the visitor lacks the permission for it.
pub(super) async fn show(
    State(plane): PlaneState,
    Extension(visitor): VisitorExtension,
) -> Result<Markup, PageFailure> {
    let admin = &visitor.admin;
    let counts = if visitor.may(Permission::KeysRead, About::Shared) {
        Some(key_counts(&plane, &visitor).await?)
    } else {
        None
    };
    let today = if visitor.may(Permission::UsageRead, About::Shared) {
        Some(today(admin, &visitor).await?)
    } else {
        None
    };
    let replicas = admin.servers().await?;
    let changes =
        if visitor.may(Permission::AuditRead, About::Shared) { Some(latest(&visitor).await?) } else { None };
    let body = html! {
        h1 { "Overview" }
        @if visitor.may(Permission::TenantsWrite, About::NewTenant) { (first_steps(counts)) }
        @if let Some(counts) = counts { (tiles(counts)) }
        div.columns {
            @if let Some(today) = &today { (requests(today)) }
            (servers(&replicas, admin.now()))
        }
        @if visitor.may(Permission::KeysRead, About::Shared) {
            section aria-labelledby="find" { h2 #find { "Find a refusal" } (refusals::form("")) }
        }
        @if let Some(changes) = &changes {
            section aria-labelledby="changes" { h2 #changes { "Latest changes" } (changes) }
        }
    };
    Ok(page(&visitor, NavEntry::Overview, "Overview", &body))
}

/// Returns today's requests by reason, the most frequent first.
async fn today(admin: &Admin, visitor: &Visitor) -> Result<Vec<(String, u64)>, PageFailure> {
    let counts = admin.requests_by_day(&visitor.caller.creator.authority.reach, 1).await?;
    let mut today: Vec<_> = counts.into_iter().map(|count| (count.reason, count.requests)).collect();
    today.sort_by(|(one, few), (other, many)| many.cmp(few).then(one.cmp(other)));
    Ok(today)
}

fn tiles(counts: KeyCounts) -> Markup {
    html! {
        ul.tiles aria-label="Keys" {
            (tile("/keys?state=active", "Live keys", counts.live, false))
            (tile("/keys?expires=30", "Expire within 30 days", counts.expiring, counts.expiring > 0))
            (tile("/keys?unused=90", "Unused for 90 days", counts.unused, counts.unused > 0))
        }
    }
}

fn tile(path: &str, words: &str, count: u64, attention: bool) -> Markup {
    html! {
        li {
            a href=(path) class={ "tile" @if attention { " attention" } } {
                span.figure { (number(count)) }
                span.words { (words) }
            }
        }
    }
}

fn requests(today: &[(String, u64)]) -> Markup {
    html! {
        section.card aria-labelledby="today" {
            h2 #today { "Requests today" span.muted { " (UTC)" } }
            @if today.is_empty() {
                p.empty { "None yet. Counts arrive here within half a minute." }
            } @else {
                (reasons(today))
            }
        }
    }
}

fn servers(replicas: &[ReplicaState], now: Timestamp) -> Markup {
    html! {
        section.card aria-labelledby="servers" {
            h2 #servers { "Servers" }
            @if replicas.is_empty() {
                p.empty { "No server is known yet. Start one with " code { "tenantgate serve" } "." }
            } @else {
                table {
                    thead { tr { th scope="col" { "Name" } th scope="col" { "Seen" } th scope="col" { "Changes" } } }
                    tbody {
                        @for replica in replicas {
                            tr {
                                td { code { (replica.name) } }
                                td { (when(replica.seen_at, now)) }
                                td { (lag(replica, now)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn lag(replica: &ReplicaState, now: Timestamp) -> Markup {
    if replica.serves_until <= now {
        return pill("off", "gone");
    }
    match replica.behind_since {
        None => pill("good", "all applied"),
        Some(since) => {
            let seconds = now.since(since).as_secs();
            pill("warn", &format!("{} s behind", number(seconds)))
        }
    }
}

fn first_steps(counts: Option<KeyCounts>) -> Markup {
    if counts.is_none_or(|counts| counts.live > 0) {
        return html! {};
    }
    html! {
        section.card.first aria-labelledby="first" {
            h2 #first { "Begin here" }
            ol {
                li { "A " strong { "tenant" } " is a customer." }
                li { "Each tenant has " strong { "keys" } ", which its programs send with every request." }
                li { "Envoy asks tenantgate whether a key may pass." }
            }
            p.actions { a.button.primary href="/tenants/new" { "Create a tenant" } }
        }
    }
}

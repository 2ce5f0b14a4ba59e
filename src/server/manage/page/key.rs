//! The screen of one key: its fields, its requests, a test of a request, and its actions.

use axum::Extension;
use axum::extract::{Path, RawQuery};
use maud::{Markup, html};

use super::audit::entries_of;
use super::chart::{ByDay, DAYS, add, bars};
use super::failure::PageFailure;
use super::form::Form;
use super::key_forms::{actions, found};
use super::layout::{NavEntry, page};
use super::parts::{Field, copyable, done, key_pill, meaning, tenant_pill, when, when_or};
use super::visit::{Visitor, VisitorExtension};
use crate::admin::{RouteVerdict, TestedRequest};
use crate::clock::Timestamp;
use crate::permission::{About, Permission};
use crate::record::KeyDetails;
use crate::tenant::{Tenant, TenantStatus};

/// Shows a key with its state, requests and changes, and explains a request with it if the query has a path. Needs
/// `keys:read`.
pub(super) async fn show(
    Extension(visitor): VisitorExtension,
    Path(reference): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Markup, PageFailure> {
    let (key, tenant) = found(&visitor, &reference, Permission::KeysRead).await?;
    let query = Form::read(query.unwrap_or_default());
    let (about, now) = (About::Tenant(tenant.id), visitor.admin.now());
    let picture =
        if visitor.may(Permission::UsageRead, about) { Some(picture(&visitor, &key).await?) } else { None };
    let audit = if visitor.may(Permission::AuditRead, about) {
        Some(entries_of(&visitor, &key.id.0.to_string()).await?)
    } else {
        None
    };
    let verdict = match query.get("path") {
        Some(path) => Some(explain(&visitor, &key, &query, path).await?),
        None => None,
    };
    let name = key.name.as_deref().unwrap_or("(no name)");
    let body = html! {
        p.crumbs {
            a href="/tenants" { "Tenants" } " / " a href={ "/tenants/" (tenant.id.0) } { (tenant.name) }
        }
        div.title { h1 { (name) } (key_pill(&key, now)) }
        (done(&query))
        (facts(&key, &tenant, now))
        @if let Some(picture) = picture {
            section.card aria-labelledby="requests" { h2 #requests { "Requests by day" } (picture) }
        }
        (explanation(&key, &tenant, &query, verdict.as_ref()))
        (actions(&visitor, &key, &tenant, now))
        @if let Some(audit) = audit {
            section aria-labelledby="audit" { h2 #audit { "Changes" } (audit) }
        }
    };
    Ok(page(&visitor, NavEntry::Keys, name, &body))
}

fn facts(key: &KeyDetails, tenant: &Tenant, now: Timestamp) -> Markup {
    let terms = &key.terms;
    let fact = |name: &str, value: Option<&str>, otherwise: &str| {
        html! {
            div { dt { (name) } dd { @if let Some(value) = value { (value) } @else { span.muted { (otherwise) } } } }
        }
    };
    html! {
        dl.facts {
            div { dt { "Prefix" } dd { (copyable(&key.prefix, "the prefix")) } }
            div { dt { "Tenant" } dd { a href={ "/tenants/" (tenant.id.0) } { (tenant.name) } } }
            div { dt { "Created" } dd { (when(key.created_at, now)) } }
            div { dt { "Last used" } dd { (when_or(key.last_used_at, now, "never")) } }
            div { dt { "Expires" } dd { (when_or(key.expires_at, now, "never")) } }
            @if let Some(at) = terms.not_before { div { dt { "Valid from" } dd { (when(at, now)) } } }
            @if let Some(at) = key.disabled_at { div { dt { "Disabled" } dd { (when(at, now)) } } }
            @if let Some(at) = key.revoked_at { div { dt { "Revoked" } dd { (when(at, now)) } } }
            @if let Some(reason) = &key.revocation_reason { div { dt { "Reason" } dd { (reason) } } }
            @if let Some(id) = key.replaced_by {
                div { dt { "Successor" } dd { a href={ "/keys/" (id.0) } { "the new key" } } }
            }
            (fact("Scopes", terms.scopes.as_deref(), "all"))
            (fact("Networks", terms.networks.as_deref(), "anywhere"))
            (fact("Plan", terms.plan.as_deref(), "that of the tenant"))
            @if !terms.labels.is_empty() {
                div { dt { "Labels" } dd {
                    @for (name, value) in terms.labels.iter() { span.label { (name) "=" (value) } " " }
                } }
            }
            div { dt { "Id" } dd { (copyable(&key.id.0.to_string(), "the id")) } }
        }
    }
}

async fn picture(visitor: &Visitor, key: &KeyDetails) -> Result<Markup, PageFailure> {
    let mut days = ByDay::new();
    for count in visitor.admin.requests_of_key(key.id, DAYS).await? {
        add(&mut days, &count.day, &count.reason, count.requests);
    }
    Ok(bars(&days, visitor.admin.now()))
}

async fn explain(
    visitor: &Visitor,
    key: &KeyDetails,
    query: &Form,
    path: &str,
) -> Result<RouteVerdict, PageFailure> {
    let request = TestedRequest {
        method: query.get("method").unwrap_or("GET").to_uppercase(),
        host: query.get("host").unwrap_or("example.com").to_owned(),
        path: path.to_owned(),
        key: Some(key.id.0.to_string()),
        ..TestedRequest::default()
    };
    Ok(visitor.admin.test_route(&request).await?)
}

fn explanation(key: &KeyDetails, tenant: &Tenant, query: &Form, verdict: Option<&RouteVerdict>) -> Markup {
    html! {
        section.card #explain aria-labelledby="why" {
            h2 #why { "Would a request pass?" }
            form.inline method="get" action={ "/keys/" (key.id.0) "#explain" } {
                (Field { name: "method", label: "Method", value: query.get("method").unwrap_or("GET"), hint: "", required: true }.show())
                (Field { name: "host", label: "Host", value: query.shown("host"), hint: "", required: false }.show())
                (Field { name: "path", label: "Path", value: query.get("path").unwrap_or("/"), hint: "", required: true }.show())
                button type="submit" { "Explain" }
            }
            @if let Some(verdict) = verdict { (outcome(tenant, verdict)) }
        }
    }
}

fn outcome(tenant: &Tenant, verdict: &RouteVerdict) -> Markup {
    let of_tenant = verdict.outcome == "ok" && tenant.status != TenantStatus::Active;
    let reason = if of_tenant { "tenant_inactive" } else { verdict.outcome };
    let passes = matches!(reason, "ok" | "public" | "anonymous");
    html! {
        div.verdict role="status" {
            p {
                strong class=(if passes { "yes" } else { "no" }) { @if passes { "It would pass" } @else { "It would be refused" } }
                ": " code { (reason) } ". " (meaning(reason))
            }
            @if of_tenant { p { "The tenant is " (tenant_pill(tenant)) "." } }
            @if let Some(why) = &verdict.ambiguous { p { "The path is ambiguous: " (why) } }
            @if !verdict.needs.is_empty() {
                p { "It needs " @for (at, needs) in verdict.needs.iter().enumerate() {
                    @if at > 0 { " and " } code { (needs) }
                } "." }
            }
            p.hint { "Computed now from the rules and the key, without networks and rate limits." }
        }
    }
}

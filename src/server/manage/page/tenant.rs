//! The screen of one tenant: its fields, its keys, its requests and its actions.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery};
use axum::response::Redirect;
use maud::{Markup, html};

use super::chart::{ByDay, DAYS, add, bars};
use super::failure::PageFailure;
use super::form::Form;
use super::keys::rows;
use super::layout::{NavEntry, page};
use super::parts::{Field, asked, copyable, done, number, select, table, tenant_pill, version, when};
use super::visit::{Visitor, VisitorExtension};
use crate::admin::version::of_tenant;
use crate::admin::{AdminError, Setting};
use crate::permission::{About, Permission};
use crate::plan::{PlanName, PlanRow};
use crate::store::KeyFilter;
use crate::tenant::{Mode, Tenant, TenantStatus};

/// The number of keys that are shown with the tenant.
const KEYS: usize = 10;

/// Returns the tenant of a path, if this visitor has `permission` for it.
pub(super) async fn found(
    visitor: &Visitor,
    reference: &str,
    permission: Permission,
) -> Result<Tenant, PageFailure> {
    visitor.check(permission, About::Shared)?;
    let tenant = visitor.admin.tenant_by_id(reference).await?;
    visitor.check(permission, About::Tenant(tenant.id))?;
    Ok(tenant)
}

/// Shows a tenant with its keys, its requests and the actions that the visitor may perform. Needs `tenants:read`.
pub(super) async fn show(
    Extension(visitor): VisitorExtension,
    Path(reference): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Markup, PageFailure> {
    let tenant = found(&visitor, &reference, Permission::TenantsRead).await?;
    let query = Form::read(query.unwrap_or_default());
    let about = About::Tenant(tenant.id);
    let keys =
        if visitor.may(Permission::KeysRead, about) { Some(keys_of(&visitor, &tenant).await?) } else { None };
    let picture = if visitor.may(Permission::UsageRead, about) {
        Some(picture(&visitor, &tenant).await?)
    } else {
        None
    };
    let actions = if visitor.may(Permission::TenantsWrite, about) {
        Some(actions(&visitor, &tenant).await?)
    } else {
        None
    };
    let body = html! {
        p.crumbs { a href="/tenants" { "Tenants" } }
        div.title {
            h1 { (tenant.name) } (tenant_pill(&tenant))
            @if visitor.may(Permission::KeysWrite, about) && tenant.status != TenantStatus::Deleted {
                a.button.primary href={ "/tenants/" (tenant.id.0) "/keys/new" } { "New key" }
            }
        }
        (done(&query))
        (facts(&tenant, visitor.admin.now()))
        @if let Some(picture) = picture {
            section.card aria-labelledby="requests" { h2 #requests { "Requests by day" } (picture) }
        }
        @if let Some(keys) = keys { (keys) }
        @if let Some(actions) = actions { (actions) }
    };
    Ok(page(&visitor, NavEntry::Tenants, &tenant.name, &body))
}

fn facts(tenant: &Tenant, now: crate::clock::Timestamp) -> Markup {
    html! {
        dl.facts {
            div { dt { "Id" } dd { (copyable(&tenant.id.0.to_string(), "the id")) } }
            div { dt { "Schema" } dd { (copyable(&tenant.schema, "the schema")) } }
            div { dt { "Plan" } dd { (tenant.plan.as_deref().unwrap_or("–")) } }
            @if let Some(mode) = tenant.mode { div { dt { "Mode" } dd { (mode.as_str()) } } }
            div { dt { "Created" } dd { (when(tenant.created_at, now)) } }
        }
    }
}

async fn keys_of(visitor: &Visitor, tenant: &Tenant) -> Result<Markup, PageFailure> {
    let now = visitor.admin.now();
    let filter = KeyFilter { tenant: Some(tenant.id), now, ..KeyFilter::default() };
    let reach = &visitor.caller.creator.authority.reach;
    let page = visitor.admin.keys_by_creation(&filter, reach, None, KEYS).await?;
    let more = page.next.is_some();
    let keys: Vec<_> = page.keys.into_iter().map(|key| key.details).collect();
    let rows = rows(&keys, None, now);
    Ok(html! {
        section aria-labelledby="keys" {
            h2 #keys { "Keys" }
            @if keys.is_empty() {
                p.empty { "This tenant has no keys yet." }
            } @else {
                (table("Keys", &["Name", "Prefix", "Status", "Last used", "Expires"], &rows))
            }
            @if more { p { a href={ "/keys?tenant=" (tenant.schema) } { "All keys of " (tenant.name) } } }
        }
    })
}

async fn picture(visitor: &Visitor, tenant: &Tenant) -> Result<Markup, PageFailure> {
    let mut days = ByDay::new();
    for count in visitor.admin.requests_of_tenant(tenant.id, DAYS).await? {
        add(&mut days, &count.day, &count.reason, count.requests);
    }
    Ok(bars(&days, visitor.admin.now()))
}

async fn actions(visitor: &Visitor, tenant: &Tenant) -> Result<Markup, PageFailure> {
    let (live, used) = visitor.admin.impact(tenant).await?;
    let (live, used) = (u64::try_from(live).unwrap_or(0), u64::try_from(used).unwrap_or(0));
    let plans = visitor.admin.plans().await?;
    let path = format!("/tenants/{}", tenant.id.0);
    let impact = html! {
        p {
            strong { (number(live)) @if live == 1 { " key" } @else { " keys" } } " of this tenant "
            @if live == 1 { "works" } @else { "work" } " now; "
            strong { (number(used)) } @if used == 1 { " was" } @else { " were" } " used in the last day."
        }
    };
    Ok(html! {
        section.dangers aria-labelledby="change" {
            h2 #change { "Change" }
            (asked("Edit tenant", false, &edit(tenant, &plans, &path)))
            @match tenant.status {
                TenantStatus::Active => (asked("Suspend tenant", true, &html! {
                    (impact)
                    p { "They get 403 within moments, until you activate the tenant again." }
                    form method="post" action={ (path) "/suspend" } {
                        button.danger type="submit" { "Suspend " (tenant.name) }
                    }
                })),
                TenantStatus::Deleted => {},
                _ => (asked("Activate tenant", false, &html! {
                    p { "Its keys work again within moments." }
                    form method="post" action={ (path) "/activate" } {
                        (version(&of_tenant(tenant)))
                        button.primary type="submit" { "Activate " (tenant.name) }
                    }
                })),
            }
            @if tenant.status != TenantStatus::Deleted {
                (asked("Delete tenant", true, &html! {
                    (impact)
                    p { "They are rejected permanently. The rows and the schema remain." }
                    form method="post" action={ (path) "/delete" } {
                        (version(&of_tenant(tenant)))
                        (Field {
                            name: "confirm",
                            label: &format!("Type {} to confirm", tenant.schema),
                            value: "",
                            hint: "",
                            required: true,
                        }.show())
                        button.danger type="submit" { "Delete " (tenant.name) }
                    }
                }))
            }
        }
    })
}

fn edit(tenant: &Tenant, plans: &[PlanRow], path: &str) -> Markup {
    let name = Field { name: "name", label: "Name", value: &tenant.name, hint: "", required: true };
    let mut options = vec![("", "none")];
    options.extend(plans.iter().map(|plan| (plan.name.as_str(), plan.name.as_str())));
    let mode = tenant.mode.map_or("", Mode::as_str);
    html! {
        form method="post" action={ (path) "/update" } {
            (version(&of_tenant(tenant)))
            (name.show())
            (select("plan", "Plan", tenant.plan.as_deref().unwrap_or_default(), &options))
            (select("mode", "Rejected requests", mode, &[
                ("", "Use the server's mode"), ("enforce", "Are rejected"), ("shadow", "Pass, and are reported"),
            ]))
            button.primary type="submit" { "Save" }
        }
    }
}

fn to(tenant: &Tenant, done: &str) -> Redirect {
    Redirect::to(&format!("/tenants/{}?done={done}", tenant.id.0))
}

/// Changes the name, plan and mode of a tenant. Needs `tenants:write`; an empty plan or mode is unset.
pub(super) async fn update(
    Extension(visitor): VisitorExtension,
    Path(reference): Path<String>,
    body: Bytes,
) -> Result<Redirect, PageFailure> {
    let tenant = found(&visitor, &reference, Permission::TenantsWrite).await?;
    let form = Form::read(body);
    let plan = match form.get("plan") {
        None => Setting::Unset,
        Some(name) => Setting::Set(PlanName::parse(name).map_err(|e| AdminError::BadRequest(e.to_string()))?),
    };
    let mode = match form.get("mode") {
        None => Setting::Unset,
        Some(word) => match Mode::ALL.into_iter().find(|mode| mode.as_str() == word) {
            Some(mode) => Setting::Set(mode),
            None => return Err(PageFailure::invalid("The mode is not one of those offered.")),
        },
    };
    let name = form.need("name", "The name")?;
    visitor.admin_for(&form).patch_tenant(&tenant.id.0.to_string(), Some(name), &plan, &mode).await?;
    Ok(to(&tenant, "updated"))
}

/// Suspends a tenant: requests with its keys are rejected. Needs `tenants:write`.
pub(super) async fn suspend(
    Extension(visitor): VisitorExtension,
    Path(reference): Path<String>,
) -> Result<Redirect, PageFailure> {
    let tenant = found(&visitor, &reference, Permission::TenantsWrite).await?;
    visitor.admin.suspend_tenant(&tenant.id.0.to_string()).await?;
    Ok(to(&tenant, "suspended"))
}

/// Activates a tenant, unless it was changed since it was shown. Needs `tenants:write`.
pub(super) async fn activate(
    Extension(visitor): VisitorExtension,
    Path(reference): Path<String>,
    body: Bytes,
) -> Result<Redirect, PageFailure> {
    let tenant = found(&visitor, &reference, Permission::TenantsWrite).await?;
    visitor.admin_for(&Form::read(body)).activate_tenant(&tenant.id.0.to_string()).await?;
    Ok(to(&tenant, "activated"))
}

/// Marks a tenant as deleted, if the form repeats its schema. Needs `tenants:write`.
pub(super) async fn delete(
    Extension(visitor): VisitorExtension,
    Path(reference): Path<String>,
    body: Bytes,
) -> Result<Redirect, PageFailure> {
    let tenant = found(&visitor, &reference, Permission::TenantsWrite).await?;
    let form = Form::read(body);
    if form.get("confirm") != Some(&tenant.schema) {
        return Err(PageFailure::invalid(format!("Nothing was deleted: type {} to confirm.", tenant.schema)));
    }
    visitor.admin_for(&form).delete_tenant(&tenant.id.0.to_string()).await?;
    Ok(to(&tenant, "deleted"))
}

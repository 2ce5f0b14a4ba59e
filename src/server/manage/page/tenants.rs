//! The list of tenants, and the form for a new one.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::RawQuery;
use axum::response::{IntoResponse as _, Redirect, Response};
use maud::{Markup, html};

use super::failure::PageFailure;
use super::form::Form;
use super::layout::{NavEntry, page};
use super::parts::{Field, table, tenant_pill, when, wrong};
use super::visit::{Visitor, VisitorExtension};
use crate::permission::{About, Permission};
use crate::server::manage::reading::place;
use crate::store::{TenantFilter, TenantPage, TenantPlace};
use crate::tenant::{TenantId, TenantStatus};

/// The number of tenants on a page.
const SIZE: usize = 50;

/// Shows the tenants that the visitor may see and the search matches, newest first, 50 a page. Needs `tenants:read`.
pub(super) async fn list(
    Extension(visitor): VisitorExtension,
    RawQuery(query): RawQuery,
) -> Result<Markup, PageFailure> {
    visitor.check(Permission::TenantsRead, About::Shared)?;
    let query = Form::read(query.unwrap_or_default());
    let search = query.get("q").map(str::to_owned);
    let filter = TenantFilter { search, newest_first: true, ..TenantFilter::default() };
    // A page begins after a tenant, so that new ones move nothing.
    let after = query.get("after").and_then(|text| place(&visitor.admin, text));
    let after = after.map(|(created_at, id)| TenantPlace { created_at, id: TenantId(id) });
    let TenantPage { tenants, next } =
        visitor.admin.tenants_by_creation(&filter, after.as_ref(), SIZE).await?;
    let next = next.map(|place| format!("{} {}", place.created_at, place.id.0));
    let found = tenants.len();
    let now = visitor.admin.now();
    let rows = html! {
        @for tenant in &tenants {
            tr {
                th scope="row" { a href={ "/tenants/" (tenant.id.0) } { (tenant.name) } }
                td { (tenant_pill(tenant)) }
                td { code { (tenant.schema) } }
                td { (tenant.plan.as_deref().unwrap_or("–")) }
                td { (when(tenant.created_at, now)) }
            }
        }
    };
    let body = html! {
        div.title {
            h1 { "Tenants" }
            @if visitor.may(Permission::TenantsWrite, About::NewTenant) {
                a.button.primary href="/tenants/new" { "New tenant" }
            }
        }
        form.filters role="search" data-live="results" {
            label.hidden for="q" { "Search tenants" }
            input #q type="search" name="q" value=(query.shown("q")) placeholder="Name or schema" autocomplete="off";
            button type="submit" { "Search" }
        }
        div #results {
            p.count role="status" { (found) @if next.is_some() { "+" } @if found == 1 { " tenant" } @else { " tenants" } }
            @if tenants.is_empty() {
                p.empty { "No tenant matches." }
            } @else {
                (table("Tenants", &["Name", "Status", "Schema", "Plan", "Created"], &rows))
            }
            (super::parts::next_page("/tenants", &query, next.as_deref()))
        }
    };
    Ok(page(&visitor, NavEntry::Tenants, "Tenants", &body))
}

/// Shows the form for a new tenant. Needs `tenants:write` for all tenants.
pub(super) async fn new(Extension(visitor): VisitorExtension) -> Result<Markup, PageFailure> {
    visitor.check(Permission::TenantsWrite, About::NewTenant)?;
    Ok(new_page(&visitor, &Form::default(), None))
}

fn new_page(visitor: &Visitor, form: &Form, failure: Option<&str>) -> Markup {
    let name = Field {
        name: "name",
        label: "Name",
        value: form.shown("name"),
        hint: "The name of the customer, for human readers.",
        required: true,
    };
    let schema = Field {
        name: "schema",
        label: "Schema",
        value: form.shown("schema"),
        hint: "The name of its database schema, a-z, 0-9 and _. Derived from the name if empty. It cannot be changed.",
        required: false,
    };
    let body = html! {
        p.crumbs { a href="/tenants" { "Tenants" } }
        h1 { "New tenant" }
        (wrong(failure))
        form.card.narrow method="post" action="/tenants" {
            (name.show())
            (schema.show())
            p.actions {
                button.primary type="submit" { "Create tenant" }
                a.button href="/tenants" { "Cancel" }
            }
        }
    };
    page(visitor, NavEntry::Tenants, "New tenant", &body)
}

/// Creates a tenant and its schema. Needs `tenants:write` for all tenants; an invalid form is shown again with its
/// error.
pub(super) async fn create(
    Extension(visitor): VisitorExtension,
    body: Bytes,
) -> Result<Response, PageFailure> {
    visitor.check(Permission::TenantsWrite, About::NewTenant)?;
    let form = Form::read(body);
    let created = match form.need("name", "The name") {
        Ok(name) => {
            let made = visitor
                .admin
                .create_tenant(name, form.get("schema"), false, TenantStatus::Active, None)
                .await;
            made.map_err(PageFailure::from)
        }
        Err(failure) => Err(failure),
    };
    match created {
        Ok(tenant) => Ok(Redirect::to(&format!("/tenants/{}?done=created", tenant.id.0)).into_response()),
        Err(failure) => Ok((failure.status, new_page(&visitor, &form, Some(&failure.text))).into_response()),
    }
}

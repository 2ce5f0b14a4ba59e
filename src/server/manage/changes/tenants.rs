//! Changes of tenants.

use axum::http::StatusCode;
use axum::response::Response;

use super::super::body::{BodyForm, FieldValue};
use super::super::idempotency::Secret;
use super::super::problem::Problem;
use super::{ChangeRequest, ChangeResponse, Path, Success, nothing_matches};
use crate::admin::view::TenantView;
use crate::admin::{Admin, Setting, version};
use crate::invalid::InvalidValue;
use crate::key::format::holds_key;
use crate::permission::Permission;
use crate::plan::PlanName;
use crate::store::Changed;
use crate::tenant::{Mode, Tenant, TenantStatus, is_schema_name, is_tenant_name};

const SUCCESS: Success = Success { status: StatusCode::OK, secret: Secret::None, render: shown };

fn shown(changed: Changed<'_>, _: &Admin) -> Option<ChangeResponse> {
    let Changed::Tenant(tenant) = changed else { return None };
    Some(response(tenant))
}

fn response(tenant: &Tenant) -> ChangeResponse {
    let location = format!("/v1/tenants/{}", tenant.id.0);
    ChangeResponse::of(&TenantView::from(tenant), version::of_tenant(tenant)).at(location)
}

/// Makes the response for a tenant that existed before, without `Location`.
fn changed(changed: Changed<'_>, admin: &Admin) -> Option<ChangeResponse> {
    shown(changed, admin).map(|response| ChangeResponse { location: None, ..response })
}

/// Parses the name of a tenant, a key or a management key.
pub(super) fn name(text: &str) -> Result<String, &'static str> {
    if is_tenant_name(text) && !holds_key(text) {
        Ok(text.to_owned())
    } else {
        Err(
            "expected 1 to 255 characters, not all of them invisible, no control characters, and no key in it",
        )
    }
}

fn schema(text: &str) -> Result<String, &'static str> {
    let expected = "expected a lower-case letter or _, then up to 62 of a-z, 0-9 and _, but not a schema of Postgres itself";
    if is_schema_name(text) { Ok(text.to_owned()) } else { Err(expected) }
}

fn status(text: &str) -> Result<TenantStatus, InvalidValue> {
    let known = TenantStatus::KNOWN.contains(&text);
    known
        .then(|| TenantStatus::parse(text))
        .ok_or_else(|| format!("expected one of {}", TenantStatus::KNOWN.join(", ")).into())
}

/// Returns the mode for rejected requests with proven keys of a tenant.
fn mode(text: &str) -> Result<Mode, &'static str> {
    let known = Mode::ALL.into_iter().find(|mode| mode.as_str() == text);
    known.ok_or("expected enforce or shadow")
}

/// Returns a value that can be unset.
pub(super) fn setting<T>(said: FieldValue<T>) -> Setting<T> {
    match said {
        FieldValue::Absent => Setting::Keep,
        FieldValue::Null => Setting::Unset,
        FieldValue::Value(value) => Setting::Set(value),
    }
}

/// Creates a tenant and its schema. Needs `tenants:write` for all tenants; 409 if the schema exists and `adopt_schema`
/// is not set.
pub(in super::super) async fn create(change: ChangeRequest) -> Result<Response, Problem> {
    change.may_make(Permission::TenantsWrite)?;
    let (asked, mut fields) = change.fields(BodyForm::Json).await?;
    let name = fields.text_needed("name", name);
    let schema = fields.text("db_schema_name", schema).value();
    let wanted = fields.text("status", status).value().unwrap_or(TenantStatus::Active);
    let plan = fields.text("plan", PlanName::parse).value();
    let adopt = fields.flag("adopt_schema").unwrap_or(false);
    fields.finish()?;
    nothing_matches(&asked.parts)?;
    let name = name.unwrap_or_default();
    // A tenant is pending until its schema is created. The response shows the tenant after that.
    let render = if wanted == TenantStatus::PendingProvisioning { shown } else { shown_when_made };
    let success = Success { status: StatusCode::CREATED, secret: Secret::None, render };
    asked
        .make(success, async move |admin, _| {
            let (schema, plan) = (schema.as_deref(), plan.as_ref());
            admin.create_tenant(&name, schema, adopt, wanted, plan).await.map(|_| None)
        })
        .await
}

fn shown_when_made(changed: Changed<'_>, _: &Admin) -> Option<ChangeResponse> {
    match changed {
        Changed::Tenant(tenant) if tenant.status != TenantStatus::PendingProvisioning => {
            Some(response(tenant))
        }
        _ => None,
    }
}

/// Changes the name, plan or mode of a tenant. Needs `tenants:write`.
pub(in super::super) async fn update(
    axum::extract::Path(reference): Path<String>,
    change: ChangeRequest,
) -> Result<Response, Problem> {
    change.may(Permission::TenantsWrite)?;
    let (asked, mut fields) = change.fields(BodyForm::MergePatch).await?;
    let name = fields.text_or_absent("name", name);
    let plan = setting(fields.text("plan", PlanName::parse));
    let mode = setting(fields.text("mode", mode));
    fields.finish()?;
    let render = changed;
    asked
        .make(Success { render, ..SUCCESS }, async move |admin, _| {
            let id = admin.tenant_by_id(&reference).await?.id.0.to_string();
            admin.patch_tenant(&id, name.as_deref(), &plan, &mode).await.map(|_| None)
        })
        .await
}

/// Suspends a tenant: requests with its keys are rejected. Needs `tenants:write`.
pub(in super::super) async fn suspend(
    axum::extract::Path(reference): Path<String>,
    change: ChangeRequest,
) -> Result<Response, Problem> {
    change.may(Permission::TenantsWrite)?;
    let asked = change.no_fields().await?;
    let render = changed;
    asked
        .make(Success { render, ..SUCCESS }, async move |admin, _| {
            let id = admin.tenant_by_id(&reference).await?.id.0.to_string();
            admin.suspend_tenant(&id).await.map(|_| None)
        })
        .await
}

/// Activates a tenant, after creating its schema if that is missing. Needs `tenants:write`.
pub(in super::super) async fn activate(
    axum::extract::Path(reference): Path<String>,
    change: ChangeRequest,
) -> Result<Response, Problem> {
    change.may(Permission::TenantsWrite)?;
    let asked = change.no_fields().await?;
    let render = changed;
    asked
        .make(Success { render, ..SUCCESS }, async move |admin, _| {
            let id = admin.tenant_by_id(&reference).await?.id.0.to_string();
            admin.activate_tenant(&id).await.map(|_| None)
        })
        .await
}

/// Deletes a tenant. The body must repeat the schema of the tenant, so that no other tenant is deleted by mistake.
pub(in super::super) async fn delete(
    axum::extract::Path(reference): Path<String>,
    change: ChangeRequest,
) -> Result<Response, Problem> {
    change.may(Permission::TenantsWrite)?;
    let (asked, mut fields) = change.fields(BodyForm::Json).await?;
    let confirmed = fields.text_needed("confirm", |text| Ok::<_, String>(text.to_owned()));
    fields.finish()?;
    let found = asked.admin()?.tenant_by_id(&reference).await?;
    if confirmed.as_deref() != Some(&found.schema) {
        return Err(Problem::unprocessable(vec![super::super::problem::FieldError::new(
            "/confirm".into(),
            "unfit_value",
            "expected the schema of this tenant",
        )]));
    }
    let (id, render) = (found.id.0.to_string(), changed as super::RenderResponse);
    asked
        .make(Success { render, ..SUCCESS }, async move |admin, _| {
            admin.delete_tenant(&id).await.map(|_| None)
        })
        .await
}

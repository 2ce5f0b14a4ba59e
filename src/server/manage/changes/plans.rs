//! Changes of plans.

use axum::http::StatusCode;
use axum::response::Response;

use super::super::body::{BodyForm, Fields};
use super::super::idempotency::Secret;
use super::super::problem::Problem;
use super::tenants::setting;
use super::{ChangeRequest, ChangeResponse, Path, Success, nothing_matches};
use crate::admin::view::PlanView;
use crate::admin::{Admin, LimitUpdate, version};
use crate::permission::Permission;
use crate::plan::{Limit, LimitKind, PlanName};
use crate::store::Changed;

fn shown(changed: Changed<'_>, _: &Admin) -> Option<ChangeResponse> {
    let Changed::Plan(plan) = changed else { return None };
    Some(ChangeResponse::of(&PlanView::from(plan), version::of_plan(plan)))
}

fn created(changed: Changed<'_>, admin: &Admin) -> Option<ChangeResponse> {
    let Changed::Plan(plan) = changed else { return None };
    shown(changed, admin).map(|response| response.at(format!("/v1/plans/{}", plan.name)))
}

fn limits(fields: &mut Fields) -> LimitUpdate {
    LimitKind::ALL.map(|counted| setting(fields.text(counted.as_str(), Limit::parse)))
}

/// Parses the name in a path. An invalid name gets 404.
fn named(text: &str) -> Result<PlanName, Problem> {
    PlanName::parse(text).map_err(|_| Problem::not_found())
}

/// Creates a plan. Needs `plans:write`; 409 if a plan with this name exists.
pub(in super::super) async fn create(change: ChangeRequest) -> Result<Response, Problem> {
    change.may(Permission::PlansWrite)?;
    let (asked, mut fields) = change.fields(BodyForm::Json).await?;
    let name = fields.text_needed("name", PlanName::parse);
    let limits = limits(&mut fields);
    fields.finish()?;
    nothing_matches(&asked.parts)?;
    let name = name.ok_or_else(Problem::not_found)?;
    let success = Success { status: StatusCode::CREATED, secret: Secret::None, render: created };
    asked.make(success, async move |admin, _| admin.create_plan(&name, &limits).await.map(|_| None)).await
}

/// Changes the limits of a plan; `null` removes a limit. Needs `plans:write`.
pub(in super::super) async fn update(
    axum::extract::Path(name): Path<String>,
    change: ChangeRequest,
) -> Result<Response, Problem> {
    change.may(Permission::PlansWrite)?;
    let (asked, mut fields) = change.fields(BodyForm::MergePatch).await?;
    let limits = limits(&mut fields);
    fields.finish()?;
    let name = named(&name)?;
    let success = Success { status: StatusCode::OK, secret: Secret::None, render: shown };
    asked.make(success, async move |admin, _| admin.patch_plan(&name, &limits).await.map(|_| None)).await
}

/// Deletes a plan. Needs `plans:write`; 409 while a tenant or a key has it.
pub(in super::super) async fn delete(
    axum::extract::Path(name): Path<String>,
    change: ChangeRequest,
) -> Result<Response, Problem> {
    change.may(Permission::PlansWrite)?;
    let (asked, name) = (change.no_fields().await?, named(&name)?);
    let success = Success { status: StatusCode::NO_CONTENT, secret: Secret::None, render: shown };
    asked.make(success, async move |admin, _| admin.delete_plan(&name).await.map(|_| None)).await
}

//! The screen of plans.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery};
use axum::response::{IntoResponse as _, Redirect, Response};
use maud::{Markup, html};

use super::failure::PageFailure;
use super::form::Form;
use super::layout::{NavEntry, page};
use super::parts::{Field, asked, done, table, version, wrong};
use super::visit::{Visitor, VisitorExtension};
use crate::admin::version::of_plan;
use crate::admin::{AdminError, LimitUpdate, Setting};
use crate::permission::{About, Permission};
use crate::plan::{Limit, PlanName, PlanRow};

/// The form fields of the limits, in the order of the columns, with their labels.
const LIMITS: [(&str, &str); 4] = [
    ("request_limit", "Requests"),
    ("total_limit", "Tokens in all"),
    ("input_limit", "Tokens in"),
    ("output_limit", "Tokens out"),
];

/// Shows the plans, and a form for a new one. Needs `plans:read`.
pub(super) async fn list(
    Extension(visitor): VisitorExtension,
    RawQuery(query): RawQuery,
) -> Result<Markup, PageFailure> {
    visitor.check(Permission::PlansRead, About::Shared)?;
    screen(&visitor, &Form::read(query.unwrap_or_default()), &Form::default(), None).await
}

async fn screen(
    visitor: &Visitor,
    query: &Form,
    form: &Form,
    failure: Option<&str>,
) -> Result<Markup, PageFailure> {
    let plans = visitor.admin.plans().await?;
    let writes = visitor.may(Permission::PlansWrite, About::Shared);
    let body = html! {
        h1 { "Plans" }
        p.lead { "A plan is a name for limits, which Envoy enforces. Tenants and keys refer to it." }
        (done(query))
        (wrong(failure))
        @if plans.is_empty() {
            p.empty { "There are no plans." }
        } @else {
            (table("Plans", &["Name", "Requests", "Tokens in all", "Tokens in", "Tokens out", ""], &rows(&plans, writes)))
        }
        @if writes { (asked("New plan", false, &new_form(form))) }
    };
    Ok(page(visitor, NavEntry::Plans, "Plans", &body))
}

fn rows(plans: &[PlanRow], writes: bool) -> Markup {
    html! {
        @for plan in plans {
            tr {
                th scope="row" { (plan.name) }
                @for limit in &plan.limits {
                    td { @if let Some(limit) = limit { (limit) } @else { span.muted { "–" } } }
                }
                td {
                    @if writes {
                        div.row-actions {
                            a href={ "/plans/" (plan.name) "/edit" } aria-label={ "Edit the plan " (plan.name) } { "Edit" }
                            details.action.small {
                                summary.danger aria-label={ "Delete the plan " (plan.name) } { "Delete" }
                                div.ask {
                                    form method="post" action={ "/plans/" (plan.name) "/delete" } {
                                        (version(&of_plan(plan)))
                                        button.danger type="submit" { "Delete plan" }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn new_form(form: &Form) -> Markup {
    let name = Field { name: "name", label: "Name", value: form.shown("name"), hint: "", required: true };
    html! {
        form method="post" action="/plans" {
            (name.show())
            (limit_fields(form))
            button.primary type="submit" { "Create plan" }
        }
    }
}

fn limit_fields(form: &Form) -> Markup {
    html! {
        @for (field, label) in LIMITS {
            (Field { name: field, label, value: form.shown(field), hint: "Such as 100/MINUTE.", required: false }.show())
        }
    }
}

fn bad(error: &crate::invalid::Invalid) -> PageFailure {
    AdminError::BadRequest(error.to_string()).into()
}

/// Reads the limits of a form. An empty field means no limit.
fn limits(form: &Form) -> Result<LimitUpdate, PageFailure> {
    let mut limits = LimitUpdate::default();
    for (limit, (field, _)) in limits.iter_mut().zip(LIMITS) {
        *limit = match form.get(field) {
            None => Setting::Unset,
            Some(text) => Setting::Set(Limit::parse(text).map_err(|error| bad(&error))?),
        };
    }
    Ok(limits)
}

fn asked_for(form: &Form) -> Result<(PlanName, LimitUpdate), PageFailure> {
    Ok((PlanName::parse(form.need("name", "The name")?).map_err(|error| bad(&error))?, limits(form)?))
}

/// Returns the form with the values of a plan.
fn filled_in(plan: &PlanRow) -> Form {
    let version = of_plan(plan);
    let mut fields = vec![("version", version.as_str())];
    let limits = LIMITS.into_iter().zip(&plan.limits);
    fields.extend(limits.map(|((field, _), limit)| (field, limit.as_deref().unwrap_or_default())));
    Form::of(&fields)
}

fn edit_page(visitor: &Visitor, name: &PlanName, form: &Form, failure: Option<&str>) -> Markup {
    let title = format!("Edit plan {name}");
    let body = html! {
        p.crumbs { a href="/plans" { "Plans" } }
        h1 { (title) }
        (wrong(failure))
        form.card.narrow method="post" action={ "/plans/" (name) "/update" } {
            (version(form.shown("version")))
            (limit_fields(form))
            p.actions {
                button.primary type="submit" { "Save" }
                a.button href="/plans" { "Cancel" }
            }
        }
    };
    page(visitor, NavEntry::Plans, &title, &body)
}

fn name_of(text: &str) -> Result<PlanName, PageFailure> {
    PlanName::parse(text).map_err(|_| PageFailure::not_found())
}

/// Shows the form that changes the limits of a plan. Needs `plans:write`.
pub(super) async fn edit(
    Extension(visitor): VisitorExtension,
    Path(name): Path<String>,
) -> Result<Markup, PageFailure> {
    visitor.check(Permission::PlansWrite, About::Shared)?;
    let name = name_of(&name)?;
    let (plan, _) = visitor.admin.plan(&name).await?;
    Ok(edit_page(&visitor, &name, &filled_in(&plan), None))
}

/// Changes the limits of a plan; an empty field removes a limit. Needs `plans:write`; an invalid or outdated form is
/// shown again with its error.
pub(super) async fn update(
    Extension(visitor): VisitorExtension,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Response, PageFailure> {
    visitor.check(Permission::PlansWrite, About::Shared)?;
    let (name, form) = (name_of(&name)?, Form::read(body));
    let changed = match limits(&form) {
        Ok(limits) => visitor.admin_for(&form).patch_plan(&name, &limits).await.map_err(PageFailure::from),
        Err(failure) => Err(failure),
    };
    match changed {
        Ok(_) => Ok(Redirect::to("/plans?done=updated").into_response()),
        Err(failure) => {
            let failure = failure.of_form()?;
            let again = edit_page(&visitor, &name, &form, Some(&failure.text));
            Ok((failure.status, again).into_response())
        }
    }
}

/// Creates a plan. Needs `plans:write`; an invalid form is shown again with its error.
pub(super) async fn create(
    Extension(visitor): VisitorExtension,
    body: Bytes,
) -> Result<Response, PageFailure> {
    visitor.check(Permission::PlansWrite, About::Shared)?;
    let form = Form::read(body);
    let created = match asked_for(&form) {
        Ok((name, limits)) => visitor.admin.create_plan(&name, &limits).await.map_err(PageFailure::from),
        Err(failure) => Err(failure),
    };
    match created {
        Ok(_) => Ok(Redirect::to("/plans?done=created").into_response()),
        Err(failure) => {
            let again = screen(&visitor, &Form::default(), &form, Some(&failure.text)).await?;
            Ok((failure.status, again).into_response())
        }
    }
}

/// Deletes a plan. Needs `plans:write`; fails while a tenant or a key has the plan, or if the plan was changed since it
/// was shown.
pub(super) async fn delete(
    Extension(visitor): VisitorExtension,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Redirect, PageFailure> {
    visitor.check(Permission::PlansWrite, About::Shared)?;
    visitor.admin_for(&Form::read(body)).delete_plan(&name_of(&name)?).await?;
    Ok(Redirect::to("/plans?done=deleted"))
}

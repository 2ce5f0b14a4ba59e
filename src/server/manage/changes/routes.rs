//! Changes of single rules and of the whole table of routes.

use axum::http::StatusCode;
use axum::http::header::ETAG;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::body::{BodyForm, Fields, refuse};
use super::super::idempotency::Secret;
use super::super::precondition::{entity_tag, if_match};
use super::super::problem::{FieldError, Problem};
use super::super::query::pointer;
use super::tenants::{name, setting};
use super::{ChangeRequest, ChangeResponse, Path, Success};
use crate::admin::{Admin, RouteUpdate, RouteView, version};
use crate::invalid::Invalid;
use crate::permission::Permission;
use crate::route::{HostPattern, Method, PathTemplate, RouteId, RouteMode, RoutePart, RouteRow};
use crate::scope::Needs;
use crate::store::Changed;

fn shown(changed: Changed<'_>, _: &Admin) -> Option<ChangeResponse> {
    let Changed::Routes(change) = changed else { return None };
    let after = change.changed.iter().map(|(_, after)| after).chain(&change.added).next();
    // A change without effect returns the current rule.
    let route = after.or(change.unchanged.as_ref())?;
    Some(ChangeResponse::of(&RouteView::from(route), version::of_route(route)))
}

fn created(changed: Changed<'_>, admin: &Admin) -> Option<ChangeResponse> {
    let Changed::Routes(change) = changed else { return None };
    let id = change.added.first()?.id.0;
    shown(changed, admin).map(|response| response.at(format!("/v1/routes/{id}")))
}

fn removed(changed: Changed<'_>, _: &Admin) -> Option<ChangeResponse> {
    matches!(changed, Changed::Routes(_)).then(|| ChangeResponse {
        object: Value::Null,
        version: None,
        location: None,
    })
}

fn text(text: &str) -> Result<String, &'static str> {
    // No part of a rule may contain a control character, and Postgres stores no NUL.
    let plain = !text.chars().any(char::is_control);
    plain.then(|| text.to_owned()).ok_or("expected a text without control characters")
}

// The parts of a rule. Each is parsed by itself, so that the errors of all parts are reported, with their positions.
fn host(text: &str) -> Result<String, Invalid> {
    HostPattern::parse(text).map(|host| host.to_string())
}

fn method(text: &str) -> Result<String, Invalid> {
    Method::parse(text).map(|method| method.to_string())
}

fn path(text: &str) -> Result<String, Invalid> {
    PathTemplate::parse(text).map(|path| path.to_string())
}

fn mode(text: &str) -> Result<String, Invalid> {
    RouteMode::parse(text).map(|mode| mode.as_str().to_owned())
}

fn needs(text: &str) -> Result<String, Invalid> {
    Needs::parse(text).map(|needs| needs.to_string())
}

/// Reads the fields of a whole rule, with defaults for absent fields.
fn rule(fields: &mut Fields) -> RouteRow {
    let any = || "*".to_owned();
    let host = fields.text("host", host).value().unwrap_or_else(any);
    let method = fields.text("method", method).value().unwrap_or_else(any);
    let mode = fields.text("mode", mode).value();
    let mode = mode.unwrap_or_else(|| RouteMode::Required.as_str().to_owned());
    let path = fields.text_needed("path", path);
    let row = RouteRow {
        id: RouteId(Uuid::nil()),
        name: fields.text("name", name).value(),
        host,
        method,
        // A valid path, so that the other parts are checked, too.
        path: path.unwrap_or_else(|| "/".to_owned()),
        mode,
        scopes: fields.text("scopes", needs).value(),
        shadow: fields.flag("shadow").unwrap_or(false),
    };
    judged(fields, &row);
    row
}

/// Records the first invalid part of a rule.
fn judged(fields: &mut Fields, row: &RouteRow) {
    if let Err(damage) = row.compile() {
        let part = if damage.part == RoutePart::Shape { "path" } else { damage.part.as_str() };
        fields.wrong(part, "invalid_value", damage.to_string());
    }
}

/// Parses the id in a path. An invalid id gets 404.
fn id(text: &str) -> Result<RouteId, Problem> {
    Uuid::parse_str(text).map(RouteId).map_err(|_| Problem::not_found())
}

/// Creates a rule. Needs `routes:write`; 409 if a rule with the same host, path and method exists.
pub(in super::super) async fn create(change: ChangeRequest) -> Result<Response, Problem> {
    change.may(Permission::RoutesWrite)?;
    let (asked, mut fields) = change.fields(BodyForm::Json).await?;
    let rule = rule(&mut fields);
    fields.finish()?;
    let success = Success { status: StatusCode::CREATED, secret: Secret::None, render: created };
    asked.make(success, async move |admin, _| admin.add_route(rule).await.map(|_| None)).await
}

/// Changes parts of a rule. Needs `routes:write`; the rule must be valid as a whole after the change.
pub(in super::super) async fn update(
    axum::extract::Path(reference): Path<String>,
    change: ChangeRequest,
) -> Result<Response, Problem> {
    change.may(Permission::RoutesWrite)?;
    let (asked, mut fields) = change.fields(BodyForm::MergePatch).await?;
    if fields.is_null("shadow") {
        fields.wrong("shadow", "wrong_type", "expected true or false, not null");
    }
    let update = RouteUpdate {
        name: setting(fields.text("name", name)),
        host: fields.text_or_absent("host", host),
        method: fields.text_or_absent("method", method),
        path: fields.text_or_absent("path", path),
        mode: fields.text_or_absent("mode", mode),
        scopes: setting(fields.text("scopes", needs)),
        shadow: fields.flag("shadow"),
    };
    let (errors, conflicts) = fields.into_errors();
    refuse(errors, conflicts)?;
    let id = id(&reference)?;
    let mut judge = Fields::of(json!({}))?;
    let before = asked.admin()?.route(id).await?;
    judged(&mut judge, &update.applied(&before));
    judge.finish()?;
    let success = Success { status: StatusCode::OK, secret: Secret::None, render: shown };
    asked.make(success, async move |admin, _| admin.update_route(id, &update).await.map(|_| None)).await
}

/// Deletes a rule. Needs `routes:write`.
pub(in super::super) async fn delete(
    axum::extract::Path(reference): Path<String>,
    change: ChangeRequest,
) -> Result<Response, Problem> {
    change.may(Permission::RoutesWrite)?;
    let (asked, id) = (change.no_fields().await?, id(&reference)?);
    let success = Success { status: StatusCode::NO_CONTENT, secret: Secret::None, render: removed };
    asked.make(success, async move |admin, _| admin.remove_route(&id.0.to_string()).await.map(|_| None)).await
}

/// Replaces the whole table, which needs `If-Match`. With `dry_run`, returns only what would change.
pub(in super::super) async fn replace(change: ChangeRequest) -> Result<Response, Problem> {
    change.may(Permission::RoutesWrite)?;
    let dry_run = dry_run(change.parts.uri.query())?;
    let (asked, value) = change.read_with_parameters(BodyForm::Json).await?;
    let rules = table(value)?;
    if if_match(&asked.parts.headers)?.is_none() && !dry_run {
        return Err(Problem::precondition_required());
    }
    if dry_run {
        let admin = asked.admin()?;
        let difference = admin.apply_routes(&rules, true).await?;
        let mut response = axum::Json(difference).into_response();
        // The current version, for the If-Match of the real request.
        if let Some(tag) = entity_tag(&version::of_routes(&admin.routes().await?)) {
            response.headers_mut().insert(ETAG, tag);
        }
        return Ok(response);
    }
    let success = Success { status: StatusCode::OK, secret: Secret::None, render: applied };
    asked.make(success, async move |admin, _| admin.apply_routes(&rules, false).await.map(|_| None)).await
}

fn applied(changed: Changed<'_>, _: &Admin) -> Option<ChangeResponse> {
    let Changed::Routes(change) = changed else { return None };
    let difference = crate::admin::RouteDifference::of(change, change.table.len(), false);
    Some(ChangeResponse::of(&difference, version::of_routes(&change.table)))
}

/// Parses the only parameter, `dry_run=true` or `false`.
fn dry_run(query: Option<&str>) -> Result<bool, Problem> {
    let (mut dry_run, mut errors) = (None, Vec::new());
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let mut wrong = |code, detail: &str| errors.push(FieldError::new(pointer(&name), code, detail));
        match (name.as_ref(), value.as_ref()) {
            ("dry_run", _) if dry_run.is_some() => wrong("repeated_parameter", "give it once"),
            ("dry_run", "true") => dry_run = Some(true),
            ("dry_run", "false") => dry_run = Some(false),
            ("dry_run", _) => wrong("invalid_value", "expected true or false"),
            _ => wrong("unknown_parameter", "expected dry_run"),
        }
    }
    if errors.is_empty() { Ok(dry_run.unwrap_or(false)) } else { Err(Problem::invalid(errors)) }
}

/// Reads a table in the form of `route list -o json` or of GET. Reports the errors of all rules at once.
fn table(value: Value) -> Result<Vec<RouteRow>, Problem> {
    let (at, list) = match value {
        Value::Array(list) => (String::new(), list),
        Value::Object(mut object) if object.get("items").is_some_and(Value::is_array) => {
            // A single page would remove the rules of the other pages.
            if object.remove("next_page_token").is_some_and(|token| token != "") {
                let detail =
                    "this is one page of the table, which would remove the other ones: read all pages";
                let error = FieldError::new("/next_page_token".into(), "invalid_value", detail);
                return Err(Problem::invalid(vec![error]));
            }
            let Some(Value::Array(list)) = object.remove("items") else { return Err(not_a_table()) };
            Fields::of(Value::Object(object))?.finish()?;
            ("/items".to_owned(), list)
        }
        _ => return Err(not_a_table()),
    };
    let (mut rules, mut errors) = (Vec::with_capacity(list.len()), Vec::new());
    for (place, value) in list.into_iter().enumerate() {
        match Fields::at(format!("{at}/{place}"), value) {
            Ok(mut fields) => {
                // The id is ignored: rules are identified by host, method and path.
                let _ = fields.text("id", text);
                rules.push(rule(&mut fields));
                errors.extend(fields.into_errors().0);
            }
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(rules) } else { Err(Problem::invalid(errors)) }
}

fn not_a_table() -> Problem {
    let detail = "expected an array of rules, or an object with items";
    Problem::invalid(vec![FieldError::new(String::new(), "wrong_type", detail)])
}

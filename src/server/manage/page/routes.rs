//! The screen of rules, with a test of a request.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery};
use axum::response::{IntoResponse as _, Redirect, Response};
use maud::{Markup, html};
use uuid::Uuid;

use super::failure::PageFailure;
use super::form::Form;
use super::layout::{NavEntry, page};
use super::parts::{Field, asked, done, meaning, pill, select, table, version, wrong};
use super::visit::{Visitor, VisitorExtension};
use crate::admin::version::of_route;
use crate::admin::{RouteUpdate, RouteVerdict, Setting, TestedRequest};
use crate::permission::{About, Permission};
use crate::route::{RouteId, RouteRow};

/// Shows the rules, a form for a new one, and a form that tests a request. Needs `routes:read`.
pub(super) async fn list(
    Extension(visitor): VisitorExtension,
    RawQuery(query): RawQuery,
) -> Result<Markup, PageFailure> {
    visitor.check(Permission::RoutesRead, About::Shared)?;
    screen(&visitor, &Form::read(query.unwrap_or_default()), &Form::default(), None).await
}

async fn screen(
    visitor: &Visitor,
    query: &Form,
    form: &Form,
    failure: Option<&str>,
) -> Result<Markup, PageFailure> {
    let rules = visitor.admin.routes().await?;
    let writes = visitor.may(Permission::RoutesWrite, About::Shared);
    let verdict = match query.get("path") {
        Some(path) => Some(test(visitor, query, path).await?),
        None => None,
    };
    let body = html! {
        h1 { "Routes" }
        p.lead { "Rules say which requests need a key, and which scopes. The most specific rule wins. A request without a rule needs a key and no scope, unless serve --route-default or --public changes that." }
        (done(query))
        (wrong(failure))
        (tester(query, verdict.as_ref()))
        section aria-labelledby="rules" {
            h2 #rules { "Rules" }
            @if rules.is_empty() {
                p.empty { "There are no rules." }
            } @else {
                (table("Rules", &["Host", "Method", "Path", "Key", "Scopes", "Name", ""], &rows(&rules, writes)))
            }
            @if writes { (asked("Add a rule", false, &rule_form(form, None))) }
        }
    };
    Ok(page(visitor, NavEntry::Routes, "Routes", &body))
}

fn rows(rules: &[RouteRow], writes: bool) -> Markup {
    html! {
        @for rule in rules {
            tr {
                td { code { (rule.host) } }
                td { code { (rule.method) } }
                th scope="row" { code { (rule.path) } }
                td { (mode_pill(&rule.mode)) @if rule.shadow { " " (pill("warn", "shadow")) } }
                td { @if let Some(scopes) = &rule.scopes { code { (scopes) } } @else { span.muted { "–" } } }
                td { (rule.name.as_deref().unwrap_or("–")) }
                td {
                    @if writes {
                        div.row-actions {
                            a href={ "/routes/" (rule.id.0) "/edit" } aria-label={ "Edit the rule for " (rule.path) } { "Edit" }
                            details.action.small {
                                summary.danger aria-label={ "Remove the rule for " (rule.path) } { "Remove" }
                                div.ask {
                                    form method="post" action={ "/routes/" (rule.id.0) "/remove" } {
                                        (version(&of_route(rule)))
                                        button.danger type="submit" { "Remove rule" }
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

fn mode_pill(mode: &str) -> Markup {
    match mode {
        "required" => pill("good", "required"),
        "public" => pill("off", "public"),
        other => pill("warn", other),
    }
}

fn tester(query: &Form, verdict: Option<&RouteVerdict>) -> Markup {
    let field = |name: &'static str, label: &'static str, value: &str, required| {
        Field { name, label, value, hint: "", required }.show()
    };
    html! {
        section.card #test aria-labelledby="test-title" {
            h2 #test-title { "Test a request" }
            form.inline method="get" action="/routes#test" {
                (field("method", "Method", query.get("method").unwrap_or("GET"), true))
                (field("host", "Host", query.shown("host"), false))
                (field("path", "Path", query.get("path").unwrap_or("/"), true))
                (field("key", "Key prefix", query.shown("key"), false))
                button type="submit" { "Test" }
            }
            @if let Some(verdict) = verdict { (told(verdict)) }
        }
    }
}

async fn test(visitor: &Visitor, query: &Form, path: &str) -> Result<RouteVerdict, PageFailure> {
    let key = match query.get("key") {
        None => None,
        Some(reference) => {
            visitor.check(Permission::KeysRead, About::Shared)?;
            Some(visitor.admin.key(reference).await?.id.0.to_string())
        }
    };
    let request = TestedRequest {
        method: query.get("method").unwrap_or("GET").to_uppercase(),
        host: query.get("host").unwrap_or("example.com").to_owned(),
        path: path.to_owned(),
        key,
        ..TestedRequest::default()
    };
    Ok(visitor.admin.test_route(&request).await?)
}

fn told(verdict: &RouteVerdict) -> Markup {
    let passes = matches!(verdict.outcome, "ok" | "public" | "anonymous");
    html! {
        div.verdict role="status" {
            p {
                strong class=(if passes { "yes" } else { "no" }) { @if passes { "It would pass" } @else { "It would be refused" } }
                ": " code { (verdict.outcome) } ". " (meaning(verdict.outcome))
            }
            @if let Some(why) = &verdict.ambiguous { p { "The path is ambiguous: " (why) } }
            @match &verdict.rule {
                Some(rule) => p {
                    @let [host, method, path, mode, scopes, name] = rule.cells();
                    "The rule " code { (host) " " (method) " " (path) } " decides"
                    @if name != "-" { " (" (name) ")" } ": a key is " (mode)
                    @if scopes != "-" { ", with " code { (scopes) } } "."
                    @if let Some(why) = &verdict.why { " It wins because " (why) "." }
                },
                None => p { "No rule matches this request: a key is " (verdict.mode) "." },
            }
            @if !verdict.next.is_empty() {
                p.hint { "Without this rule, the next ones are: " @for rule in &verdict.next {
                    @let [host, method, path, ..] = rule.cells();
                    code { (host) " " (method) " " (path) } " "
                } }
            }
        }
    }
}

/// Renders the form of a new rule, or of an existing one with its version.
fn rule_form(form: &Form, edited: Option<(RouteId, &str)>) -> Markup {
    let path = edited.map_or("/routes".into(), |(id, _)| format!("/routes/{}/update", id.0));
    let field = |name: &'static str,
                 id: &'static str,
                 label: &'static str,
                 hint: &'static str,
                 required: bool| {
        html! {
            div.field {
                label for=(id) { (label) @if !required { span.muted { " (optional)" } } }
                input id=(id) type="text" name=(name) value=(form.shown(name)) required[required] autocomplete="off" aria-describedby={ (id) "-hint" };
                p.hint id={ (id) "-hint" } { (hint) }
            }
        }
    };
    html! {
        form method="post" action=(path) {
            @if let Some((_, shown)) = edited { (version(shown)) }
            (field("path", "add-path", "Path", "Such as /v1/models, /v1/{model}/chat or /v1/**.", true))
            (field("host", "add-host", "Host", "Such as api.example.com or *.example.com. Empty: every host.", false))
            (field("method", "add-method", "Method", "Such as GET. Empty: every method.", false))
            (select("mode", "Key", form.get("mode").unwrap_or("required"), &[
                ("required", "Required"), ("optional", "Optional"), ("public", "Not needed"),
            ]))
            (field("scopes", "add-scopes", "Scopes", "What a key needs: a b | c is (a and b) or c.", false))
            (field("name", "add-name", "Name", "A unique name, for human readers.", false))
            div.field.check {
                input #shadow type="checkbox" name="shadow" value="yes" checked[form.get("shadow").is_some()];
                label for="shadow" { "Shadow: let keys pass that lack a scope, and report them" }
            }
            button.primary type="submit" { @if edited.is_some() { "Save" } @else { "Add rule" } }
        }
    }
}

/// Returns the rule that a form describes.
fn rule_of(form: &Form) -> RouteRow {
    RouteRow {
        id: RouteId(Uuid::nil()),
        name: form.get("name").map(str::to_owned),
        host: form.get("host").unwrap_or("*").to_owned(),
        method: form.get("method").unwrap_or("*").to_uppercase(),
        path: form.shown("path").to_owned(),
        mode: form.get("mode").unwrap_or("required").to_owned(),
        scopes: form.get("scopes").map(str::to_owned),
        shadow: form.get("shadow").is_some(),
    }
}

/// Returns the form with the values of a rule.
fn filled_in(rule: &RouteRow) -> Form {
    let texts = [
        ("path", rule.path.as_str()),
        ("host", &rule.host),
        ("method", &rule.method),
        ("mode", &rule.mode),
        ("scopes", rule.scopes.as_deref().unwrap_or_default()),
        ("name", rule.name.as_deref().unwrap_or_default()),
        ("shadow", if rule.shadow { "yes" } else { "" }),
    ];
    Form::of(&texts)
}

fn edit_page(visitor: &Visitor, id: RouteId, form: &Form, shown: &str, failure: Option<&str>) -> Markup {
    let body = html! {
        p.crumbs { a href="/routes" { "Routes" } }
        h1 { "Edit rule" }
        (wrong(failure))
        div.card.narrow { (rule_form(form, Some((id, shown)))) }
    };
    page(visitor, NavEntry::Routes, "Edit rule", &body)
}

fn id_of(text: &str) -> Result<RouteId, PageFailure> {
    Uuid::parse_str(text).map(RouteId).map_err(|_| PageFailure::not_found())
}

/// Shows the form that changes a rule. Needs `routes:write`.
pub(super) async fn edit(
    Extension(visitor): VisitorExtension,
    Path(id): Path<String>,
) -> Result<Markup, PageFailure> {
    visitor.check(Permission::RoutesWrite, About::Shared)?;
    let rule = visitor.admin.route(id_of(&id)?).await?;
    Ok(edit_page(&visitor, rule.id, &filled_in(&rule), &of_route(&rule), None))
}

/// Replaces all parts of a rule by those of the form. Needs `routes:write`; an invalid or outdated form is shown again
/// with its error.
pub(super) async fn update(
    Extension(visitor): VisitorExtension,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response, PageFailure> {
    visitor.check(Permission::RoutesWrite, About::Shared)?;
    let (id, form) = (id_of(&id)?, Form::read(body));
    let rule = rule_of(&form);
    let said = |text: Option<String>| text.map_or(Setting::Unset, Setting::Set);
    let update = RouteUpdate {
        name: said(rule.name),
        host: Some(rule.host),
        method: Some(rule.method),
        path: Some(rule.path),
        mode: Some(rule.mode),
        scopes: said(rule.scopes),
        shadow: Some(rule.shadow),
    };
    match visitor.admin_for(&form).update_route(id, &update).await {
        Ok(_) => Ok(Redirect::to("/routes?done=updated").into_response()),
        Err(error) => {
            let failure = PageFailure::from(error).of_form()?;
            let again = edit_page(&visitor, id, &form, form.shown("version"), Some(&failure.text));
            Ok((failure.status, again).into_response())
        }
    }
}

/// Creates a rule. Needs `routes:write`; an invalid form is shown again with its error.
pub(super) async fn add(Extension(visitor): VisitorExtension, body: Bytes) -> Result<Response, PageFailure> {
    visitor.check(Permission::RoutesWrite, About::Shared)?;
    let form = Form::read(body);
    match visitor.admin.add_route(rule_of(&form)).await {
        Ok(_) => Ok(Redirect::to("/routes?done=created").into_response()),
        Err(error) => {
            let failure = PageFailure::from(error).of_form()?;
            let again = screen(&visitor, &Form::default(), &form, Some(&failure.text)).await?;
            Ok((failure.status, again).into_response())
        }
    }
}

/// Deletes a rule, unless it was changed since it was shown. Needs `routes:write`.
pub(super) async fn remove(
    Extension(visitor): VisitorExtension,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Redirect, PageFailure> {
    visitor.check(Permission::RoutesWrite, About::Shared)?;
    let id = Uuid::parse_str(&id).map_err(|_| PageFailure::not_found())?;
    visitor.admin_for(&Form::read(body)).remove_route(&id.to_string()).await?;
    Ok(Redirect::to("/routes?done=removed"))
}

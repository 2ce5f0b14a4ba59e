//! The screens of management keys and their sessions.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery};
use axum::response::{IntoResponse as _, Redirect, Response};
use maud::{Markup, html};
use uuid::Uuid;

use super::failure::PageFailure;
use super::form::Form;
use super::layout::{NavEntry, page};
use super::once::{self, FormClaim};
use super::parts::{Field, asked, copyable, done, pill, select, spaced, table, when, when_or, wrong};
use super::visit::{Visitor, VisitorExtension};
use crate::admin::{AdminKeyWish, Expiry, ListedAdminKey};
use crate::clock::Timestamp;
use crate::permission::{About, AdminKey, Permission, Permissions, Reach, Role};
use crate::server::manage::idempotency::Secret;
use crate::store::{AdminSession, Ending, SessionId};

/// Shows the management keys that have no more authority than the visitor, and a form for a new one. Needs
/// `admin_keys:read`.
pub(super) async fn list(
    Extension(visitor): VisitorExtension,
    RawQuery(query): RawQuery,
) -> Result<Markup, PageFailure> {
    visitor.check(Permission::AdminKeysRead, About::Shared)?;
    screen(&visitor, &Form::read(query.unwrap_or_default()), &Form::default(), None).await
}

async fn screen(
    visitor: &Visitor,
    query: &Form,
    form: &Form,
    failure: Option<&str>,
) -> Result<Markup, PageFailure> {
    let keys = visitor.admin.admin_keys(&visitor.caller.creator).await?;
    let now = visitor.admin.now();
    let rows = html! {
        @for listed in &keys {
            @let (key, authority) = (&listed.key, listed.authority());
            tr {
                th scope="row" { a href={ "/admin-keys/" (key.id.0) } { (key.name) } }
                td { (status(listed)) }
                td { (role(authority.permissions)) }
                td { (reach(&authority.reach)) }
                td { (when_or(key.last_used_at, now, "never")) }
                td { (when_or(authority.expires_at, now, "never")) }
            }
        }
    };
    let body = html! {
        h1 { "Management keys" }
        p.lead { "They give access to this page and the management API, but not to what Envoy protects." }
        (done(query))
        (wrong(failure))
        (table("Management keys", &["Name", "Status", "May", "Tenants", "Last used", "Expires"], &rows))
        @if visitor.may(Permission::AdminKeysWrite, About::Shared) {
            (asked("New management key", false, &new_form(visitor, form)))
        }
    };
    Ok(page(visitor, NavEntry::AdminKeys, "Management keys", &body))
}

fn status(listed: &ListedAdminKey) -> Markup {
    match listed.ended {
        None => pill("good", "active"),
        Some(ended) => pill("off", &spaced(ended.as_str())),
    }
}

/// Returns the name of the role with these permissions, or how many permissions there are.
fn role(permissions: Permissions) -> String {
    let role = Role::ALL.into_iter().find(|role| role.permissions() == permissions);
    role.map_or_else(|| format!("{} permissions", permissions.iter().count()), |role| role.as_str().into())
}

fn reach(reach: &Reach) -> String {
    match reach {
        Reach::All => "all".into(),
        Reach::Some(tenants) => tenants.len().to_string(),
    }
}

fn new_form(visitor: &Visitor, form: &Form) -> Markup {
    let ours = visitor.caller.creator.authority.permissions;
    let roles: Vec<_> = Role::ALL
        .into_iter()
        .filter(|role| role.permissions().without(ours).is_empty())
        .map(|role| (role.as_str(), role.as_str()))
        .collect();
    html! {
        form method="post" action="/admin-keys" {
            (once::field())
            (Field { name: "name", label: "Name", value: form.shown("name"), hint: "A unique name.", required: true }.show())
            @if roles.is_empty() {
                p.hint { "It gets the permissions of your own key." }
            } @else {
                (select("role", "Role", form.get("role").unwrap_or("viewer"), &roles))
            }
            (select("expiry", "Expires in", form.get("expiry").unwrap_or("90"), &[
                ("7", "7 days"), ("30", "30 days"), ("90", "90 days"), ("365", "1 year"), ("", "As your own key"),
            ]))
            (Field {
                name: "tenants",
                label: "Tenants",
                value: form.shown("tenants"),
                hint: "Their schemas, separated by blanks. Empty: all that your own key sees.",
                required: false,
            }.show())
            p.hint { "It stops working when your key does." }
            button.primary type="submit" { "Create management key" }
        }
    }
}

/// Creates a management key and shows it once. Needs `admin_keys:write`; an invalid form is shown again with its error.
pub(super) async fn create(
    Extension(visitor): VisitorExtension,
    body: Bytes,
) -> Result<Response, PageFailure> {
    visitor.check(Permission::AdminKeysWrite, About::Shared)?;
    let form = Form::read(&body);
    match issued(&visitor, &form, &body).await {
        Ok(page) => Ok(page.into_response()),
        Err(failure) => {
            let failure = failure.of_form()?;
            let again = screen(&visitor, &Form::default(), &form, Some(&failure.text)).await?;
            Ok((failure.status, again).into_response())
        }
    }
}

/// Renders the page with the management key that a form has created.
async fn issued(visitor: &Visitor, form: &Form, body: &[u8]) -> Result<Markup, PageFailure> {
    let creator = &visitor.caller.creator;
    let wish = wish(form)?;
    match once::begin(visitor, "/admin-keys", form, body, Secret::AdminKey).await? {
        FormClaim::First(first) => {
            let made = first.admin.create_admin_key(creator, &wish).await;
            let issued = first.done(made).await?;
            let key = crate::admin::view::shown_once(&issued.key);
            Ok(shown_once(visitor, &issued.details, Some(&key)))
        }
        FormClaim::Before(before) => {
            let found = visitor.admin.admin_key(creator, &before.id).await?;
            Ok(shown_once(visitor, &found.key, before.key.as_deref()))
        }
    }
}

/// Reads the form. A role or an expiry that the form does not offer is an error, because an absent value means that the
/// key gets everything that its creator has.
fn wish(form: &Form) -> Result<AdminKeyWish, PageFailure> {
    let not_offered = |what: &str| PageFailure::invalid(format!("The {what} is not one of those offered."));
    let role = Role::parse(form.need("role", "The role")?).map_err(|_| not_offered("role"))?;
    let expiry = match form.shown("expiry") {
        "" => Expiry::Unsaid,
        days => match days.parse::<u64>() {
            Ok(days @ 1..=36_500) => Expiry::In(std::time::Duration::from_hours(24 * days)),
            _ => return Err(not_offered("time")),
        },
    };
    let tenants: Vec<_> = form.shown("tenants").split_whitespace().map(str::to_owned).collect();
    Ok(AdminKeyWish {
        name: form.shown("name").to_owned(),
        permissions: Some(role.permissions()),
        tenants: (!tenants.is_empty()).then_some(tenants),
        expiry,
    })
}

fn shown_once(visitor: &Visitor, details: &AdminKey, key: Option<&str>) -> Markup {
    let body = html! {
        p.crumbs { a href="/admin-keys" { "Management keys" } }
        h1 { (details.name) }
        @if let Some(key) = key {
            p.notice.good role="status" { "The management key was created. Copy it now: it is not shown again." }
            div.card.once {
                label for="new-key" { "Management key" }
                div.secret {
                    input #new-key type="text" readonly value=(key) spellcheck="false" autocomplete="off" data-select;
                    button.primary.copy type="button" data-copy=(key) hidden { "Copy" }
                }
            }
            p.actions { a.button href={ "/admin-keys/" (details.id.0) } { "I have stored it" } }
        } @else {
            (once::not_again())
            p.actions { a.button href={ "/admin-keys/" (details.id.0) } { "To the management key" } }
        }
    };
    page(visitor, NavEntry::AdminKeys, "New management key", &body)
}

/// Returns the management key of a path, if it has no more than the visitor's own.
async fn found(visitor: &Visitor, id: &str) -> Result<ListedAdminKey, PageFailure> {
    let id = Uuid::parse_str(id).map_err(|_| PageFailure::not_found())?;
    let keys = visitor.admin.admin_keys(&visitor.caller.creator).await?;
    keys.into_iter().find(|listed| listed.key.id.0 == id).ok_or_else(PageFailure::not_found)
}

/// Shows a management key, its creator and its sessions. Needs `admin_keys:read`.
pub(super) async fn show(
    Extension(visitor): VisitorExtension,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Markup, PageFailure> {
    visitor.check(Permission::AdminKeysRead, About::Shared)?;
    let listed = found(&visitor, &id).await?;
    let sessions = visitor.admin.sessions(listed.key.id).await?;
    let (key, authority, now) = (&listed.key, listed.authority(), visitor.admin.now());
    let writes = visitor.may(Permission::AdminKeysWrite, About::Shared);
    let body = html! {
        p.crumbs { a href="/admin-keys" { "Management keys" } }
        div.title { h1 { (key.name) } (status(&listed)) }
        (done(&Form::read(query.unwrap_or_default())))
        dl.facts {
            div { dt { "Prefix" } dd { (copyable(&key.prefix, "the prefix")) } }
            div { dt { "Tenants" } dd { (reach(&authority.reach)) } }
            div { dt { "Created" } dd { (when(key.created_at, now)) } }
            div { dt { "Last used" } dd { (when_or(key.last_used_at, now, "never")) } }
            div { dt { "Expires" } dd { (when_or(authority.expires_at, now, "never")) } }
            div { dt { "May" } dd { @for one in authority.permissions.iter() { span.label { (one.as_str()) } " " } } }
        }
        (sessions_of(&visitor, key.id.0, &sessions, writes, now))
        @if writes && listed.ended.is_none() {
            section.dangers aria-labelledby="change" {
                h2 #change { "Change" }
                (asked("Revoke", true, &html! {
                    p { "It and the management keys that it created stop working, and their sessions end. This cannot be undone." }
                    form method="post" action={ "/admin-keys/" (key.id.0) "/revoke" } {
                        button.danger type="submit" { "Revoke management key" }
                    }
                }))
            }
        }
    };
    Ok(page(&visitor, NavEntry::AdminKeys, &key.name, &body))
}

fn sessions_of(
    visitor: &Visitor,
    key: Uuid,
    sessions: &[AdminSession],
    writes: bool,
    now: Timestamp,
) -> Markup {
    let rows = html! {
        @for session in sessions {
            tr {
                th scope="row" {
                    (session.user_agent.as_deref().unwrap_or("unknown browser"))
                    @if session.id == visitor.session.id { " " (pill("good", "this browser")) }
                }
                td { (session.address.as_deref().unwrap_or("–")) }
                td { (when(session.created_at, now)) }
                td { (when(session.last_seen_at, now)) }
                td {
                    @if writes {
                        form method="post" action={ "/sessions/" (session.id.0) "/sign-out" } {
                            button.quiet type="submit" { "Sign out" }
                        }
                    }
                }
            }
        }
    };
    html! {
        section aria-labelledby="sessions" {
            h2 #sessions { "Sessions" }
            @if sessions.is_empty() {
                p.empty { "No browser is signed in with this key." }
            } @else {
                (table("Sessions", &["Browser", "Address", "Began", "Seen", ""], &rows))
                @if writes {
                    form method="post" action={ "/admin-keys/" (key) "/sign-out" } {
                        button type="submit" { "Sign out all" }
                    }
                }
            }
        }
    }
}

/// Revokes a management key and ends its sessions. Needs `admin_keys:write`.
pub(super) async fn revoke(
    Extension(visitor): VisitorExtension,
    Path(id): Path<String>,
) -> Result<Redirect, PageFailure> {
    visitor.check(Permission::AdminKeysWrite, About::Shared)?;
    let listed = found(&visitor, &id).await?;
    let id = listed.key.id;
    // Written first, because the visitor may revoke its own key, which then can change nothing.
    visitor.admin.end_sessions(Ending::OfKey(id)).await?;
    visitor.admin.revoke_admin_key(&visitor.caller.creator, &id.0.to_string()).await?;
    Ok(Redirect::to(&format!("/admin-keys/{}?done=revoked", id.0)))
}

/// Ends all sessions of a management key. Needs `admin_keys:write`.
pub(super) async fn end_sessions(
    Extension(visitor): VisitorExtension,
    Path(id): Path<String>,
) -> Result<Redirect, PageFailure> {
    visitor.check(Permission::AdminKeysWrite, About::Shared)?;
    let key = found(&visitor, &id).await?.key;
    visitor.admin.end_sessions(Ending::OfKey(key.id)).await?;
    Ok(Redirect::to(&format!("/admin-keys/{}?done=signed-out", key.id.0)))
}

/// Ends one session. Needs `admin_keys:write`; 404 for a session of a key that has more authority than the visitor.
pub(super) async fn end_session(
    Extension(visitor): VisitorExtension,
    Path(id): Path<String>,
) -> Result<Redirect, PageFailure> {
    visitor.check(Permission::AdminKeysWrite, About::Shared)?;
    let id = SessionId(Uuid::parse_str(&id).map_err(|_| PageFailure::not_found())?);
    let key = visitor.admin.session_key(id).await?.ok_or_else(PageFailure::not_found)?;
    found(&visitor, &key.0.to_string()).await?;
    visitor.admin.end_sessions(Ending::One(id)).await?;
    Ok(Redirect::to(&format!("/admin-keys/{}?done=signed-out", key.0)))
}

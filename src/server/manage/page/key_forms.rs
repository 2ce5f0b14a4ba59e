//! Forms that create and change keys. A new key is in one response only.

use std::time::Duration;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::Path;
use axum::response::{IntoResponse as _, Redirect, Response};
use maud::{Markup, html};

use super::failure::PageFailure;
use super::form::Form;
use super::layout::{NavEntry, page};
use super::once::{self, Before, FormClaim};
use super::parts::{Field, asked, labels_field, select, version, wrong};
use super::tenant;
use super::visit::{Visitor, VisitorExtension};
use crate::admin::version::of_key;
use crate::admin::{AdminError, Expiry, Issued, KeyUpdate, Setting};
use crate::clock::Timestamp;
use crate::invalid::InvalidValue;
use crate::network::Networks;
use crate::permission::{About, Permission};
use crate::plan::{PlanName, PlanRow};
use crate::record::{KeyDetails, KeyState};
use crate::scope::Scopes;
use crate::server::manage::idempotency::Secret;
use crate::tenant::Tenant;

/// Returns the key of a path, if this visitor has `permission` for it.
pub(super) async fn found(
    visitor: &Visitor,
    reference: &str,
    permission: Permission,
) -> Result<(KeyDetails, Tenant), PageFailure> {
    visitor.check(permission, About::Shared)?;
    let key = visitor.admin.key(reference).await?;
    let tenant = visitor.admin.tenant_by_id(&key.tenant_id.0.to_string()).await?;
    visitor.check(permission, About::Tenant(tenant.id))?;
    Ok((key, tenant))
}

const HOURS_PER_DAY: u64 = 24;

/// The lifetimes that the forms offer.
pub(super) const LIVES: [(&str, &str); 5] =
    [("30d", "30 days"), ("90d", "90 days"), ("365d", "1 year"), ("730d", "2 years"), ("never", "No expiry")];

/// The grace periods that the form offers.
const GRACES: [(&str, &str); 5] =
    [("1h", "1 hour"), ("24h", "1 day"), ("168h", "7 days"), ("720h", "30 days"), ("0h", "Not at all")];

/// Parses a lifetime of [`LIVES`].
pub(super) fn expiry(text: &str) -> Result<Expiry, PageFailure> {
    if text == "never" {
        return Ok(Expiry::Never);
    }
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok());
    let days = days.filter(|days| (1..=36_500).contains(days));
    days.map(|days| Expiry::In(Duration::from_hours(days * HOURS_PER_DAY)))
        .ok_or_else(|| PageFailure::invalid("The expiry is not one of those offered."))
}

fn grace(text: &str) -> Result<Duration, PageFailure> {
    let hours = text.strip_suffix('h').and_then(|hours| hours.parse::<u64>().ok());
    let hours = hours.filter(|hours| *hours <= 365 * HOURS_PER_DAY);
    hours
        .map(Duration::from_hours)
        .ok_or_else(|| PageFailure::invalid("The grace is not one of those offered."))
}

/// Parses a field of a form: `Setting::Keep` if it is empty or absent.
pub(super) fn setting<T>(
    form: &Form,
    name: &str,
    parse: impl Fn(&str) -> Result<T, InvalidValue>,
) -> Result<Setting<T>, PageFailure> {
    match form.get(name) {
        None => Ok(Setting::Keep),
        Some(text) => Ok(Setting::Set(parse(text).map_err(|why| AdminError::BadRequest(why.into()))?)),
    }
}

/// Parses the form for a new key.
fn asked_for(form: &Form) -> Result<KeyUpdate, PageFailure> {
    let labels = form.shown("labels").lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(KeyUpdate {
        name: Setting::Set(form.need("name", "The name")?.to_owned()),
        expiry: expiry(form.get("expiry").unwrap_or("90d"))?,
        not_before: Setting::Keep,
        scopes: setting(form, "scopes", |text| Ok(Scopes::parse(text)?))?,
        networks: setting(form, "networks", |text| Ok(Networks::parse(text)?))?,
        plan: setting(form, "plan", |text| Ok(PlanName::parse(text)?))?,
        labels: labels.map(str::to_owned).collect(),
        clear_labels: false,
        remove_labels: Vec::new(),
    })
}

/// Shows the form for a new key of a tenant. Needs `keys:write`.
pub(super) async fn new(
    Extension(visitor): VisitorExtension,
    Path(reference): Path<String>,
) -> Result<Markup, PageFailure> {
    let tenant = tenant::found(&visitor, &reference, Permission::KeysWrite).await?;
    let plans = visitor.admin.plans().await?;
    Ok(new_page(&visitor, &tenant, &plans, &Form::default(), None))
}

fn new_page(
    visitor: &Visitor,
    tenant: &Tenant,
    plans: &[PlanRow],
    form: &Form,
    failure: Option<&str>,
) -> Markup {
    let field = |name: &'static str, label: &'static str, hint: &'static str, required| {
        Field { name, label, value: form.shown(name), hint, required }.show()
    };
    let mut options = vec![("", "That of the tenant")];
    options.extend(plans.iter().map(|plan| (plan.name.as_str(), plan.name.as_str())));
    let body = html! {
        p.crumbs {
            a href="/tenants" { "Tenants" } " / " a href={ "/tenants/" (tenant.id.0) } { (tenant.name) }
        }
        h1 { "New key" }
        (wrong(failure))
        form.card.narrow method="post" action={ "/tenants/" (tenant.id.0) "/keys" } {
            (once::field())
            (field("name", "Name", "What the key is for, such as production.", true))
            (select("expiry", "Expires in", form.get("expiry").unwrap_or("90d"), &LIVES))
            details open[form.get("scopes").or(form.get("networks")).or(form.get("plan")).or(form.get("labels")).is_some()] {
                summary { "Limit what it may do" }
                (field("scopes", "Scopes", "Separated by blanks, such as chat:read files:*. Empty: all.", false))
                (field("networks", "Networks", "The networks from which it may be used, such as 192.0.2.0/24 2001:db8::/32. Empty: anywhere.", false))
                (select("plan", "Plan", form.shown("plan"), &options))
                (labels_field(form.shown("labels")))
            }
            p.actions {
                button.primary type="submit" { "Create key" }
                a.button href={ "/tenants/" (tenant.id.0) } { "Cancel" }
            }
        }
    };
    page(visitor, NavEntry::Keys, "New key", &body)
}

/// Creates a key and shows it once. Needs `keys:write`; an invalid form is shown again with its error.
pub(super) async fn create(
    Extension(visitor): VisitorExtension,
    Path(reference): Path<String>,
    body: Bytes,
) -> Result<Response, PageFailure> {
    let tenant = tenant::found(&visitor, &reference, Permission::KeysWrite).await?;
    let form = Form::read(&body);
    match issued(&visitor, &tenant, &form, &body).await {
        Ok(page) => Ok(page.into_response()),
        Err(failure) => {
            let failure = failure.of_form()?;
            let plans = visitor.admin.plans().await?;
            let again = new_page(&visitor, &tenant, &plans, &form, Some(&failure.text));
            Ok((failure.status, again).into_response())
        }
    }
}

/// Renders the page with the key that a form has created.
async fn issued(visitor: &Visitor, tenant: &Tenant, form: &Form, body: &[u8]) -> Result<Markup, PageFailure> {
    let (id, asked) = (tenant.id.0.to_string(), asked_for(form)?);
    match once::begin(visitor, &format!("/tenants/{id}/keys"), form, body, Secret::Key).await? {
        FormClaim::First(first) => {
            let made = first.admin.create_key(&id, &asked).await;
            let issued = first.done(made).await?;
            Ok(shown_once(visitor, tenant, &issued, "The key was created."))
        }
        FormClaim::Before(before) => shown_before(visitor, tenant, &before).await,
    }
}

fn shown_once(visitor: &Visitor, tenant: &Tenant, issued: &Issued, what: &str) -> Markup {
    let key = crate::admin::view::shown_once(&issued.key);
    show(visitor, tenant, &issued.details, Some(&key), what)
}

/// Renders the same page for a form that is sent again.
async fn shown_before(visitor: &Visitor, tenant: &Tenant, before: &Before) -> Result<Markup, PageFailure> {
    let details = visitor.admin.key(&before.id).await?;
    Ok(show(visitor, tenant, &details, before.key.as_deref(), "The key was created."))
}

/// Renders the only page that contains a whole key.
fn show(visitor: &Visitor, tenant: &Tenant, details: &KeyDetails, key: Option<&str>, what: &str) -> Markup {
    let name = details.name.as_deref().unwrap_or("(no name)");
    let body = html! {
        p.crumbs {
            a href="/tenants" { "Tenants" } " / " a href={ "/tenants/" (tenant.id.0) } { (tenant.name) }
        }
        h1 { (name) }
        @if let Some(key) = key {
            p.notice.good role="status" { (what) " Copy it now: it is not shown again." }
            div.card.once {
                label for="new-key" { "Key" }
                div.secret {
                    input #new-key type="text" readonly value=(key) spellcheck="false" autocomplete="off" data-select;
                    button.primary.copy type="button" data-copy=(key) hidden { "Copy" }
                }
                p.hint { "Programs send it with each request, in the header " code { "x-llmcore-api-key" } "." }
                p.hint { "Lost keys cannot be recovered, only replaced. tenantgate keeps a hash." }
            }
            p.actions { a.button href={ "/keys/" (details.id.0) } { "I have stored it" } }
        } @else {
            (once::not_again())
            p.actions { a.button href={ "/keys/" (details.id.0) } { "To the key" } }
        }
    };
    page(visitor, NavEntry::Keys, "New key", &body)
}

/// Replaces a key and shows its successor once. Needs `keys:write`, or `keys:revoke` if there is no grace period.
pub(super) async fn rotate(
    Extension(visitor): VisitorExtension,
    Path(reference): Path<String>,
    body: Bytes,
) -> Result<Markup, PageFailure> {
    let form = Form::read(&body);
    let grace = grace(form.get("grace").unwrap_or_default())?;
    // Without a grace period, the old key is revoked at once.
    let needs = if grace.is_zero() { Permission::KeysRevoke } else { Permission::KeysWrite };
    let (key, tenant) = found(&visitor, &reference, needs).await?;
    let id = key.id.0.to_string();
    let turn = once::begin(&visitor, &format!("/keys/{id}/rotate"), &form, &body, Secret::Key).await?;
    let (_, issued) = match turn {
        FormClaim::Before(before) => return shown_before(&visitor, &tenant, &before).await,
        FormClaim::First(first) => {
            let made = first.admin.rotate_key(&id, grace, Expiry::Unsaid).await;
            first.done(made).await?
        }
    };
    let what = if grace.is_zero() {
        "The new key was created, and the old one no longer works."
    } else {
        "The new key was created, and the old one stays valid for the grace period."
    };
    Ok(shown_once(&visitor, &tenant, &issued, what))
}

fn to(key: &KeyDetails, done: &str) -> Redirect {
    Redirect::to(&format!("/keys/{}?done={done}", key.id.0))
}

/// Disables a key until it is enabled again. Needs `keys:write`.
pub(super) async fn disable(
    Extension(visitor): VisitorExtension,
    Path(reference): Path<String>,
) -> Result<Redirect, PageFailure> {
    let (key, _) = found(&visitor, &reference, Permission::KeysWrite).await?;
    visitor.admin.disable_key(&key.id.0.to_string()).await?;
    Ok(to(&key, "disabled"))
}

/// Enables a key, unless it was changed since it was shown: another person may have disabled it again.
pub(super) async fn enable(
    Extension(visitor): VisitorExtension,
    Path(reference): Path<String>,
    body: Bytes,
) -> Result<Redirect, PageFailure> {
    let (key, _) = found(&visitor, &reference, Permission::KeysWrite).await?;
    visitor.admin_for(&Form::read(body)).enable_key(&key.id.0.to_string()).await?;
    Ok(to(&key, "enabled"))
}

/// Revokes a key for good, with the reason of the form. Needs `keys:revoke`.
pub(super) async fn revoke(
    Extension(visitor): VisitorExtension,
    Path(reference): Path<String>,
    body: Bytes,
) -> Result<Redirect, PageFailure> {
    let (key, _) = found(&visitor, &reference, Permission::KeysRevoke).await?;
    visitor.admin.revoke(&[key.id], Form::read(body).get("reason")).await?;
    Ok(to(&key, "revoked"))
}

/// Renders the actions that this visitor may perform with a key in its state.
pub(super) fn actions(visitor: &Visitor, key: &KeyDetails, tenant: &Tenant, now: Timestamp) -> Markup {
    let about = About::Tenant(tenant.id);
    let (writes, revokes) =
        (visitor.may(Permission::KeysWrite, about), visitor.may(Permission::KeysRevoke, about));
    let state = key.state(now);
    if state == KeyState::Revoked || !(writes || revokes) {
        return html! {};
    }
    let path = format!("/keys/{}", key.id.0);
    html! {
        section.dangers aria-labelledby="change" {
            h2 #change { "Change" }
            @if writes { p.actions { a.button href={ (path) "/edit" } { "Edit key" } } }
            @if state == KeyState::Active {
                (asked("Rotate", false, &rotate_form(&path, writes, revokes)))
            }
            @if writes && state == KeyState::Disabled {
                (asked("Enable", false, &html! {
                    p { "Requests with this key pass again." }
                    form method="post" action={ (path) "/enable" } {
                        (version(&of_key(key)))
                        button.primary type="submit" { "Enable key" }
                    }
                }))
            }
            @if writes && matches!(state, KeyState::Active | KeyState::NotYetValid) {
                (asked("Disable", false, &html! {
                    p { "Requests with this key are refused until you enable it again." }
                    form method="post" action={ (path) "/disable" } { button type="submit" { "Disable key" } }
                }))
            }
            @if revokes {
                (asked("Revoke", true, &html! {
                    p { "Requests with this key get 401 within moments. This cannot be undone." }
                    form method="post" action={ (path) "/revoke" } {
                        (Field { name: "reason", label: "Reason", value: "", hint: "For the record, such as leaked.", required: false }.show())
                        button.danger type="submit" { "Revoke key" }
                    }
                }))
            }
        }
    }
}

fn rotate_form(path: &str, writes: bool, revokes: bool) -> Markup {
    let offered: Vec<_> =
        GRACES.into_iter().filter(|(value, _)| if *value == "0h" { revokes } else { writes }).collect();
    html! {
        p { "Creates a new key with the same name, scopes, networks, plan and labels." }
        form method="post" action={ (path) "/rotate" } {
            (once::field())
            (select("grace", "The old key stays valid for", "24h", &offered))
            button.primary type="submit" { "Rotate key" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offered_values_are_accepted_and_malformed_ones_are_not() {
        for (value, _) in LIVES {
            assert!(expiry(value).is_ok(), "{value}");
        }
        for (value, _) in GRACES {
            assert!(grace(value).is_ok(), "{value}");
        }
        for bad in ["", "0d", "-1d", "1e3d", "99999999999999999999d", "1w"] {
            assert!(expiry(bad).is_err(), "{bad}");
        }
        for bad in ["", "h", "-1h", "18446744073709551615h", "24"] {
            assert!(grace(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_form_becomes_the_fields_of_a_key() {
        let form = Form::read("name=ci&expiry=30d&scopes=chat:read&labels=team%3Da%0D%0A%0D%0Aenv%3Dp");
        let asked = asked_for(&form).unwrap();
        assert_eq!(asked.labels, ["team=a", "env=p"]);
        assert_eq!(asked.expiry, Expiry::In(Duration::from_hours(720)));
        assert_eq!(asked.networks, Setting::Keep);
        assert!(asked_for(&Form::read("name=")).is_err());
        assert!(asked_for(&Form::read("name=a&networks=moon")).is_err());
    }
}

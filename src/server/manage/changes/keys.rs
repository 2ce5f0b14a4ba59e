//! Changes of keys.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response;

use super::super::body::{BodyForm, FieldValue, Fields, instant};
use super::super::idempotency::Secret;
use super::super::problem::Problem;
use super::tenants::{name, setting};
use super::{ChangeRequest, ChangeResponse, Path, Success, nothing_matches};
use crate::admin::view::{IssuedView, KeyView};
use crate::admin::{Admin, Expiry, KeyUpdate, version};
use crate::duration;
use crate::key::format::{holds_key, is_stored_prefix};
use crate::labels::parse_label;
use crate::network::Networks;
use crate::permission::Permission;
use crate::plan::PlanName;
use crate::record::{KeyDetails, SecretHash};
use crate::scope::Scopes;
use crate::store::Changed;

/// The longest reason for a revocation, in characters.
const LONGEST_REASON: usize = 1_000;

const CHANGED: Success = Success { status: StatusCode::OK, secret: Secret::None, render: changed };

fn changed(changed: Changed<'_>, admin: &Admin) -> Option<ChangeResponse> {
    let Changed::Key(key) = changed else { return None };
    Some(ChangeResponse::of(&KeyView::at(key, admin.now()), version::of_key(key)))
}

fn issued(changed: Changed<'_>, _: &Admin) -> Option<ChangeResponse> {
    let Changed::Key(key) = changed else { return None };
    Some(ChangeResponse::of(&IssuedView::hidden(key), version::of_key(key)).at(path(key)))
}

fn rotated(changed: Changed<'_>, admin: &Admin) -> Option<ChangeResponse> {
    let Changed::Rotated(old, new) = changed else { return None };
    let both = serde_json::json!({ "old": KeyView::at(old, admin.now()), "new": IssuedView::hidden(new) });
    // The response has two objects with different versions.
    Some(ChangeResponse { object: both, version: None, location: Some(path(new)) })
}

fn path(key: &KeyDetails) -> String {
    format!("/v1/keys/{}", key.id.0)
}

/// Parses a duration.
pub(super) fn span(text: &str) -> Result<Duration, &'static str> {
    let expected = "expected a whole number and a unit (s, m, h, d, w), such as 90d";
    duration::parse(text).ok().filter(|_| !text.ends_with("ms")).ok_or(expected)
}

/// Reads the expiry: `expires_at`, which can be `null`, or `expires_in`.
pub(super) fn expiry(fields: &mut Fields) -> Expiry {
    if fields.has("expires_at") && fields.has("expires_in") {
        fields.conflict("expires_in", "expected expires_at or expires_in, not both");
    }
    let within = fields.text_or_absent("expires_in", span);
    match (fields.text("expires_at", instant), within) {
        (_, Some(span)) => Expiry::In(span),
        (FieldValue::Value(at), None) => Expiry::At(at),
        (FieldValue::Null, None) => Expiry::Never,
        (FieldValue::Absent, None) => Expiry::Unsaid,
    }
}

/// Reads the changes of a key.
fn update(fields: &mut Fields) -> KeyUpdate {
    let mut update = KeyUpdate {
        name: setting(fields.text("name", name)),
        expiry: expiry(fields),
        not_before: setting(fields.text("not_before", instant)),
        scopes: setting(fields.text("scopes", Scopes::parse)),
        networks: setting(fields.text("networks", Networks::parse)),
        plan: setting(fields.text("plan", PlanName::parse)),
        ..KeyUpdate::default()
    };
    match fields.members("labels") {
        FieldValue::Absent => {}
        FieldValue::Null => update.clear_labels = true,
        FieldValue::Value(members) => labels(fields, members, &mut update),
    }
    update
}

/// Reads changes of single labels; `null` removes a label.
fn labels(fields: &mut Fields, members: Vec<(String, Option<String>)>, update: &mut KeyUpdate) {
    for (label, value) in members {
        let text = format!("{label}={}", value.as_deref().unwrap_or_default());
        match parse_label(&text) {
            // A name that contains = would be parsed as a shorter one.
            Ok((read, _)) if read == label => match value {
                Some(_) => update.labels.push(text),
                None => update.remove_labels.push(label),
            },
            Ok(_) => fields.wrong_member(
                "labels",
                &label,
                "expected a name of lower-case letters, digits and . _ / -",
            ),
            Err(error) => fields.wrong_member("labels", &label, error.to_string()),
        }
    }
}

/// Creates a key for a tenant, or imports one by its hash. Needs `keys:write`; a created key is shown only in this
/// response, an imported one never.
pub(in super::super) async fn create(
    axum::extract::Path(reference): Path<String>,
    change: ChangeRequest,
) -> Result<Response, Problem> {
    change.may(Permission::KeysWrite)?;
    let (asked, mut fields) = change.fields(BodyForm::JsonOrEmpty).await?;
    if fields.has("hashed_key") != fields.has("key_prefix") {
        let missing = if fields.has("hashed_key") { "key_prefix" } else { "hashed_key" };
        fields.conflict(missing, "expected hashed_key and key_prefix, or neither");
    }
    let hash = fields.text_or_absent("hashed_key", |text| {
        let expected = "expected a bcrypt hash ($2a$, $2b$, $2y$) with a cost from 4 to 14";
        SecretHash::parse(text).map(|_| text.to_owned()).ok_or(expected)
    });
    let prefix = fields.text_or_absent("key_prefix", |text| {
        let expected = "expected llmk_ and 1 to 48 of A-Z, a-z, 0-9 and -";
        if is_stored_prefix(text) { Ok(text.to_owned()) } else { Err(expected) }
    });
    let update = update(&mut fields);
    fields.finish()?;
    nothing_matches(&asked.parts)?;
    let own = prefix.zip(hash);
    let secret = if own.is_some() { Secret::None } else { Secret::Key };
    asked
        .make(Success { status: StatusCode::CREATED, secret, render: issued }, async move |admin, _| {
            let id = admin.tenant_by_id(&reference).await?.id.0.to_string();
            match own {
                Some((prefix, hash)) => admin.adopt_key(&id, &update, &prefix, &hash).await.map(|_| None),
                None => admin.create_key(&id, &update).await.map(|issued| Some(issued.key)),
            }
        })
        .await
}

/// Changes what a key may do. Needs `keys:write`; a field that is `null` is unset, and an absent one stays.
pub(in super::super) async fn patch(
    axum::extract::Path(reference): Path<String>,
    change: ChangeRequest,
) -> Result<Response, Problem> {
    change.may(Permission::KeysWrite)?;
    let (asked, mut fields) = change.fields(BodyForm::MergePatch).await?;
    let update = update(&mut fields);
    fields.finish()?;
    asked.make(CHANGED, async move |admin, _| admin.patch_key(&reference, &update).await.map(|_| None)).await
}

/// Disables a key until it is enabled again. Needs `keys:write`; 409 for a revoked key.
pub(in super::super) async fn disable(
    axum::extract::Path(reference): Path<String>,
    change: ChangeRequest,
) -> Result<Response, Problem> {
    change.may(Permission::KeysWrite)?;
    let asked = change.no_fields().await?;
    asked.make(CHANGED, async move |admin, _| admin.disable_key(&reference).await.map(|_| None)).await
}

/// Enables a disabled key. Needs `keys:write`; 409 for a revoked key.
pub(in super::super) async fn enable(
    axum::extract::Path(reference): Path<String>,
    change: ChangeRequest,
) -> Result<Response, Problem> {
    change.may(Permission::KeysWrite)?;
    let asked = change.no_fields().await?;
    asked.make(CHANGED, async move |admin, _| admin.enable_key(&reference).await.map(|_| None)).await
}

/// Revokes a key for good. Needs `keys:revoke`; the body may give a reason.
pub(in super::super) async fn revoke(
    axum::extract::Path(reference): Path<String>,
    change: ChangeRequest,
) -> Result<Response, Problem> {
    change.may(Permission::KeysRevoke)?;
    let (asked, mut fields) = change.fields(BodyForm::JsonOrEmpty).await?;
    let reason = fields.text("reason", reason).value();
    fields.finish()?;
    asked
        .make(CHANGED, async move |admin, _| {
            admin.revoke_keys(&[reference], reason.as_deref()).await.map(|_| None)
        })
        .await
}

fn reason(text: &str) -> Result<String, &'static str> {
    let fine = text.chars().count() <= LONGEST_REASON && !text.chars().any(char::is_control);
    if fine && !holds_key(text) {
        Ok(text.to_owned())
    } else {
        Err("expected at most 1000 characters, no control characters, and no key in it")
    }
}

/// Rotates a key. Without a grace period the old key ends at once, which needs the permission to revoke.
pub(in super::super) async fn rotate(
    axum::extract::Path(reference): Path<String>,
    change: ChangeRequest,
) -> Result<Response, Problem> {
    let (may_write, may_revoke) = (change.may(Permission::KeysWrite), change.may(Permission::KeysRevoke));
    if let (Err(problem), Err(_)) = (&may_write, &may_revoke) {
        return Err(problem.clone());
    }
    let (asked, mut fields) = change.fields(BodyForm::JsonOrEmpty).await?;
    let grace = fields.text("grace", span).value().unwrap_or_default();
    let expiry = expiry(&mut fields);
    let (errors, conflicts) = fields.into_errors();
    if errors.is_empty() {
        if grace.is_zero() { may_revoke? } else { may_write? }
    }
    super::super::body::refuse(errors, conflicts)?;
    let success = Success { status: StatusCode::OK, secret: Secret::KeyOfNew, render: rotated };
    asked
        .make(success, async move |admin, _| {
            let (_, issued) = admin.rotate_key(&reference, grace, expiry).await?;
            Ok(Some(issued.key))
        })
        .await
}

#[cfg(test)]
mod tests;

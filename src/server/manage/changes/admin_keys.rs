//! Changes of management keys. A key cannot grant more than it has, nor a longer validity.

use axum::http::StatusCode;
use axum::response::Response;

use super::super::body::{BodyForm, FieldValue, Fields};
use super::super::idempotency::Secret;
use super::super::problem::Problem;
use super::keys::expiry;
use super::tenants::{name, setting};
use super::{ChangeRequest, ChangeResponse, Path, Success, nothing_matches};
use crate::admin::view::{AdminKeyView, IssuedAdminKeyView};
use crate::admin::{Admin, AdminError, AdminKeyUpdate, AdminKeyWish, Caller, version};
use crate::permission::{Permission, Permissions, Role};
use crate::store::Changed;

const CHANGED: Success = Success { status: StatusCode::OK, secret: Secret::None, render: changed };

fn changed(changed: Changed<'_>, admin: &Admin) -> Option<ChangeResponse> {
    let Changed::AdminKey(key) = changed else { return None };
    let listed = admin.listed(key);
    Some(ChangeResponse::of(&AdminKeyView::from(&listed), version::of_admin_key(key)))
}

fn issued(changed: Changed<'_>, _: &Admin) -> Option<ChangeResponse> {
    let Changed::AdminKey(key) = changed else { return None };
    let location = format!("/v1/admin_keys/{}", key.id.0);
    Some(ChangeResponse::of(&IssuedAdminKeyView::hidden(key), version::of_admin_key(key)).at(location))
}

/// Reads the permissions of a key: `role` or `permissions`. A patch cannot remove all.
fn permissions(fields: &mut Fields, is_patch: bool) -> Option<Permissions> {
    if fields.has("role") && fields.has("permissions") {
        fields.conflict("role", "expected role or permissions, not both");
    }
    let (role, listed) = (fields.text("role", Role::parse), fields.texts("permissions"));
    for (name, null) in [("role", role == FieldValue::Null), ("permissions", listed == FieldValue::Null)] {
        if null && is_patch {
            fields.wrong(name, "invalid_value", "a management key needs at least one permission");
        }
    }
    let (role, listed) = (role.value(), listed.value());
    let listed = listed.map(|list| {
        let mut all = Vec::new();
        for (at, text) in list.iter().enumerate() {
            match Permission::parse(text) {
                Ok(permission) => all.push(permission),
                Err(why) => fields.wrong_member("permissions", &at.to_string(), why),
            }
        }
        Permissions::of(&all)
    });
    role.map(Role::permissions).or(listed)
}

/// Returns the id of the key with this id or prefix. A name in the path is not found.
async fn found(admin: &Admin, caller: &Caller, reference: &str) -> Result<String, AdminError> {
    let listed = admin.admin_key(&caller.creator, reference).await?;
    let (id, prefix) = (listed.key.id.0.to_string(), &listed.key.prefix);
    if reference.eq_ignore_ascii_case(&id) || reference == prefix {
        Ok(id)
    } else {
        Err(AdminError::Missing(format!("there is no management key {reference:?}")))
    }
}

/// Creates a management key, which is shown only in this response. Needs `admin_keys:write`; 403 for an authority that
/// exceeds the caller's.
pub(in super::super) async fn create(change: ChangeRequest) -> Result<Response, Problem> {
    change.may(Permission::AdminKeysWrite)?;
    let (asked, mut fields) = change.fields(BodyForm::Json).await?;
    let name = fields.text_needed("name", name);
    let permissions = permissions(&mut fields, false);
    let tenants = fields.texts("tenants").value();
    let expiry = expiry(&mut fields);
    fields.finish()?;
    nothing_matches(&asked.parts)?;
    let wish = AdminKeyWish { name: name.unwrap_or_default(), permissions, tenants, expiry };
    let success = Success { status: StatusCode::CREATED, secret: Secret::AdminKey, render: issued };
    asked
        .make(success, async move |admin, caller| {
            let issued = admin.create_admin_key(&caller.creator, &wish).await?;
            Ok(Some(issued.key))
        })
        .await
}

/// Changes the name, permissions, tenants or expiry of a management key. Needs `admin_keys:write`; 404 for a key that
/// has more authority than the caller.
pub(in super::super) async fn update(
    axum::extract::Path(reference): Path<String>,
    change: ChangeRequest,
) -> Result<Response, Problem> {
    change.may(Permission::AdminKeysWrite)?;
    let (asked, mut fields) = change.fields(BodyForm::MergePatch).await?;
    let update = AdminKeyUpdate {
        name: fields.text_or_absent("name", name),
        permissions: permissions(&mut fields, true),
        tenants: setting(fields.texts("tenants")),
        expiry: expiry(&mut fields),
    };
    fields.finish()?;
    asked
        .make(CHANGED, async move |admin, caller| {
            let id = found(&admin, &caller, &reference).await?;
            admin.update_admin_key(&caller.creator, &id, &update).await.map(|_| None)
        })
        .await
}

/// Revokes a management key, and with it all keys that it created. Needs `admin_keys:write`; 404 for a key that has
/// more authority than the caller.
pub(in super::super) async fn revoke(
    axum::extract::Path(reference): Path<String>,
    change: ChangeRequest,
) -> Result<Response, Problem> {
    change.may(Permission::AdminKeysWrite)?;
    let asked = change.no_fields().await?;
    asked
        .make(CHANGED, async move |admin, caller| {
            let id = found(&admin, &caller, &reference).await?;
            admin.revoke_admin_key(&caller.creator, &id).await.map(|_| None)
        })
        .await
}

//! Many rows at once.
//!
//! A batch is one statement, in one transaction with its row of the audit log. Reading is by page, in the order of
//! ids: no statement and no snapshot lives as long as a program takes to read a million rows. A page's statement says
//! only what it filters by, so that each of its plans begins at the right place of an index.

use uuid::Uuid;

use super::connection::{Link, ask};
use super::rows::{KEY, TENANT, stored_key_of};
use super::tenants;
use super::value::{Value, Wanted};
use crate::key::KeyId;
use crate::store::{ImportedKey, StoreError, StoredKey};
use crate::tenant::{Mode, Tenant, TenantId};

/// The keys of a page with the schemas of their tenants; `keys` says which.
fn stored_keys(keys: &str) -> String {
    format!(
        "SELECT k.*, coalesce(t.db_schema_name, '') AS db_schema_name
         FROM (SELECT {KEY}, hashed_key FROM api_keys WHERE {keys}) AS k
         LEFT JOIN tenants t ON t.id = k.tenant_id ORDER BY k.id"
    )
}

/// The ids among names.
fn ids(names: &[String]) -> Vec<Uuid> {
    names.iter().filter_map(|name| Uuid::parse_str(name).ok()).collect()
}

pub(super) async fn keys_page(
    link: &mut Link<'_>,
    tenant: Option<TenantId>,
    after: Option<KeyId>,
    page: i64,
) -> Result<Vec<StoredKey>, StoreError> {
    let wanted = Wanted::default().and("tenant_id = ?", tenant).and("id > ?", after);
    let (sql, last) = (wanted.sql(), wanted.next());
    let sql = stored_keys(&format!("{sql} ORDER BY id LIMIT ${last}"));
    ask(sql).bind_all(wanted).bind(page).all(link).await?.iter().map(stored_key_of).collect()
}

pub(super) async fn keys_named(link: &mut Link<'_>, names: &[String]) -> Result<Vec<StoredKey>, StoreError> {
    let (ids_are, names_are) = (link.any(1), link.any(2));
    // One index for each branch.
    let sql = stored_keys(&format!(
        "id IN (SELECT id FROM api_keys WHERE id {ids_are} UNION SELECT id FROM api_keys WHERE key_prefix {names_are}
                UNION SELECT id FROM api_keys WHERE hashed_key {names_are})"
    ));
    ask(sql).bind(ids(names)).bind(names).all(link).await?.iter().map(stored_key_of).collect()
}

pub(super) async fn tenants_page(
    link: &mut Link<'_>,
    after: Option<TenantId>,
    page: i64,
) -> Result<Vec<Tenant>, StoreError> {
    let wanted = Wanted::default().and("id > ?", after);
    let (sql, last) = (wanted.sql(), wanted.next());
    let sql = format!("SELECT {TENANT} FROM tenants WHERE {sql} ORDER BY id LIMIT ${last}");
    tenants(ask(sql).bind_all(wanted).bind(page), link).await
}

pub(super) async fn tenants_named(link: &mut Link<'_>, names: &[String]) -> Result<Vec<Tenant>, StoreError> {
    let (ids_are, names_are) = (link.any(1), link.any(2));
    let sql = format!(
        "SELECT {TENANT} FROM tenants WHERE id {ids_are} OR db_schema_name {names_are} OR name {names_are}"
    );
    tenants(ask(sql).bind(ids(names)).bind(names), link).await
}

pub(super) async fn import_keys(link: &mut Link<'_>, keys: &[ImportedKey]) -> Result<(), StoreError> {
    let columns = [
        "id",
        "key_prefix",
        "hashed_key",
        "tenant_id",
        "name",
        "created_at",
        "expires_at",
        "key_memo",
        "last_used_at",
        "revoked_at",
        "revocation_reason",
        "replaced_by",
    ];
    let values = |key: &ImportedKey| -> [Value; 12] {
        [
            key.new.id.into(),
            (&key.new.prefix).into(),
            (&key.new.hash).into(),
            key.new.tenant_id.into(),
            (&key.new.name).into(),
            key.new.created_at.into(),
            key.new.expires_at.into(),
            key.new.memo.map(|memo| memo.to_string()).into(),
            key.last_used_at.into(),
            key.revoked_at.into(),
            (&key.revocation_reason).into(),
            key.replaced_by.into(),
        ]
    };
    link.insert("api_keys", columns, keys.iter().map(values).collect()).await
}

pub(super) async fn import_tenants(link: &mut Link<'_>, tenants: &[Tenant]) -> Result<(), StoreError> {
    let columns = ["id", "name", "db_schema_name", "status", "mode", "created_at"];
    let values = |tenant: &Tenant| -> [Value; 6] {
        [
            tenant.id.into(),
            (&tenant.name).into(),
            (&tenant.schema).into(),
            tenant.status.as_str().into(),
            tenant.mode.map(Mode::as_str).into(),
            tenant.created_at.into(),
        ]
    };
    link.insert("tenants", columns, tenants.iter().map(values).collect()).await
}

//! Imports and reads many rows.
//!
//! An import writes a batch with one statement, in one transaction with its row of the audit log. Reading is by page,
//! in the order of ids, so that no statement and no snapshot lives as long as a client takes to read a million rows.
//! The statement of a page contains only the conditions that are used, so that its plan can start at the right place of
//! an index.

use uuid::Uuid;

use super::connection::{Link, query};
use super::rows::{KEY, TENANT, stored_key_of};
use super::value::{Conditions, SqlValue};
use super::{Dialect, tenants};
use crate::key::KeyId;
use crate::labels::Labels;
use crate::record::KeyState;
use crate::store::{ImportedKey, KEY_COLUMNS, KeyFilter, StoreError, StoredKey, TENANT_COLUMNS};
use crate::tenant::{Mode, Tenant, TenantId};

/// Builds a query of keys with the schemas of their tenants. `keys` is the condition, `more` are further columns.
pub(super) fn stored_keys(more: &str, keys: &str, order: &str) -> String {
    format!(
        "SELECT k.*, coalesce(t.db_schema_name, '') AS db_schema_name
         FROM (SELECT {KEY}, hashed_key{more} FROM api_keys WHERE {keys}) AS k
         LEFT JOIN tenants t ON t.id = k.tenant_id ORDER BY {order}"
    )
}

/// Returns those names that are ids.
fn ids(names: &[String]) -> Vec<Uuid> {
    names.iter().filter_map(|name| Uuid::parse_str(name).ok()).collect()
}

pub(super) async fn keys_page(
    link: &mut Link<'_>,
    filter: &KeyFilter,
    after: Option<KeyId>,
    page: i64,
) -> Result<Vec<StoredKey>, StoreError> {
    let wanted = wanted(Conditions::default(), link.dialect(), filter).and("id > ?", after);
    let (sql, last) = (wanted.sql(), wanted.next());
    let sql = stored_keys("", &format!("{sql} ORDER BY id LIMIT ${last}"), "k.id");
    query(sql).bind_all(wanted).bind(page).fetch_all(link).await?.iter().map(stored_key_of).collect()
}

/// Adds the conditions of a filter to `base`.
pub(super) fn wanted(base: Conditions, dialect: &Dialect, filter: &KeyFilter) -> Conditions {
    let (time, position) = (dialect.time, dialect.position);
    let at = |column: &str| time.replace('?', column);
    let (now, expires, begins) = (at("?"), at("expires_at"), at("not_before"));
    let is = |condition: String| format!("revoked_at IS NULL AND disabled_at IS NULL AND {condition}");
    let state = filter.state.map(|state| match state {
        KeyState::Revoked => "revoked_at IS NOT NULL".to_owned(),
        KeyState::Disabled => "revoked_at IS NULL AND disabled_at IS NOT NULL".to_owned(),
        KeyState::Expired => is(format!("{expires} <= {now}")),
        KeyState::NotYetValid => is(format!("coalesce({expires} > {now}, true) AND {begins} > {now}")),
        KeyState::Active => {
            is(format!("coalesce({expires} > {now}, true) AND coalesce({begins} <= {now}, true)"))
        }
    });
    let mut wanted = base
        .and("tenant_id = ?", filter.tenant)
        .and(state.as_deref().unwrap_or_default(), filter.state.map(|_| filter.now))
        .and(&format!("{position}(lower(name), lower(?)) > 0"), filter.name.as_deref())
        .and(&format!("{position}(' ' || scopes || ' ', ' ' || ? || ' ') > 0"), filter.scope.as_deref())
        .and(&format!("{expires} < {now}"), filter.expires_before)
        .and(&format!("{} <= {now}", at("coalesce(last_used_at, created_at)")), filter.unused_since);
    for (name, value) in &filter.labels {
        wanted = wanted.and_two("labels ->> ? = ?", name, value);
    }
    wanted
}

pub(super) async fn keys_named(link: &mut Link<'_>, names: &[String]) -> Result<Vec<StoredKey>, StoreError> {
    let (ids_are, names_are) = (link.dialect().any(1), link.dialect().any(2));
    // A UNION, so that each branch uses its own index.
    let any_name = format!(
        "id IN (SELECT id FROM api_keys WHERE id {ids_are} UNION SELECT id FROM api_keys WHERE key_prefix {names_are}
                UNION SELECT id FROM api_keys WHERE hashed_key {names_are})"
    );
    let sql = stored_keys("", &any_name, "k.id");
    query(sql).bind(ids(names)).bind(names).fetch_all(link).await?.iter().map(stored_key_of).collect()
}

pub(super) async fn tenants_page(
    link: &mut Link<'_>,
    after: Option<TenantId>,
    page: i64,
) -> Result<Vec<Tenant>, StoreError> {
    let wanted = Conditions::default().and("id > ?", after);
    let (sql, last) = (wanted.sql(), wanted.next());
    let sql = format!("SELECT {TENANT} FROM tenants WHERE {sql} ORDER BY id LIMIT ${last}");
    tenants::fetch(query(sql).bind_all(wanted).bind(page), link).await
}

pub(super) async fn tenants_named(link: &mut Link<'_>, names: &[String]) -> Result<Vec<Tenant>, StoreError> {
    let (ids_are, names_are) = (link.dialect().any(1), link.dialect().any(2));
    let sql = format!(
        "SELECT {TENANT} FROM tenants WHERE id {ids_are} OR db_schema_name {names_are} OR name {names_are}"
    );
    tenants::fetch(query(sql).bind(ids(names)).bind(names), link).await
}

/// Converts labels to a parameter: NULL if there are none.
pub(super) fn labels(labels: &Labels) -> SqlValue {
    SqlValue::Json((!labels.is_empty()).then(|| labels.to_string()))
}

pub(super) async fn import_keys(link: &mut Link<'_>, keys: &[ImportedKey]) -> Result<(), StoreError> {
    // In the order of `KEY_COLUMNS`.
    let values = |key: &ImportedKey| -> [SqlValue; KEY_COLUMNS.len()] {
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
            key.disabled_at.into(),
            key.new.terms.not_before.into(),
            (&key.new.terms.scopes).into(),
            (&key.new.terms.networks).into(),
            (&key.new.terms.plan).into(),
            labels(&key.new.terms.labels),
        ]
    };
    link.insert("api_keys", KEY_COLUMNS, keys.iter().map(values).collect()).await
}

pub(super) async fn import_tenants(link: &mut Link<'_>, tenants: &[Tenant]) -> Result<(), StoreError> {
    // In the order of `TENANT_COLUMNS`.
    let values = |tenant: &Tenant| -> [SqlValue; TENANT_COLUMNS.len()] {
        [
            tenant.id.into(),
            (&tenant.name).into(),
            (&tenant.schema).into(),
            tenant.status.as_str().into(),
            tenant.mode.map(Mode::as_str).into(),
            tenant.plan.as_deref().into(),
            tenant.created_at.into(),
        ]
    };
    link.insert("tenants", TENANT_COLUMNS, tenants.iter().map(values).collect()).await
}

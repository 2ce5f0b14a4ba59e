//! Converts rows to tenants, keys and entries of reports.

use super::instant::INFINITY;
use super::row::SqlRow;
use crate::audit::AuditEntry;
use crate::key::KeyId;
use crate::labels::Labels;
use crate::profile::Unreadable;
use crate::record::{KeyDetails, KeyTerms, Memo};
use crate::store::{Shadowed, ShadowedKind, StoreError, StoredKey};
use crate::tenant::{Mode, Tenant, TenantId, TenantStatus};

/// The columns that [`tenant_of`] reads.
pub(in crate::store) const TENANT: &str = "id, name, db_schema_name, status, mode, plan, created_at";

/// The columns that [`key_of`] reads.
pub(super) const KEY: &str = "id, key_prefix, name, tenant_id, created_at, expires_at, last_used_at, revoked_at, revocation_reason, replaced_by, key_memo,
    disabled_at, not_before, scopes, networks, plan, CAST(labels AS text) AS labels";

pub(in crate::store) fn tenant_of(row: &SqlRow) -> Result<Tenant, StoreError> {
    Ok(Tenant {
        id: TenantId(row.id("id", "tenants")?),
        name: row.get("name")?,
        schema: row.get("db_schema_name")?,
        status: TenantStatus::parse(&row.get::<String>("status")?),
        mode: row.get::<Option<String>>("mode")?.as_deref().map(Mode::parse),
        plan: row.get::<Option<String>>("plan")?.map(Into::into),
        created_at: row.instant("created_at")?.unwrap_or_default(),
    })
}

pub(super) fn key_of(row: &SqlRow) -> Result<KeyDetails, StoreError> {
    let memo: Option<String> = row.get("key_memo")?;
    let labels: Option<String> = row.get("labels")?;
    let of_instant = |column: Unreadable| {
        Ok::<_, StoreError>(row.has_unreadable_instant(column.column())?.then_some(column))
    };
    let (expires_at, not_before) = (of_instant(Unreadable::ExpiresAt)?, of_instant(Unreadable::NotBefore)?);
    let terms = KeyTerms {
        // One that cannot be read never comes: the key is not active, and a copy of it is not either.
        not_before: if not_before.is_some() { Some(INFINITY) } else { row.instant("not_before")? },
        scopes: row.get("scopes")?,
        networks: row.get("networks")?,
        plan: row.get("plan")?,
        labels: labels.map(|labels| Labels::read(&labels)).unwrap_or_default(),
    };
    Ok(KeyDetails {
        id: KeyId(row.id("id", "api_keys")?),
        prefix: row.get("key_prefix")?,
        name: row.get("name")?,
        tenant_id: TenantId(row.id("tenant_id", "api_keys")?),
        created_at: row.instant("created_at")?.unwrap_or_default(),
        expires_at: row.expiry("expires_at")?,
        last_used_at: row.instant("last_used_at")?,
        revoked_at: row.instant("revoked_at")?,
        revocation_reason: row.get("revocation_reason")?,
        replaced_by: row.maybe_id("replaced_by")?.map(KeyId),
        memo: memo.as_deref().and_then(Memo::parse).map(|memo| memo.pepper),
        disabled_at: row.instant("disabled_at")?,
        terms,
        unreadable: expires_at.or(not_before),
    })
}

pub(super) fn stored_key_of(row: &SqlRow) -> Result<StoredKey, StoreError> {
    Ok(StoredKey {
        details: key_of(row)?,
        tenant_schema: row.get("db_schema_name")?,
        hash: row.get("hashed_key")?,
    })
}

pub(super) fn shadowed_of(row: &SqlRow) -> Result<Shadowed, StoreError> {
    let kind = ShadowedKind {
        reason: row.get("reason")?,
        network: row.get("network")?,
        user_agent: row.get("user_agent")?,
        method: row.get("method")?,
        path: row.get("path")?,
        key_prefix: row.get("key_prefix")?,
    };
    Ok(Shadowed {
        kind,
        requests: u64::try_from(row.get::<i64>("requests")?).unwrap_or(0),
        first_seen: row.instant("first_seen")?.unwrap_or_default(),
        last_seen: row.instant("last_seen")?.unwrap_or_default(),
    })
}

pub(super) fn entry_of(row: &SqlRow) -> Result<AuditEntry, StoreError> {
    Ok(AuditEntry {
        seq: row.get("seq")?,
        at: row.instant("at")?.unwrap_or_default(),
        actor: row.get("actor")?,
        action: row.get("action")?,
        subject: row.get("subject")?,
        before: row.get("before")?,
        after: row.get("after")?,
        request_id: row.get("request_id")?,
        address: row.get("address")?,
        hash: row.get("hash")?,
    })
}

#[cfg(test)]
mod tests {
    use super::{KEY, TENANT};
    use crate::store::{KEY_COLUMNS, TENANT_COLUMNS};

    #[test]
    fn every_column_is_read_but_the_hash_of_a_key() {
        assert_eq!(TENANT, TENANT_COLUMNS.join(", "));
        let read = KEY.replace("CAST(labels AS text) AS labels", "labels");
        let mut read: Vec<_> = read.split(',').map(str::trim).chain(["hashed_key"]).collect();
        let mut all = KEY_COLUMNS;
        read.sort_unstable();
        all.sort_unstable();
        assert_eq!(read, all);
    }
}

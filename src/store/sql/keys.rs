//! Reads and writes single keys.

use super::Sets;
use super::bulk::labels;
use super::connection::{Link, query};
use super::rows::{KEY, key_of};
use super::value::SqlValue;
use crate::key::KeyId;
use crate::record::KeyDetails;
use crate::store::{NewKey, StoreError};

/// Reads a key and locks its row until the transaction ends.
pub(super) async fn to_change(link: &mut Link<'_>, id: KeyId) -> Result<Option<KeyDetails>, StoreError> {
    let sql = format!("SELECT {KEY} FROM api_keys WHERE id = $1{}", link.dialect().lock);
    query(sql).bind(id).fetch_optional(link).await?.as_ref().map(key_of).transpose()
}

pub(super) async fn insert(link: &mut Link<'_>, key: &NewKey) -> Result<KeyDetails, StoreError> {
    let sql = format!(
        "INSERT INTO api_keys (id, key_prefix, hashed_key, tenant_id, name, created_at, expires_at, key_memo,
                               not_before, scopes, networks, plan, labels)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13{}) RETURNING {KEY}",
        link.dialect().jsonb
    );
    let query = query(sql).bind(key.id).bind(&key.prefix).bind(&key.hash).bind(key.tenant_id).bind(&key.name);
    let query = query.bind(key.created_at).bind(key.expires_at).bind(key.memo.map(|memo| memo.to_string()));
    let terms = &key.terms;
    let query = query.bind(terms.not_before).bind(&terms.scopes).bind(&terms.networks).bind(&terms.plan);
    key_of(&query.bind(labels(&terms.labels)).fetch_one(link).await?)
}

/// Writes the columns that differ.
pub(super) async fn update(
    link: &mut Link<'_>,
    before: &KeyDetails,
    after: &KeyDetails,
) -> Result<(), StoreError> {
    let (was, is) = (&before.terms, &after.terms);
    Sets::default()
        .set("name", before.name != after.name, &after.name)
        .set("expires_at", before.expires_at != after.expires_at, after.expires_at)
        .set("revoked_at", before.revoked_at != after.revoked_at, after.revoked_at)
        .set(
            "revocation_reason",
            before.revocation_reason != after.revocation_reason,
            &after.revocation_reason,
        )
        .set("disabled_at", before.disabled_at != after.disabled_at, after.disabled_at)
        .set("not_before", was.not_before != is.not_before, is.not_before)
        .set("scopes", was.scopes != is.scopes, &is.scopes)
        .set("networks", was.networks != is.networks, &is.networks)
        .set("plan", was.plan != is.plan, &is.plan)
        .set("labels", was.labels != is.labels, labels(&is.labels))
        .run("api_keys", SqlValue::from(after.id), link)
        .await
}

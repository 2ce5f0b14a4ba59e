//! Queries of management keys.

use std::collections::BTreeSet;

use serde::Serialize;
use uuid::Uuid;

use super::Sets;
use super::connection::{Link, query};
use super::row::SqlRow;
use super::value::SqlValue;
use crate::audit::{Action, Draft};
use crate::clock::Timestamp;
use crate::permission::{AdminKey, AdminKeyId, Authority, Permissions, Reach};
use crate::store::{AdminKeyChange, AuthorKey, NewAdminKey, StoreError};
use crate::tenant::TenantId;

const TABLE: &str = "tenantgate_admin_key";

const ADMIN_KEY: &str =
    "id, key_prefix, name, permissions, tenants, CAST(created_by AS text) AS creator, created_at,
    expires_at, last_used_at, revoked_at";

fn admin_key_of(row: &SqlRow) -> Result<AdminKey, StoreError> {
    let id = row.id("id", TABLE)?;
    let inconsistent = |why: String| StoreError::Inconsistent { table: TABLE, row: id.to_string(), why };
    let permissions: String = row.get("permissions")?;
    let tenants: Option<String> = row.get("tenants")?;
    let reach = match tenants {
        None => Reach::All,
        Some(list) => {
            let ids = list.split_ascii_whitespace().map(|id| Uuid::parse_str(id).map(TenantId));
            let ids: Result<BTreeSet<_>, _> = ids.collect();
            Reach::Some(ids.map_err(|_| inconsistent("invalid tenants: expected a list of UUIDs".into()))?)
        }
    };
    let given = Authority {
        permissions: Permissions::parse(&permissions).map_err(|error| inconsistent(error.into()))?,
        reach,
        expires_at: row.expiry("expires_at")?,
    };
    // An invalid creator must not count as none: a key without a creator was created by a command, and no other key
    // limits it.
    let creator = row.get::<Option<String>>("creator")?;
    let creator = creator.map(|id| Uuid::parse_str(&id).map(AdminKeyId)).transpose();
    let creator = creator.map_err(|_| inconsistent("invalid created_by: expected a UUID".into()))?;
    Ok(AdminKey {
        id: AdminKeyId(id),
        prefix: row.get("key_prefix")?,
        name: row.get("name")?,
        given,
        created_by: creator,
        created_at: row.instant("created_at")?.unwrap_or_default(),
        last_used_at: row.instant("last_used_at")?,
        revoked_at: row.instant("revoked_at")?,
    })
}

/// Formats the ids of the tenants, separated by spaces; `None` for all tenants.
fn tenants(reach: &Reach) -> Option<String> {
    match reach {
        Reach::All => None,
        Reach::Some(tenants) => {
            Some(tenants.iter().map(|tenant| tenant.0.to_string()).collect::<Vec<_>>().join(" "))
        }
    }
}

/// A management key in the audit log: without its hash and its last use.
#[derive(Serialize)]
struct AuditedAdminKey<'a> {
    id: String,
    key_prefix: &'a str,
    name: &'a str,
    permissions: String,
    tenants: Option<String>,
    created_by: Option<String>,
    created_at: String,
    expires_at: Option<String>,
    revoked_at: Option<String>,
}

impl<'a> From<&'a AdminKey> for AuditedAdminKey<'a> {
    fn from(key: &'a AdminKey) -> Self {
        let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
        Self {
            id: key.id.0.to_string(),
            key_prefix: &key.prefix,
            name: &key.name,
            permissions: key.given.permissions.to_string(),
            tenants: tenants(&key.given.reach),
            created_by: key.created_by.map(|id| id.0.to_string()),
            created_at: key.created_at.to_string(),
            expires_at: text(key.given.expires_at),
            revoked_at: text(key.revoked_at),
        }
    }
}

pub(super) async fn all(link: &mut Link<'_>) -> Result<Vec<AdminKey>, StoreError> {
    let sql = format!("SELECT {ADMIN_KEY} FROM {TABLE} ORDER BY created_at, id");
    query(sql).fetch_all(link).await?.iter().map(admin_key_of).collect()
}

/// The longest chain of creators that is read. A longer chain is cut, and then counts as incomplete.
const LONGEST_CHAIN: i64 = 100;

/// Returns the hash of the key with this prefix; the key; its creator; that key's creator and so on.
pub(super) async fn chain(
    link: &mut Link<'_>,
    prefix: &str,
) -> Result<Option<(String, Vec<AdminKey>)>, StoreError> {
    let rows = links(link, "key_prefix = $1", prefix).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let keys: Result<Vec<_>, _> = rows.iter().map(admin_key_of).collect();
    Ok(Some((first.get("hashed_key")?, keys?)))
}

async fn links(
    link: &mut Link<'_>,
    is_first: &str,
    value: impl Into<SqlValue>,
) -> Result<Vec<SqlRow>, StoreError> {
    let sql = format!(
        "WITH RECURSIVE chain (link, creator_of_link, depth) AS (
             SELECT id, created_by, 1 FROM {TABLE} WHERE {is_first}
             UNION ALL
             SELECT id, created_by, depth + 1 FROM {TABLE} JOIN chain ON id = creator_of_link WHERE depth < {LONGEST_CHAIN})
         SELECT {ADMIN_KEY}, hashed_key FROM {TABLE} JOIN chain ON id = link ORDER BY depth"
    );
    query(sql).bind(value).fetch_all(link).await
}

/// Holds the management key `author`, which makes a change, and its creators as they are until the transaction ends,
/// and checks that the key still has the authority by which the change was judged. Also locks the key `target`, which
/// is to be changed. All locks are taken in the order of ids, so that two changes cannot deadlock.
pub(super) async fn hold(
    link: &mut Link<'_>,
    author: Option<&AuthorKey>,
    target: Option<AdminKeyId>,
) -> Result<(), StoreError> {
    let mut held = BTreeSet::new();
    if let Some(author) = author {
        // The creators of a key never change.
        for row in links(link, "id = $1", author.id.0).await? {
            held.insert(AdminKeyId(row.id("id", TABLE)?));
        }
    }
    held.extend(target);
    for id in held {
        let dialect = link.dialect();
        let lock = if Some(id) == target { dialect.lock_admin_key } else { dialect.share_admin_key };
        if let Some(lock) = lock {
            query(lock).bind(id.0.to_string()).execute(link).await?;
        }
    }
    let Some(author) = author else { return Ok(()) };
    let rows = links(link, "id = $1", author.id.0).await?;
    (author.check)(&rows.iter().map(admin_key_of).collect::<Result<Vec<_>, _>>()?)
}

pub(super) async fn touch(link: &mut Link<'_>, id: AdminKeyId, at: Timestamp) -> Result<(), StoreError> {
    let sql = format!("UPDATE {TABLE} SET last_used_at = $2 WHERE id = $1");
    query(sql).bind(id.0).bind(at).execute(link).await
}

pub(super) async fn insert(link: &mut Link<'_>, new: &NewAdminKey) -> Result<(AdminKey, Draft), StoreError> {
    let sql = format!(
        "INSERT INTO {TABLE} (id, key_prefix, hashed_key, name, permissions, tenants, created_by, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING {ADMIN_KEY}"
    );
    let key = &new.key;
    let query = query(sql).bind(key.id.0).bind(&key.prefix).bind(&new.hash).bind(&key.name);
    let query = query.bind(key.given.permissions.to_string()).bind(tenants(&key.given.reach));
    let query = query.bind(key.created_by.map(|id| id.0)).bind(key.created_at).bind(key.given.expires_at);
    let key = admin_key_of(&query.fetch_one(link).await?)?;
    let draft =
        Draft::of(Action::AdminKeyCreate, key.id.0.to_string(), None::<&()>, &AuditedAdminKey::from(&key));
    Ok((key, draft))
}

/// Changes a key while other sessions cannot. `None` if there is no such key.
pub(super) async fn change(
    link: &mut Link<'_>,
    id: AdminKeyId,
    action: Action,
    make: AdminKeyChange<'_>,
) -> Result<Option<(AdminKey, Option<Draft>)>, StoreError> {
    let sql = format!("SELECT {ADMIN_KEY} FROM {TABLE} WHERE id = $1{}", link.dialect().lock);
    let row = query(sql).bind(id.0).fetch_optional(link).await?;
    let Some(before) = row.as_ref().map(admin_key_of).transpose()? else { return Ok(None) };
    let mut after = before.clone();
    make(&mut after)?;
    let (was, is) = (&before.given, &after.given);
    Sets::default()
        .set("name", before.name != after.name, &after.name)
        .set("permissions", was.permissions != is.permissions, is.permissions.to_string())
        .set("tenants", was.reach != is.reach, tenants(&is.reach))
        .set("expires_at", was.expires_at != is.expires_at, is.expires_at)
        .set("revoked_at", before.revoked_at != after.revoked_at, after.revoked_at)
        .run(TABLE, id.0, link)
        .await?;
    let (was, is) = (AuditedAdminKey::from(&before), AuditedAdminKey::from(&after));
    let draft = (before != after).then(|| Draft::of(action, id.0.to_string(), Some(&was), &is));
    Ok(Some((after, draft)))
}

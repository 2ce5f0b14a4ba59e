//! The columns of `tenants` and `api_keys` that tenantgate reads or writes, whatever the database.
//!
//! Imports write these columns, and adoption never takes one of them for a column of another program. Lists that differ
//! for a reason are held to these by unit tests: of the columns that Postgres requires, their order is that of the
//! messages; what commands read of a key leaves its hash out; and exported files name the tenant and leave the memo
//! out.

/// The columns of `tenants`.
pub(crate) const TENANT_COLUMNS: [&str; 7] =
    ["id", "name", "db_schema_name", "status", "mode", "plan", "created_at"];

/// The columns of `api_keys`.
pub(crate) const KEY_COLUMNS: [&str; 18] = [
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
    "disabled_at",
    "not_before",
    "scopes",
    "networks",
    "plan",
    "labels",
];

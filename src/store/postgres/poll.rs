//! The statements of a load and a poll, and the conversion of their rows.

use std::borrow::Cow;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Row as _, ValueRef as _};
use uuid::Uuid;

use super::memo;
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::plan::PlanRow;
use crate::profile::ProfileRow;
use crate::record::{KeyRecord, SecretHash};
use crate::route::{RouteId, RouteRow};
use crate::store::inspect::KeyWithProfile;
use crate::store::sql::instant::{Micros, expiry, instant};
use crate::store::{Change, SnapshotRow, StoreError};
use crate::tenant::{Mode, Tenant, TenantId, TenantStatus};

/// The columns of every row. They are read by index, which is faster than by name for a million rows.
const COLUMNS: [(&str, &str); 21] = [
    ("rec", "text"),
    ("id", "uuid"),
    ("tenant_id", "uuid"),
    ("key_prefix", "text"),
    ("hashed_key", "text"),
    ("expires_at", "timestamptz"),
    ("revoked", "bool"),
    ("key_memo", "text"),
    ("name", "text"),
    ("db_schema_name", "text"),
    ("status", "text"),
    ("created_at", "timestamptz"),
    ("mode", "text"),
    ("disabled", "bool"),
    ("not_before", "timestamptz"),
    ("scopes", "text"),
    ("networks", "text"),
    ("plan", "text"),
    ("host", "text"),
    ("method", "text"),
    ("path", "text"),
];
pub(super) const REC: usize = 0;
const ID: usize = 1;
const TENANT_ID: usize = 2;
const KEY_PREFIX: usize = 3;
const HASHED_KEY: usize = 4;
const EXPIRES_AT: usize = 5;
const REVOKED: usize = 6;
const KEY_MEMO: usize = 7;
const NAME: usize = 8;
const DB_SCHEMA_NAME: usize = 9;
const STATUS: usize = 10;
const CREATED_AT: usize = 11;
const MODE: usize = 12;
const DISABLED: usize = 13;
const NOT_BEFORE: usize = 14;
const SCOPES: usize = 15;
const NETWORKS: usize = 16;
const PLAN: usize = 17;
const HOST: usize = 18;
const METHOD: usize = 19;
const PATH: usize = 20;
/// The columns that hold the limits of a plan.
const LIMITS: [usize; 4] = [SCOPES, NETWORKS, HOST, METHOD];
/// The column that holds `tenantgate_route.shadow`.
const SHADOW: usize = DISABLED;
/// The columns that are NULL if the changed row was deleted: for a tenant or rule, and for a plan.
const THERE: usize = TENANT_ID;
const THERE_PLAN: usize = KEY_PREFIX;

const KEY: &[(usize, &str)] = &[
    (ID, "k.id"),
    (TENANT_ID, "k.tenant_id"),
    (HASHED_KEY, "k.hashed_key"),
    (EXPIRES_AT, "k.expires_at"),
    (REVOKED, "k.revoked_at IS NOT NULL"),
    (KEY_MEMO, "k.key_memo"),
    (DISABLED, "k.disabled_at IS NOT NULL"),
    (NOT_BEFORE, "k.not_before"),
    (SCOPES, "k.scopes"),
    (NETWORKS, "k.networks"),
    (PLAN, "k.plan"),
];
const TENANT: &[(usize, &str)] = &[
    (NAME, "t.name"),
    (DB_SCHEMA_NAME, "t.db_schema_name"),
    (STATUS, "t.status"),
    (CREATED_AT, "t.created_at"),
    (MODE, "t.mode"),
    (PLAN, "t.plan"),
];
const PLAN_LIMITS: &[(usize, &str)] = &[
    (LIMITS[0], "p.request_limit"),
    (LIMITS[1], "p.total_limit"),
    (LIMITS[2], "p.input_limit"),
    (LIMITS[3], "p.output_limit"),
];
const ROUTE: &[(usize, &str)] = &[
    (NAME, "r.name"),
    (HOST, "r.host"),
    (METHOD, "r.method"),
    (PATH, "r.path"),
    (MODE, "r.mode"),
    (SCOPES, "r.scopes"),
    (SHADOW, "r.shadow"),
];

/// The additional columns of the header, a row of kind `h` that describes the response itself.
const ABOUT: &str =
    "pg_current_snapshot()::text AS snapshot, pg_is_in_recovery() AS standby, clock_timestamp() AS now,
    pg_backend_pid() || ' ' || pg_postmaster_start_time()::text AS backend,
    (SELECT id || ' ' || xid::text FROM tenantgate_change ORDER BY id DESC LIMIT 1) AS newest";

/// The tables whose rows are served.
const SERVED: &str =
    "'tenants'::regclass, 'api_keys'::regclass, 'tenantgate_plan'::regclass, 'tenantgate_route'::regclass";

/// Which tables these are. They are constants of the plan, so that a poll costs no more; Postgres makes a plan anew if a
/// table is replaced by another one.
fn tables() -> String {
    format!("array_to_string(ARRAY[{SERVED}, 'tenantgate_change'::regclass]::oid[], ',') AS tables")
}

/// Builds the statement for what changes rarely. The change log depends on it: the identity of the database and of its
/// log, and the triggers with the transactions that last changed them. If one is not what it was, a change may be missing
/// from the log. Also reads the newest change that was pruned, in the form of `newest` and with a third word.
pub(super) fn foundation() -> String {
    format!(
        "SELECT (SELECT id FROM tenantgate_identity)::text AS identity, (SELECT log FROM tenantgate_identity)::text AS log,
            (SELECT string_agg(oid || ':' || xmin, ',' ORDER BY oid) FROM pg_trigger
             WHERE tgrelid IN ({SERVED}) AND NOT tgisinternal) AS triggers,
            (SELECT coalesce(CASE WHEN has_sequence_privilege('tenantgate_change_id_seq', 'SELECT, USAGE')
                             THEN pg_sequence_last_value('tenantgate_change_id_seq') END, 0) || ' ' || xid::text || ' pruned'
             FROM tenantgate_change_floor WHERE xid <> '0') AS pruned"
    )
}

/// Builds the SELECT of the header. `reload` is the expression for whether everything must be loaded again.
fn header(reload: &str) -> String {
    let typed = COLUMNS[1..].iter().map(|(name, kind)| format!("NULL::{kind} AS {name}"));
    let (typed, tables) = (typed.collect::<Vec<_>>().join(", "), tables());
    format!("SELECT 'h' AS rec, {typed}, {ABOUT}, {tables}, {reload} AS reload")
}

/// Builds the columns of rows of one kind. Columns that are not in `named` are NULL.
fn columns(kind: &str, named: &[&[(usize, &str)]]) -> String {
    let mut all = vec!["NULL"; COLUMNS.len()];
    for (place, what) in named.iter().copied().flatten() {
        all[*place] = what;
    }
    let kind = format!("'{kind}'");
    all[REC] = &kind;
    all.join(", ")
}

/// Builds a SELECT that follows the header, with NULL in the columns of the header.
fn rows(kind: &str, named: &[&[(usize, &str)]]) -> String {
    format!("UNION ALL SELECT {}, NULL, NULL, NULL, NULL, NULL, NULL, NULL", columns(kind, named))
}

/// Builds the statement of a load.
pub(super) fn load() -> String {
    [
        header("NULL::bool"),
        rows("t", &[&[(ID, "t.id")], TENANT]) + " FROM tenants t",
        rows("p", &[&[(NAME, "p.name")], PLAN_LIMITS]) + " FROM tenantgate_plan p",
        rows("r", &[&[(ID, "r.id")], ROUTE]) + " FROM tenantgate_route r",
        rows("k", &[&[(KEY_PREFIX, "k.key_prefix::text")], KEY]) + " FROM api_keys k",
    ]
    .join(" ")
}

/// Builds the statement of a poll: the rows that changed since the snapshot `$1`. OFFSET 0 makes the plan look up each
/// row by its index, even if the table was empty when the plan was made.
pub(super) fn changes() -> String {
    let changed = "WITH c AS MATERIALIZED (
            SELECT DISTINCT key_prefix, tenant_id, plan, route_id FROM tenantgate_change
            WHERE xid >= pg_snapshot_xmin($1::pg_snapshot) AND xid < pg_snapshot_xmax(pg_current_snapshot())
              AND NOT pg_visible_in_snapshot(xid, $1::pg_snapshot))";
    let reload = "coalesce((SELECT xid FROM tenantgate_change_floor WHERE xid < pg_snapshot_xmax(pg_current_snapshot()))
            >= pg_snapshot_xmin($1::pg_snapshot), false)
            OR EXISTS (SELECT FROM c WHERE num_nonnulls(key_prefix, tenant_id, plan, route_id) = 0)";
    let from = |table: &str, key: &str, logged: &str, alias: &str| {
        format!(
            " FROM c LEFT JOIN LATERAL (SELECT * FROM {table} WHERE {key} = c.{logged} OFFSET 0) {alias} ON true
             WHERE c.{logged} IS NOT NULL"
        )
    };
    // Only the columns that the role of `serve` may read.
    let keys = "(SELECT id, tenant_id, hashed_key, expires_at, revoked_at, key_memo, disabled_at, not_before, scopes,
                        networks, plan FROM api_keys WHERE key_prefix = c.key_prefix OFFSET 0)";
    [
        changed.to_owned(),
        header(reload),
        rows("t", &[&[(ID, "c.tenant_id"), (THERE, "t.id")], TENANT])
            + &from("tenants", "id", "tenant_id", "t"),
        rows("p", &[&[(NAME, "c.plan"), (THERE_PLAN, "p.name")], PLAN_LIMITS])
            + &from("tenantgate_plan", "name", "plan", "p"),
        rows("r", &[&[(ID, "c.route_id"), (THERE, "r.id")], ROUTE])
            + &from("tenantgate_route", "id", "route_id", "r"),
        rows("k", &[&[(KEY_PREFIX, "c.key_prefix")], KEY])
            + &format!(" FROM c LEFT JOIN LATERAL {keys} k ON true WHERE c.key_prefix IS NOT NULL"),
    ]
    .join(" ")
}

/// The header of a response.
pub(super) struct PollHeader {
    pub(super) snapshot: String,
    pub(super) standby: bool,
    pub(super) now: Timestamp,
    pub(super) backend: String,
    pub(super) reload: bool,
    pub(super) newest: Option<String>,
    /// See [`tables`].
    pub(super) tables: String,
}

impl PollHeader {
    pub(super) fn read(row: &PgRow) -> Result<Self, StoreError> {
        Ok(Self {
            snapshot: row.try_get("snapshot")?,
            standby: row.try_get("standby")?,
            now: row.try_get::<Micros, _>("now")?.0,
            backend: row.try_get("backend")?,
            reload: row.try_get::<Option<bool>, _>("reload")?.unwrap_or(false),
            newest: row.try_get("newest")?,
            tables: row.try_get("tables")?,
        })
    }
}

/// Reads one key in the same way as a load.
pub(super) async fn one_key(
    connection: &mut PgConnection,
    prefix: &str,
) -> Result<Option<KeyWithProfile>, StoreError> {
    let columns = columns("k", &[&[(KEY_PREFIX, "k.key_prefix::text")], KEY]);
    let sql = format!("SELECT {columns} FROM api_keys k WHERE k.key_prefix = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(prefix).fetch_optional(connection).await?;
    row.as_ref().map(record).transpose()
}

pub(super) fn key_row(row: &PgRow) -> Result<SnapshotRow, StoreError> {
    record(row).map(|(record, memo, profile)| SnapshotRow::Key(record, memo, profile))
}

fn record(row: &PgRow) -> Result<KeyWithProfile, StoreError> {
    let text = |place: usize| Ok::<_, StoreError>(text(row, place)?.map(|text| text.as_ref().into()));
    let profile =
        ProfileRow { scopes: text(SCOPES)?, networks: text(NETWORKS)?, plan: text(PLAN)?, unreadable: None };
    let record = KeyRecord {
        id: KeyId(row.try_get(ID)?),
        tenant_id: TenantId(row.try_get(TENANT_ID)?),
        prefix: required(row, KEY_PREFIX)?.as_ref().into(),
        hash: SecretHash::parse(&required(row, HASHED_KEY)?),
        expires_at: expiry(row, EXPIRES_AT)?.into(),
        revoked: row.try_get(REVOKED)?,
        not_before: instant(row, NOT_BEFORE)?.unwrap_or(Timestamp::MIN),
        disabled: row.try_get(DISABLED)?,
    };
    Ok((record, memo(row, KEY_MEMO)?, profile))
}

/// Returns a text with invalid UTF-8 replaced, so that one such row is damaged instead of failing the load. Only a
/// database with the encoding `SQL_ASCII` has such texts.
fn text(row: &PgRow, place: usize) -> Result<Option<Cow<'_, str>>, StoreError> {
    let raw = row.try_get_raw(place)?;
    if raw.is_null() {
        return Ok(None);
    }
    let bytes = raw.as_bytes().map_err(sqlx::Error::Decode)?;
    Ok(Some(String::from_utf8_lossy(bytes)))
}

fn required(row: &PgRow, place: usize) -> Result<Cow<'_, str>, StoreError> {
    Ok(text(row, place)?.unwrap_or_default())
}

pub(super) fn key_change(row: &PgRow) -> Result<Change, StoreError> {
    if row.try_get::<Option<Uuid>, _>(ID)?.is_none() {
        let prefix: &str = row.try_get(KEY_PREFIX)?;
        // A mark is a row with an empty prefix, which no key has.
        return Ok(if prefix.is_empty() { Change::Mark } else { Change::NoKey(prefix.into()) });
    }
    Ok(Change::Now(key_row(row)?))
}

pub(super) fn tenant_row(row: &PgRow) -> Result<Tenant, StoreError> {
    Ok(Tenant {
        id: TenantId(row.try_get(ID)?),
        name: required(row, NAME)?.into(),
        schema: required(row, DB_SCHEMA_NAME)?.into(),
        status: TenantStatus::parse(&required(row, STATUS)?),
        mode: text(row, MODE)?.map(|mode| Mode::parse(&mode)),
        plan: text(row, PLAN)?.map(|plan| plan.as_ref().into()),
        created_at: row.try_get::<Micros, _>(CREATED_AT)?.0,
    })
}

pub(super) fn tenant_change(row: &PgRow) -> Result<Change, StoreError> {
    if row.try_get::<Option<Uuid>, _>(THERE)?.is_none() {
        return Ok(Change::NoTenant(TenantId(row.try_get(ID)?)));
    }
    Ok(Change::Now(SnapshotRow::Tenant(tenant_row(row)?)))
}

pub(super) fn plan_row(row: &PgRow) -> Result<PlanRow, StoreError> {
    let [request, total, input, output] = LIMITS.map(|place| row.try_get(place));
    Ok(PlanRow { name: row.try_get(NAME)?, limits: [request?, total?, input?, output?] })
}

pub(super) fn plan_change(row: &PgRow) -> Result<Change, StoreError> {
    if row.try_get::<Option<&str>, _>(THERE_PLAN)?.is_none() {
        return Ok(Change::NoPlan(row.try_get::<&str, _>(NAME)?.into()));
    }
    Ok(Change::Now(SnapshotRow::Plan(plan_row(row)?)))
}

pub(super) fn route_row(row: &PgRow) -> Result<RouteRow, StoreError> {
    Ok(RouteRow {
        id: RouteId(row.try_get(ID)?),
        name: row.try_get(NAME)?,
        host: row.try_get(HOST)?,
        method: row.try_get(METHOD)?,
        path: row.try_get(PATH)?,
        mode: row.try_get(MODE)?,
        scopes: row.try_get(SCOPES)?,
        shadow: row.try_get(SHADOW)?,
    })
}

pub(super) fn route_change(row: &PgRow) -> Result<Change, StoreError> {
    if row.try_get::<Option<Uuid>, _>(THERE)?.is_none() {
        return Ok(Change::NoRoute(RouteId(row.try_get(ID)?)));
    }
    Ok(Change::Now(SnapshotRow::Route(route_row(row)?)))
}

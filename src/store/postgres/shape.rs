//! Checks and converts existing tables of tenants and keys. Tables that cannot be adopted are rejected before any
//! change.

use std::collections::BTreeMap;

use sqlx::postgres::PgConnection;
use sqlx::{
    AssertSqlSafe, Column as _, Executor as _, Row as _, SqlSafeStr as _, Statement as _, TypeInfo as _,
};

use super::connection::quoted;
use crate::store::adoption::ANY;
use crate::store::{Adoption, StoreError};

/// The type that a column must have.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    Uuid,
    Text,
    Instant,
    Json,
}

impl Kind {
    fn wanted(self) -> &'static str {
        match self {
            Self::Uuid => "uuid",
            Self::Text => "text or varchar",
            Self::Instant => "timestamptz",
            Self::Json => "jsonb",
        }
    }

    fn fits(self, name: &str) -> bool {
        match self {
            Self::Uuid => name == "uuid",
            Self::Text => ["text", "varchar"].contains(&name),
            // `timestamp` is converted.
            Self::Instant => ["timestamptz", "timestamp"].contains(&name),
            Self::Json => name == "jsonb",
        }
    }
}

/// A column that tenantgate uses: table, name, type, whether it must be NOT NULL, whether it must be UNIQUE, and
/// whether an adopted table must already have it.
type RequiredColumn = (&'static str, &'static str, Kind, bool, bool, bool);

const REQUIRED_COLUMNS: [RequiredColumn; 25] = [
    ("tenants", "id", Kind::Uuid, true, true, true),
    ("tenants", "name", Kind::Text, true, false, true),
    ("tenants", "db_schema_name", Kind::Text, true, true, true),
    ("tenants", "created_at", Kind::Instant, true, false, true),
    ("tenants", "status", Kind::Text, true, false, true),
    ("api_keys", "id", Kind::Uuid, true, true, true),
    ("api_keys", "hashed_key", Kind::Text, true, true, true),
    ("api_keys", "key_prefix", Kind::Text, true, true, true),
    ("api_keys", "tenant_id", Kind::Uuid, true, false, true),
    ("api_keys", "created_at", Kind::Instant, true, false, true),
    ("api_keys", "expires_at", Kind::Instant, false, false, true),
    ("api_keys", "last_used_at", Kind::Instant, false, false, true),
    ("api_keys", "name", Kind::Text, false, false, false),
    ("api_keys", "revoked_at", Kind::Instant, false, false, false),
    ("api_keys", "revocation_reason", Kind::Text, false, false, false),
    ("api_keys", "replaced_by", Kind::Uuid, false, false, false),
    ("api_keys", "key_memo", Kind::Text, false, false, false),
    ("tenants", "mode", Kind::Text, false, false, false),
    ("tenants", "plan", Kind::Text, false, false, false),
    ("api_keys", "disabled_at", Kind::Instant, false, false, false),
    ("api_keys", "not_before", Kind::Instant, false, false, false),
    ("api_keys", "scopes", Kind::Text, false, false, false),
    ("api_keys", "networks", Kind::Text, false, false, false),
    ("api_keys", "plan", Kind::Text, false, false, false),
    ("api_keys", "labels", Kind::Json, false, false, false),
];

/// Columns whose texts have a length that tenantgate chooses, and the longest.
const LENGTHS: [(&str, &str, i32); 4] = [
    ("tenants", "db_schema_name", 63),
    ("tenants", "status", 20),
    ("api_keys", "hashed_key", 60),
    ("api_keys", "key_prefix", 25),
];

/// A column as the database has it.
#[expect(clippy::struct_excessive_bools, reason = "each is a column of the catalogue")]
struct Column {
    type_name: String,
    shown: String,
    is_enum: bool,
    not_null: bool,
    has_default: bool,
    /// The expression of the default.
    default: Option<String>,
    /// Whether the value is computed from other columns.
    is_generated: bool,
    unique: bool,
    /// The most characters it takes, if it is limited.
    length: Option<i32>,
    /// Whether texts that differ may be equal.
    vague: bool,
}

/// Columns by table and name.
type Columns = BTreeMap<(String, String), Column>;

/// Checks existing tables, and converts `timestamp` columns to `timestamptz`. Returns what was converted.
pub(super) async fn adopt(
    connection: &mut PgConnection,
    adoption: &Adoption,
) -> Result<Vec<String>, StoreError> {
    let tables = tables(&mut *connection).await?;
    let columns = columns(&mut *connection).await?;
    let mut wrong = wrong_tables(&tables);
    if wrong.is_empty() {
        wrong = wrong_columns(&tables, &columns);
        wrong.extend(columns.keys().filter_map(|(table, name)| adoption.unsaid(table, name)));
        wrong.extend(
            adoption.unknown(|table, name| columns.contains_key(&(table.to_owned(), name.to_owned()))),
        );
    }
    if !wrong.is_empty() {
        return Err(StoreError::Shape(wrong));
    }
    let mut notes = Vec::new();
    for ((table, name), column) in columns.iter().filter(|(_, column)| column.type_name == "timestamp") {
        if wanted(table, name).is_none_or(|(_, _, kind, ..)| *kind != Kind::Instant) {
            continue;
        }
        let mut sql = format!(
            "ALTER TABLE {table} ALTER COLUMN {name} TYPE timestamptz USING {name} AT TIME ZONE 'UTC'"
        );
        if let Some(default) = &column.default {
            let default = converted_default(&mut *connection, default).await?;
            sql = format!(
                "ALTER TABLE {table} ALTER COLUMN {name} DROP DEFAULT; {sql}; ALTER TABLE {table} ALTER COLUMN {name} SET DEFAULT {default}"
            );
        }
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
        notes.push(format!(
            "{table}.{name} was {} and is timestamptz now, its values read as UTC",
            column.shown
        ));
    }
    Ok(notes)
}

/// Returns the default of a `timestamp` column for its conversion to `timestamptz`. One that has no time zone is read
/// as UTC, like the values; otherwise it would depend on the time zone of each session.
///
/// The statement is prepared and never executed, because a default can call functions of the owner of the table.
async fn converted_default(connection: &mut PgConnection, default: &str) -> Result<String, StoreError> {
    let sql = format!("SELECT {default}");
    let prepared = connection.prepare(AssertSqlSafe(sql).into_sql_str()).await?;
    let naive = prepared.columns().first().is_some_and(|column| column.type_info().name() == "TIMESTAMP");
    Ok(if naive { format!("({default}) AT TIME ZONE 'UTC'") } else { default.to_owned() })
}

/// Finds columns that `serve` cannot read, in tables that were adopted before. For `doctor`.
pub(super) async fn examine(connection: &mut PgConnection) -> Result<Vec<String>, StoreError> {
    let tables = tables(&mut *connection).await?;
    let columns = columns(connection).await?;
    let mut wrong = wrong_tables(&tables);
    wrong.extend(wrong_columns(&tables, &columns));
    let ours = REQUIRED_COLUMNS.iter().filter(|(table, .., theirs)| !theirs && tables.contains_key(*table));
    let missing =
        ours.filter(|(table, name, ..)| !columns.contains_key(&((*table).to_owned(), (*name).to_owned())));
    wrong.extend(
        missing
            .map(|(table, name, kind, ..)| format!("{table}.{name} is missing: must be {}", kind.wanted())),
    );
    let naive = columns.iter().filter(|((table, name), column)| {
        column.type_name == "timestamp"
            && wanted(table, name).is_some_and(|(_, _, kind, ..)| *kind == Kind::Instant)
    });
    wrong.extend(
        naive.map(|((table, name), column)| {
            format!("{table}.{name} is {}: must be timestamptz", column.shown)
        }),
    );
    Ok(wrong)
}

/// Revokes the keys and suspends the tenants that `--revoke-where` selects. Returns how many.
pub(super) async fn revoke(
    connection: &mut PgConnection,
    adoption: &Adoption,
) -> Result<Vec<String>, StoreError> {
    let columns = columns(&mut *connection).await?;
    let mut notes = Vec::new();
    for (name, value) in &adoption.revoke_where {
        let (only, column) =
            name.split_once('.').map_or((None, name.as_str()), |(table, name)| (Some(table), name));
        for (table, sql, verb) in [
            (
                "api_keys",
                "UPDATE api_keys SET revoked_at = now(), revocation_reason = $2 WHERE revoked_at IS NULL",
                "revoked",
            ),
            (
                "tenants",
                "UPDATE tenants SET status = 'suspended' WHERE status = 'active' AND $2 <> ''",
                "suspended",
            ),
        ] {
            let Some(is) = columns.get(&(table.to_owned(), column.to_owned())) else { continue };
            if only.is_some_and(|only| only != table) {
                continue;
            }
            // The value is cast to the type of the column: `False` and `f` are equal, `maybe` is an error.
            let (column_is, type_is) = (quoted(column), &is.shown);
            let matches = if value == ANY {
                format!("$1 = '{ANY}' AND {column_is} IS NOT NULL")
            } else {
                format!("{column_is} = CAST($1::text AS {type_is})")
            };
            let sql = format!("{sql} AND {matches}");
            let reason = format!("{name} = {value} when the table was adopted");
            let done =
                sqlx::query(AssertSqlSafe(sql)).bind(value).bind(reason).execute(&mut *connection).await?;
            notes.push(format!("{verb} {} rows of {table} where {column} is {value}", done.rows_affected()));
        }
    }
    Ok(notes)
}

fn wanted(table: &str, name: &str) -> Option<&'static RequiredColumn> {
    REQUIRED_COLUMNS.iter().find(|(t, n, ..)| *t == table && *n == name)
}

/// Returns the kind of each existing table: `pg_class.relkind`, or the reason why an ordinary table cannot be adopted.
async fn tables(connection: &mut PgConnection) -> Result<BTreeMap<String, String>, StoreError> {
    let sql = "SELECT relname::text, CASE
            WHEN relkind = 'r' AND relpersistence <> 'p' THEN 'unlogged'
            WHEN relkind = 'r' AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid) THEN 'parent'
            WHEN relkind = 'r' AND EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid) THEN 'rules'
            ELSE relkind::text END
        FROM pg_class c WHERE oid IN (to_regclass('tenants'), to_regclass('api_keys'))";
    let rows = sqlx::query(sql).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

async fn columns(connection: &mut PgConnection) -> Result<Columns, StoreError> {
    let sql = "SELECT c.relname::text, a.attname::text, t.typname::text, format_type(a.atttypid, a.atttypmod), t.typtype = 'e',
            a.attnotnull, a.atthasdef OR a.attidentity <> '',
            EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid
                    AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indnkeyatts = 1
                    AND i.indkey[0] = a.attnum),
            CASE WHEN t.typname = 'varchar' AND a.atttypmod > 4 THEN a.atttypmod - 4 END,
            EXISTS (SELECT FROM pg_collation l WHERE l.oid = a.attcollation AND NOT l.collisdeterministic),
            (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d WHERE d.adrelid = c.oid AND d.adnum = a.attnum),
            a.attgenerated <> ''
         FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type t ON t.oid = a.atttypid
         WHERE c.oid IN (to_regclass('tenants'), to_regclass('api_keys')) AND a.attnum > 0 AND NOT a.attisdropped";
    let mut columns = Columns::new();
    for row in sqlx::query(sql).fetch_all(connection).await? {
        let column = Column {
            type_name: row.try_get(2)?,
            shown: row.try_get(3)?,
            is_enum: row.try_get(4)?,
            not_null: row.try_get(5)?,
            has_default: row.try_get(6)?,
            default: row.try_get(10)?,
            is_generated: row.try_get(11)?,
            unique: row.try_get(7)?,
            length: row.try_get(8)?,
            vague: row.try_get(9)?,
        };
        columns.insert((row.try_get(0)?, row.try_get(1)?), column);
    }
    Ok(columns)
}

fn wrong_tables(tables: &BTreeMap<String, String>) -> Vec<String> {
    let wrong = |(name, kind): (&String, &String)| {
        let is = match kind.as_str() {
            "r" => return None,
            "unlogged" => "UNLOGGED, and empty after a crash",
            "parent" => "a table that others inherit from, whose changes are not seen",
            "rules" => "a table with rewrite rules, which can replace INSERT or UPDATE",
            "p" => "a partitioned table",
            "v" => "a view",
            "m" => "a materialized view",
            "f" => "a foreign table",
            _ => "not a table",
        };
        Some(format!("{name} is {is}: must be an ordinary table"))
    };
    let mut wrong: Vec<_> = tables.iter().filter_map(wrong).collect();
    if let [(there, _)] = tables.iter().collect::<Vec<_>>().as_slice() {
        let missing = if *there == "tenants" { "api_keys" } else { "tenants" };
        wrong.push(format!("{missing} is missing beside {there}: both tables or none must exist"));
    }
    wrong
}

/// Returns the length that a column must have in characters; `None` if it is long enough.
fn too_short(table: &str, name: &str, column: &Column) -> Option<i32> {
    let (.., least) = LENGTHS.iter().find(|(t, n, _)| *t == table && *n == name)?;
    column.length.filter(|length| length < least).map(|_| *least)
}

fn wrong_columns(tables: &BTreeMap<String, String>, columns: &Columns) -> Vec<String> {
    let mut wrong = Vec::new();
    for (table, name, kind, always, unique, theirs) in
        REQUIRED_COLUMNS.into_iter().filter(|(table, ..)| tables.contains_key(*table))
    {
        let Some(column) = columns.get(&(table.to_owned(), name.to_owned())) else {
            if theirs {
                wrong.push(format!("{table}.{name} is missing: must be {}", kind.wanted()));
            }
            continue;
        };
        if !kind.fits(&column.type_name) {
            let what = if column.is_enum { " (an enum)" } else { "" };
            wrong.push(format!("{table}.{name} is {}{what}: must be {}", column.shown, kind.wanted()));
        } else if column.is_generated {
            wrong.push(format!("{table}.{name} is GENERATED: must be an ordinary column"));
        } else if column.vague {
            wrong.push(format!(
                "{table}.{name} has a nondeterministic collation: must compare texts byte by byte"
            ));
        } else if let Some(least) = too_short(table, name, column) {
            wrong.push(format!("{table}.{name} is {}: must take {least} characters", column.shown));
        } else if always && !column.not_null {
            wrong.push(format!("{table}.{name} may be NULL: must be NOT NULL"));
        } else if unique && !column.unique {
            wrong.push(format!("{table}.{name} is not UNIQUE: must have a UNIQUE constraint of its own"));
        } else if !always && column.not_null && !column.has_default {
            wrong.push(format!("{table}.{name} is NOT NULL: must allow NULL"));
        }
    }
    for ((table, name), column) in columns {
        if wanted(table, name).is_none() && column.not_null && !column.has_default {
            wrong.push(format!(
                "{table}.{name} is NOT NULL without a default: must have a default, because tenantgate inserts rows without it"
            ));
        }
    }
    wrong
}

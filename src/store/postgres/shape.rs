//! Checks and converts existing tables of tenants and keys. Tables that cannot be adopted are rejected before any
//! change.

use std::collections::BTreeMap;

use sqlx::postgres::PgConnection;
use sqlx::{
    AssertSqlSafe, Column as _, Executor as _, Row as _, SqlSafeStr as _, Statement as _, TypeInfo as _,
};

use super::connection::quoted;
use crate::store::adoption::{ANY, MOST_VALUES, boolean, is_ours, no_such_value, words_for};
use crate::store::migrations::POSTGRES;
use crate::store::{Adoption, StoreError, schema_spec};
use crate::tenant::TenantStatus;

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
    /// `pg_type.typcategory`: B boolean, N number.
    category: String,
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
        wrong.extend(wrong_statuses(&mut *connection).await?);
        wrong.extend(
            adoption.unknown(|table, name| columns.contains_key(&(table.to_owned(), name.to_owned()))),
        );
        wrong.extend(wrong_values(&mut *connection, adoption, &columns).await?);
    }
    if !wrong.is_empty() {
        return Err(StoreError::Shape(wrong));
    }
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let mut notes = make_way(&mut *connection).await?;
    notes.extend(checks(&mut *connection).await?);
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

/// Removes constraints and indexes that migrations create: the two tables may have been restored from a database of tenantgate,
/// without the others. Other indexes of such a name get another one.
async fn make_way(connection: &mut PgConnection) -> Result<Vec<String>, StoreError> {
    const CONSTRAINTS: [(&str, &str); 5] = [
        ("api_keys", "chk_key_scopes"),
        ("api_keys", "chk_key_networks"),
        ("api_keys", "chk_key_labels"),
        ("api_keys", "fk_key_plan"),
        ("tenants", "fk_tenant_plan"),
    ];
    for (table, name) in CONSTRAINTS {
        let sql = format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
    }
    let created: BTreeMap<_, _> = POSTGRES.iter().flat_map(|(_, _, sql)| schema_spec::indexes(sql)).collect();
    let sql = "SELECT c.relname::text, pg_get_indexdef(c.oid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indrelid IN (to_regclass('tenants'), to_regclass('api_keys'))";
    let mut notes = Vec::new();
    for row in sqlx::query(sql).fetch_all(&mut *connection).await? {
        let (name, is): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        // With IF NOT EXISTS, any index of that name will do.
        let Some(ours) = created.get(name.as_str()).filter(|sql| !sql.contains("IF NOT EXISTS")) else {
            continue;
        };
        if columns_of(&is) == columns_of(ours) {
            sqlx::raw_sql(AssertSqlSafe(format!("DROP INDEX {name}"))).execute(&mut *connection).await?;
        } else {
            let sql = format!("ALTER INDEX {name} RENAME TO {name}_before");
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
            notes.push(format!(
                "the index {name} is named {name}_before now, because tenantgate has one of this name"
            ));
        }
    }
    Ok(notes)
}

/// Returns the columns and the condition of a statement that creates an index, without blanks.
fn columns_of(sql: &str) -> String {
    let (_, columns) = sql.split_once(" ON ").unwrap_or_default();
    let (_, columns) = columns.split_once('(').unwrap_or_default();
    columns.replace(['(', ')', ' ', '\n'], "").to_lowercase()
}

/// Returns one line for each status that tenantgate sets and a CHECK of `tenants.status` alone does not allow.
///
/// The expression is read and not evaluated, because it can call functions of whoever owns the table.
async fn wrong_statuses(connection: &mut PgConnection) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT c.conname::text, pg_get_constraintdef(c.oid) FROM pg_constraint c JOIN pg_attribute a
            ON a.attrelid = c.conrelid AND c.conkey = ARRAY[a.attnum]
        WHERE c.contype = 'c' AND c.conrelid = to_regclass('tenants') AND a.attname = 'status' ORDER BY 1";
    let mut wrong = Vec::new();
    for row in sqlx::query(sql).fetch_all(connection).await? {
        let (name, check): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        if !check.contains("= ANY (") || check.contains(" AND ") {
            continue;
        }
        let missing: Vec<_> = TenantStatus::KNOWN
            .into_iter()
            .filter(|status| !check.contains(&format!("'{status}'")))
            .collect();
        if !missing.is_empty() {
            wrong.push(format!(
                "tenants.status may not be {} (constraint {name}): must allow {}",
                missing.join(", "),
                TenantStatus::KNOWN.join(", ")
            ));
        }
    }
    Ok(wrong)
}

/// Returns one note for each CHECK of the application on columns that tenantgate writes.
async fn checks(connection: &mut PgConnection) -> Result<Vec<String>, StoreError> {
    let sql =
        "SELECT c.conrelid::regclass::text, c.conname::text, pg_get_constraintdef(c.oid) FROM pg_constraint c
        WHERE c.contype = 'c' AND c.conrelid IN (to_regclass('tenants'), to_regclass('api_keys'))
          AND c.conname NOT IN ('chk_tenant_status', 'chk_key_memo', 'chk_tenant_mode') ORDER BY 1, 2";
    let note = |row: &sqlx::postgres::PgRow| {
        let (table, name, check): (String, String, String) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        Ok(format!(
            "{table} has the constraint {name}, {check}: tenantgate can write only rows that fulfill it"
        ))
    };
    sqlx::query(sql).fetch_all(connection).await?.iter().map(note).collect()
}

/// Returns the default of a `timestamp` column for its conversion to `timestamptz`. One that has no time zone is read as
/// UTC, like the values; otherwise it would depend on the time zone of each session.
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

/// Returns a condition for the rows whose column has this value, as its type reads it; the values to bind. `None` if it
/// is not a value of the type.
///
/// `False` and `f` are the same boolean, and `true` is 1; texts and enums are compared letter by letter.
fn matches(name: &str, column: &Column, value: &str) -> Option<(String, Vec<String>)> {
    let name = quoted(name);
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    if value == ANY {
        return Some((format!("{name} IS NOT NULL AND $1::text[] IS NOT NULL"), Vec::new()));
    }
    let values = match column.category.as_str() {
        "B" => texts(&[words_for(boolean(value)?)[1]]),
        "N" => match value.parse::<f64>() {
            Ok(number) if number.is_finite() => texts(&[value]),
            _ => texts(&[words_for(boolean(value)?)[0]]),
        },
        _ => return Some((format!("{name}::text = ANY ($1::text[])"), texts(&[value]))),
    };
    Some((format!("{name} = ANY ($1::text[]::{}[])", column.shown), values))
}

/// Returns the faults of the values of `--revoke-where`: those that no row has, although there are rows. A boolean cannot be
/// misspelled, so it may be absent.
async fn wrong_values(
    connection: &mut PgConnection,
    adoption: &Adoption,
    columns: &Columns,
) -> Result<Vec<String>, StoreError> {
    let mut wrong = Vec::new();
    for table in ["tenants", "api_keys"] {
        for (name, column, value) in adoption.revoked_in(table) {
            let Some(is) = columns.get(&(table.to_owned(), column.to_owned())) else { continue };
            let Some((condition, values)) = matches(column, is, value) else {
                wrong.push(format!(
                    "--revoke-where {name}={value}: {table}.{column} is {}, and {value:?} is not a value of it",
                    is.shown
                ));
                continue;
            };
            // `status` is meant to be the column of `api_keys`, if there is one.
            let other = if table == "tenants" { "api_keys" } else { "tenants" };
            let is_others = name == column
                && is_ours(table, column)
                && columns.contains_key(&(other.to_owned(), column.to_owned()));
            if value == ANY || is.category == "B" || is_others {
                continue;
            }
            let sql = format!(
                "SELECT EXISTS (SELECT FROM {table} WHERE {condition}), EXISTS (SELECT FROM {table})"
            );
            let row = sqlx::query(AssertSqlSafe(sql)).bind(values).fetch_one(&mut *connection).await?;
            let (found, any): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
            if any && !found {
                let there = values_of(&mut *connection, table, column).await?;
                wrong.push(no_such_value((name, value), (table, column), &there));
            }
        }
    }
    Ok(wrong)
}

/// Returns the values of a column, one more than are listed.
async fn values_of(
    connection: &mut PgConnection,
    table: &str,
    column: &str,
) -> Result<Vec<String>, StoreError> {
    let column = quoted(column);
    let sql = format!(
        "SELECT DISTINCT left({column}::text, 40) FROM {table} WHERE {column} IS NOT NULL ORDER BY 1 LIMIT {}",
        MOST_VALUES + 1
    );
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(connection).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Revokes the keys and suspends the tenants that `--revoke-where` selects. Returns how many.
pub(super) async fn revoke(
    connection: &mut PgConnection,
    adoption: &Adoption,
) -> Result<Vec<String>, StoreError> {
    let columns = columns(&mut *connection).await?;
    let mut notes = Vec::new();
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
        for (name, column, value) in adoption.revoked_in(table) {
            let is = columns.get(&(table.to_owned(), column.to_owned()));
            let Some((condition, values)) = is.and_then(|is| matches(column, is, value)) else { continue };
            let sql = format!("{sql} AND {condition}");
            let reason = format!("{name} = {value} when the table was adopted");
            let done =
                sqlx::query(AssertSqlSafe(sql)).bind(values).bind(reason).execute(&mut *connection).await?;
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
            a.attgenerated <> '', t.typcategory::text
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
            category: row.try_get(12)?,
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
        } else if !always && column.not_null {
            // A default is not enough: tenantgate writes NULL.
            wrong.push(format!("{table}.{name} is NOT NULL: must allow NULL"));
        } else if ["revoked_at", "disabled_at"].contains(&name) && column.has_default {
            wrong.push(format!(
                "{table}.{name} has a default: must have none, because every new key would be switched off"
            ));
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

//! Checks and converts existing tables of tenants and keys. Tables that cannot be adopted are rejected before any
//! change.

mod columns;
mod revoke_where;

use std::collections::BTreeMap;

use sqlx::postgres::PgConnection;
use sqlx::{
    AssertSqlSafe, Column as _, Executor as _, Row as _, SqlSafeStr as _, Statement as _, TypeInfo as _,
};

use self::columns::{ColumnKind, REQUIRED_COLUMNS, columns, wanted, wrong_columns};
pub(super) use self::revoke_where::revoke;
use self::revoke_where::wrong_values;
use crate::store::migrations::POSTGRES;
use crate::store::{Adoption, StoreError, schema_spec};
use crate::tenant::TenantStatus;

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
        if wanted(table, name).is_none_or(|(_, _, kind, ..)| *kind != ColumnKind::Instant) {
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
/// The expression is read and not evaluated, because it can call functions of the owner of the table.
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
            && wanted(table, name).is_some_and(|(_, _, kind, ..)| *kind == ColumnKind::Instant)
    });
    wrong.extend(
        naive.map(|((table, name), column)| {
            format!("{table}.{name} is {}: must be timestamptz", column.shown)
        }),
    );
    Ok(wrong)
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

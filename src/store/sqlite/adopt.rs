//! Applies migrations to a SQLite file, adopts existing tables, and restores missing triggers.

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use super::{SqliteStore, applied, inspect};
use crate::audit::{Action, Draft};
use crate::diagnostics::Level;
use crate::random;
use crate::store::adoption::{ANY, MOST_VALUES, boolean, is_ours, no_such_value, words_for};
use crate::store::migrations::{self, SQLITE, SQLITE_OBJECTS};
use crate::store::sql::{Link, SQLITE as DIALECT, audit};
use crate::store::{Adoption, Migrated, StoreError};

/// The columns that existing tables must have, and whether they must be unique.
const REQUIRED_COLUMNS: [(&str, &[(&str, bool)]); 2] = [
    (
        "tenants",
        &[("id", true), ("name", false), ("db_schema_name", true), ("created_at", false), ("status", false)],
    ),
    (
        "api_keys",
        &[
            ("id", true),
            ("hashed_key", true),
            ("key_prefix", true),
            ("tenant_id", false),
            ("created_at", false),
            ("expires_at", false),
            ("last_used_at", false),
        ],
    ),
];

/// Does everything in one transaction.
pub(super) async fn migrate(store: &SqliteStore, adoption: &Adoption) -> Result<Migrated, StoreError> {
    if adoption.publication {
        return Err(StoreError::Disallowed("SQLite has no logical replication".into()));
    }
    let mut connection = store.connect().await?;
    // Two programs that start at the same time wait for each other here.
    let mut transaction = connection.begin_with(DIALECT.begin).await?;
    let before = applied(&mut transaction).await?;
    if before == 0 {
        check_shape(&mut transaction, adoption).await?;
    }
    migrations::migrator(SQLITE).run_direct(None, &mut *transaction, false).await?;
    let mut migrated = Migrated { applied: migrations::after(SQLITE, before), ..Migrated::default() };
    if before == 0 {
        migrated.notes = revoke(&mut transaction, adoption).await?;
    }
    let mut findings = inspect::triggers(&mut transaction).await?;
    findings.push(inspect::identity(&mut transaction).await?);
    findings.retain(|finding| finding.level != Level::Ok);
    if !findings.is_empty() {
        sqlx::raw_sql(SQLITE_OBJECTS).execute(&mut *transaction).await?;
        let identity = "INSERT OR IGNORE INTO tenantgate_identity DEFAULT VALUES";
        sqlx::query(identity).execute(&mut *transaction).await?;
        if migrated.applied.is_empty() {
            migrated.mended = findings.into_iter().map(|finding| finding.what).collect();
        }
    }
    if adoption.new_identity {
        let id = random::new_id();
        sqlx::query("DELETE FROM tenantgate_replica").execute(&mut *transaction).await?;
        let sql = "UPDATE tenantgate_identity SET id = ?1, made_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')";
        sqlx::query(sql).bind(id.to_string()).execute(&mut *transaction).await?;
        migrated.identity = Some(id);
    }
    let other = (!migrated.mended.is_empty() || migrated.identity.is_some()).then(|| {
        let is = serde_json::json!({ "mended": migrated.mended, "identity": migrated.identity });
        Draft::of(Action::Migrate, "schema".into(), None::<&()>, &is)
    });
    let drafts = migrations::draft(before, &migrated.applied).into_iter().chain(other);
    audit::append(&mut Link::Sqlite(&mut transaction), &store.context.author, drafts).await?;
    transaction.commit().await?;
    Ok(migrated)
}

/// A column of an existing table.
struct Column {
    name: String,
    /// Whether its declared type is one of texts.
    text: bool,
    /// NOT NULL without a default.
    demanded: bool,
    unique: bool,
}

async fn columns(connection: &mut SqliteConnection, table: &str) -> Result<Vec<Column>, StoreError> {
    let sql = "SELECT name, \"notnull\" AND dflt_value IS NULL AND pk = 0,
            (pk = 1 AND (SELECT max(pk) FROM pragma_table_info(?1)) = 1) OR EXISTS (
                SELECT 1 FROM pragma_index_list(?1) i WHERE i.\"unique\" AND NOT i.partial
                AND (SELECT json_group_array(c.name) FROM pragma_index_info(i.name) c) = json_array(t.name)),
            upper(type) GLOB '*CHAR*' OR upper(type) GLOB '*TEXT*' OR upper(type) GLOB '*CLOB*'
        FROM pragma_table_info(?1) t";
    let rows = sqlx::query(sql).bind(table).fetch_all(connection).await?;
    let column = |row: &SqliteRow| {
        Ok(Column {
            name: row.try_get(0)?,
            demanded: row.try_get(1)?,
            unique: row.try_get(2)?,
            text: row.try_get(3)?,
        })
    };
    rows.iter().map(column).collect()
}

/// Returns why a table cannot be adopted, apart from its columns.
async fn wrong_table(connection: &mut SqliteConnection, table: &str) -> Result<Option<String>, StoreError> {
    let sql = "SELECT type, wr FROM pragma_table_list WHERE schema = 'main' AND name = ?1";
    let Some(row) = sqlx::query(sql).bind(table).fetch_optional(connection).await? else { return Ok(None) };
    let (kind, without_rowid): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
    Ok(match kind.as_str() {
        "table" if without_rowid => Some(format!("{table} is WITHOUT ROWID: must be an ordinary table")),
        "table" => None,
        kind => Some(format!("{table} is a {kind}: must be an ordinary table")),
    })
}

/// Rejects tables that cannot be adopted, before any change.
async fn check_shape(connection: &mut SqliteConnection, adoption: &Adoption) -> Result<(), StoreError> {
    let (mut wrong, mut there) = (Vec::new(), Vec::new());
    for (table, wanted) in REQUIRED_COLUMNS {
        let columns = columns(&mut *connection, table).await?;
        if columns.is_empty() {
            continue;
        }
        wrong.extend(wrong_table(&mut *connection, table).await?);
        for (name, unique) in wanted {
            match columns.iter().find(|column| column.name == *name) {
                None => wrong.push(format!("{table}.{name} is missing")),
                Some(column) if *unique && !column.unique => {
                    wrong.push(format!(
                        "{table}.{name} is not UNIQUE: must have a UNIQUE constraint of its own"
                    ));
                }
                Some(_) => {}
            }
        }
        let theirs = columns.iter().filter(|column| !wanted.iter().any(|(name, _)| column.name == *name));
        wrong.extend(theirs.filter(|column| column.demanded).map(|Column { name, .. }| {
            format!("{table}.{name} is NOT NULL without a default: must have a default, or tenantgate could add no row")
        }));
        wrong.extend(columns.iter().filter_map(|column| adoption.unsaid(table, &column.name)));
        there.push((table, columns));
    }
    if let [(table, _)] = there[..] {
        let missing = if table == "tenants" { "api_keys" } else { "tenants" };
        wrong.push(format!("{missing} is missing beside {table}: both tables or none must exist"));
    }
    let known = |table: &str, name: &str| {
        there
            .iter()
            .any(|(known, columns)| *known == table && columns.iter().any(|column| column.name == name))
    };
    wrong.extend(adoption.unknown(&known));
    for (table, columns) in &there {
        for (name, column, value) in adoption.revoked_in(table) {
            let Some(is) = columns.iter().find(|known| known.name == column) else { continue };
            // `status` is meant to be the column of `api_keys`, if there is one.
            let has = |of: &str| of != *table && known(of, column);
            if name == column && is_ours(table, column) && (has("tenants") || has("api_keys")) {
                continue;
            }
            wrong.extend(wrong_value(&mut *connection, table, is, (name, value)).await?);
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(StoreError::Shape(wrong)) }
}

/// Returns a condition for the rows whose column has this value, and the list to bind. SQLite keeps a boolean as whatever
/// an application wrote, so `false`, `f` and 0 are the same. Other values are compared letter by letter.
fn matches(column: &Column, value: &str) -> (String, String) {
    let quoted = format!("\"{}\"", column.name.replace('"', "\"\""));
    let list = |words: &[&str]| serde_json::json!(words).to_string();
    match boolean(value) {
        _ if value == ANY => (format!("?1 <> '' AND {quoted} IS NOT NULL"), list(&[])),
        Some(boolean) => (
            format!("lower(CAST({quoted} AS TEXT)) IN (SELECT value FROM json_each(?1))"),
            list(&words_for(boolean)),
        ),
        None => (format!("CAST({quoted} AS TEXT) IN (SELECT value FROM json_each(?1))"), list(&[value])),
    }
}

/// Returns the fault of a value of `--revoke-where` that no row has, although there are rows. A boolean cannot be
/// misspelled, so it may be absent.
async fn wrong_value(
    connection: &mut SqliteConnection,
    table: &str,
    column: &Column,
    said: (&str, &str),
) -> Result<Option<String>, StoreError> {
    if said.1 == ANY || (boolean(said.1).is_some() && !column.text) {
        return Ok(None);
    }
    let (condition, list) = matches(column, said.1);
    let sql =
        format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE {condition}), EXISTS (SELECT 1 FROM {table})");
    let row = sqlx::query(AssertSqlSafe(sql)).bind(list).fetch_one(&mut *connection).await?;
    let (found, any): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    if found || !any {
        return Ok(None);
    }
    let quoted = format!("\"{}\"", column.name.replace('"', "\"\""));
    let sql = format!(
        "SELECT DISTINCT substr(CAST({quoted} AS TEXT), 1, 40) FROM {table} WHERE {quoted} IS NOT NULL ORDER BY 1 LIMIT {}",
        MOST_VALUES + 1
    );
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(connection).await?;
    let there = rows.iter().map(|row| Ok(row.try_get(0)?)).collect::<Result<Vec<String>, StoreError>>()?;
    Ok(Some(no_such_value(said, (table, &column.name), &there)))
}

/// Revokes the keys and suspends the tenants that `--revoke-where` selects. Returns how many.
async fn revoke(connection: &mut SqliteConnection, adoption: &Adoption) -> Result<Vec<String>, StoreError> {
    let mut notes = Vec::new();
    for (table, set, verb) in [
        (
            "api_keys",
            "revoked_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), revocation_reason = ?2 WHERE revoked_at IS NULL",
            "revoked",
        ),
        ("tenants", "status = 'suspended' WHERE status = 'active' AND ?2 <> ''", "suspended"),
    ] {
        let there = columns(&mut *connection, table).await?;
        for (name, column, value) in adoption.revoked_in(table) {
            let Some(is) = there.iter().find(|known| known.name == column) else { continue };
            let (condition, list) = matches(is, value);
            let sql = format!("UPDATE {table} SET {set} AND {condition}");
            let reason = format!("{name} = {value} when the table was adopted");
            let done =
                sqlx::query(AssertSqlSafe(sql)).bind(list).bind(reason).execute(&mut *connection).await?;
            notes.push(format!("{verb} {} rows of {table} where {column} is {value}", done.rows_affected()));
        }
    }
    Ok(notes)
}

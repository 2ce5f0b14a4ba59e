//! Applies migrations to a SQLite file, adopts existing tables, and restores missing triggers.

use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use super::{SqliteStore, applied, inspect};
use crate::audit::{Action, Draft};
use crate::diagnostics::Level;
use crate::random;
use crate::store::migrations::{self, SQLITE, SQLITE_OBJECTS};
use crate::store::sql::{Link, SQLITE as DIALECT, audit};
use crate::store::{Adoption, Migrated, StoreError};

/// The columns that existing tables must have.
const WANTED: [(&str, &[&str]); 2] = [
    ("tenants", &["id", "name", "db_schema_name", "created_at", "status"]),
    (
        "api_keys",
        &["id", "hashed_key", "key_prefix", "tenant_id", "created_at", "expires_at", "last_used_at"],
    ),
];

/// Names of columns that usually deactivate rows.
const SWITCHES: [&str; 9] = [
    "is_active",
    "active",
    "enabled",
    "is_enabled",
    "disabled",
    "is_disabled",
    "revoked",
    "is_revoked",
    "is_deleted",
];

/// Does everything in one transaction.
pub(super) async fn migrate(store: &SqliteStore, adoption: &Adoption) -> Result<Migrated, StoreError> {
    if adoption.publication {
        return Err(StoreError::Refused("SQLite has no logical replication".into()));
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
    let findings = inspect::triggers(&mut transaction).await?;
    if findings.iter().any(|finding| finding.level != Level::Ok) {
        sqlx::raw_sql(SQLITE_OBJECTS).execute(&mut *transaction).await?;
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
    audit::append(&mut Link::Sqlite(&mut transaction), &store.behalf.author, drafts).await?;
    transaction.commit().await?;
    Ok(migrated)
}

async fn columns(connection: &mut SqliteConnection, table: &str) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT name FROM pragma_table_info(?1)";
    let rows = sqlx::query(sql).bind(table).fetch_all(connection).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Rejects tables that cannot be adopted, before any change.
async fn check_shape(connection: &mut SqliteConnection, adoption: &Adoption) -> Result<(), StoreError> {
    let mut wrong = Vec::new();
    for (table, wanted) in WANTED {
        let columns = columns(&mut *connection, table).await?;
        if columns.is_empty() {
            continue;
        }
        let missing = wanted.iter().filter(|name| !columns.iter().any(|column| column == *name));
        wrong.extend(missing.map(|name| format!("{table}.{name} is missing")));
        let said = |name: &str| adoption.names().any(|said| said.rsplit('.').next() == Some(name));
        let unsaid = columns.iter().filter(|name| SWITCHES.contains(&name.as_str()) && !said(name));
        wrong.extend(unsaid.map(|name| {
            let off = !(name.contains("active") || name.contains("enabled"));
            format!(
                "{table}.{name} is a column that tenantgate does not read, so rows that it deactivates would be live: \
                 add --revoke-where {name}={off} (or the other value), or --ignore-column {name}"
            )
        }));
    }
    if wrong.is_empty() { Ok(()) } else { Err(StoreError::Shape(wrong)) }
}

/// Revokes the keys and suspends the tenants that `--revoke-where` selects. Returns how many.
async fn revoke(connection: &mut SqliteConnection, adoption: &Adoption) -> Result<Vec<String>, StoreError> {
    let mut notes = Vec::new();
    for (name, value) in &adoption.revoke_where {
        let column = name.rsplit('.').next().unwrap_or(name);
        for (table, set, verb) in [
            (
                "api_keys",
                "revoked_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), revocation_reason = ?2 WHERE revoked_at IS NULL",
                "revoked",
            ),
            ("tenants", "status = 'suspended' WHERE status = 'active' AND ?2 <> ''", "suspended"),
        ] {
            let there = columns(&mut *connection, table).await?.iter().any(|c| c == column);
            if !there || name.split_once('.').is_some_and(|(only, _)| only != table) {
                continue;
            }
            let number = match value.as_str() {
                "true" => "1",
                "false" => "0",
                other => other,
            };
            let column = column.replace('"', "\"\"");
            let sql = format!("UPDATE {table} SET {set} AND lower(CAST(\"{column}\" AS TEXT)) IN (?1, ?3)");
            let reason = format!("{name} = {value} when the table was adopted");
            let query = sqlx::query(AssertSqlSafe(sql)).bind(value).bind(reason).bind(number);
            let done = query.execute(&mut *connection).await?;
            notes.push(format!("{verb} {} rows of {table} where {column} is {value}", done.rows_affected()));
        }
    }
    Ok(notes)
}

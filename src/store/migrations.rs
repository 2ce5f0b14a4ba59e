//! The embedded migrations, one set for each database.
//!
//! Applied migrations are recorded in a table with a name of its own, because other programs may migrate the same
//! database.

use std::borrow::Cow;

use sqlx::SqlSafeStr as _;
use sqlx::SqlStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

use crate::audit::{Action, Draft};

/// A set of migrations: version, description, SQL.
pub(super) type Set = &'static [(i64, &'static str, &'static str)];

/// The table of applied migrations.
pub(super) const TABLE: &str = "tenantgate_migrations";

/// Selects the newest applied migration.
pub(super) const NEWEST_APPLIED: &str = "SELECT max(version) FROM tenantgate_migrations WHERE success";

macro_rules! set {
    ($dialect:literal) => {
        &[
            (
                1,
                "tenants and api_keys",
                include_str!(concat!("../../migrations/", $dialect, "/1_tenants_and_api_keys.sql")),
            ),
            (2, "change log", include_str!(concat!("../../migrations/", $dialect, "/2_change_log.sql"))),
            (3, "audit log", include_str!(concat!("../../migrations/", $dialect, "/3_audit_log.sql"))),
            (
                4,
                "shadow report",
                include_str!(concat!("../../migrations/", $dialect, "/4_shadow_report.sql")),
            ),
            (5, "policy", include_str!(concat!("../../migrations/", $dialect, "/5_policy.sql"))),
            (6, "admin keys", include_str!(concat!("../../migrations/", $dialect, "/6_admin_keys.sql"))),
            (7, "usage", include_str!(concat!("../../migrations/", $dialect, "/7_usage.sql"))),
            (8, "manage", include_str!(concat!("../../migrations/", $dialect, "/8_manage.sql"))),
            (9, "sessions", include_str!(concat!("../../migrations/", $dialect, "/9_sessions.sql"))),
            (10, "refusals", include_str!(concat!("../../migrations/", $dialect, "/10_refusals.sql"))),
        ]
    };
}

/// The migrations for Postgres.
pub(super) const POSTGRES: Set = set!("postgres");
/// The migrations for SQLite.
pub(super) const SQLITE: Set = set!("sqlite");

/// Creates the functions and triggers on Postgres. May be run again at any time.
pub(super) const POSTGRES_OBJECTS: &str = include_str!("../../migrations/postgres/objects.sql");
/// Creates the triggers on SQLite. May be run again at any time.
pub(super) const SQLITE_OBJECTS: &str = include_str!("../../migrations/sqlite/objects.sql");

/// Creates the roles on Postgres and grants their privileges.
pub(super) const ROLES: &str = include_str!("../../migrations/roles.sql");

/// Returns the migrator of a set. It ignores applied migrations of a newer program, which only add objects.
pub(super) fn migrator(set: Set) -> Migrator {
    let migration = |&(version, description, sql): &(i64, &'static str, &'static str)| {
        let sql: SqlStr = sql.into_sql_str();
        Migration::new(version, Cow::Borrowed(description), MigrationType::Simple, sql, false)
    };
    let mut migrator = Migrator::with_migrations(set.iter().map(migration).collect());
    migrator.dangerous_set_table_name(TABLE);
    migrator.set_ignore_missing(true);
    // The migrator's own lock ends before the transaction does. Both stores take a lock that lasts as long as the
    // transaction.
    migrator.set_locking(false);
    migrator
}

/// Returns the newest version of a set.
pub(super) fn newest(set: Set) -> i64 {
    set.iter().map(|(version, ..)| *version).max().unwrap_or(0)
}

/// Returns the versions of a set that come after `version`.
pub(super) fn after(set: Set, version: i64) -> Vec<i64> {
    set.iter().map(|(v, ..)| *v).filter(|v| *v > version).collect()
}

/// Returns the entry of the audit log for applied versions; `None` if there were none.
pub(super) fn draft(before: i64, applied: &[i64]) -> Option<Draft> {
    let current = applied.last()?;
    let was = (before > 0).then(|| serde_json::json!({ "current": before }));
    let is = serde_json::json!({ "applied": applied, "current": current });
    Some(Draft::of(Action::Migrate, "schema".into(), was.as_ref(), &is))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database of another encoding than UTF-8 refuses a statement with a character that it does not have.
    #[test]
    fn migrations_are_ascii() {
        let files = POSTGRES.iter().chain(SQLITE).map(|(_, _, sql)| *sql);
        for sql in files.chain([POSTGRES_OBJECTS, SQLITE_OBJECTS, ROLES]) {
            let wide = sql.lines().find(|line| !line.is_ascii());
            assert_eq!(wide, None);
        }
    }
}

//! Which migrations are there?
//!
//! One set for each dialect, embedded. They are kept in a table of our own name,
//! because the database may be home to other programs that migrate.

use std::borrow::Cow;

use sqlx::SqlSafeStr as _;
use sqlx::SqlStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

use crate::audit::{Action, Draft};

/// A set of migrations: version, description, SQL.
pub(super) type Set = &'static [(i64, &'static str, &'static str)];

/// Where it is written down what was applied.
pub(super) const TABLE: &str = "tenantgate_migrations";

/// The newest migration that was applied.
pub(super) const NEWEST_APPLIED: &str = "SELECT max(version) FROM tenantgate_migrations WHERE success";

macro_rules! set {
    ($dialect:literal) => {
        &[
            (
                1,
                "tenants and api_keys",
                include_str!(concat!("../../migrations/", $dialect, "/1_tenants_and_api_keys.sql")),
            ),
            (
                2,
                "key life cycle",
                include_str!(concat!("../../migrations/", $dialect, "/2_key_life_cycle.sql")),
            ),
            (3, "change log", include_str!(concat!("../../migrations/", $dialect, "/3_change_log.sql"))),
            (4, "replicas", include_str!(concat!("../../migrations/", $dialect, "/4_replicas.sql"))),
            (5, "key memo", include_str!(concat!("../../migrations/", $dialect, "/5_key_memo.sql"))),
            (6, "audit log", include_str!(concat!("../../migrations/", $dialect, "/6_audit_log.sql"))),
            (7, "shadow mode", include_str!(concat!("../../migrations/", $dialect, "/7_shadow_mode.sql"))),
            (
                8,
                "functions of few",
                include_str!(concat!("../../migrations/", $dialect, "/8_functions_of_few.sql")),
            ),
        ]
    };
}

/// For Postgres.
pub(super) const POSTGRES: Set = set!("postgres");
/// For SQLite.
pub(super) const SQLITE: Set = set!("sqlite");

/// Who may do what, on Postgres.
pub(super) const ROLES: &str = include_str!("../../migrations/roles.sql");

/// What applies a set. Migrations of a newer program are left alone: they only ever add.
pub(super) fn migrator(set: Set) -> Migrator {
    let migration = |&(version, description, sql): &(i64, &'static str, &'static str)| {
        let sql: SqlStr = sql.into_sql_str();
        Migration::new(version, Cow::Borrowed(description), MigrationType::Simple, sql, false)
    };
    let mut migrator = Migrator::with_migrations(set.iter().map(migration).collect());
    migrator.dangerous_set_table_name(TABLE);
    migrator.set_ignore_missing(true);
    migrator
}

/// The newest version of a set.
pub(super) fn newest(set: Set) -> i64 {
    set.iter().map(|(version, ..)| *version).max().unwrap_or(0)
}

/// The versions of a set that come after `version`.
pub(super) fn after(set: Set, version: i64) -> Vec<i64> {
    set.iter().map(|(v, ..)| *v).filter(|v| *v > version).collect()
}

/// What the audit log says of versions that were applied; nothing if there were none.
pub(super) fn draft(before: i64, applied: &[i64]) -> Option<Draft> {
    let current = applied.last()?;
    let was = (before > 0).then(|| serde_json::json!({ "current": before }));
    let is = serde_json::json!({ "applied": applied, "current": current });
    Some(Draft::of(Action::Migrate, "schema".into(), was.as_ref(), &is))
}

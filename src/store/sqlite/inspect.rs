//! Examines a SQLite file for `explain` and `doctor`.
//!
//! The examination neither creates nor migrates the file.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Row as _};

use super::files::Files;
use super::session::key_row;
use super::{LINKED, SqliteStore, applied};
use crate::clock::{Clock, Timestamp};
use crate::diagnostics::Finding;
use crate::store::inspect::{Inspect, KeyWithProfile, Purpose};
use crate::store::migrations::{self, SQLITE, SQLITE_OBJECTS};
use crate::store::{StoreError, schema_spec};

#[async_trait]
impl Inspect for SqliteStore {
    async fn key_row(&self, prefix: &str) -> Result<Option<KeyWithProfile>, StoreError> {
        key_row(&mut self.connect().await?, prefix).await
    }

    /// Returns `None`, because a file has no clock.
    async fn time(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(None)
    }

    async fn is_subscriber(&self) -> Result<bool, StoreError> {
        Ok(false)
    }

    async fn examine(&self, _: &dyn Clock, _: Purpose) -> Result<Vec<Finding>, StoreError> {
        let file = self.options.get_filename();
        let mut findings = vec![match std::fs::metadata(file) {
            Ok(meta) if meta.nlink() > 1 => {
                let remedy = "delete the other names; a symbolic link is no other name";
                Finding::warn("database.file", format!("the file has {LINKED}"), remedy)
            }
            Ok(meta) => permissions(meta.permissions().mode()),
            Err(error) => {
                let what = format!("{} cannot be read: {error}", file.display());
                let remedy = "check --database-url; `tenantgate migrate` creates a new one";
                return Ok(vec![Finding::bad("database.file", what, remedy)]);
            }
        }];
        // Without the settings of the store, such as the journal mode, which would change the file.
        Files::of(file).wait_until_none_is_deleted_but_open().await?;
        let mut connection = SqliteConnectOptions::new().filename(file).connect().await?;
        findings.push(integrity(&mut connection).await?);
        findings.push(wal(&mut connection).await?);
        let (current, newest) = (applied(&mut connection).await?, migrations::newest(SQLITE));
        findings.push(schema(current, newest));
        if current >= newest {
            findings.push(identity(&mut connection).await?);
            findings.extend(triggers(&mut connection).await?);
            findings.push(orphans(&mut connection).await?);
        }
        Ok(findings)
    }
}

fn permissions(mode: u32) -> Finding {
    if mode & 0o007 != 0 {
        let remedy = "chmod 0600 it, and its -wal and -shm beside it";
        return Finding::bad("database.file", "everybody on this machine may read the hashes in it", remedy);
    }
    Finding::ok("database.file", "only its owner and group may read it")
}

async fn integrity(connection: &mut SqliteConnection) -> Result<Finding, StoreError> {
    // A value that a CHECK forbids is damage of its row, which `database.rows` names, and not of the file.
    sqlx::query("PRAGMA ignore_check_constraints = ON").execute(&mut *connection).await?;
    let said: String = sqlx::query("PRAGMA quick_check(1)").fetch_one(connection).await?.try_get(0)?;
    Ok(if said == "ok" {
        Finding::ok("database.integrity", "the file is not damaged")
    } else {
        let what = format!("the file is damaged: {}", said.lines().next().unwrap_or_default());
        Finding::bad("database.integrity", what, "restore it from a backup, or `sqlite3 FILE .recover`")
    })
}

async fn wal(connection: &mut SqliteConnection) -> Result<Finding, StoreError> {
    let mode: String = sqlx::query("PRAGMA journal_mode").fetch_one(connection).await?.try_get(0)?;
    Ok(if mode == "wal" {
        Finding::ok("database.wal", "readers and the writer do not wait for each other")
    } else {
        let what = format!("the journal mode is {mode}: a writer makes readers wait");
        Finding::warn("database.wal", what, "move the file to a local file system, which supports WAL")
    })
}

fn schema(current: i64, newest: i64) -> Finding {
    if current < newest {
        let what = format!("the schema is at version {current}, tenantgate needs {newest}");
        Finding::warn("database.schema", what, "do nothing: the next command migrates it")
    } else {
        Finding::ok("database.schema", format!("the schema is at version {current}"))
    }
}

pub(super) async fn triggers(connection: &mut SqliteConnection) -> Result<Vec<Finding>, StoreError> {
    const CHECK: &str = "database.triggers";
    let mut there = BTreeMap::new();
    for row in sqlx::query("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        .fetch_all(connection)
        .await?
    {
        there.insert(row.try_get::<String, _>(0)?, row.try_get::<String, _>(1)?);
    }
    let expected = schema_spec::triggers(SQLITE_OBJECTS, "END;");
    let wrong = |(name, sql): (&str, &str)| {
        let words = schema_spec::words(&format!("{sql}END"));
        let same = there.get(name).is_some_and(|sql| schema_spec::words(sql) == words);
        let what = format!(
            "the trigger {name} is missing or differs from the migrations: replicas may miss changes"
        );
        (!same).then(|| Finding::bad(CHECK, what, "run `tenantgate migrate`"))
    };
    let count = expected.len();
    let wrong: Vec<_> = expected.into_iter().filter_map(wrong).collect();
    let fine = || vec![Finding::ok(CHECK, format!("{count} triggers match the migrations"))];
    Ok(if wrong.is_empty() { fine() } else { wrong })
}

pub(super) async fn identity(connection: &mut SqliteConnection) -> Result<Finding, StoreError> {
    const CHECK: &str = "database.identity";
    let row = sqlx::query("SELECT id FROM tenantgate_identity").fetch_optional(connection).await?;
    Ok(match row {
        Some(row) => {
            Finding::ok(CHECK, format!("servers know this database as {}", row.try_get::<String, _>(0)?))
        }
        None => {
            Finding::bad(CHECK, "the database has no identity: serve rejects it", "run `tenantgate migrate`")
        }
    })
}

/// Finds keys whose tenant was deleted by a session without `foreign_keys = on`.
async fn orphans(connection: &mut SqliteConnection) -> Result<Finding, StoreError> {
    let sql = "SELECT count(*) FROM pragma_foreign_key_check('api_keys') WHERE parent = 'tenants'";
    let orphans: i64 = sqlx::query(sql).fetch_one(connection).await?.try_get(0)?;
    Ok(if orphans == 0 {
        Finding::ok("database.tenants", "every key has its tenant")
    } else {
        let remedy = "DELETE them, and set PRAGMA foreign_keys = on in shells that delete tenants";
        Finding::bad("database.tenants", format!("{orphans} keys have no tenant and get 503"), remedy)
    })
}

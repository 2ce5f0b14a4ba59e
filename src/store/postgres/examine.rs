//! Examines a Postgres database for `doctor`.
//!
//! Each check is one statement that changes nothing, over an ordinary connection with the privileges of the role
//! itself. [`schema_check`] examines triggers and functions, [`privileges`] the role, and [`moved`] data that came from
//! elsewhere.

mod replication;

use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use self::replication::subscription;
use super::{PostgresStore, applied, migrate, moved, privileges, schema_check, shape};
use crate::clock::{Clock, Timestamp};
use crate::diagnostics::{Finding, Level};
use crate::store::inspect::Purpose;
use crate::store::migrations::{self, POSTGRES};
use crate::store::sql::instant::Micros;
use crate::store::{Store as _, StoreError};

/// Runs all checks. Stops early if a fault makes the others impossible.
pub(super) async fn examine(
    store: &PostgresStore,
    clock: &dyn Clock,
    purpose: Purpose,
) -> Result<Vec<Finding>, StoreError> {
    let mut connection = match store.connect().await {
        Err(error) if error.is_pooler() => return Ok(vec![pooler()]),
        connected => connected?,
    };
    let pooler = Finding::ok("database.pooler", "no pooler in transaction mode");
    let mut findings = vec![Finding::ok("database.reachable", store.address()), pooler];
    findings.push(version(&mut connection).await?);
    findings.push(primary(&mut connection).await?);
    findings.push(transport(&mut connection).await?);
    findings.push(time(&mut connection, clock).await?);
    findings.push(encoding(&mut connection).await?);
    findings.push(role(&mut connection).await?);
    let current = applied_or_unreadable(&mut connection).await?;
    let newest = migrations::newest(POSTGRES);
    if current == Some(0)
        && let Err(elsewhere @ StoreError::Elsewhere { .. }) =
            migrate::refuse_tables_elsewhere(&mut connection, &store.schema).await
    {
        let remedy = "name that schema; never run migrate without it";
        findings.push(Finding::bad("database.schema", elsewhere.to_string(), remedy));
        return Ok(findings);
    }
    findings.push(schema(current, newest));
    if current.is_some_and(|current| current >= newest) {
        let shapes = shapes(&mut connection).await?;
        let sound = shapes.iter().all(|finding| finding.level == Level::Ok);
        findings.extend(shapes);
        // A privilege for a missing column cannot be queried.
        if sound {
            findings.extend(privileges::examine(&mut connection, purpose).await?);
        }
        findings.push(row_security(&mut connection).await?);
        findings.extend(schema_check::triggers(&mut connection).await?);
        findings.extend(schema_check::functions(&mut connection, &store.schema).await?);
        findings.extend(schema_check::parts(&mut connection).await?);
        findings.push(second_set(&mut connection, &store.schema).await?);
        findings.extend(identity(&mut connection).await?);
        findings.push(subscription(&mut connection).await?);
        findings.extend(schemas(&mut connection, &store.schema).await?);
        findings.extend(change_log(&mut connection).await?);
    }
    Ok(findings)
}

async fn version(connection: &mut PgConnection) -> Result<Finding, StoreError> {
    let sql = "SELECT current_setting('server_version'), current_setting('server_version_num')::int";
    let row = sqlx::query(sql).fetch_one(connection).await?;
    let (version, number): (String, i32) = (row.try_get(0)?, row.try_get(1)?);
    let what = format!("Postgres {version}");
    Ok(if number < 130_000 {
        Finding::bad("database.version", what, "use Postgres 13 or newer: older ones have no xid8")
    } else {
        Finding::ok("database.version", what)
    })
}

async fn primary(connection: &mut PgConnection) -> Result<Finding, StoreError> {
    let standby = sqlx::query("SELECT pg_is_in_recovery()").fetch_one(connection).await?.try_get(0)?;
    Ok(if standby {
        Finding::bad(
            "database.primary",
            "a standby, which shows commits late and accepts no changes",
            "point the URL at the primary",
        )
    } else {
        Finding::ok("database.primary", "the primary")
    })
}

fn pooler() -> Finding {
    Finding::bad(
        "database.pooler",
        "a pooler in transaction mode: sessions move between backends, and LISTEN does not work",
        "connect to the database itself, or use the pooler's session mode",
    )
}

async fn transport(connection: &mut PgConnection) -> Result<Finding, StoreError> {
    let sql = "SELECT coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false),
                      coalesce(inet_client_addr() <<= '127.0.0.0/8' OR inet_client_addr() = '::1'
                               OR inet_client_addr() = inet_server_addr(), true)";
    let row = sqlx::query(sql).fetch_one(connection).await?;
    let (tls, near): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    Ok(match (tls, near) {
        (true, _) => Finding::ok("database.tls", "the connection is encrypted"),
        (false, true) => {
            Finding::ok("database.tls", "not encrypted, but the traffic does not leave the machine")
        }
        (false, false) => Finding::warn(
            "database.tls",
            "not encrypted: hashes of keys cross the network in plain text",
            "add ?sslmode=verify-full&sslrootcert=/path/ca.pem to the URL",
        ),
    })
}

/// Detects the encoding `SQL_ASCII`, which does not check texts, so that some of them may not be valid UTF-8.
async fn encoding(connection: &mut PgConnection) -> Result<Finding, StoreError> {
    let row = sqlx::query("SELECT current_setting('server_encoding')").fetch_one(connection).await?;
    let encoding: String = row.try_get(0)?;
    Ok(if encoding == "SQL_ASCII" {
        let what = "the encoding is SQL_ASCII: a text may be no UTF-8, and makes its row a damaged one";
        Finding::warn("database.encoding", what, "restore a dump into a database WITH ENCODING 'UTF8'")
    } else {
        Finding::ok("database.encoding", encoding)
    })
}

/// The maximum difference of the clocks; `serve` warns of the same.
const SKEW_MICROS: i64 = 2_000_000;

async fn time(connection: &mut PgConnection, clock: &dyn Clock) -> Result<Finding, StoreError> {
    let before = clock.now();
    let row = sqlx::query("SELECT clock_timestamp()").fetch_one(connection).await?;
    Ok(skew(before, row.try_get::<Micros, _>(0)?.0, clock.now()))
}

/// Compares the clocks. The database read its clock at some instant between `before` and `after`.
fn skew(before: Timestamp, there: Timestamp, after: Timestamp) -> Finding {
    let ahead = before.0.saturating_sub(there.0).max(0);
    let behind = there.0.saturating_sub(after.0).max(0);
    if ahead.max(behind) <= SKEW_MICROS {
        return Finding::ok("database.clock", "the clock here agrees with the database's");
    }
    let seconds = ahead.max(behind) / 1_000_000;
    let way = if ahead > behind { "ahead of" } else { "behind" };
    let what = format!("the clock here is {seconds} s {way} the database's: keys expire by the later one");
    Finding::warn("database.clock", what, "correct the clock (NTP)")
}

async fn role(connection: &mut PgConnection) -> Result<Finding, StoreError> {
    let sql = "SELECT current_user::text, rolsuper FROM pg_roles WHERE rolname = current_user";
    let row = sqlx::query(sql).fetch_one(connection).await?;
    let (name, superuser): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
    Ok(if superuser {
        let what = format!("the role {name} is a superuser: its password gives access to the whole cluster");
        Finding::warn("database.role", what, "give serve a role of its own (docs/guides/postgres-roles.md)")
    } else {
        Finding::ok("database.role", format!("the role {name} is not a superuser"))
    })
}

/// Returns the newest applied migration; `None` if the role may not read the table of migrations, without which `serve`
/// fails, too.
async fn applied_or_unreadable(connection: &mut PgConnection) -> Result<Option<i64>, StoreError> {
    match applied(connection).await {
        Ok(current) => Ok(Some(current)),
        Err(StoreError::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn schema(current: Option<i64>, newest: i64) -> Finding {
    const CHECK: &str = "database.schema";
    match current {
        None => Finding::bad(
            CHECK,
            "the role may not read tenantgate_migrations",
            "GRANT SELECT ON tenantgate_migrations (docs/guides/postgres-roles.md)",
        ),
        Some(current) if current < newest => {
            let what = format!("the schema is at version {current}, tenantgate needs {newest}");
            Finding::bad(CHECK, what, "run `tenantgate migrate` as the owner of the tables")
        }
        Some(current) if current > newest => {
            Finding::ok(CHECK, format!("the schema is at version {current}, newer than the {newest} needed"))
        }
        Some(current) => Finding::ok(CHECK, format!("the schema is at version {current}")),
    }
}

async fn row_security(connection: &mut PgConnection) -> Result<Finding, StoreError> {
    let sql = "SELECT row_security_active('api_keys') OR row_security_active('tenants')";
    let active: bool = sqlx::query(sql).fetch_one(connection).await?.try_get(0)?;
    Ok(if active {
        let remedy = "exempt the role (BYPASSRLS), or disable row-level security on both tables";
        Finding::bad(
            "database.row_security",
            "a policy decides which rows the role sees: serve refuses to load them",
            remedy,
        )
    } else {
        Finding::ok("database.row_security", "no policy hides rows")
    })
}

/// Examines the columns, which an application may have changed after its tables were adopted.
async fn shapes(connection: &mut PgConnection) -> Result<Vec<Finding>, StoreError> {
    const CHECK: &str = "database.columns";
    let wrong = shape::examine(connection).await?;
    let fine = || vec![Finding::ok(CHECK, "tenants and api_keys have the columns that tenantgate needs")];
    let bad = |what: String| Finding::bad(CHECK, what, "change the column with ALTER TABLE");
    Ok(if wrong.is_empty() { fine() } else { wrong.into_iter().map(bad).collect() })
}

/// Finds a second set of tenantgate's tables, which an operator may change by mistake.
async fn second_set(connection: &mut PgConnection, home: &str) -> Result<Finding, StoreError> {
    const CHECK: &str = "database.tables";
    let sql = "SELECT n.nspname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE c.relname = 'tenantgate_migrations' AND n.nspname <> $1 ORDER BY 1 LIMIT 1";
    Ok(match sqlx::query(sql).bind(home).fetch_optional(connection).await? {
        None => Finding::ok(CHECK, format!("the only tables of tenantgate are in the schema {home}")),
        Some(row) => {
            let other: String = row.try_get(0)?;
            let what = format!("the schema {other} has tables of tenantgate, too; {home} is served");
            Finding::bad(CHECK, what, "use --database-schema to name the right one, and drop the other set")
        }
    })
}

/// Examines the identity of the database, and whether its change log has rows of another cluster.
async fn identity(connection: &mut PgConnection) -> Result<Option<Finding>, StoreError> {
    const CHECK: &str = "database.identity";
    let sql = format!(
        "SELECT (SELECT id::text FROM tenantgate_identity), {}, EXISTS (SELECT FROM tenantgate_change_floor)",
        moved::FOREIGN
    );
    let asked = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_one(connection).await;
    let row = match asked.map_err(StoreError::from) {
        Ok(row) => row,
        // Another finding reports the missing privilege.
        Err(StoreError::Refused(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let (id, foreign, floor): (Option<String>, bool, bool) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    Ok(Some(match id {
        None => {
            Finding::bad(CHECK, "the database has no identity: serve rejects it", "run `tenantgate migrate`")
        }
        Some(_) if foreign => {
            let what = "the change log holds rows of another cluster (a restored dump); they do not count as changes";
            Finding::bad(CHECK, what, "run `tenantgate migrate`, which removes them")
        }
        Some(_) if !floor => {
            let what = "tenantgate_change_floor is empty: a server that was away long misses what was pruned meanwhile";
            Finding::bad(CHECK, what, "run `tenantgate migrate`, which makes its row")
        }
        Some(id) => Finding::ok(CHECK, format!("servers know this database as {id}")),
    }))
}

/// Finds schemas that precede the configured one in the search path, and served tenants without a schema.
async fn schemas(connection: &mut PgConnection, home: &str) -> Result<Vec<Finding>, StoreError> {
    const CHECK: &str = "database.schemas";
    let sql = "SELECT db_schema_name::text, db_schema_name = $1 OR EXISTS (SELECT FROM pg_roles WHERE rolname = db_schema_name),
                      status = 'active' AND NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = db_schema_name)
               FROM tenants ORDER BY 1";
    let Ok(rows) = sqlx::query(sql).bind(home).fetch_all(connection).await else { return Ok(Vec::new()) };
    let mut findings = Vec::new();
    let mut missing = Vec::new();
    for row in &rows {
        let (schema, taken, lacking): (String, bool, bool) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if taken {
            let what = format!(
                "a tenant has the schema {schema:?}, which has tenantgate's tables or the name of a role"
            );
            findings.push(Finding::bad(
                CHECK,
                what,
                "rename the schema and db_schema_name, or rename the role",
            ));
        }
        if lacking {
            missing.push(schema);
        }
    }
    if let Some(first) = missing.first() {
        let what = format!("{} active tenants have no schema, {first:?} is the first", missing.len());
        findings.push(Finding::warn(CHECK, what, "`tenantgate tenant activate REF` creates it"));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "every active tenant has its schema"));
    }
    Ok(findings)
}

/// Examines whether the change log is pruned. `serve` keeps an hour of it; older rows stay if no server runs, or while
/// a transaction is open.
async fn change_log(connection: &mut PgConnection) -> Result<Option<Finding>, StoreError> {
    const CHECK: &str = "database.change_log";
    let sql = "SELECT count(*) FROM tenantgate_change WHERE at < now() - interval '2 hours'";
    let Ok(row) = sqlx::query(sql).fetch_one(connection).await else { return Ok(None) };
    let old: i64 = row.try_get(0)?;
    Ok(Some(if old == 0 {
        Finding::ok(CHECK, "the change log is pruned in time")
    } else {
        let what = format!("{old} rows of tenantgate_change are older than two hours");
        let remedy = "if no serve runs, start one; else end the transaction that is open for hours (pg_stat_activity, xact_start)";
        Finding::warn(CHECK, what, remedy)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_agree_if_the_database_was_asked_within_two_seconds_of_its_answer() {
        let at = |seconds: i64| Timestamp(seconds * 1_000_000);
        for (before, there, after, expected) in [
            (10, 10, 10, "agrees"),
            (10, 12, 10, "agrees"),
            (10, 500, 600, "agrees"),
            (10, 13, 10, "3 s behind"),
            (15, 10, 16, "5 s ahead of"),
        ] {
            let found = skew(at(before), at(there), at(after));
            assert!(found.what.contains(expected), "{found:?}");
        }
    }
}

//! Examines the privileges of the database role.
//!
//! Compares the privileges of the role with those that `serve`, and the commands that change something, need. They are
//! the same that `migrations/roles.sql` grants. It only queries the catalogue and attempts no change.

use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use crate::diagnostics::Finding;
use crate::store::StoreError;
use crate::store::inspect::Purpose;

/// A privilege: its name, the SQL expression that tests for it, and whether `serve` cannot accept any key without it.
type Right = (&'static str, &'static str, bool);

/// The privileges for `serve`.
const SERVE: [Right; 18] = [
    ("SELECT ON tenants", "has_table_privilege('tenants', 'SELECT')", true),
    (
        "SELECT ON api_keys",
        "(SELECT bool_and(has_column_privilege('api_keys', c, 'SELECT')) FROM unnest(ARRAY['id', 'tenant_id', 'key_prefix',
          'hashed_key', 'expires_at', 'revoked_at', 'last_used_at', 'key_memo', 'disabled_at', 'not_before', 'scopes',
          'networks', 'plan']) AS c)",
        true,
    ),
    ("SELECT ON tenantgate_plan", "has_table_privilege('tenantgate_plan', 'SELECT')", true),
    ("SELECT ON tenantgate_route", "has_table_privilege('tenantgate_route', 'SELECT')", true),
    ("SELECT ON tenantgate_change", "has_table_privilege('tenantgate_change', 'SELECT')", true),
    ("SELECT ON tenantgate_change_floor", "has_table_privilege('tenantgate_change_floor', 'SELECT')", true),
    ("SELECT ON tenantgate_identity", "has_table_privilege('tenantgate_identity', 'SELECT')", true),
    ("EXECUTE ON FUNCTION tenantgate_settle()", "has_function_privilege(to_regprocedure('tenantgate_settle()'), 'EXECUTE')", false),
    ("SELECT ON tenantgate_migrations", "has_table_privilege('tenantgate_migrations', 'SELECT')", true),
    ("EXECUTE ON FUNCTION pg_control_system()", "has_function_privilege(to_regprocedure('pg_control_system()'), 'EXECUTE')", true),
    ("UPDATE (last_used_at) ON api_keys", "has_column_privilege('api_keys', 'last_used_at', 'UPDATE')", false),
    ("UPDATE (key_memo) ON api_keys", "has_column_privilege('api_keys', 'key_memo', 'UPDATE')", false),
    (
        "SELECT, INSERT, UPDATE (applied, seen_at, serves_until), DELETE ON tenantgate_replica",
        "(SELECT bool_and(has_table_privilege('tenantgate_replica', p)) FROM unnest(ARRAY['SELECT', 'INSERT', 'DELETE']) AS p)
          AND (SELECT bool_and(has_column_privilege('tenantgate_replica', c, 'UPDATE'))
               FROM unnest(ARRAY['applied', 'seen_at', 'serves_until']) AS c)",
        false,
    ),
    (
        "SELECT, INSERT, UPDATE (requests, first_seen, last_seen), DELETE ON tenantgate_shadow_report",
        "(SELECT bool_and(has_table_privilege('tenantgate_shadow_report', p)) FROM unnest(ARRAY['SELECT', 'INSERT', 'DELETE']) AS p)
          AND (SELECT bool_and(has_column_privilege('tenantgate_shadow_report', c, 'UPDATE'))
               FROM unnest(ARRAY['requests', 'first_seen', 'last_seen']) AS c)",
        false,
    ),
    (
        "SELECT (at), INSERT, DELETE ON tenantgate_refusal",
        "has_column_privilege('tenantgate_refusal', 'at', 'SELECT') AND has_table_privilege('tenantgate_refusal', 'INSERT')
          AND has_table_privilege('tenantgate_refusal', 'DELETE')",
        false,
    ),
    ("EXECUTE ON FUNCTION tenantgate_prune(interval)", "has_function_privilege('tenantgate_prune(interval)', 'EXECUTE')", false),
    (
        "EXECUTE ON FUNCTION tenantgate_add_usage(date[], uuid[], text[], bigint[])",
        "has_function_privilege(to_regprocedure('tenantgate_add_usage(date[], uuid[], text[], bigint[])'), 'EXECUTE')",
        false,
    ),
    (
        "EXECUTE ON FUNCTION tenantgate_prune_usage(interval)",
        "has_function_privilege(to_regprocedure('tenantgate_prune_usage(interval)'), 'EXECUTE')",
        false,
    ),
];

/// The privileges for `tenant`, `key`, `plan`, `route`, `admin-key`, `report`, `audit` and `manage`.
const ADMIN: [Right; 16] = [
    (
        "SELECT, INSERT, UPDATE (name, status, mode, plan) ON tenants",
        "has_table_privilege('tenants', 'SELECT') AND has_table_privilege('tenants', 'INSERT')
          AND (SELECT bool_and(has_column_privilege('tenants', c, 'UPDATE'))
               FROM unnest(ARRAY['name', 'status', 'mode', 'plan']) AS c)",
        false,
    ),
    (
        "SELECT, INSERT, UPDATE (name, expires_at, revoked_at, revocation_reason, replaced_by, disabled_at, not_before, scopes, networks, plan, labels) ON api_keys",
        "has_table_privilege('api_keys', 'SELECT') AND has_table_privilege('api_keys', 'INSERT')
          AND (SELECT bool_and(has_column_privilege('api_keys', c, 'UPDATE'))
               FROM unnest(ARRAY['name', 'expires_at', 'revoked_at', 'revocation_reason', 'replaced_by', 'disabled_at', 'not_before', 'scopes', 'networks', 'plan', 'labels']) AS c)",
        false,
    ),
    (
        "SELECT, INSERT, DELETE, UPDATE (request_limit, total_limit, input_limit, output_limit) ON tenantgate_plan",
        "has_table_privilege('tenantgate_plan', 'SELECT') AND has_table_privilege('tenantgate_plan', 'INSERT') AND has_table_privilege('tenantgate_plan', 'DELETE')
          AND (SELECT bool_and(has_column_privilege('tenantgate_plan', c, 'UPDATE'))
               FROM unnest(ARRAY['request_limit', 'total_limit', 'input_limit', 'output_limit']) AS c)",
        false,
    ),
    (
        "SELECT, INSERT, DELETE, UPDATE (name, mode, scopes, shadow) ON tenantgate_route",
        "has_table_privilege('tenantgate_route', 'SELECT') AND has_table_privilege('tenantgate_route', 'INSERT') AND has_table_privilege('tenantgate_route', 'DELETE')
          AND (SELECT bool_and(has_column_privilege('tenantgate_route', c, 'UPDATE'))
               FROM unnest(ARRAY['name', 'mode', 'scopes', 'shadow']) AS c)",
        false,
    ),
    (
        "SELECT, INSERT, UPDATE (name, permissions, tenants, expires_at, last_used_at, revoked_at) ON tenantgate_admin_key",
        "has_table_privilege('tenantgate_admin_key', 'SELECT') AND has_table_privilege('tenantgate_admin_key', 'INSERT')
          AND (SELECT bool_and(has_column_privilege('tenantgate_admin_key', c, 'UPDATE'))
               FROM unnest(ARRAY['name', 'permissions', 'tenants', 'expires_at', 'last_used_at', 'revoked_at']) AS c)",
        false,
    ),
    (
        "SELECT, INSERT, UPDATE (answer), DELETE ON tenantgate_idempotency",
        "(SELECT bool_and(has_table_privilege('tenantgate_idempotency', p)) FROM unnest(ARRAY['SELECT', 'INSERT', 'DELETE']) AS p)
          AND has_column_privilege('tenantgate_idempotency', 'answer', 'UPDATE')",
        false,
    ),
    (
        "SELECT, INSERT, DELETE, UPDATE (last_seen_at) ON tenantgate_admin_session",
        "has_table_privilege('tenantgate_admin_session', 'SELECT') AND has_table_privilege('tenantgate_admin_session', 'INSERT')
          AND has_table_privilege('tenantgate_admin_session', 'DELETE')
          AND has_column_privilege('tenantgate_admin_session', 'last_seen_at', 'UPDATE')",
        false,
    ),
    (
        "SELECT, INSERT, DELETE ON tenantgate_login_link",
        "has_table_privilege('tenantgate_login_link', 'SELECT') AND has_table_privilege('tenantgate_login_link', 'INSERT')
          AND has_table_privilege('tenantgate_login_link', 'DELETE')",
        false,
    ),
    (
        "SELECT, INSERT ON tenantgate_audit_log",
        "has_table_privilege('tenantgate_audit_log', 'SELECT') AND has_table_privilege('tenantgate_audit_log', 'INSERT')",
        false,
    ),
    ("SELECT ON tenantgate_change", "has_table_privilege('tenantgate_change', 'SELECT')", false),
    ("SELECT ON tenantgate_replica", "has_table_privilege('tenantgate_replica', 'SELECT')", false),
    ("SELECT ON tenantgate_shadow_report", "has_table_privilege('tenantgate_shadow_report', 'SELECT')", false),
    ("SELECT ON tenantgate_usage", "has_table_privilege('tenantgate_usage', 'SELECT')", false),
    ("SELECT ON tenantgate_refusal", "has_table_privilege('tenantgate_refusal', 'SELECT')", false),
    ("EXECUTE ON FUNCTION tenantgate_mark()", "has_function_privilege('tenantgate_mark()', 'EXECUTE')", false),
    ("CREATE ON DATABASE", "has_database_privilege(current_database(), 'CREATE')", false),
];

/// A role that has one of these privileges is meant to manage tenants and keys.
const CHANGES_SOMETHING: &str = "has_table_privilege('tenants', 'INSERT') OR has_table_privilege('api_keys', 'INSERT')
    OR has_column_privilege('tenants', 'status', 'UPDATE') OR has_column_privilege('api_keys', 'revoked_at', 'UPDATE')";

/// Privileges that only the owner of the tables needs. `manage` is reachable over the network, so its role must not be
/// able to change hashes or the audit log.
const TOO_MUCH: [Right; 4] = [
    (
        "own the tables",
        "(SELECT bool_or(pg_has_role(relowner, 'USAGE')) FROM pg_class
          WHERE oid IN ('tenants'::regclass, 'api_keys'::regclass, 'tenantgate_audit_log'::regclass))",
        false,
    ),
    ("overwrite hashes of keys", "has_column_privilege('api_keys', 'hashed_key', 'UPDATE')", false),
    (
        "delete tenants or keys",
        "has_table_privilege('tenants', 'DELETE, TRUNCATE') OR has_table_privilege('api_keys', 'DELETE, TRUNCATE')",
        false,
    ),
    (
        "change or delete rows of the audit log",
        "has_any_column_privilege('tenantgate_audit_log', 'UPDATE')
          OR has_table_privilege('tenantgate_audit_log', 'DELETE, TRUNCATE')",
        false,
    ),
];

/// Examines the privileges that the role needs for this purpose.
pub(super) async fn examine(
    connection: &mut PgConnection,
    purpose: Purpose,
) -> Result<[Finding; 2], StoreError> {
    Ok(match purpose {
        Purpose::Serve => [serve(&missing(connection, &SERVE).await?), admin(connection).await?],
        Purpose::Manage => [
            manage(&missing(connection, &ADMIN).await?),
            no_more_than_manage(&held(connection, &TOO_MUCH).await?),
        ],
    })
}

fn manage(missing: &[Right]) -> Finding {
    const CHECK: &str = "database.manage_rights";
    if missing.is_empty() {
        return Finding::ok(CHECK, "the role has all rights that manage needs");
    }
    let remedy = "use a role that is a member of tenantgate_admin, and run `tenantgate migrate --roles`: without it \
                  manage answers some requests with 503";
    Finding::bad(CHECK, lacks(missing), remedy)
}

fn no_more_than_manage(held: &[Right]) -> Finding {
    const CHECK: &str = "database.manage_limits";
    if held.is_empty() {
        return Finding::ok(CHECK, "the role cannot change hashes, delete keys or change the audit log");
    }
    let names: Vec<_> = held.iter().map(|(name, ..)| *name).collect();
    let what = format!("the role can {}: manage does not need that", names.join("; "));
    Finding::warn(
        CHECK,
        what,
        "use a role that is a member of tenantgate_admin (docs/guides/postgres-roles.md)",
    )
}

fn serve(missing: &[Right]) -> Finding {
    const CHECK: &str = "database.rights";
    if missing.is_empty() {
        return Finding::ok(CHECK, "the role has all rights that serve needs");
    }
    let what = lacks(missing);
    if missing.iter().any(|(_, _, essential)| *essential) {
        Finding::bad(CHECK, what, "GRANT it (docs/guides/postgres-roles.md): without it serve answers 503")
    } else {
        let remedy = "GRANT it (docs/guides/postgres-roles.md): last_used_at, memos, --wait of others, the shadow report, \
                      usage or pruning need it";
        Finding::warn(CHECK, what, remedy)
    }
}

async fn admin(connection: &mut PgConnection) -> Result<Finding, StoreError> {
    const CHECK: &str = "database.admin_rights";
    if !asked(connection, CHANGES_SOMETHING).await?.iter().any(|holds| *holds) {
        return Ok(Finding::ok(CHECK, "the role cannot change tenants or keys, and serve does not need to"));
    }
    let missing = missing(connection, &ADMIN).await?;
    Ok(if missing.is_empty() {
        Finding::ok(CHECK, "the role has all rights that `tenant` and `key` need")
    } else {
        let remedy = "GRANT it (docs/guides/postgres-roles.md), or REVOKE the others: `tenant` and `key` need all of them, \
                      also those on the audit log";
        Finding::warn(CHECK, lacks(&missing), remedy)
    })
}

fn lacks(missing: &[Right]) -> String {
    let names: Vec<_> = missing.iter().map(|(name, ..)| *name).collect();
    format!("the role lacks {}", names.join("; "))
}

async fn missing(connection: &mut PgConnection, rights: &[Right]) -> Result<Vec<Right>, StoreError> {
    divided(connection, rights, false).await
}

async fn held(connection: &mut PgConnection, rights: &[Right]) -> Result<Vec<Right>, StoreError> {
    divided(connection, rights, true).await
}

/// Returns the privileges that the role has, or those that it lacks.
async fn divided(
    connection: &mut PgConnection,
    rights: &[Right],
    has: bool,
) -> Result<Vec<Right>, StoreError> {
    let questions: Vec<_> = rights.iter().map(|(_, ask, _)| *ask).collect();
    let holds = asked(connection, &questions.join(", ")).await?;
    Ok(rights.iter().zip(holds).filter(|(_, holds)| *holds == has).map(|(right, _)| *right).collect())
}

/// Evaluates boolean SQL expressions. NULL counts as false.
async fn asked(connection: &mut PgConnection, questions: &str) -> Result<Vec<bool>, StoreError> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT {questions}"))).fetch_one(connection).await?;
    let answer = |at| Ok(row.try_get::<Option<bool>, _>(at)?.unwrap_or(false));
    (0..row.len()).map(answer).collect()
}

//! The rows of a SQLite file.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};
use tenantgate::clock::Timestamp;
use tenantgate::key::KeyId;
use tenantgate::plan::PlanRow;
use tenantgate::profile::ProfileRow;
use tenantgate::record::{KeyRecord, SecretHash};
use tenantgate::route::{RouteId, RouteRow};
use tenantgate::tenant::{Tenant, TenantId, TenantStatus};
use uuid::Uuid;

use super::state::State;
use crate::support::database::Session as Connection;
use crate::support::wait;

/// Returns the committed state.
pub(super) fn state(reader: &mut Connection) -> State {
    let Connection::Sqlite(session) = reader else { unreachable!("a file") };
    wait(async {
        State {
            keys: rows(session, "SELECT * FROM api_keys").await.iter().map(key).collect(),
            tenants: rows(session, "SELECT * FROM tenants").await.iter().map(tenant).collect(),
            plans: rows(session, "SELECT * FROM tenantgate_plan ORDER BY name")
                .await
                .iter()
                .map(plan)
                .collect(),
            rules: rows(session, "SELECT * FROM tenantgate_route ORDER BY id")
                .await
                .iter()
                .map(rule)
                .collect(),
        }
    })
}

async fn rows(session: &mut SqliteConnection, sql: &'static str) -> Vec<SqliteRow> {
    sqlx::query(sql).fetch_all(session).await.expect(sql)
}

fn key(row: &SqliteRow) -> (KeyRecord, ProfileRow) {
    let instant = |column| row.get::<Option<&str>, _>(column).and_then(Timestamp::parse_rfc_3339);
    let text = |column| row.get::<Option<&str>, _>(column).map(Into::into);
    let record = KeyRecord {
        id: KeyId(uuid(row.get("id"))),
        tenant_id: TenantId(uuid(row.get("tenant_id"))),
        prefix: row.get::<&str, _>("key_prefix").into(),
        hash: SecretHash::parse(row.get("hashed_key")),
        expires_at: instant("expires_at").into(),
        revoked: row.get::<Option<&str>, _>("revoked_at").is_some(),
        not_before: instant("not_before").unwrap_or(Timestamp::MIN),
        disabled: row.get::<Option<&str>, _>("disabled_at").is_some(),
    };
    let profile = ProfileRow {
        scopes: text("scopes"),
        networks: text("networks"),
        plan: text("plan"),
        unreadable: None,
    };
    (record, profile)
}

fn tenant(row: &SqliteRow) -> Tenant {
    Tenant {
        id: TenantId(uuid(row.get("id"))),
        name: row.get("name"),
        schema: row.get("db_schema_name"),
        status: TenantStatus::parse(row.get("status")),
        mode: None,
        created_at: Timestamp::parse_rfc_3339(row.get("created_at")).expect("an instant"),
        plan: row.get::<Option<&str>, _>("plan").map(Into::into),
    }
}

fn plan(row: &SqliteRow) -> PlanRow {
    PlanRow { name: row.get("name"), limits: [row.get("request_limit"), row.get("total_limit"), None, None] }
}

fn rule(row: &SqliteRow) -> RouteRow {
    RouteRow {
        id: RouteId(uuid(row.get("id"))),
        name: row.get("name"),
        host: row.get("host"),
        method: row.get("method"),
        path: row.get("path"),
        mode: row.get("mode"),
        scopes: row.get("scopes"),
        shadow: row.get("shadow"),
    }
}

fn uuid(text: &str) -> Uuid {
    Uuid::parse_str(text).expect("a UUID")
}

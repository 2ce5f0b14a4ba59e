//! The history of the database: every version of every row, with its transaction.
//!
//! A trigger of the test records each version in the order of the versions of a row. It is independent of tenantgate's
//! change log: it has no exceptions, contains whole rows, and is never pruned.

use std::collections::BTreeMap;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use tenantgate::clock::Timestamp;
use tenantgate::key::KeyId;
use tenantgate::plan::PlanRow;
use tenantgate::profile::ProfileRow;
use tenantgate::record::{KeyRecord, SecretHash};
use tenantgate::route::{RouteId, RouteRow};
use tenantgate::tenant::{Tenant, TenantId, TenantStatus};
use uuid::Uuid;

use super::state::State;

/// The triggers that record the history.
pub(super) const SETUP: &str = "
    CREATE TABLE history (
        seq bigint GENERATED ALWAYS AS IDENTITY, xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        key_prefix text, k api_keys, tenant_id uuid, t tenants, plan_name text, p tenantgate_plan,
        route_id uuid, r tenantgate_route);
    CREATE FUNCTION history_of_key() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$ BEGIN
        IF tg_op <> 'INSERT' THEN INSERT INTO history (key_prefix) VALUES (old.key_prefix); END IF;
        IF tg_op <> 'DELETE' THEN INSERT INTO history (key_prefix, k) VALUES (new.key_prefix, new); END IF;
        RETURN NULL;
    END $$;
    CREATE FUNCTION history_of_tenant() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$ BEGIN
        IF tg_op <> 'INSERT' THEN INSERT INTO history (tenant_id) VALUES (old.id); END IF;
        IF tg_op <> 'DELETE' THEN INSERT INTO history (tenant_id, t) VALUES (new.id, new); END IF;
        RETURN NULL;
    END $$;
    CREATE FUNCTION history_of_plan() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$ BEGIN
        IF tg_op <> 'INSERT' THEN INSERT INTO history (plan_name) VALUES (old.name); END IF;
        IF tg_op <> 'DELETE' THEN INSERT INTO history (plan_name, p) VALUES (new.name, new); END IF;
        RETURN NULL;
    END $$;
    CREATE FUNCTION history_of_route() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$ BEGIN
        IF tg_op <> 'INSERT' THEN INSERT INTO history (route_id) VALUES (old.id); END IF;
        IF tg_op <> 'DELETE' THEN INSERT INTO history (route_id, r) VALUES (new.id, new); END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER history AFTER INSERT OR UPDATE OR DELETE ON api_keys FOR EACH ROW EXECUTE FUNCTION history_of_key();
    CREATE TRIGGER history AFTER INSERT OR UPDATE OR DELETE ON tenants FOR EACH ROW EXECUTE FUNCTION history_of_tenant();
    CREATE TRIGGER history AFTER INSERT OR UPDATE OR DELETE ON tenantgate_plan
        FOR EACH ROW EXECUTE FUNCTION history_of_plan();
    CREATE TRIGGER history AFTER INSERT OR UPDATE OR DELETE ON tenantgate_route
        FOR EACH ROW EXECUTE FUNCTION history_of_route();
    ALTER TABLE api_keys ENABLE ALWAYS TRIGGER history;
    ALTER TABLE tenants ENABLE ALWAYS TRIGGER history;
    ALTER TABLE tenantgate_plan ENABLE ALWAYS TRIGGER history;
    ALTER TABLE tenantgate_route ENABLE ALWAYS TRIGGER history";

/// Restarts the history with the current rows, without writers.
pub(super) const BEGIN_ANEW: &str = "BEGIN;
    TRUNCATE history;
    INSERT INTO history (key_prefix, k) SELECT k.key_prefix, k FROM api_keys k;
    INSERT INTO history (tenant_id, t) SELECT t.id, t FROM tenants t;
    INSERT INTO history (plan_name, p) SELECT p.name, p FROM tenantgate_plan p;
    INSERT INTO history (route_id, r) SELECT r.id, r FROM tenantgate_route r;
    COMMIT";

/// Returns the number of rows that differ from the history visible to the same statement.
pub(super) const LIES: &str = "SELECT
    (SELECT count(*) FROM (SELECT DISTINCT ON (key_prefix) key_prefix, k FROM history
                           WHERE key_prefix IS NOT NULL ORDER BY key_prefix, seq DESC) h
     FULL JOIN api_keys a ON a.key_prefix = h.key_prefix WHERE h.k IS DISTINCT FROM a)
  + (SELECT count(*) FROM (SELECT DISTINCT ON (tenant_id) tenant_id, t FROM history
                           WHERE tenant_id IS NOT NULL ORDER BY tenant_id, seq DESC) h
     FULL JOIN tenants a ON a.id = h.tenant_id WHERE h.t IS DISTINCT FROM a)
  + (SELECT count(*) FROM (SELECT DISTINCT ON (plan_name) plan_name, p FROM history
                           WHERE plan_name IS NOT NULL ORDER BY plan_name, seq DESC) h
     FULL JOIN tenantgate_plan a ON a.name = h.plan_name WHERE h.p IS DISTINCT FROM a)
  + (SELECT count(*) FROM (SELECT DISTINCT ON (route_id) route_id, r FROM history
                           WHERE route_id IS NOT NULL ORDER BY route_id, seq DESC) h
     FULL JOIN tenantgate_route a ON a.id = h.route_id WHERE h.r IS DISTINCT FROM a)";

const EVERYTHING: &str = "SELECT xid::text AS xid, key_prefix, tenant_id, plan_name, route_id,
    (k).id AS id, (k).tenant_id AS owner, (k).hashed_key AS hash, (k).revoked_at IS NOT NULL AS revoked,
    (k).disabled_at IS NOT NULL AS disabled, (k).scopes AS granted, (k).networks AS networks, (k).plan AS own_plan,
    CASE WHEN isfinite((k).expires_at) THEN extract(epoch FROM (k).expires_at)::bigint END AS expires_at,
    extract(epoch FROM (k).not_before)::bigint AS not_before,
    (t).id AS exists, (t).name AS name, (t).db_schema_name AS schema, (t).status AS status, (t).plan AS plan,
    extract(epoch FROM (t).created_at)::bigint AS created_at,
    (p).name AS plan_there, (p).request_limit AS request_limit, (p).total_limit AS total_limit,
    (r).id AS route_there, (r).name AS route_name, (r).host AS host, (r).method AS method, (r).path AS path,
    (r).mode AS mode, (r).scopes AS needs, (r).shadow AS shadow
    FROM history ORDER BY seq";

/// A snapshot of Postgres: the set of visible transactions.
pub(super) struct Instant {
    xmin: u64,
    xmax: u64,
    running: Vec<u64>,
}

impl Instant {
    /// Parses `xmin:xmax:xip,xip`.
    pub(super) fn parse(text: &str) -> Self {
        let number = |part: &str| part.parse().unwrap_or_else(|_| panic!("a snapshot of Postgres: {text}"));
        let [xmin, xmax, running] = text.split(':').collect::<Vec<_>>()[..] else {
            panic!("a snapshot of Postgres: {text}")
        };
        let running = running.split(',').filter(|part| !part.is_empty()).map(number).collect();
        Self { xmin: number(xmin), xmax: number(xmax), running }
    }

    /// Whether a committed transaction is visible.
    fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && !self.running.contains(&xid))
    }
}

/// The transaction of a version of a row, and the row; `None` if it was deleted.
type Version<T> = (u64, Option<T>);

/// All versions of all rows, oldest first.
#[derive(Default)]
pub(super) struct History {
    keys: BTreeMap<String, Vec<Version<(KeyRecord, ProfileRow)>>>,
    tenants: BTreeMap<TenantId, Vec<Version<Tenant>>>,
    plans: BTreeMap<String, Vec<Version<PlanRow>>>,
    rules: BTreeMap<Uuid, Vec<Version<RouteRow>>>,
}

impl History {
    /// Reads the history. All writers have ended, so every transaction in it has committed.
    pub(super) async fn read(session: &mut PgConnection) -> Self {
        let mut history = Self::default();
        for row in sqlx::query(EVERYTHING).fetch_all(session).await.expect("the history can be read") {
            history.add(&row).expect("a row of the history");
        }
        history
    }

    fn add(&mut self, row: &PgRow) -> Result<(), sqlx::Error> {
        let xid: u64 = row.try_get::<&str, _>("xid")?.parse().expect("a number");
        if let Some(prefix) = row.try_get::<Option<String>, _>("key_prefix")? {
            let version = key_of(row, &prefix)?;
            self.keys.entry(prefix).or_default().push((xid, version));
        } else if let Some(name) = row.try_get::<Option<String>, _>("plan_name")? {
            let version = plan_of(row)?;
            self.plans.entry(name).or_default().push((xid, version));
        } else if let Some(id) = row.try_get::<Option<Uuid>, _>("route_id")? {
            self.rules.entry(id).or_default().push((xid, route_of(row)?));
        } else {
            let id = TenantId(row.try_get("tenant_id")?);
            self.tenants.entry(id).or_default().push((xid, tenant_of(row, id)?));
        }
        Ok(())
    }

    /// Returns the database at an instant.
    pub(super) fn at(&self, instant: &Instant) -> State {
        State {
            keys: at(&self.keys, instant),
            tenants: at(&self.tenants, instant),
            plans: at(&self.plans, instant),
            rules: at(&self.rules, instant),
        }
    }
}

/// Returns the newest visible version of each row.
fn at<K, T: Clone>(rows: &BTreeMap<K, Vec<Version<T>>>, instant: &Instant) -> Vec<T> {
    let newest = |versions: &Vec<Version<T>>| {
        versions.iter().rev().find(|(xid, _)| instant.sees(*xid)).and_then(|(_, row)| row.clone())
    };
    rows.values().filter_map(newest).collect()
}

fn key_of(row: &PgRow, prefix: &str) -> Result<Option<(KeyRecord, ProfileRow)>, sqlx::Error> {
    let Some(id) = row.try_get::<Option<Uuid>, _>("id")? else { return Ok(None) };
    let instant = |seconds| Timestamp(seconds * 1_000_000);
    let text = |column| row.try_get::<Option<&str>, _>(column).map(|text| text.map(Into::into));
    let record = KeyRecord {
        id: KeyId(id),
        tenant_id: TenantId(row.try_get("owner")?),
        prefix: prefix.into(),
        hash: SecretHash::parse(row.try_get("hash")?),
        expires_at: row.try_get::<Option<i64>, _>("expires_at")?.map(instant).into(),
        revoked: row.try_get("revoked")?,
        not_before: row.try_get::<Option<i64>, _>("not_before")?.map_or(Timestamp::MIN, instant),
        disabled: row.try_get("disabled")?,
    };
    let profile = ProfileRow {
        scopes: text("granted")?,
        networks: text("networks")?,
        plan: text("own_plan")?,
        unreadable: None,
    };
    Ok(Some((record, profile)))
}

fn tenant_of(row: &PgRow, id: TenantId) -> Result<Option<Tenant>, sqlx::Error> {
    if row.try_get::<Option<Uuid>, _>("exists")?.is_none() {
        return Ok(None);
    }
    Ok(Some(Tenant {
        id,
        name: row.try_get("name")?,
        schema: row.try_get("schema")?,
        status: TenantStatus::parse(row.try_get("status")?),
        mode: None,
        created_at: Timestamp(row.try_get::<i64, _>("created_at")? * 1_000_000),
        plan: row.try_get::<Option<&str>, _>("plan")?.map(Into::into),
    }))
}

fn plan_of(row: &PgRow) -> Result<Option<PlanRow>, sqlx::Error> {
    let Some(name) = row.try_get("plan_there")? else { return Ok(None) };
    let limits = [row.try_get("request_limit")?, row.try_get("total_limit")?, None, None];
    Ok(Some(PlanRow { name, limits }))
}

fn route_of(row: &PgRow) -> Result<Option<RouteRow>, sqlx::Error> {
    let Some(id) = row.try_get("route_there")? else { return Ok(None) };
    Ok(Some(RouteRow {
        id: RouteId(id),
        name: row.try_get("route_name")?,
        host: row.try_get("host")?,
        method: row.try_get("method")?,
        path: row.try_get("path")?,
        mode: row.try_get("mode")?,
        scopes: row.try_get("needs")?,
        shadow: row.try_get("shadow")?,
    }))
}

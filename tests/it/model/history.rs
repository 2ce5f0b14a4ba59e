//! The history of the database: every version of every row, with its transaction.
//!
//! A trigger of the test records each version in the order of the versions of a row. It is independent of tenantgate's
//! change log: it has no exceptions, contains whole rows, and is never pruned.

use std::collections::BTreeMap;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use tenantgate::clock::Timestamp;
use tenantgate::key::KeyId;
use tenantgate::record::{KeyRecord, SecretHash};
use tenantgate::replica::{Snapshot, TenantEntry};
use tenantgate::tenant::{Tenant, TenantId, TenantStatus};
use uuid::Uuid;

/// The triggers that record the history.
pub(super) const SETUP: &str = "
    CREATE TABLE history (
        seq bigint GENERATED ALWAYS AS IDENTITY, xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        key_prefix text, k api_keys, tenant_id uuid, t tenants);
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
    CREATE TRIGGER history AFTER INSERT OR UPDATE OR DELETE ON api_keys FOR EACH ROW EXECUTE FUNCTION history_of_key();
    CREATE TRIGGER history AFTER INSERT OR UPDATE OR DELETE ON tenants FOR EACH ROW EXECUTE FUNCTION history_of_tenant();
    ALTER TABLE api_keys ENABLE ALWAYS TRIGGER history;
    ALTER TABLE tenants ENABLE ALWAYS TRIGGER history";

/// Restarts the history with the current rows, without writers.
pub(super) const BEGIN_ANEW: &str = "BEGIN;
    TRUNCATE history;
    INSERT INTO history (key_prefix, k) SELECT k.key_prefix, k FROM api_keys k;
    INSERT INTO history (tenant_id, t) SELECT t.id, t FROM tenants t;
    COMMIT";

/// Returns the number of rows that differ from the history visible to the same statement.
pub(super) const LIES: &str = "SELECT
    (SELECT count(*) FROM (SELECT DISTINCT ON (key_prefix) key_prefix, k FROM history
                           WHERE key_prefix IS NOT NULL ORDER BY key_prefix, seq DESC) h
     FULL JOIN api_keys a ON a.key_prefix = h.key_prefix WHERE h.k IS DISTINCT FROM a)
  + (SELECT count(*) FROM (SELECT DISTINCT ON (tenant_id) tenant_id, t FROM history
                           WHERE tenant_id IS NOT NULL ORDER BY tenant_id, seq DESC) h
     FULL JOIN tenants a ON a.id = h.tenant_id WHERE h.t IS DISTINCT FROM a)";

const EVERYTHING: &str = "SELECT xid::text AS xid, key_prefix, tenant_id,
    (k).id AS id, (k).tenant_id AS owner, (k).hashed_key AS hash, (k).revoked_at IS NOT NULL AS revoked,
    CASE WHEN isfinite((k).expires_at) THEN extract(epoch FROM (k).expires_at)::bigint END AS expires_at,
    (t).id AS exists, (t).name AS name, (t).db_schema_name AS schema, (t).status AS status,
    extract(epoch FROM (t).created_at)::bigint AS created_at
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
    keys: BTreeMap<String, Vec<Version<KeyRecord>>>,
    tenants: BTreeMap<TenantId, Vec<Version<Tenant>>>,
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
            let record = key_of(row, &prefix)?;
            self.keys.entry(prefix).or_default().push((xid, record));
        } else {
            let id = TenantId(row.try_get("tenant_id")?);
            self.tenants.entry(id).or_default().push((xid, tenant_of(row, id)?));
        }
        Ok(())
    }

    /// Returns the database at an instant.
    pub(super) fn at(&self, instant: &Instant) -> State {
        State {
            keys: self.keys.values().filter_map(|versions| newest(versions, instant)).collect(),
            tenants: self.tenants.values().filter_map(|versions| newest(versions, instant)).collect(),
        }
    }
}

fn newest<T: Clone>(versions: &[Version<T>], instant: &Instant) -> Option<T> {
    versions.iter().rev().find(|(xid, _)| instant.sees(*xid)).and_then(|(_, row)| row.clone())
}

fn key_of(row: &PgRow, prefix: &str) -> Result<Option<KeyRecord>, sqlx::Error> {
    let Some(id) = row.try_get::<Option<Uuid>, _>("id")? else { return Ok(None) };
    Ok(Some(KeyRecord {
        id: KeyId(id),
        tenant_id: TenantId(row.try_get("owner")?),
        prefix: prefix.into(),
        hash: SecretHash::parse(row.try_get("hash")?),
        expires_at: row
            .try_get::<Option<i64>, _>("expires_at")?
            .map(|seconds| Timestamp(seconds * 1_000_000))
            .into(),
        revoked: row.try_get("revoked")?,
        not_before: Timestamp::MIN,
        disabled: false,
    }))
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
        plan: None,
    }))
}

/// All rows of both tables, with the fields that decisions need.
pub(super) struct State {
    pub(super) keys: Vec<KeyRecord>,
    pub(super) tenants: Vec<Tenant>,
}

impl State {
    /// Returns the differences of a replica from this state.
    pub(super) fn differs_from(&self, replica: &Snapshot) -> Vec<String> {
        let mut found = Vec::new();
        for key in &self.keys {
            let seen = replica.key(&key.prefix).map(|entry| entry.record());
            if seen != Some(key) {
                found.push(format!("the database has {key:?}, the replica {seen:?}"));
            }
        }
        for tenant in &self.tenants {
            let seen = replica.tenant(tenant.id).map(TenantEntry::tenant);
            if seen != Some(tenant) {
                found.push(format!("the database has {tenant:?}, the replica {seen:?}"));
            }
        }
        let damaged = self.keys.iter().filter(|key| key.is_damaged()).count()
            + self.tenants.iter().filter(|tenant| !tenant.is_sound()).count();
        // Every row of the database was found, so an equal number of rows means equal rows.
        for (what, here, there) in [
            ("keys", self.keys.len(), replica.key_count()),
            ("tenants", self.tenants.len(), replica.tenant_count()),
            ("damaged rows", damaged, replica.damaged),
        ] {
            if here != there {
                found.push(format!("the database has {here} {what}, the replica {there}"));
            }
        }
        found
    }
}

//! Databases in real deployments: shared with other programs, moved, restored, replicated, replaced.

mod adopted;
mod commands;
mod missed;
mod moved;
mod reached;
mod recipes;
mod sqlite;
mod states;
mod surroundings;
mod switches;
mod urls;

use crate::support::world::quick_hash;
use crate::support::{Backend, Database, Server};

/// The two tables of an existing deployment, with one key of one tenant.
const PLAIN: &str = "CREATE TABLE tenants (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name varchar(255) NOT NULL, db_schema_name varchar(63) NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(), status varchar(50) NOT NULL DEFAULT 'active');
CREATE TABLE api_keys (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), hashed_key text NOT NULL UNIQUE, key_prefix varchar(100) NOT NULL UNIQUE,
    tenant_id uuid NOT NULL REFERENCES tenants(id) ON DELETE CASCADE, created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NULL, last_used_at timestamptz NULL);";

/// The key of [`rows`].
const KEY: &str = "llmk_ours_OurSecret0123";

/// Statements that add a tenant and [`KEY`].
fn rows() -> String {
    format!(
        "INSERT INTO tenants (name, db_schema_name) VALUES ('Own', 'tenant_own'); \
         INSERT INTO api_keys (hashed_key, key_prefix, tenant_id) \
         SELECT '{}', 'llmk_ours', id FROM tenants WHERE name = 'Own'",
        quick_hash(KEY)
    )
}

/// Creates a Postgres database and runs these statements in it.
fn postgres_with(sql: &str) -> Option<Database> {
    let database = Database::empty(Backend::Postgres)?;
    database.sql(sql);
    Some(database)
}

/// Returns a counter of the server's metrics.
fn count(server: &Server, name: &str) -> u64 {
    let value = server.metric(&[name]);
    format!("{value:.0}").parse().expect("a counter")
}

//! Checks and creates the schemas of tenants.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use crate::store::StoreError;
use crate::tenant::is_schema_name;

/// Rejects the schema of tenantgate's tables, a name that is also the name of a role, and, without `adopt`, a schema
/// that is not empty.
pub(super) async fn check(
    connection: &mut PgConnection,
    home: &str,
    schema: &str,
    adopt: bool,
) -> Result<(), StoreError> {
    if !is_schema_name(schema) {
        return Err(StoreError::Disallowed(format!("{schema:?} is not a valid name for a tenant's schema")));
    }
    let sql = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1),
            EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = $1)
            OR EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace WHERE nspname = $1)
            OR EXISTS (SELECT FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace WHERE nspname = $1)";
    let row = sqlx::query(sql).bind(schema).fetch_one(connection).await?;
    let (role, full): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    let refuse = |why: &str| {
        Err(StoreError::Disallowed(format!(
            "the schema {schema:?} {why}: choose another one (--schema; over HTTP \
             db_schema_name)"
        )))
    };
    if schema == home {
        refuse("holds the tables of tenantgate")
    } else if role {
        refuse("has the name of a role, whose sessions would find its tables first")
    } else if full && !adopt {
        Err(StoreError::Disallowed(format!(
            "the schema {schema:?} exists and is not empty: choose another one (--schema), or give it to the tenant \
             (--adopt-schema; over HTTP adopt_schema)"
        )))
    } else {
        Ok(())
    }
}

/// Checks the name, and creates the schema unless it exists.
pub(super) async fn create(
    connection: &mut PgConnection,
    home: &str,
    schema: &str,
    adopt: bool,
) -> Result<(), StoreError> {
    check(&mut *connection, home, schema, adopt).await?;
    // A name cannot be a parameter. The check leaves nothing to escape.
    sqlx::query(AssertSqlSafe(format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\"")))
        .execute(connection)
        .await?;
    Ok(())
}

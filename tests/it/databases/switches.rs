//! Tests the columns by which an application had switched off keys and tenants, when its tables are adopted.

use super::{KEY, PLAIN, postgres_with, rows};
use crate::support::{Ask, Server};

#[test]
fn naive_timestamps_are_converted_and_disabling_columns_are_applied() {
    let more = "INSERT INTO api_keys (hashed_key, key_prefix, tenant_id, is_active)
                SELECT 'x', 'llmk_off', id, false FROM tenants;
                CREATE TABLE audit_log (theirs int);";
    let sql = format!(
        "{} {}; ALTER TABLE api_keys ADD is_active bool NOT NULL DEFAULT true; {more}",
        PLAIN.replace("timestamptz", "timestamp"),
        rows()
    );
    let Some(database) = postgres_with(&sql) else { return };
    database.sql(
        "UPDATE api_keys SET expires_at = '2099-01-01 00:00:00';
         ALTER TABLE api_keys ALTER expires_at SET DEFAULT now() + interval '1 year',
                              ALTER created_at SET DEFAULT timezone('utc', now())",
    );
    database.cli(&["migrate", "--revoke-where", "is_active=false"]).ok();
    let server = Server::on(&database).start();
    assert_eq!(server.row(Ask::with_key(KEY)), "200 ok");
    let shown = database.json(&["key", "list"]);
    assert_eq!(shown[0]["expires_at"].as_str().map(|at| &at[..19]), Some("2099-01-01T00:00:00"), "{shown}");
    assert_eq!(database.json(&["key", "show", "llmk_off"])["status"], "revoked");
    // Later rows of the application get its own default, whatever the time zone of its session is.
    let inserted = "SET TIME ZONE 'Asia/Tokyo';
                    INSERT INTO api_keys (hashed_key, key_prefix, tenant_id) SELECT 'y', 'llmk_later', id FROM tenants";
    database.sql(inserted);
    let life = "SELECT (extract(epoch FROM expires_at - created_at) / 86400)::int::text FROM api_keys WHERE key_prefix = 'llmk_later'";
    let days: u32 = database.text(life).expect("a life").parse().expect("days");
    assert!((365..=366).contains(&days), "{days}");
    database.cli(&["tenant", "create", "New"]).ok();
    assert_eq!(
        database.text("SELECT count(*)::text FROM audit_log").as_deref(),
        Some("0"),
        "their column is unchanged"
    );
    assert_eq!(database.json(&["migrate"])["applied"], serde_json::json!([]), "asked once");
}

/// A default may call functions of the owner of the table, and `migrate` may run as a role with more privileges.

#[test]
fn a_switch_is_heeded_however_its_value_is_spelled() {
    for (column, off, says) in [
        ("is_active bool DEFAULT true", "false", "is_active=False"),
        ("is_active bool DEFAULT true", "false", "api_keys.is_active=f"),
        ("active int DEFAULT 1", "0", "active=0"),
        ("active smallint DEFAULT 1", "0", "active=false"),
        ("status text DEFAULT 'active'", "'revoked'", "status=revoked"),
        ("deleted_at timestamptz", "now()", "deleted_at=*"),
    ] {
        let name = column.split(' ').next().unwrap_or_default();
        let sql = format!(
            "{PLAIN} {}; ALTER TABLE api_keys ADD {column};
             INSERT INTO api_keys (hashed_key, key_prefix, tenant_id, {name}) SELECT 'x', 'llmk_off', id, {off} FROM tenants",
            rows()
        );
        let Some(database) = postgres_with(&sql) else { return };
        let said = database.cli(&["migrate", "--revoke-where", &format!("{name}=perhaps")]);
        if column.contains("bool") {
            assert!(said.refused_lines().contains("perhaps"), "{column}");
        }
        database.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public");
        database.sql(&sql);
        database.cli(&["migrate", "--revoke-where", says]).ok();
        assert_eq!(database.json(&["key", "show", "llmk_off"])["status"], "revoked", "{column} {says}");
        assert_eq!(database.json(&["key", "show", "llmk_ours"])["status"], "active", "{column} {says}");
    }
}

#[test]
fn a_value_that_no_row_has_is_refused_with_those_that_exist() {
    for column in ["varchar(20)", "states", "char(12)", "\"char\""] {
        let (off, value) = if column == "\"char\"" { ("R", "R") } else { ("REVOKED", "REVOKED") };
        let sql = format!(
            "{PLAIN} {}; CREATE TYPE states AS ENUM ('active', 'REVOKED', 'a', 'R'); ALTER TABLE api_keys ADD state {column} DEFAULT 'a';
             INSERT INTO api_keys (hashed_key, key_prefix, tenant_id, state) SELECT 'x', 'llmk_off', id, '{off}' FROM tenants",
            rows()
        );
        let Some(database) = postgres_with(&sql) else { return };
        for value in ["revoked", "r"] {
            let said =
                database.cli(&["migrate", "--revoke-where", &format!("state={value}")]).refused_lines();
            let wanted = format!("--revoke-where state={value} matches no row: api_keys.state has ");
            assert!(said.contains(&wanted) && said.contains(&format!("{off:?}")), "{column}: {said}");
        }
        let ours = database.text("SELECT count(*)::text FROM pg_class WHERE relname LIKE 'tenantgate%'");
        assert_eq!(ours.as_deref(), Some("0"), "{column}: nothing was applied");
        database.cli(&["migrate", "--revoke-where", &format!("state={value}")]).ok();
        assert_eq!(database.json(&["key", "show", "llmk_off"])["status"], "revoked", "{column}");
        assert_eq!(database.json(&["key", "show", "llmk_ours"])["status"], "active", "{column}");
    }
}

#[test]
fn a_column_may_be_ignored() {
    let sql = format!("{PLAIN} {}; ALTER TABLE api_keys ADD is_active bool DEFAULT false", rows());
    let Some(database) = postgres_with(&sql) else { return };
    assert!(
        database
            .cli(&["migrate", "--ignore-column", "no_such"])
            .refused_lines()
            .contains("no_such is not a column")
    );
    database.cli(&["migrate", "--ignore-column", "is_active"]).ok();
    assert_eq!(Server::on(&database).start().row(Ask::with_key(KEY)), "200 ok");
}

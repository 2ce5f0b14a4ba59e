//! Shows that a poll costs what has changed, whatever the statistics of the tables say.
//!
//! The statement is the one that `serve` sends, read from `pg_stat_activity`. One key is revoked, and the statement
//! that finds this change is executed with change logs of three sizes, with and without statistics, as `serve` prepares
//! it and as Postgres would execute it with other settings. For each: how the change log is scanned, how many of its
//! rows the planner expects, and the median time to plan and execute.

#[expect(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "the benches need only a part of the test support"
)]
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::io::Write as _;

use serde_json::{Value, json};

use self::support::database::Session;
use self::support::postgres::Cluster;
use self::support::{Backend, Database, PATIENCE, Server, eventually};

/// The number of keys, and of rows in the change log.
const SIZES: [u32; 3] = [0, 1_000, 1_000_000];

/// How often each statement is executed.
const ROUNDS: usize = 40;

/// The planner's settings of the session of `serve`.
const OURS: &str =
    "SET jit = off; SET enable_bitmapscan = off; SET enable_hashagg = off; SET enable_hashjoin = off;
    SET enable_mergejoin = off; SET enable_seqscan = off; SET max_parallel_workers_per_gather = 0;";

/// Named settings to compare.
const WAYS: [(&str, &str); 5] = [
    ("as serve", "SET plan_cache_mode = force_generic_plan"),
    ("custom plans", "SET plan_cache_mode = force_custom_plan"),
    (
        "JIT on",
        "SET plan_cache_mode = force_generic_plan; SET jit = on; SET jit_above_cost = 0;
         SET jit_inline_above_cost = 0; SET jit_optimize_above_cost = 0",
    ),
    ("planner's defaults", "RESET ALL; SET plan_cache_mode = force_generic_plan"),
    ("planner's defaults, custom", "RESET ALL; SET plan_cache_mode = force_custom_plan"),
];

fn main() {
    let cluster = Cluster::private().expect("this bench needs a Postgres");
    // Statistics exist only where this bench makes them.
    cluster.restart_with("-c autovacuum=off -c track_activity_query_size=64kB");
    let mut rows = Vec::new();
    for size in SIZES {
        let name = format!("own{size}");
        cluster.admin(&format!("CREATE DATABASE {name}"));
        let database = Database::at(Backend::Postgres, &cluster.url(&name));
        database.cli(&["migrate"]).ok();
        database.sql(
            "CREATE FUNCTION explained(statement text) RETURNS text LANGUAGE plpgsql AS
             $$ DECLARE plan json; BEGIN EXECUTE statement INTO plan; RETURN plan::text; END $$;
             INSERT INTO tenants (name, db_schema_name) VALUES ('Own', 'tenant_own');
             INSERT INTO api_keys (hashed_key, key_prefix, tenant_id) SELECT 'hash', 'llmk_one', id FROM tenants"
        );
        let statement = statement(&database);
        database.sql(&format!(
            "TRUNCATE tenantgate_change;
             INSERT INTO api_keys (hashed_key, key_prefix, tenant_id)
             SELECT 'hash' || n, 'llmk_loaded' || n, t.id FROM tenants t, generate_series(1, {size}) n"
        ));
        for analyzed in [false, true] {
            if analyzed {
                database.sql("ANALYZE");
            }
            for (way, settings) in WAYS {
                rows.push(measured(&database, &statement, (size, analyzed), (way, settings)));
            }
        }
    }
    report(&rows);
}

/// Returns the statement of a poll, as a server sends it.
fn statement(database: &Database) -> String {
    let _server = Server::on(database).start();
    let sql = "SELECT query FROM pg_stat_activity WHERE query LIKE 'WITH c AS MATERIALIZED%'";
    let mut found = None;
    eventually("the server has polled", PATIENCE, || {
        found = database.texts(sql).into_iter().flatten().next();
        if found.is_some() { Ok(()) } else { Err("no poll yet") }
    });
    found.expect("there is one")
}

/// Executes the statement after one change, and returns a row of the report.
fn measured(database: &Database, statement: &str, (size, analyzed): (u32, bool), way: (&str, &str)) -> Value {
    let mut session = database.session();
    session.sql(&format!("{OURS} {}; PREPARE poll (text) AS {statement}", way.1));
    let snapshot = session.texts("SELECT pg_current_snapshot()::text").remove(0).expect("a snapshot");
    database.sql("UPDATE api_keys SET revoked_at = now() WHERE key_prefix = 'llmk_one'");
    let explain = "EXPLAIN (ANALYZE, FORMAT JSON, TIMING OFF) EXECUTE poll";
    let execute = format!("SELECT explained($explained${explain} ('{snapshot}')$explained$)");
    let plans: Vec<Value> = (0..ROUNDS).map(|_| explained(&mut session, &execute)).collect();
    let mut times: Vec<f64> =
        plans.iter().map(|plan| number(plan, "Planning Time") + number(plan, "Execution Time")).collect();
    times.sort_by(f64::total_cmp);
    let scan = scan(&plans[0]["Plan"]).expect("the change log is scanned");
    assert!((0.5..1.5).contains(&number(scan, "Actual Rows")), "one change is found: {scan}");
    json!({
        "rows": size, "analyzed": analyzed, "way": way.0, "scan": scan["Node Type"],
        "expected": scan["Plan Rows"], "median_ms": times[ROUNDS / 2], "max_ms": times[ROUNDS - 1],
    })
}

fn explained(session: &mut Session, sql: &str) -> Value {
    let plan = session.texts(sql).remove(0).expect("a plan");
    serde_json::from_str::<Vec<Value>>(&plan).expect("JSON").remove(0)
}

fn number(of: &Value, name: &str) -> f64 {
    of[name].as_f64().unwrap_or_default()
}

/// Finds the node that scans the change log.
fn scan(node: &Value) -> Option<&Value> {
    if node["Relation Name"] == "tenantgate_change" {
        return Some(node);
    }
    node["Plans"].as_array()?.iter().find_map(scan)
}

/// Prints a table for people and a line of JSON for programs.
fn report(rows: &[Value]) {
    let mut out = std::io::stdout();
    let mut line = |line: String| writeln!(out, "{line}").expect("stdout is writable");
    line(format!(
        "{:>9}  {:<9}{:<28}{:<22}{:>9}{:>12}{:>10}",
        "log", "analyzed", "", "scan of the log", "expected", "median, ms", "max"
    ));
    for row in rows {
        let text = |name: &str| row[name].as_str().unwrap_or_default();
        line(format!(
            "{:>9}  {:<9}{:<28}{:<22}{:>9}{:>12.2}{:>10.2}",
            row["rows"].to_string(),
            if row["analyzed"] == true { "yes" } else { "no" },
            text("way"),
            text("scan"),
            row["expected"].to_string(),
            number(row, "median_ms"),
            number(row, "max_ms")
        ));
    }
    line(json!({ "bench": "look", "polls": rows }).to_string());
}

//! Ways to reach a database: URLs, passwords, poolers, locks.

use std::time::Instant;

use tenantgate::audit::Action;
use tenantgate::store::postgres::PostgresStore;
use tenantgate::store::{Management as _, Store as _};
use tenantgate::tenant::TenantId;

use super::{KEY, rows};
use crate::support::cli::run_in;
use crate::support::pooler::Pooler;
use crate::support::postgres::Cluster;
use crate::support::{Ask, Backend, Database, PATIENCE, Server, World, eventually, runtime, wait};

#[test]
fn an_unknown_url_parameter_is_a_usage_error_without_the_password() {
    let dir = tempfile::tempdir().expect("a directory");
    for (url, hint) in [
        ("postgresql://u:pa55-w0rd-never-printed@h/db?sslMode=verify-full", "sslMode"),
        ("postgresql://u:pa55-w0rd-never-printed@h/db?channel_binding=require", "channel_binding"),
        ("postgresql://u:pa55-w0rd-never@printed@h/db", "%40"),
        ("postgresql://u:pa55-w0rd-never/printed@h/db", "%2F"),
        ("jdbc:postgresql://h/db?user=u&password=pa55-w0rd-never-printed", "postgresql://"),
        ("host=h dbname=db password=pa55-w0rd-never-printed", "postgresql://"),
    ] {
        for command in [&["tenant", "list"][..], &["serve", "--check-config"]] {
            let args = [command, &["--database-url", url]].concat();
            let said = run_in(dir.path(), &[], &args).usage();
            assert!(said.contains(hint), "{url}: {said}");
            assert!(!said.contains("pa55-w0rd-never"), "{url}: {said}");
        }
    }
}

#[test]
fn the_name_of_the_application_is_kept() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let url = format!("{}?application_name=gate-7", world.db.url());
    let _server = Server::on(&Database::at(Backend::Postgres, &url)).start();
    let seen = world
        .db
        .texts("SELECT DISTINCT application_name FROM pg_stat_activity WHERE application_name = 'gate-7'");
    assert_eq!(seen, [Some("gate-7".to_owned())]);
}

#[test]
fn management_keeps_one_connection_and_replaces_one_that_broke() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let _context = runtime().enter();
    let store = PostgresStore::new(&format!("{}?application_name=one-of-us", world.db.url())).unwrap();
    let backends = || {
        world
            .db
            .texts("SELECT pid::text FROM pg_stat_activity WHERE application_name = 'one-of-us' ORDER BY 1")
    };
    let mark = wait(store.mark()).unwrap();
    let first = backends();
    assert_eq!(first.len(), 1);
    wait(store.laggards(&mark)).unwrap();
    wait(store.tenants()).unwrap();
    // A rejected change leaves no open transaction.
    let nobody = wait(store.change_tenant(TenantId(uuid::Uuid::nil()), Action::TenantMode, &|_| Ok(())));
    assert_eq!(nobody.unwrap(), None);
    wait(store.tenants()).unwrap();
    eventually("a connection with an open transaction is closed", PATIENCE, || {
        let now = backends();
        if now.len() == 1 && now != first { Ok(()) } else { Err(now) }
    });
    world
        .db
        .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'one-of-us'");
    eventually("the backend has ended", PATIENCE, || {
        if backends().is_empty() { Ok(()) } else { Err(backends()) }
    });
    wait(store.tenants()).unwrap();
    assert_eq!(backends().len(), 1);
}

#[test]
fn a_rotated_password_needs_no_restart_and_a_rejected_one_is_logged() {
    let Some(cluster) = Cluster::private() else { return };
    cluster.admin("CREATE DATABASE own");
    let database = Database::at(Backend::Postgres, &cluster.url("own"));
    database.cli(&["migrate"]).ok();
    database.sql(&rows());
    database.sql("CREATE ROLE gate LOGIN SUPERUSER PASSWORD 'first'");
    cluster.asks_for_the_password_of("gate");
    let url = |password: &str| format!("postgres://gate:{password}@127.0.0.1:{}/own", cluster.port());
    let file = database.dir().join("url");
    std::fs::write(&file, url("first") + "\n").unwrap();
    let name = file.to_str().unwrap();
    eventually("the role needs a password", PATIENCE, || {
        let run = run_in(database.dir(), &[], &["tenant", "list", "--database-url", &url("wrong")]);
        if run.code == Some(3) && run.stderr.contains("password") { Ok(()) } else { Err(run) }
    });
    let plan = Server::plan(database.dir(), &["--ops-listen", "127.0.0.1:0", "--database-url-file", name]);
    let server = plan.start();
    assert_eq!(server.row(Ask::with_key(KEY)), "200 ok");
    database.sql("ALTER ROLE gate PASSWORD 'second'");
    database.end_all_sessions();
    eventually("the rejection is in the log", PATIENCE, || {
        let log = server.stderr.text();
        if log.contains("the database rejects the password") && log.contains(name) {
            Ok(())
        } else {
            Err(log)
        }
    });
    assert_eq!(server.row(Ask::with_key(KEY)), "200 ok");
    std::fs::write(&file, url("second")).unwrap();
    database.sql("UPDATE api_keys SET revoked_at = now()");
    server.row_becomes("401 revoked", PATIENCE, Ask::with_key(KEY));
    let both = ["tenant", "list", "--database-url", "sqlite://x.db", "--database-url-file", name];
    run_in(database.dir(), &[], &both).usage();
    let env = [("LLMCORE_AUTH_DATABASE_URL", "sqlite://x.db"), ("TENANTGATE_DATABASE_URL_FILE", name)];
    run_in(database.dir(), &env, &["tenant", "list"]).ok();
}

#[test]
fn each_cause_of_an_outage_is_logged() {
    let Some(cluster) = Cluster::private() else { return };
    cluster.admin("CREATE DATABASE own");
    let database = Database::at(Backend::Postgres, &cluster.url("own"));
    database.cli(&["migrate"]).ok();
    cluster.admin("CREATE ROLE gate LOGIN SUPERUSER");
    let (file, url) = (database.dir().join("url"), cluster.url("own").replace("//tenantgate:", "//gate:"));
    std::fs::write(&file, &url).unwrap();
    let name = file.to_str().unwrap();
    let server =
        Server::plan(database.dir(), &["--ops-listen", "127.0.0.1:0", "--database-url-file", name]).start();
    let says = |words: &str| {
        eventually("the log contains the cause", PATIENCE, || {
            let of_the_replica = |line: &&String| line.contains("replica::sync") && line.contains(words);
            let log = server.stderr.lines();
            if log.iter().any(|line| of_the_replica(&line)) { Ok(()) } else { Err(log) }
        });
    };
    std::fs::write(&file, "").unwrap();
    database.end_all_sessions();
    says("is empty");
    std::fs::write(&file, "mysql://h/db").unwrap();
    says("invalid database URL");
    std::fs::write(&file, "postgresql://h/db?sslmode=maybe").unwrap();
    says("sslmode");
    cluster.admin("ALTER DATABASE own CONNECTION LIMIT 0");
    cluster.admin("ALTER ROLE gate NOSUPERUSER");
    std::fs::write(&file, &url).unwrap();
    says("too many connections for database");
    cluster.admin("ALTER ROLE gate NOLOGIN");
    says("check the role in the database URL, its LOGIN, and pg_hba.conf");
    cluster.admin("ALTER DATABASE own ALLOW_CONNECTIONS false");
    cluster.admin("ALTER ROLE gate LOGIN SUPERUSER");
    says("is not currently accepting connections");
    cluster.admin("ALTER DATABASE own ALLOW_CONNECTIONS true");
    says("connected to the database, everything loaded");
    assert!(!server.stderr.text().contains("check the password"), "it is not the password");
}

#[test]
fn a_pooler_in_session_mode_works() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let Some(pooler) = Pooler::in_session_mode(&world.db) else { return };
    let url = world.db.url().replace(&format!(":{}/", world.db.port()), &format!(":{}/", pooler.port()));
    let behind = Database::at(Backend::Postgres, &url);
    let server = Server::on(&behind).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    behind.cli(&["key", "revoke", &world.live.id, "--wait=10s"]).ok();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "401 revoked");
    let said = behind.cli(&["doctor"]);
    assert_eq!(said.code, Some(0), "{said:#?}");
}

#[test]
fn a_command_stops_waiting_for_a_lock_and_names_its_holder() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let mut idle = world.db.session();
    idle.sql("BEGIN; SELECT count(*) FROM api_keys; UPDATE api_keys SET name = name");
    let pid = idle.texts("SELECT pg_backend_pid()::text").remove(0).unwrap();
    let start = Instant::now();
    let revoke = ["key", "revoke", &world.live.id, "--lock-timeout", "300ms"];
    world.db.sql("DROP TRIGGER tenantgate_tenant_updated ON tenants");
    for command in [&revoke[..], &["migrate", "--lock-timeout", "300ms"]] {
        let said = world.db.cli(command).unavailable();
        assert!(said.contains(&format!("pid {pid} ")) && said.contains("query started at 20"), "{said}");
    }
    assert!(start.elapsed() < PATIENCE);
    idle.sql("ROLLBACK");
    world.db.cli(&revoke).ok();
    world.db.cli(&["tenant", "list", "--lock-timeout", "0s"]).usage();
    world.db.cli(&["tenant", "list", "--lock-timeout", "30d"]).usage();
}

#[test]
fn an_adoption_behind_a_lock_names_its_holder_and_is_tried_again() {
    let Some(database) = super::postgres_with(&format!("{} {}", super::PLAIN, rows())) else { return };
    let mut idle = database.session();
    idle.sql("BEGIN; SELECT count(*) FROM api_keys");
    let pid = idle.texts("SELECT pg_backend_pid()::text").remove(0).unwrap();
    let said = database.cli(&["migrate", "--lock-timeout", "300ms"]).unavailable();
    assert!(said.contains(&format!("pid {pid} ")) && said.contains("--lock-timeout"), "{said}");
    let server = Server::on(&database).args(&["--migrate", "--lock-timeout", "300ms"]).start_unready();
    eventually("the log names the holder", PATIENCE, || {
        let log = server.stderr.text();
        if log.contains(&format!("pid {pid} ")) { Ok(()) } else { Err(log) }
    });
    idle.sql("ROLLBACK");
    server.wait_until_ready();
    assert_eq!(server.row(Ask::with_key(KEY)), "200 ok");
}

#[test]
fn the_session_that_blocks_is_named_and_not_an_older_one_that_reads() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let [mut reader, mut writer] = [world.db.session(), world.db.session()];
    reader.sql("BEGIN; SELECT count(*) FROM api_keys; SELECT pg_advisory_lock(7)");
    writer.sql("BEGIN; UPDATE api_keys SET name = name WHERE key_prefix = 'llmk_live'");
    let pid = writer.texts("SELECT pg_backend_pid()::text").remove(0).unwrap();
    let said = world.db.cli(&["key", "revoke", &world.live.id, "--lock-timeout", "300ms"]).unavailable();
    assert!(said.contains(&format!("pid {pid} ")), "{said}");
}

/// Its other clients get the backends that tenantgate has used.
#[test]
fn a_pooler_in_transaction_mode_is_rejected_before_anything_is_set_or_changed() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let Some(pooler) = Pooler::before(&world.db) else { return };
    let url = world.db.url().replace(&format!(":{}/", world.db.port()), &format!(":{}/", pooler.port()));
    let behind = Database::at(Backend::Postgres, &url);
    let which = "SELECT id::text FROM tenantgate_identity";
    let identity = world.db.text(which);
    for command in [
        &["tenant", "list"][..],
        &["migrate", "--new-identity"],
        &["key", "revoke", &world.live.id],
        &["tenant", "list"],
    ] {
        let said = behind.cli(command).unavailable();
        assert!(said.contains("not to a pooler in transaction mode"), "{said}");
    }
    assert_eq!(behind.cli(&["doctor"]).code, Some(1));
    assert_eq!(world.db.text(which), identity);
    assert_eq!(world.db.json(&["key", "show", "llmk_live"])["status"], "active");
    // Each of these transactions has a backend of its own.
    let settings = wait(async {
        use sqlx::{Connection as _, PgConnection, Row as _};
        let mut all = Vec::new();
        let mut sessions = Vec::new();
        for _ in 0..5 {
            let mut session = PgConnection::connect(&url).await.unwrap();
            sqlx::raw_sql("BEGIN").execute(&mut session).await.unwrap();
            let sql = "SELECT concat_ws(' ', current_setting('search_path'), current_setting('row_security'),
                                        current_setting('lock_timeout'))";
            all.push(sqlx::raw_sql(sql).fetch_one(&mut session).await.unwrap().get_unchecked::<String, _>(0));
            sessions.push(session);
        }
        all
    });
    assert!(settings.iter().all(|setting| setting == "\"$user\", public on 0"), "{settings:#?}");
}

/// The cost of a poll depends only on the changes, whatever the planner's statistics are. Measured as CPU time, because
/// the machine may be busy.
#[test]
fn a_poll_is_as_cheap_with_a_long_log_as_with_none() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let short = ticks_of_polls(&world, 0);
    world.db.sql(
        "INSERT INTO tenantgate_change (key_prefix) SELECT 'llmk_' || n FROM generate_series(1, 400000) n",
    );
    for (round, analyze) in [(1, "SELECT 1"), (2, "ANALYZE tenantgate_change")] {
        world.db.sql(analyze);
        let long = ticks_of_polls(&world, round);
        assert!(
            long < short * 3 + 20,
            "{analyze}: {long} ticks of the processor with a long log, {short} without"
        );
    }
}

/// Returns the CPU time of a thousand polls in their backend, in hundredths of a second.
fn ticks_of_polls(world: &World, round: u32) -> u64 {
    // The session ends here.
    let _context = runtime().enter();
    let name = format!("polls-{round}");
    let store = PostgresStore::new(&format!("{}?application_name={name}", world.db.url())).unwrap();
    let mut session = wait(store.session()).unwrap();
    wait(session.load(&mut |_| {})).unwrap();
    let pid = world.db.text(&format!(
        "SELECT pid::text FROM pg_stat_activity WHERE application_name = '{name}' ORDER BY backend_start DESC LIMIT 1"
    ));
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_deref().unwrap())).unwrap();
        let numbers: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        numbers[11].parse::<u64>().unwrap() + numbers[12].parse::<u64>().unwrap()
    };
    let before = ticks();
    for _ in 0..1_000 {
        wait(session.changes()).unwrap();
    }
    ticks() - before
}

//! Checks that a damaged row affects only itself.

use crate::support::world::{SLOW, quick_hash};
use crate::support::{Ask, Backend, PATIENCE, Server, World, on_every_store};

on_every_store![
    a_damaged_hash_affects_only_its_key,
    a_damaged_schema_name_affects_only_its_tenant,
    a_damaged_row_is_logged_and_counted,
    an_unknown_status_is_inactive,
    a_foreign_prefix_affects_no_other_key,
    columns_of_other_programs_are_ignored,
    a_hostile_name_stays_inside_its_header,
];

/// The 53 characters after the cost in a hash.
fn body() -> String {
    quick_hash("anything")[7..].to_owned()
}

/// Hashes that no key can match.
fn damaged_hashes() -> Vec<String> {
    let body = body();
    vec![
        format!("$2b$31${body}"),
        format!("$2b$15${body}"),
        format!("$2b$03${body}"),
        format!("$2b$99${body}"),
        format!("$2x$04${body}"),
        format!("$2$04${body}"),
        format!("$2c$04${body}"),
        format!("$2b$04${}", &body[1..]),
        format!("$2b$04${body}x"),
        format!("$2b$04${}é", &body[2..]),
        format!("$2b$04${}é", &body[1..]),
        format!("$2b$04${}", "!".repeat(53)),
        format!("$2b$4${body}x"),
        format!(" $2b$04${}", &body[1..]),
        "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$RdescudvJCsgt3ub+b4dWRWJTmaaJObG".to_owned(),
        "llmk_live_live-Secret-0123456789".to_owned(),
        "é".to_owned(),
        String::new(),
    ]
}

fn a_damaged_hash_affects_only_its_key(world: &World) {
    let server = Server::on(&world.db).start();
    let mut session = world.db.session();
    let mut set_hash = |hash: &str| {
        let prefix = &world.live.prefix;
        session.sql(&format!("UPDATE api_keys SET hashed_key = '{hash}' WHERE key_prefix = '{prefix}'"));
    };
    let good = quick_hash(&world.live.text);
    let ask = Ask::with_key(&world.live.text);
    for hash in damaged_hashes() {
        set_hash(&hash);
        server.row_becomes("503 unavailable", PATIENCE, ask.clone());
        assert_eq!(server.row(Ask::with_key(&world.live.with_wrong_secret())), "503 unavailable", "{hash:?}");
        assert_eq!(server.row(Ask::with_key(&world.other.text)), "200 ok", "{hash:?}");
        assert_eq!(server.row(Ask::with_key("llmk_nobody_12345678")), "401 unknown", "{hash:?}");
        set_hash(&good);
        server.row_becomes("200 ok", PATIENCE, ask.clone());
    }
    set_hash(&damaged_hashes()[0]);
    let fresh = Server::on(&world.db).start();
    assert_eq!(fresh.row(ask), "503 unavailable");
    assert_eq!(fresh.row(Ask::with_key(&world.other.text)), "200 ok");
    assert_eq!(fresh.row(Ask::with_key(&world.of_sleepy.text)), "403 tenant_inactive");
}

fn a_damaged_schema_name_affects_only_its_tenant(world: &World) {
    let server = Server::on(&world.db).start();
    let mut session = world.db.session();
    let mut set_schema = |schema: &str| {
        session.sql(&format!(
            "UPDATE tenants SET db_schema_name = '{schema}' WHERE name = '{}'",
            world.acme.name
        ));
    };
    for schema in [
        "Upper",
        "x\"; DROP SCHEMA x",
        "pg_evil",
        "public",
        "information_schema",
        "",
        "1st",
        "a\r\nb: c",
        "é",
    ] {
        set_schema(schema);
        server.row_becomes("503 unavailable", PATIENCE, Ask::with_key(&world.live.text));
        assert_eq!(server.row(Ask::with_key(&world.other.text)), "503 unavailable", "{schema:?}");
        assert_eq!(server.row(Ask::with_key(&world.of_sleepy.text)), "403 tenant_inactive", "{schema:?}");
        set_schema(&world.acme.schema);
        server.row_becomes("200 ok", PATIENCE, Ask::with_key(&world.live.text));
    }
}

fn a_damaged_row_is_logged_and_counted(world: &World) {
    let hash = &damaged_hashes()[0];
    world.db.sql(&format!(
        "UPDATE api_keys SET hashed_key = '{hash}' WHERE key_prefix = '{}'",
        world.live.prefix
    ));
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "503 unavailable");
    let said = server.stderr.text();
    assert!(
        said.contains(&world.live.prefix) || said.contains(&world.live.id),
        "the log names the row: {said}"
    );
    assert!(!said.contains(hash.as_str()), "but not its content: {said}");
    assert!(server.metric(&["damaged"]) > 0.0, "{}", server.http("/metrics").body);
}

fn an_unknown_status_is_inactive(world: &World) {
    let allow_it = match world.db.backend {
        Backend::Postgres => "ALTER TABLE tenants DROP CONSTRAINT chk_tenant_status;",
        Backend::Sqlite => "PRAGMA ignore_check_constraints = ON;",
    };
    let server = Server::on(&world.db).start();
    let mut session = world.db.session();
    session.sql(allow_it);
    for status in ["frozen", "ACTIVE", "active ", "", "aktiv"] {
        session.sql(&format!("UPDATE tenants SET status = '{status}' WHERE name = '{}'", world.acme.name));
        server.row_becomes("403 tenant_inactive", PATIENCE, Ask::with_key(&world.live.text));
        assert_eq!(server.row(Ask::with_key(&world.of_sleepy.text)), "403 tenant_inactive");
        session.sql(&format!("UPDATE tenants SET status = 'active' WHERE name = '{}'", world.acme.name));
        server.row_becomes("200 ok", PATIENCE, Ask::with_key(&world.live.text));
    }
    session.sql(&format!("UPDATE tenants SET status = 'frozen' WHERE name = '{}'", world.acme.name));
    let fresh = Server::on(&world.db).start();
    let answer = fresh.check(Ask::with_key(&world.live.text));
    assert_eq!((answer.row().as_str(), answer.meta("tenant_status")), ("403 tenant_inactive", "frozen"));
}

fn a_foreign_prefix_affects_no_other_key(world: &World) {
    let server = Server::on(&world.db).start();
    let mut session = world.db.session();
    for prefix in ["sk-1234", "llmk_with_underscore", "llmk_", "", "llmk_ü", "LLMK_live"] {
        session.sql(&format!(
            "UPDATE api_keys SET key_prefix = '{prefix}' WHERE key_prefix = '{}'",
            world.live.prefix
        ));
        server.row_becomes("401 unknown", PATIENCE, Ask::with_key(&world.live.text));
        assert_eq!(server.row(Ask::with_key(&world.other.text)), "200 ok", "{prefix:?}");
        session.sql(&format!(
            "UPDATE api_keys SET key_prefix = '{}' WHERE key_prefix = '{prefix}'",
            world.live.prefix
        ));
        server.row_becomes("200 ok", PATIENCE, Ask::with_key(&world.live.text));
    }
}

fn columns_of_other_programs_are_ignored(world: &World) {
    let server = Server::on(&world.db).start();
    world.db.sql("ALTER TABLE api_keys ADD COLUMN notes text");
    world.db.sql("ALTER TABLE tenants ADD COLUMN tariff text DEFAULT 'gold'");
    world.db.sql("UPDATE api_keys SET notes = 'ours'");
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    world.db.json(&["key", "revoke", &world.other.id]);
    server.row_becomes("401 revoked", PATIENCE, Ask::with_key(&world.other.text));
    let fresh = Server::on(&world.db).start();
    assert_eq!(fresh.row(Ask::with_key(&world.live.text)), "200 ok");
    world.db.json(&["key", "create", &world.acme.id]);
}

fn a_hostile_name_stays_inside_its_header(world: &World) {
    let mut session = world.db.session();
    let server = Server::on(&world.db).start();
    let acme = &world.acme.id;
    let by_id = format!("id = (SELECT tenant_id FROM api_keys WHERE key_prefix = '{}')", world.live.prefix);
    session.sql(&format!("UPDATE tenants SET name = 'a\r\nx-llmcore-tenant-id: b' WHERE {by_id}"));
    crate::support::eventually("the new name", PATIENCE, || {
        let answer = server.check(Ask::with_key(&world.live.text));
        assert_eq!(answer.meta("tenant_id"), acme);
        let header = answer.headers()["x-llmcore-tenant-name"].to_owned();
        if header == "a%0D%0Ax-llmcore-tenant-id:%20b" { Ok(()) } else { Err(header) }
    });
    // A name that would give an empty header; `support::verified_response` checks the answer.
    session.sql(&format!("UPDATE tenants SET name = '' WHERE {by_id}"));
    crate::support::eventually("the empty name", PATIENCE, || {
        let answer = server.check(Ask::with_key(&world.live.text));
        if answer.meta("tenant_name").is_empty() { Ok(()) } else { Err(answer.metadata) }
    });
}

#[test]
fn on_sqlite_an_invalid_instant_affects_only_its_key() {
    let world = World::on(Backend::Sqlite).expect("always there");
    let prefix = &world.live.prefix;
    world.db.sql(&format!("UPDATE api_keys SET expires_at = 'tomorrow' WHERE key_prefix = '{prefix}'"));
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "503 unavailable");
    assert_eq!(server.row(Ask::with_key(&world.other.text)), "200 ok");
    // The other rows can still be listed.
    let run = world.db.cli(&["key", "list", "-o", "json"]);
    let said = format!("{}{}", run.stdout, run.stderr);
    assert!(
        said.contains(prefix.as_str()) || said.contains(&world.live.id),
        "the error names the row: {run:#?}"
    );
    assert!(run.stdout.contains(&world.other.prefix), "the other rows are listed: {run:#?}");
}

#[test]
fn on_sqlite_an_instant_that_cannot_be_read_is_damage_after_the_proof() {
    let world = World::on(Backend::Sqlite).expect("always there");
    let (id, prefix) = (&world.live.id, &world.live.prefix);
    for column in ["expires_at", "not_before"] {
        world.db.sql(&format!("UPDATE api_keys SET {column} = '2099-01-01' WHERE id = '{id}'"));
        let server = Server::on(&world.db).start();
        assert_eq!(server.row(Ask::with_key(&world.live.text)), "503 unavailable", "{column}");
        assert_eq!(server.row(Ask::with_key(&world.live.with_wrong_secret())), "401 mismatch", "{column}");
        let said = server.stderr.text();
        let line = said.lines().find(|line| line.contains("damaged row of api_keys")).expect(&said);
        assert!(line.contains(prefix.as_str()) && line.contains(column), "{line}");
        for args in [&["key", "show", prefix][..], &["key", "list"]] {
            let run = world.db.cli(args);
            assert_eq!(run.code, Some(0), "{run:#?}");
            assert!(run.stderr.contains(id) && run.stderr.contains(column), "{args:?}: {run:#?}");
        }
        assert_ne!(world.db.json(&["key", "show", prefix])["status"], "active", "{column}");
        // An export must not make another value of it, with which the key would be live elsewhere.
        let run = world.db.cli(&["key", "export"]);
        assert!(run.code == Some(1) && run.stderr.contains(id) && run.stderr.contains(column), "{run:#?}");
        let found = crate::doctor::doctor_json(&world.db);
        let found = found.iter().find(|finding| finding["check"] == "database.rows").expect("a finding");
        assert!(found.to_string().contains(id) && found.to_string().contains(column), "{found}");
        world.db.sql(&format!("UPDATE api_keys SET {column} = NULL WHERE id = '{id}'"));
    }
}

/// SQLite keeps a BLOB in a column of texts, and a text that is not UTF-8.
#[test]
fn on_sqlite_a_value_that_is_not_text_affects_only_its_row() {
    let world = World::on(Backend::Sqlite).expect("always there");
    world.db.json(&["plan", "create", "gold"]);
    world.db.json(&["route", "add", "--path", "/v1/ruled", "--name", "ruled"]);
    let server = Server::on(&world.db).start();
    let mut session = world.db.session();
    session.sql("PRAGMA foreign_keys = OFF");
    // Older versions of SQLite accept these values.
    session.sql("PRAGMA ignore_check_constraints = ON");
    let (id, live, other) = (&world.live.id, &world.live.text, &world.other);
    let of_key = |column: &str| format!("UPDATE api_keys SET {column} = x'ff' WHERE id = '{id}'");
    let wrong = [
        (of_key("scopes"), "scopes"),
        (of_key("networks"), "networks"),
        (of_key("plan"), "plan"),
        (of_key("expires_at"), "expires_at"),
        (of_key("not_before"), "not_before"),
        (format!("UPDATE api_keys SET scopes = CAST(x'61ff' AS TEXT) WHERE id = '{id}'"), "scopes"),
        (of_key("hashed_key"), "hashed_key"),
    ];
    let good = quick_hash(live);
    for (number, (sql, column)) in wrong.iter().enumerate() {
        session.sql(sql);
        server.row_becomes("503 unavailable", PATIENCE, Ask::with_key(live));
        assert_eq!(server.row(Ask::with_key(&other.text)), "200 ok", "{sql}");
        // Other changes are still applied.
        session.sql(&format!(
            "UPDATE api_keys SET disabled_at = '{}' WHERE id = '{}'",
            "2026-01-01T00:00:00Z", other.id
        ));
        server.row_becomes("401 disabled", PATIENCE, Ask::with_key(&other.text));
        session.sql(&format!("UPDATE api_keys SET disabled_at = NULL WHERE id = '{}'", other.id));
        let fresh = Server::on(&world.db).start();
        assert_eq!(fresh.row(Ask::with_key(live)), "503 unavailable", "{sql}");
        assert_eq!(fresh.row(Ask::with_key(&other.text)), "200 ok", "{sql}");
        let found = crate::doctor::doctor_json(&world.db);
        let found = found.iter().find(|finding| finding["check"] == "database.rows").expect("a finding");
        assert!(
            found.to_string().contains(id.as_str()) && found.to_string().contains(column),
            "{number}: {found}"
        );
        session.sql(&format!(
            "UPDATE api_keys SET scopes = NULL, networks = NULL, plan = NULL, expires_at = NULL, not_before = NULL,
                                 hashed_key = '{good}' WHERE id = '{id}'"
        ));
        server.row_becomes("200 ok", PATIENCE, Ask::with_key(live));
    }
    for (sql, back) in [
        ("UPDATE tenantgate_route SET scopes = x'ff'", "UPDATE tenantgate_route SET scopes = NULL"),
        ("UPDATE tenantgate_route SET host = x'ff'", "UPDATE tenantgate_route SET host = '*'"),
    ] {
        session.sql(sql);
        server.row_becomes("503 unavailable", PATIENCE, Ask::get("/v1/ruled").key(live));
        session.sql(back);
        server.row_becomes("200 ok", PATIENCE, Ask::get("/v1/ruled").key(live));
    }
    session.sql("UPDATE tenantgate_route SET name = x'ff'");
    session.sql("UPDATE tenantgate_plan SET name = x'ff'");
    session
        .sql(&format!("UPDATE api_keys SET revoked_at = '2026-01-01T00:00:00Z' WHERE id = '{}'", other.id));
    server.row_becomes("401 revoked", PATIENCE, Ask::with_key(&other.text));
    // A BLOB that is a text is read as that text.
    session.sql(&format!(
        "UPDATE api_keys SET scopes = CAST('a b' AS BLOB), name = CAST('n' AS BLOB) WHERE id = '{id}'"
    ));
    server.row_becomes("200 ok", PATIENCE, Ask::with_key(live));
    let shown = world.db.json(&["key", "show", id]);
    assert_eq!((shown["scopes"].as_str(), shown["name"].as_str()), (Some("a b"), Some("n")));
    assert!(world.db.cli(&["key", "list"]).ok().contains(&world.live.prefix));
    assert!(world.db.cli(&["key", "export"]).ok().contains(&world.live.prefix));
}

/// Rows that are valid alone, but not together.
#[test]
fn rows_that_are_damaged_by_what_others_are_get_logged_and_found() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let Some(world) = World::on(backend) else { continue };
        let server = Server::on(&world.db).start();
        let mut session = world.db.session();
        match backend {
            Backend::Sqlite => session.sql("PRAGMA foreign_keys = OFF"),
            Backend::Postgres => session.sql("ALTER TABLE api_keys DROP CONSTRAINT fk_key_plan"),
        }
        session.sql(&format!("UPDATE api_keys SET plan = 'nowhere' WHERE id = '{}'", world.live.id));
        server.row_becomes("503 unavailable", PATIENCE, Ask::with_key(&world.live.text));
        let logs = |what: &str| {
            crate::support::eventually("a line in the log", PATIENCE, || {
                let said = server.stderr.text();
                if said.lines().any(|line| line.contains("WARN") && line.contains(what)) {
                    Ok(())
                } else {
                    Err(said)
                }
            });
        };
        logs("nowhere");
        let finding = || {
            let found = crate::doctor::doctor_json(&world.db);
            found.iter().find(|finding| finding["check"] == "database.rows").expect("a finding").to_string()
        };
        assert!(finding().contains("nowhere"), "{}", finding());
        session.sql(&format!("UPDATE api_keys SET plan = NULL WHERE id = '{}'", world.live.id));
        server.row_becomes("200 ok", PATIENCE, Ask::with_key(&world.live.text));
        session
            .sql("INSERT INTO tenantgate_route (path, name) VALUES ('/v1/{a}', 'one'), ('/v1/{b}', 'two')");
        server.row_becomes("503 unavailable", PATIENCE, Ask::with_key(&world.live.text));
        logs("that no other rule has");
        assert!(finding().contains("that no other rule has"), "{}", finding());
        let lines =
            server.stderr.text().lines().filter(|line| line.contains("that no other rule has")).count();
        assert_eq!(lines, 2, "one for each rule");
    }
}

#[test]
fn a_key_whose_tenant_is_missing_is_never_allowed() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    world.db.sql("ALTER TABLE api_keys DROP CONSTRAINT api_keys_tenant_id_fkey");
    world.db.sql(&format!(
        "UPDATE api_keys SET tenant_id = gen_random_uuid() WHERE key_prefix = '{}'",
        world.live.prefix
    ));
    let no_longer_allowed = |server: &Server| {
        crate::support::eventually("a key without a tenant is rejected", PATIENCE, || {
            let row = server.row(Ask::with_key(&world.live.text));
            if ["401 unknown", "503 unavailable"].contains(&row.as_str()) { Ok(()) } else { Err(row) }
        });
    };
    no_longer_allowed(&server);
    let fresh = Server::on(&world.db).start();
    no_longer_allowed(&fresh);
    assert_eq!(fresh.row(Ask::with_key(&world.other.text)), "200 ok");
}

#[test]
fn the_highest_bcrypt_cost_is_accepted() {
    let world = World::somewhere();
    world.slow_down();
    // On a busy machine the proof can take longer than the usual timeout.
    let server = Server::on(&world.db).args(&["--request-timeout", "60s"]).start();
    assert_eq!(server.row(Ask::with_key(SLOW)), "200 ok");
}

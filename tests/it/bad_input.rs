//! What cannot be read, in one committed table: the refusal of commands, of the API, and what becomes of it in SQL.
//!
//! A command refuses a value with exit code 2 and a line that says where the first fault is and what is expected there;
//! the API refuses it with 400 and the same sentence, by a pointer to the field; the database refuses it, or the row
//! that has it harms itself alone. `bad_input.txt` has a line for each value; `UPDATE_SNAPSHOTS=1 cargo test --test it
//! bad_input` rewrites it.

mod values;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use self::values::bad;
use crate::manage::{Manage, is_problem, owner};
use crate::support::{Ask, Backend, PATIENCE, Server, World, on_every_store, table};

on_every_store![
    every_value_that_cannot_be_read_is_in_the_committed_table,
    unusual_spellings_are_accepted,
    what_is_bad_only_together_is_refused,
];

/// The commands that take a value, without its option.
fn commands(world: &World, what: &str, value: &str) -> Vec<Vec<String>> {
    let key = |option: &str| {
        let option = format!("--{option}={value}");
        vec![vec!["key", "create", &world.acme.id, &option], vec!["key", "update", &world.live.id, &option]]
            .into_iter()
            .map(|args| args.into_iter().map(str::to_owned).collect())
            .collect::<Vec<Vec<String>>>()
    };
    let own = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
    let route = |option: &str| own(&["route", "add", "--path=/a", &format!("--{option}={value}")]);
    match what {
        "scopes" | "networks" => key(what),
        "not_before" => key("not-before"),
        "label" => key("label"),
        "plan" => {
            let mut all = key("plan");
            all.push(own(&["tenant", "update", &world.acme.id, &format!("--plan={value}")]));
            all.push(own(&["plan", "create", value]));
            all
        }
        "limit" => ["request", "total", "input", "output"]
            .into_iter()
            .flat_map(|limit| {
                let option = format!("--{limit}-limit={value}");
                [own(&["plan", "create", "new", &option]), own(&["plan", "update", "old", &option])]
            })
            .collect(),
        "needs" => vec![route("scopes")],
        "path" => vec![own(&["route", "add", &format!("--path={value}")])],
        _ => vec![route(what)],
    }
}

/// The requests of the API that take a value: method, path, body, and the pointer of the refusal.
fn requests(world: &World, what: &str, value: &str) -> Vec<(&'static str, String, Value, String)> {
    let key = |field: &str, value: Value| {
        let body = json!({ field: value });
        let pointer = format!("/{field}");
        let (keys, live) =
            (format!("/v1/tenants/{}/keys", world.acme.id), format!("/v1/keys/{}", world.live.id));
        vec![("POST", keys, body.clone(), pointer.clone()), ("PATCH", live, body, pointer)]
    };
    let route = |field: &str| {
        let body =
            if field == "path" { json!({ "path": value }) } else { json!({ "path": "/a", field: value }) };
        vec![("POST", "/v1/routes".to_owned(), body, format!("/{field}"))]
    };
    match what {
        "scopes" | "networks" | "not_before" => key(what, value.into()),
        "plan" => {
            let mut all = key(what, value.into());
            let name = json!({ "name": value });
            all.push(("POST", "/v1/plans".to_owned(), name, "/name".to_owned()));
            let tenant = format!("/v1/tenants/{}", world.acme.id);
            all.push(("PATCH", tenant, json!({ "plan": value }), "/plan".to_owned()));
            all
        }
        "limit" => ["request_limit", "total_limit", "input_limit", "output_limit"]
            .into_iter()
            .flat_map(|limit| {
                let pointer = format!("/{limit}");
                [
                    ("POST", "/v1/plans".to_owned(), json!({ "name": "new", limit: value }), pointer.clone()),
                    ("PATCH", "/v1/plans/old".to_owned(), json!({ limit: value }), pointer),
                ]
            })
            .collect(),
        "needs" => route("scopes"),
        // A label is a member of an object, so a text without = has no meaning there.
        "label" => value.split_once('=').map_or_else(Vec::new, |(name, text)| {
            key("labels", json!({ name: text }))
                .into_iter()
                .map(|(method, path, body, _)| (method, path, body, format!("/labels/{name}")))
                .collect()
        }),
        _ => route(what),
    }
}

/// What is wrong according to a command or the API: everything from the word `invalid` that is about the value itself.
fn sentence(text: &str) -> String {
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let line = line.trim_start_matches("error: ");
    // clap repeats the value, which may have several lines.
    let own = text.rfind("': ").map(|at| text[at + 3..].lines().next().unwrap_or_default());
    own.unwrap_or(line).trim().to_owned()
}

fn refusals(world: &World, what: &str, value: &str) -> Vec<String> {
    let refusal = |args: Vec<String>| {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        sentence(&world.db.cli(&args).usage())
    };
    let mut told: Vec<_> = commands(world, what, value).into_iter().map(refusal).collect();
    told.dedup();
    told
}

fn api_refusals(manage: &Manage, key: &str, world: &World, what: &str, value: &str) -> Vec<String> {
    let mut told = Vec::new();
    for (method, path, body, pointer) in requests(world, what, value) {
        let page = manage.send(key, method, &path, &body.to_string(), &[]);
        is_problem(&page, 400, "invalid_request");
        let problem: Value = serde_json::from_str(&page.body).expect("JSON");
        let errors = problem["errors"].as_array().expect("a list");
        assert_eq!(errors.len(), 1, "{what} {value:?}: {problem}");
        assert_eq!(errors[0]["pointer"], pointer, "{what} {value:?}");
        told.push(errors[0]["detail"].as_str().expect("a text").to_owned());
    }
    told.dedup();
    told
}

/// What becomes of a value that is written by SQL.
fn in_sql(world: &World, server: &Server, what: &str, value: &str) -> &'static str {
    let text = value.replace('\'', "''");
    let ours = || Ask::with_key(&world.live.text);
    let (write, undo, ask) = match what {
        "scopes" | "networks" => (
            format!("UPDATE api_keys SET {what} = '{text}' WHERE id = '{}'", world.live.id),
            format!("UPDATE api_keys SET {what} = NULL WHERE id = '{}'", world.live.id),
            ours(),
        ),
        "limit" => (
            format!("UPDATE tenantgate_plan SET request_limit = '{text}' WHERE name = 'old'"),
            "UPDATE tenantgate_plan SET request_limit = NULL WHERE name = 'old'".to_owned(),
            ours(),
        ),
        "plan" => (
            format!("INSERT INTO tenantgate_plan (name) VALUES ('{text}')"),
            format!("DELETE FROM tenantgate_plan WHERE name = '{text}'"),
            ours(),
        ),
        "needs" | "method" | "mode" | "path" => {
            let column = if what == "needs" { "scopes" } else { what };
            let path = if what == "path" { String::new() } else { "path, ".to_owned() };
            let at = if what == "path" { "" } else { "'/v1/bad', " };
            (
                format!(
                    "INSERT INTO tenantgate_route (name, host, {path}{column}) VALUES ('bad', 'bad.example', {at}'{text}')"
                ),
                "DELETE FROM tenantgate_route WHERE name = 'bad'".to_owned(),
                Ask::get("/v1/bad").key(&world.live.text).at("bad.example"),
            )
        }
        "host" => (
            format!("INSERT INTO tenantgate_route (name, path, host) VALUES ('bad', '/v1/bad', '{text}')"),
            "DELETE FROM tenantgate_route WHERE name = 'bad'".to_owned(),
            ours(),
        ),
        // Labels are not held by servers, and an instant is a column of its own type.
        _ => return "-",
    };
    let mut session = world.db.session();
    if session.run(&write).is_err() {
        return "refused";
    }
    let verdict = if what == "limit" || what == "plan" { "written" } else { "503 for its row" };
    if verdict != "written" {
        server.row_becomes("503 unavailable", PATIENCE, ask.clone());
        // A host that cannot be read could be any.
        let other = if what == "host" { "503 unavailable" } else { "200 ok" };
        assert_eq!(server.row(Ask::with_key(&world.other.text)), other, "{what} {value:?}");
        assert_eq!(server.row(Ask::get("/docs")), "200 public", "{what} {value:?}");
    }
    session.sql(&undo);
    server.row_becomes("200 ok", PATIENCE, ask);
    verdict
}

fn every_value_that_cannot_be_read_is_in_the_committed_table(world: &World) {
    world.db.json(&["plan", "create", "old"]);
    world.db.json(&["key", "update", &world.live.id, "--plan", "old"]);
    let key = owner(world);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let server = Server::on(&world.db).start();
    let head = ["what", "value", "refusal", "by SQL"].map(str::to_owned);
    let mut rows = vec![head];
    for (what, value) in bad() {
        let mut told = refusals(world, what, &value);
        told.extend(api_refusals(&manage, &key, world, what, &value));
        told.dedup();
        assert_eq!(told.len(), 1, "{what} {value:?}: one sentence everywhere: {told:#?}");
        let said = &told[0];
        assert!(said.contains("expected"), "{what} {value:?}: {said}");
        assert!(said.contains("at position ") || what == "not_before", "{what} {value:?}: {said}");
        let by_sql = in_sql(world, &server, what, &value);
        assert_ne!(by_sql, "written", "{what} {value:?}");
        let shown = format!("{value:?}");
        let shown = if shown.chars().count() > 60 {
            format!("{}… ({} bytes)", shown.chars().take(20).collect::<String>(), value.len())
        } else {
            shown
        };
        rows.push([what.to_owned(), shown, said.clone(), by_sql.to_owned()]);
    }
    let shown = world.db.json(&["key", "show", &world.live.id]);
    assert_eq!((&shown["scopes"], &shown["networks"]), (&Value::Null, &Value::Null), "nothing was changed");
    assert_eq!(world.db.json(&["route", "list"]), json!([]));
    // The two stores write their checks differently, and refuse different values by themselves.
    let by_sql: BTreeMap<_, usize> = rows[1..].iter().fold(BTreeMap::new(), |mut count, row| {
        *count.entry(row[3].clone()).or_default() += 1;
        count
    });
    assert!(by_sql.len() >= 2, "{by_sql:?}");
    let name = match world.db.backend {
        Backend::Sqlite => "bad_input.txt",
        Backend::Postgres => "bad_input_postgres.txt",
    };
    table::compare(name, &table::render(&rows), "values that cannot be read");
}

/// What looks odd and means one thing.
fn unusual_spellings_are_accepted(world: &World) {
    let update = |option: &str, value: &str| {
        world.db.json(&["key", "update", &world.live.id, &format!("--{option}={value}")])[option].clone()
    };
    for (value, read) in
        [("a  b a", "a b"), (" a ", "a"), ("*", "*"), ("a.* a:* a/*", "a.* a:* a/*"), ("", "")]
    {
        assert_eq!(update("scopes", value), read, "{value:?}");
    }
    for (value, read) in [
        ("10.0.0.0/8 10.1.0.0/16", "10.0.0.0/8 10.1.0.0/16"),
        ("10.0.0.0/8  10.0.0.0/8", "10.0.0.0/8"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("0.0.0.0/0 ::/0", "0.0.0.0/0 ::/0"),
        ("2001:DB8:0:0::/32", "2001:db8::/32"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
    ] {
        assert_eq!(update("networks", value), read, "{value:?}");
    }
    for (path, read) in [
        ("/a/", "/a"),
        ("/", "/"),
        ("/a.b", "/a.b"),
        ("/...", "/..."),
        ("/a%3Ab", "/a%3Ab"),
        ("/{a}/{b}/**", "/{a}/{b}/**"),
    ] {
        let made = world.db.json(&["route", "add", &format!("--path={path}")]);
        assert_eq!(made["path"], read);
        world.db.json(&["route", "remove", made["id"].as_str().expect("an id")]);
    }
    let made = world.db.json(&["route", "add", "--path=/a", "--host=Example.COM", "--scopes= a  b|c "]);
    assert_eq!((&made["host"], &made["scopes"]), (&"example.com".into(), &"a b | c".into()));
    // The same rule under other names.
    for path in ["/a/", "/a"] {
        world.db.cli(&["route", "add", "--path", path, "--host=EXAMPLE.com"]).refused();
    }
}

/// Values that are good alone.
fn what_is_bad_only_together_is_refused(world: &World) {
    world.db.json(&["plan", "create", "gold"]);
    for args in [
        &["--scopes=a", "--all-scopes"][..],
        &["--networks=10.0.0.0/8", "--any-network"],
        &["--plan=gold", "--no-plan"],
        &["--expires-in=1d", "--expires-at=2099-01-01T00:00:00Z"],
        &["--expires-in=1d", "--no-expiry"],
        &["--scopes=a", "--scopes=b"],
    ] {
        world.db.cli(&[&["key", "update", &world.live.id], args].concat()).usage();
    }
    for args in [
        &["--request-limit=1/DAY", "--no-request-limit"][..],
        &["--total-limit=1/DAY", "--total-limit=2/DAY"],
    ] {
        world.db.cli(&[&["plan", "update", "gold"], args].concat()).usage();
    }
    let public = ["route", "add", "--path=/a", "--mode=public"];
    assert!(world.db.cli(&[&public[..], &["--scopes=a"]].concat()).usage().contains("expected no scopes"));
    let file = world.db.dir().join("rules.json");
    for rules in [
        r#"[{"path":"/a"},{"path":"/a/"}]"#,
        r#"[{"path":"/{x}"},{"path":"/{y}"}]"#,
        r#"[{"path":"/a","mode":"public","scopes":"a"}]"#,
        r#"[{"path":"/a","name":"n"},{"path":"/b","name":"n"}]"#,
        r#"[{"path":"/a","host":"x","host":"y"}]"#,
    ] {
        std::fs::write(&file, rules).expect("a file");
        let run = world.db.cli(&["route", "apply", file.to_str().expect("plain")]);
        assert!(matches!(run.code, Some(1 | 2)) && run.stdout.is_empty(), "{rules}: {run:#?}");
    }
    assert_eq!(world.db.json(&["route", "list"]), json!([]));
}

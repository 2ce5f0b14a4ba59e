//! Tests management over HTTP on both stores: the responses equal those of the command line, and a key limits what its
//! client gets.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tenantgate::admin::{AdminKeyWish, Creator, Expiry};
use tenantgate::permission::{Permission, Permissions};

use crate::admin_keys::{admin, create};
use crate::support::cli::command;
use crate::support::http::{Page, parse};
use crate::support::transcript::{Transcript, field, says};
use crate::support::world::string;
use crate::support::{Backend, Database, PATIENCE, World, eventually, on_every_store, runtime};

on_every_store![
    objects_are_those_of_the_command_line,
    without_a_valid_key_every_request_is_rejected,
    wrong_keys_are_rate_limited_and_the_right_one_passes,
    every_path_and_permission_is_in_the_committed_table,
    unknown_paths_and_methods_are_reported,
    pages_show_every_tenant_once,
    a_key_sees_only_its_tenants,
    uses_of_a_key_are_recorded,
];

/// A running `tenantgate manage`; killed with this value.
pub(crate) struct Manage {
    pub(crate) child: Child,
    pub(crate) address: String,
    /// The address for operators.
    pub(crate) ops: String,
    pub(crate) stderr: Transcript,
}

impl Manage {
    pub(crate) fn on(database: &Database, listen: &str) -> Self {
        Self::with(database, listen, &[])
    }

    pub(crate) fn with(database: &Database, listen: &str, args: &[&str]) -> Self {
        let mut command = command(database.dir());
        command.args(["manage", "--database-url", database.url(), "--listen", listen]);
        command.args(["--ops-listen", "127.0.0.1:0"]).args(args);
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let stderr = Transcript::of(child.stderr.take().expect("piped"));
        let mut this = Self { child, address: String::new(), ops: String::new(), stderr };
        let [address, ops] = this.stderr.wait_for("ready", PATIENCE, |lines| {
            lines.iter().find(|line| says(line, "ready"))?;
            let listens = |name: &str| {
                let of = |line: &&String| says(line, "listening") && field(line, "listener") == Some(name);
                let all = lines.iter().filter(of).filter_map(|line| field(line, "address"));
                // A host name instead of a socket is used for the header.
                all.max_by_key(|address| !address.starts_with('/')).map(str::to_owned)
            };
            Some([listens("manage")?, listens("ops")?])
        });
        (this.address, this.ops) = (address, ops);
        this
    }

    pub(crate) fn ask(&self, method: &str, path: &str, headers: &[&str]) -> Page {
        let stream = TcpStream::connect(&self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        ask(stream, method, path, headers)
    }

    pub(crate) fn get(&self, path: &str, key: &str) -> Page {
        self.ask("GET", path, &[&format!("authorization: Bearer {key}")])
    }

    /// Sends a body as JSON, with a key and additional headers.
    pub(crate) fn send(&self, key: &str, method: &str, path: &str, body: &str, headers: &[&str]) -> Page {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let typed = headers.iter().any(|header| header.starts_with("content-type"));
        let media = if typed { String::new() } else { format!("content-type: {media}\r\n") };
        let headers: String = headers.iter().flat_map(|header| [header, "\r\n"]).collect();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: tenantgate\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\
             content-length: {}\r\n{media}{headers}\r\n{body}",
            body.len()
        )
        .expect("sent");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("an answer");
        parse(&String::from_utf8_lossy(&bytes))
    }

    /// Makes a change that must succeed. Returns the object of the response.
    #[track_caller]
    pub(crate) fn change(&self, key: &str, method: &str, path: &str, body: &Value) -> Value {
        let page = self.send(key, method, path, &body.to_string(), &[]);
        assert!((200..300).contains(&page.status), "{method} {path}: {} {}", page.status, page.body);
        serde_json::from_str(&page.body).expect("JSON")
    }

    /// Returns the object at a path, which must exist.
    #[track_caller]
    pub(crate) fn json(&self, path: &str, key: &str) -> Value {
        let page = self.get(path, key);
        assert_eq!(page.status, 200, "{path}: {}", page.body);
        serde_json::from_str(&page.body).expect("JSON")
    }
}

impl Drop for Manage {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn ask(mut stream: impl Read + Write, method: &str, path: &str, headers: &[&str]) -> Page {
    let headers: String = headers.iter().flat_map(|header| [header, "\r\n"]).collect();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: tenantgate\r\nconnection: close\r\n{headers}\r\n")
        .expect("sent");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an answer");
    parse(&String::from_utf8_lossy(&bytes))
}

#[track_caller]
pub(crate) fn is_problem(page: &Page, status: u16, code: &str) {
    assert_eq!(page.status, status, "{}", page.body);
    assert_eq!(page.headers["content-type"], "application/problem+json");
    let body: Value = serde_json::from_str(&page.body).expect("JSON");
    assert_eq!((&body["status"], &body["code"]), (&status.into(), &code.into()), "{body}");
    assert_eq!(body["request_id"], page.headers["x-request-id"].as_str());
    for name in ["type", "title", "detail"] {
        assert!(body[name].as_str().is_some_and(|text| !text.is_empty()), "{name}: {body}");
    }
}

pub(crate) fn owner(world: &World) -> String {
    string(&create(world, &["owner of all"]), "key")
}

/// Returns the same key except for its last character.
pub(crate) fn almost(key: &str) -> String {
    let other = if key.ends_with('X') { 'Y' } else { 'X' };
    format!("{}{other}", &key[..key.len() - 1])
}

fn objects_are_those_of_the_command_line(world: &World) {
    let key = owner(world);
    world.db.json(&["plan", "create", "gold", "--request-limit", "100/MINUTE"]);
    world.db.json(&["tenant", "update", &world.acme.id, "--plan", "gold"]);
    let rule = world.db.json(&["route", "add", "--path", "/v1/{model}/**", "--scopes", "a b | c"]);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let whole = |list: Value| json!({ "items": list, "next_page_token": "" });
    for (path, args) in [
        ("/v1/tenants", &["tenant", "list"][..]),
        ("/v1/plans", &["plan", "list"]),
        ("/v1/routes", &["route", "list"]),
    ] {
        assert_eq!(manage.json(path, &key), whole(world.db.json(args)), "{path}");
    }
    let acme = world.db.json(&["tenant", "show", &world.acme.id]);
    assert_eq!(manage.json(&format!("/v1/tenants/{}", world.acme.id), &key), acme);
    assert_eq!(manage.json(&format!("/v1/tenants/{}", world.acme.schema), &key), acme);
    assert_eq!(manage.json("/v1/tenants?name=Acme%20Corp", &key), whole(json!([acme])));
    assert_eq!(manage.json("/v1/plans/gold", &key), world.db.json(&["plan", "show", "gold"]));
    assert_eq!(manage.json(&format!("/v1/routes/{}", string(&rule, "id")), &key), rule);
    // The first request has recorded the use.
    let keys = world.db.json(&["admin-key", "list"]);
    assert_eq!(manage.json("/v1/admin_keys", &key), whole(keys.clone()));
    assert_eq!(manage.json(&format!("/v1/admin_keys/{}", string(&keys[0], "id")), &key), keys[0]);
    let who = manage.json("/v1/whoami", &key);
    for name in ["id", "key_prefix", "name", "permissions", "tenants", "expires_at"] {
        assert_eq!(who[name], keys[0][name], "{name}");
    }
    assert_eq!(manage.ask("GET", "/livez", &[]).body, "ok\n");
}

fn without_a_valid_key_every_request_is_rejected(world: &World) {
    let key = owner(world);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let wrong_secret = almost(&key);
    let mut presented = vec![
        vec![],
        vec!["authorization: Bearer ".to_owned()],
        vec![format!("authorization: {key}")],
        vec![format!("authorization: Basic {key}")],
        vec![format!("x-llmcore-api-key: {key}")],
        vec![format!("authorization: Bearer {wrong_secret}")],
        vec![format!("authorization: Bearer {}", world.live.text)],
        vec![format!("authorization: Bearer {key}"), format!("authorization: Bearer {key}")],
        vec![format!("cookie: key={key}")],
    ];
    assert_eq!(manage.get("/v1/whoami", &key).status, 200);
    world.db.json(&["admin-key", "revoke", "owner of all"]);
    presented.push(vec![format!("authorization: Bearer {key}")]);
    for headers in presented {
        let headers: Vec<_> = headers.iter().map(String::as_str).collect();
        for path in ["/v1/whoami", "/v1/nothing"] {
            // Wrong keys are rate-limited per address, so this test uses few.
            let page = Manage::on(&world.db, "127.0.0.1:0").ask("GET", path, &headers);
            is_problem(&page, 401, "unauthorized");
            assert_eq!(page.headers["www-authenticate"], "Bearer");
            assert!(!page.body.contains(&key) && !page.body.contains("owner"));
        }
    }
}

fn wrong_keys_are_rate_limited_and_the_right_one_passes(world: &World) {
    let key = owner(world);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    for _ in 0..20 {
        is_problem(&manage.ask("GET", "/v1/whoami", &[]), 401, "unauthorized");
    }
    let wrong = almost(&key);
    for _ in 0..10 {
        is_problem(&manage.get("/v1/whoami", &wrong), 401, "unauthorized");
    }
    let page = manage.get("/v1/whoami", &wrong);
    is_problem(&page, 429, "too_many_failures");
    let seconds: u32 = page.headers["retry-after"].parse().expect("seconds");
    assert!((1..=60).contains(&seconds));
    assert_eq!(manage.get("/v1/whoami", &key).status, 200);
    assert!(!manage.stderr.text().contains(&wrong));
}

/// Creates a key with exactly these permissions.
pub(crate) fn key_with(
    world: &World,
    name: &str,
    permissions: &[Permission],
    tenants: Option<Vec<String>>,
) -> String {
    let wish = AdminKeyWish {
        name: name.into(),
        permissions: Some(Permissions::of(permissions)),
        tenants,
        expiry: Expiry::Unsaid,
    };
    let made = runtime().block_on(admin(world).create_admin_key(&Creator::database(), &wish));
    made.expect("made").key.expose().to_owned()
}

/// Each path; `{…}` stands for an object of the tenant in question, or for a shared one.
const PATHS: [&str; 17] = [
    "/v1/whoami",
    "/v1/tenants",
    "/v1/tenants/{tenant}",
    "/v1/tenants/{tenant}/impact",
    "/v1/tenants/{tenant}/keys",
    "/v1/keys",
    "/v1/keys/{key}",
    "/v1/keys/{key}/usage",
    "/v1/usage",
    "/v1/audit",
    "/v1/replicas",
    "/v1/plans",
    "/v1/plans/{plan}",
    "/v1/routes",
    "/v1/routes/{route}",
    "/v1/admin_keys",
    "/v1/admin_keys/{admin_key}",
];

/// Returns, for each permission, a key for all tenants and one for Acme that have only this permission.
pub(crate) fn keys_by_permission(world: &World) -> Vec<(Permission, String, String)> {
    let both = |permission: Permission| {
        // A client that reads or changes a management key must have at least its authority.
        let list = [permission, Permission::KeysRead];
        let have = if permission.as_str().starts_with("admin_keys") { &list[..] } else { &list[..1] };
        let name = permission.as_str();
        let all = key_with(world, &format!("all {name}"), have, None);
        let few = key_with(world, &format!("few {name}"), have, Some(vec![world.acme.id.clone()]));
        (permission, all, few)
    };
    Permission::ALL.into_iter().map(both).collect()
}

fn every_path_and_permission_is_in_the_committed_table(world: &World) {
    world.db.json(&["plan", "create", "gold"]);
    let route = string(&world.db.json(&["route", "add", "--path", "/a"]), "id");
    let of_acme =
        string(&create(world, &["a", "--permission", "keys:read", "--tenant", &world.acme.id]), "id");
    let of_sleepy =
        string(&create(world, &["b", "--permission", "keys:read", "--tenant", &world.sleepy.id]), "id");
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let keys = keys_by_permission(world);
    let mut table =
        String::from("# path: status for a key of all tenants, of this tenant, of another tenant\n");
    for path in PATHS {
        let fill = |tenant: &str, key: &str, admin_key: &str| {
            let path =
                path.replace("{tenant}", tenant).replace("{key}", key).replace("{admin_key}", admin_key);
            path.replace("{plan}", "gold").replace("{route}", &route)
        };
        let (own, foreign) = (
            fill(&world.acme.id, &world.live.id, &of_acme),
            fill(&world.sleepy.id, &world.of_sleepy.id, &of_sleepy),
        );
        let mut rows: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (permission, all, few) in &keys {
            let status = |path: &str, key: &str| manage.get(path, key).status;
            let row = format!("{} {} {}", status(&own, all), status(&own, few), status(&foreign, few));
            rows.entry(row).or_default().push(permission.as_str());
        }
        for (row, permissions) in rows {
            table.extend(["GET ", path, ": ", &row, ": ", &permissions.join(" "), "\n"]);
        }
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/manage.txt");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&file, &table).expect("the table is written");
    }
    let committed = std::fs::read_to_string(&file).expect("the table is committed");
    assert_eq!(committed, table, "UPDATE_SNAPSHOTS=1 rewrites tests/it/manage.txt");
}

fn unknown_paths_and_methods_are_reported(world: &World) {
    let key = owner(world);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let bearer = format!("authorization: Bearer {key}");
    for path in [
        "/v1",
        "/v1/",
        "/v1/nothing",
        "/v1//tenants",
        "/v1/tenants/",
        "/v1/./tenants",
        "/v1/%2e/tenants",
        "/v1/plans/../tenants",
        "/V1/tenants",
        "/v1/tenants/nobody",
        "/v1/tenants/Acme%20Corp",
        "/v1/plans/nobody",
        "/v1/plans/%00",
        "/v1/routes/nobody",
        "/v1/admin_keys/nobody",
        "/metrics",
    ] {
        is_problem(&manage.ask("GET", path, &[&bearer]), 404, "not_found");
    }
    for path in PATHS {
        let page = manage.ask("TRACE", path, &[&bearer]);
        is_problem(&page, 405, "method_not_allowed");
        let allowed = page.headers["allow"].clone();
        assert!(allowed.starts_with("GET,HEAD"), "{allowed}");
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            let page = manage.ask(method, path, &[&bearer, "content-length: 0"]);
            assert_eq!(page.status == 405, !allowed.contains(method), "{method} {path}: {}", page.body);
        }
    }
    for (query, pointer, code) in [
        ("colour=x", "/colour", "unknown_parameter"),
        ("page_size=0", "/page_size", "invalid_value"),
        ("page_token=x", "/page_token", "page_token_mismatch"),
        ("name=a&name=b", "/name", "repeated_parameter"),
    ] {
        let page = manage.ask("GET", &format!("/v1/tenants?{query}"), &[&bearer]);
        is_problem(&page, 400, "invalid_request");
        let body: Value = serde_json::from_str(&page.body).expect("JSON");
        assert_eq!(
            (&body["errors"][0]["pointer"], &body["errors"][0]["code"]),
            (&pointer.into(), &code.into())
        );
    }
    for path in ["/v1/whoami", "/v1/nothing", "/livez"] {
        for headers in [&[bearer.as_str()][..], &[]] {
            let page = manage.ask("GET", path, headers);
            assert!(page.headers["content-security-policy"].starts_with("default-src 'none'"), "{path}");
            assert_eq!(page.headers["x-content-type-options"], "nosniff");
            assert_eq!(page.headers["cache-control"], "no-store");
        }
    }
}

fn pages_show_every_tenant_once(world: &World) {
    let key = owner(world);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = manage.json(&format!("/v1/tenants?page_size=1&page_token={token}"), &key);
        seen.extend(page["items"].as_array().expect("items").clone());
        // A tenant that is created meanwhile comes after all existing ones.
        if seen.len() == 1 {
            world.db.json(&["tenant", "create", "Late", "--status", "pending_provisioning"]);
        }
        token = string(&page, "next_page_token");
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(Value::from(seen), world.db.json(&["tenant", "list"]));
}

fn a_key_sees_only_its_tenants(world: &World) {
    let few = key_with(
        world,
        "few",
        &[Permission::TenantsRead, Permission::AdminKeysRead],
        Some(vec![world.acme.id.clone()]),
    );
    owner(world);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let ids = |path: &str| {
        let page = manage.json(path, &few);
        page["items"].as_array().expect("items").iter().map(|item| string(item, "name")).collect::<Vec<_>>()
    };
    assert_eq!(ids("/v1/tenants"), std::slice::from_ref(&world.acme.name));
    assert_eq!(ids("/v1/admin_keys"), ["few"]);
    let text = |path: &str| {
        let mut body: Value = serde_json::from_str(&manage.get(path, &few).body).expect("JSON");
        body["request_id"] = Value::Null;
        body
    };
    let missing = text("/v1/tenants/00000000-0000-4000-8000-000000000001");
    assert_eq!(text(&format!("/v1/tenants/{}", world.sleepy.id)), missing);
    assert_eq!(text(&format!("/v1/tenants/{}", world.sleepy.schema)), missing);
}

fn uses_of_a_key_are_recorded(world: &World) {
    let key = owner(world);
    let used = || world.db.json(&["admin-key", "list"])[0]["last_used_at"].clone();
    assert_eq!(used(), Value::Null);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    manage.json("/v1/whoami", &key);
    let first = used();
    assert!(first.is_string());
    manage.json("/v1/whoami", &key);
    assert_eq!(used(), first, "it is written at most once a minute");
}

#[test]
fn a_socket_is_a_listener_and_a_signal_ends_the_process() {
    let world = World::on(Backend::Sqlite).expect("a world");
    let key = owner(&world);
    let path = world.db.dir().join("manage.sock");
    let mut manage = Manage::on(&world.db, &format!("unix:{}", path.display()));
    let bearer = format!("authorization: Bearer {key}");
    let wrong = format!("{bearer}X");
    let knock =
        |header: &str| ask(UnixStream::connect(&path).expect("it listens"), "GET", "/v1/whoami", &[header]);
    for _ in 0..12 {
        assert_eq!(knock(&wrong).status, 401);
    }
    assert_eq!(knock(&bearer).status, 200);
    let sent = Command::new("sh").args(["-c", r#"kill -TERM "$0""#, &manage.child.id().to_string()]).status();
    assert!(sent.expect("sh starts").success());
    let end = eventually("it ends", PATIENCE, || manage.child.try_wait().expect("ours").ok_or("it runs"));
    assert_eq!(end.code(), Some(0), "{}", manage.stderr.text());
    assert!(!path.exists());
}

#[test]
fn the_role_admin_has_the_privileges_for_manage() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let key = owner(&world);
    let prefix = world.db.with_roles();
    let manage = Manage::on(&world.db.seen_by(&format!("{prefix}_admin")), "127.0.0.1:0");
    for path in ["/v1/whoami", "/v1/tenants", "/v1/plans", "/v1/routes", "/v1/admin_keys"] {
        manage.json(path, &key);
    }
    assert!(world.db.json(&["admin-key", "list"])[0]["last_used_at"].is_string());
}

#[test]
fn options_are_checked_before_anything_starts() {
    let world = World::on(Backend::Sqlite).expect("a world");
    let check = |listen: &[&str]| {
        let listen: Vec<_> = listen.iter().flat_map(|address| ["--listen", address]).collect();
        world.db.cli(&[&["manage", "--check-config"], &listen[..]].concat())
    };
    let socket = |name: &str| format!("unix:{}/{name}", world.db.dir().display());
    for fine in [&["127.0.0.1:1"][..], &["[::1]:1"], &["localhost:1"], &[&socket("x"), "127.8.0.1:2"]] {
        assert_eq!(check(fine).code, Some(0), "{fine:?}");
    }
    for far in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "example.com:1", "127.0.0.1.example.com:1"] {
        let said = check(&[far]).usage();
        assert!(said.contains("--tls-cert and --tls-key"), "{said}");
    }
    assert!(check(&["127.0.0.1"]).usage().contains("expected HOST:PORT"));
    assert!(check(&["127.0.0.1:1", "127.0.0.1:01"]).usage().contains("given twice"));
    assert!(check(&[&socket("x"), &socket("./x")]).usage().contains("given twice"));
    assert!(check(&[&socket("none/x")]).usage().contains("does not exist"));
}

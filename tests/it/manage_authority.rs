//! Tests what a management key may do once its authority was changed: while a request is on its way, when a request is
//! repeated, and for the keys that it has made.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;

use serde_json::{Value, json};

use crate::admin_keys::create;
use crate::manage::{Manage, is_problem, owner};
use crate::support::http::{Page, parse};
use crate::support::world::string;
use crate::support::{PATIENCE, World, on_every_store};

on_every_store![
    a_request_ends_with_the_authority_that_it_began_with,
    a_narrowed_key_does_not_widen_itself,
    a_repeated_request_shows_nothing_that_was_taken_away,
    what_a_key_may_do_is_limited_by_its_creator_everywhere,
    concurrent_changes_of_one_management_key_do_not_block_one_another,
];

/// A request whose caller is known to the server, and whose body is not sent yet.
struct Held(TcpStream);

impl Held {
    fn begin(manage: &Manage, key: &str, method: &str, path: &str, length: usize) -> Self {
        let mut stream = TcpStream::connect(&manage.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\
             content-type: {media}\r\ncontent-length: {length}\r\nexpect: 100-continue\r\n\r\n"
        )
        .expect("sent");
        // The server asks for the body after it has authenticated the caller (RFC 9110 §10.1.1).
        let mut interim = [0; 25];
        stream.read_exact(&mut interim).expect("an interim response");
        assert!(interim.starts_with(b"HTTP/1.1 100 Continue"), "{}", String::from_utf8_lossy(&interim));
        Self(stream)
    }

    fn end(mut self, body: &str) -> Page {
        self.0.write_all(body.as_bytes()).expect("sent");
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes).expect("an answer");
        parse(&String::from_utf8_lossy(&bytes))
    }
}

fn narrow(manage: &Manage, owner: &str, id: &str, to: &Value) {
    manage.change(owner, "PATCH", &format!("/v1/admin_keys/{id}"), to);
}

fn a_request_ends_with_the_authority_that_it_began_with(world: &World) {
    let (owner, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    let body = json!({ "name": "late" }).to_string();
    let keys = format!("/v1/tenants/{}/keys", world.acme.id);
    let revoke = format!("/v1/keys/{}/revoke", world.live.id);
    for (name, change) in [
        ("narrowed", json!({ "permissions": ["keys:read"] })),
        ("moved", json!({ "tenants": [world.sleepy.id] })),
    ] {
        let made = create(world, &[name, "--role", "owner"]);
        let (key, id) = (string(&made, "key"), string(&made, "id"));
        let held = [
            (Held::begin(&manage, &key, "POST", &keys, body.len()), body.as_str()),
            (Held::begin(&manage, &key, "POST", "/v1/admin_keys", body.len()), &body),
            (Held::begin(&manage, &key, "POST", &revoke, 2), "{}"),
        ];
        narrow(&manage, &owner, &id, &change);
        for (request, body) in held {
            let page = request.end(body);
            is_problem(&page, 409, "refused");
            assert!(page.body.contains("your management key was changed"), "{}", page.body);
        }
    }
    assert_eq!(world.db.json(&["key", "show", &world.live.id])["revoked_at"], Value::Null);
    assert!(!world.db.json(&["key", "list"]).to_string().contains("late"));
}

fn a_narrowed_key_does_not_widen_itself(world: &World) {
    let (owner, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    let made = create(world, &["m", "--role", "owner"]);
    let (key, id) = (string(&made, "key"), string(&made, "id"));
    let path = format!("/v1/admin_keys/{id}");
    let wide = json!({ "role": "owner", "tenants": null }).to_string();
    let held = Held::begin(&manage, &key, "PATCH", &path, wide.len());
    narrow(&manage, &owner, &id, &json!({ "permissions": ["keys:read"], "tenants": [world.acme.id] }));
    is_problem(&held.end(&wide), 409, "refused");
    let now = manage.json("/v1/whoami", &key);
    assert_eq!((&now["permissions"], &now["tenants"]), (&json!(["keys:read"]), &json!([world.acme.id])));
}

fn a_repeated_request_shows_nothing_that_was_taken_away(world: &World) {
    let file = world.db.dir().join("pepper").display().to_string();
    world.db.json(&["pepper", "new", &file]);
    let (owner, manage) = (owner(world), Manage::with(&world.db, "127.0.0.1:0", &["--pepper-file", &file]));
    let made = create(world, &["m", "--role", "owner"]);
    let (key, id) = (string(&made, "key"), string(&made, "id"));
    let again = ["idempotency-key: one-0001"];
    let create = format!("/v1/tenants/{}/keys", world.acme.id);
    let rotate = format!("/v1/keys/{}/rotate", world.live.id);
    let send = |path: &str| manage.send(&key, "POST", path, "{}", &again);
    assert_eq!((send(&create).status, send(&rotate).status), (201, 200));
    assert_eq!((send(&create).status, send(&rotate).status), (201, 200));
    let tenant = manage.send(&key, "POST", "/v1/tenants", r#"{"name":"New Ltd"}"#, &again);
    assert_eq!(tenant.status, 201, "{}", tenant.body);
    narrow(&manage, &owner, &id, &json!({ "tenants": [world.sleepy.id] }));
    for path in [&create, &rotate] {
        let page = send(path);
        is_problem(&page, 404, "not_found");
        assert!(!page.body.contains("llmk_"), "{}", page.body);
    }
    let page = manage.send(&key, "POST", "/v1/tenants", r#"{"name":"New Ltd"}"#, &again);
    assert!(page.status >= 400 && !page.body.contains("New Ltd"), "{}", page.body);
}

fn what_a_key_may_do_is_limited_by_its_creator_everywhere(world: &World) {
    let (owner, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    let made = create(world, &["creator", "--role", "owner"]);
    let (creator, id) = (string(&made, "key"), string(&made, "id"));
    let child = manage.change(&creator, "POST", "/v1/admin_keys", &json!({ "name": "child" }));
    let path = format!("/v1/admin_keys/{}", string(&child, "id"));
    let few = json!(["keys:read", "admin_keys:read", "admin_keys:write"]);
    narrow(&manage, &owner, &id, &json!({ "permissions": few, "tenants": [world.acme.id] }));
    for key in [&owner, &creator, &string(&child, "key")] {
        let shown = manage.json(&path, key);
        let mut permissions: Vec<_> = shown["permissions"].as_array().expect("a list").iter().collect();
        permissions.sort_by_key(|name| name.as_str());
        assert_eq!(json!(permissions), json!(["admin_keys:read", "admin_keys:write", "keys:read"]));
        assert_eq!(shown["tenants"], json!([world.acme.id]));
    }
    for more in [json!({ "role": "owner" }), json!({ "tenants": null })] {
        let page = manage.send(&owner, "PATCH", &path, &more.to_string(), &[]);
        is_problem(&page, 409, "refused");
        assert!(page.body.contains("limits it"), "{}", page.body);
    }
    manage.change(&owner, "PATCH", &path, &json!({ "permissions": ["keys:read"] }));
    let revoked = manage.change(&creator, "POST", &format!("{path}/revoke"), &json!({}));
    assert_eq!(revoked["status"], "revoked");
}

fn concurrent_changes_of_one_management_key_do_not_block_one_another(world: &World) {
    let (owner, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    let made = create(world, &["busy", "--role", "owner"]);
    let (key, path) = (string(&made, "key"), format!("/v1/admin_keys/{}", string(&made, "id")));
    thread::scope(|scope| {
        for n in 0..8 {
            let (manage, key, path) = (&manage, &key, &path);
            scope.spawn(move || {
                for m in 0..5 {
                    let name = json!({ "name": format!("busy {n} {m}") }).to_string();
                    let page = manage.send(key, "PATCH", path, &name, &[]);
                    if page.status == 401 {
                        break;
                    }
                    assert_eq!(page.status, 200, "{}", page.body);
                }
            });
        }
        let page = manage.send(&owner, "POST", &format!("{path}/revoke"), "", &[]);
        assert_eq!(page.status, 200, "the first attempt: {}", page.body);
    });
    assert_eq!(manage.get("/v1/whoami", &key).status, 401);
}

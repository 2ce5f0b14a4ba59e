//! Tests the page of `manage` without a browser: sessions and login links on both stores, hostile sites and hostile
//! texts.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use tenantgate::admin::{Admin, Browser, Caller, IDLE, LINK_WITHIN, LONGEST};
use tenantgate::audit::Actor;
use tenantgate::clock::{Clock as _, ManualClock, SystemClock};
use tenantgate::config::Database;
use tenantgate::key::format::parse_management;
use tenantgate::permission::Permission;
use tenantgate::store::Ending;
use tenantgate::verify::memo::Peppers;

use crate::admin_keys::create;
use crate::manage::{Manage, almost, is_problem, key_with, owner};
use crate::support::cli::{DATABASE_URL, run_in};
use crate::support::http::{Page, parse};
use crate::support::world::string;
use crate::support::{PATIENCE, World, on_every_store, wait};

on_every_store![
    a_link_signs_in_once_and_for_five_minutes,
    a_session_ends_by_idleness_by_age_and_with_its_key,
    signing_in_and_out_is_in_the_audit_log,
    a_cookie_is_valid_for_the_page_but_not_for_the_api,
    other_sites_change_nothing,
    a_session_cannot_be_planted,
    wrong_keys_and_links_are_counted_together,
    every_text_is_escaped,
    actions_without_permission_are_neither_offered_nor_performed,
    sessions_are_listed_and_ended,
];

/// The host name of the tests. It is not a loopback name, so that cookies have the strict name.
const HOST: &str = "gate.example";
const OURS: [&str; 2] = ["sec-fetch-site: same-origin", "origin: https://gate.example"];

/// Returns use cases whose clock does not advance.
fn with_clock(world: &World) -> (Admin, Arc<ManualClock>) {
    let database = Database::at(world.db.url());
    let store = tenantgate::config::management(&database, Actor::default()).unwrap();
    let clock = Arc::new(ManualClock::at(SystemClock.now()));
    (Admin::new(store, Arc::clone(&clock) as _, Peppers::default()), clock)
}

pub(crate) fn send(manage: &Manage, method: &str, path: &str, headers: &[&str], body: &str) -> Page {
    let mut stream = TcpStream::connect(&manage.address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let headers: String = headers.iter().flat_map(|header| [header, "\r\n"]).collect();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\ncontent-length: {}\r\n\
         content-type: application/x-www-form-urlencoded\r\n{headers}\r\n{body}",
        body.len()
    )
    .expect("sent");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an answer");
    parse(&String::from_utf8_lossy(&bytes))
}

/// Returns the `name=value` of the cookie that a response sets.
#[track_caller]
fn cookie_of(page: &Page) -> String {
    assert_eq!(page.status, 303, "{}", page.body);
    let line = &page.headers["set-cookie"];
    line.split(';').next().unwrap().to_owned()
}

pub(crate) fn sign_in(manage: &Manage, key: &str) -> String {
    let page = send(manage, "POST", "/sign-in", &OURS, &format!("key={key}"));
    assert_eq!(page.headers["location"], "/");
    format!("cookie: {}", cookie_of(&page))
}

pub(crate) fn get(manage: &Manage, path: &str, cookie: &str) -> Page {
    send(manage, "GET", path, &[cookie], "")
}

pub(crate) fn post(manage: &Manage, path: &str, cookie: &str, body: &str) -> Page {
    send(manage, "POST", path, &[&[cookie][..], &OURS].concat(), body)
}

pub(crate) fn escaped(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

fn a_link_signs_in_once_and_for_five_minutes(world: &World) {
    create(world, &["Ops"]);
    let (admin, clock) = with_clock(world);
    let by = |link: &str| wait(admin.sign_in_by_link(link, &Browser::default())).unwrap().is_some();
    let made = || wait(admin.login_link("Ops")).unwrap();
    let link = made();
    assert!(!by("") && !by("nothing") && !by(&link.token.hash()));
    clock.advance(LINK_WITHIN.checked_sub(Duration::from_secs(1)).unwrap());
    assert!(by(link.token.expose()) && !by(link.token.expose()), "it works once");
    let late = made();
    clock.advance(LINK_WITHIN);
    assert!(!by(late.token.expose()));
    let of_revoked = made();
    world.db.json(&["admin-key", "revoke", "Ops"]);
    assert!(!by(of_revoked.token.expose()));
    assert!(wait(admin.login_link("Ops")).is_err() && wait(admin.login_link("nobody")).is_err());
    // By the command, with a given base URL.
    create(world, &["Other"]);
    let printed = world.db.json(&["admin-key", "login-link", "Other", "--url", "https://gate.example/"]);
    assert!(string(&printed, "url").starts_with("https://gate.example/login/"), "{printed}");
    let printed = world.db.json(&["admin-key", "login-link", "Other"]);
    assert!(string(&printed, "url").starts_with("http://127.0.0.1:9465/login/"), "{printed}");
    let with_tls = [("TENANTGATE_TLS_CERT", "/etc/tls.crt"), (DATABASE_URL, world.db.url())];
    let args = ["admin-key", "login-link", "Other", "-o", "json"];
    let secure = run_in(world.db.dir(), &with_tls, &args).json();
    assert!(string(&secure, "url").starts_with("https://127.0.0.1:9465/login/"), "{secure}");
    let hashes = world.db.texts("SELECT hashed_token FROM tenantgate_login_link");
    let token = string(&printed, "url").rsplit('/').next().unwrap().to_owned();
    assert!(hashes.iter().flatten().all(|hash| hash.len() == 64 && !hash.contains(&token)));
}

fn a_session_ends_by_idleness_by_age_and_with_its_key(world: &World) {
    let key = string(&create(world, &["Ops"]), "key");
    let (admin, clock) = with_clock(world);
    let begin = || {
        let presented = parse_management(key.as_bytes()).unwrap();
        wait(admin.sign_in(presented, &Browser::default())).unwrap().expect("a valid key")
    };
    let on = |token: &str| wait(admin.session(token)).unwrap().is_some();
    let (minute, session) = (Duration::from_mins(1), begin());
    let token = session.token.expose();
    assert!(on(token) && !on(&session.token.hash()) && !on(""));
    clock.advance(IDLE);
    assert!(!on(token), "idle");
    let session = begin();
    let token = session.token.expose();
    let mut age = Duration::ZERO;
    while age + 20 * minute < LONGEST {
        clock.advance(20 * minute);
        age += 20 * minute;
        assert!(on(token), "in use for {age:?}");
    }
    clock.advance(20 * minute);
    assert!(!on(token), "older than 12 h");
    // A new session removes those that have ended.
    let session = begin();
    assert_eq!(world.db.text("SELECT CAST(count(*) AS text) FROM tenantgate_admin_session").unwrap(), "1");
    assert!(on(session.token.expose()));
    world.db.json(&["admin-key", "revoke", "Ops"]);
    assert!(!on(session.token.expose()), "with its key");
}

fn signing_in_and_out_is_in_the_audit_log(world: &World) {
    let key = string(&create(world, &["Ops"]), "key");
    world.db.json(&["admin-key", "login-link", "Ops"]);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let cookie = sign_in(&manage, &key);
    assert_eq!(post(&manage, "/sign-out", &cookie, "").headers["location"], "/sign-in");
    assert_eq!(get(&manage, "/", &cookie).headers["location"], "/sign-in");
    let log = world.db.json(&["audit", "list"]);
    let actions: Vec<_> = log.as_array().unwrap().iter().map(|entry| string(entry, "action")).collect();
    let ours = ["admin_key.login_link", "admin_key.sign_in", "admin_key.sign_out"];
    assert!(actions.ends_with(&ours.map(str::to_owned)), "{actions:?}");
    let last = log.as_array().unwrap().last().unwrap();
    assert!(string(last, "actor").starts_with("Ops (llma_"), "{last}");
    assert!(!log.to_string().contains(&key));
    world.db.json(&["audit", "verify"]);
}

fn a_cookie_is_valid_for_the_page_but_not_for_the_api(world: &World) {
    let key = owner(world);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let page = send(&manage, "POST", "/sign-in", &OURS, &format!("key={key}"));
    let flags = "; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict; Secure";
    assert!(page.headers["set-cookie"].starts_with("__Host-tenantgate="));
    assert!(page.headers["set-cookie"].ends_with(flags), "{:?}", page.headers);
    let cookie = format!("cookie: {}", cookie_of(&page));
    assert_eq!(get(&manage, "/", &cookie).status, 200);
    for path in ["/v1/whoami", "/v1/tenants", "/v1/nothing"] {
        is_problem(&send(&manage, "GET", path, &[&cookie], ""), 401, "unauthorized");
    }
    for path in ["/", "/tenants", "/keys", "/routes", "/plans", "/usage", "/audit", "/admin-keys"] {
        let page = get(&manage, path, &cookie);
        assert_eq!(page.status, 200, "{path}");
        let policy = &page.headers["content-security-policy"];
        for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"));
        assert_eq!(page.headers["x-frame-options"], "DENY", "{path}");
        assert_eq!(page.headers["cache-control"], "no-store", "{path}");
        assert_eq!(page.headers["referrer-policy"], "no-referrer", "{path}");
        assert_eq!(page.headers["x-content-type-options"], "nosniff", "{path}");
        assert!(!page.body.contains(" style=") && !page.body.contains(" onclick"), "{path}");
        assert!(!page.body.contains("//") || !page.body.contains("src=\"http"), "{path}");
        assert_eq!(get(&manage, path, "cookie: none=").headers["location"], "/sign-in", "{path}");
        assert_eq!(get(&manage, path, &format!("authorization: Bearer {key}")).status, 303, "{path}");
    }
}

fn other_sites_change_nothing(world: &World) {
    let key = owner(world);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let cookie = sign_in(&manage, &key);
    let link = string(&world.db.json(&["admin-key", "login-link", "owner of all"]), "url");
    let link = link.split_once("/login/").unwrap().1.to_owned();
    let before = world.db.json(&["tenant", "list"]);
    for foreign in [
        &[][..],
        &["origin: https://evil.example"],
        &["origin: null"],
        &["origin: https://gate.example.evil.example"],
        &["sec-fetch-site: cross-site"],
        &["sec-fetch-site: same-site"],
        &["sec-fetch-site: none"],
        &["sec-fetch-site: same-origin", "origin: https://evil.example"],
        &["sec-fetch-site: cross-site", "origin: https://gate.example"],
    ] {
        for (path, body) in [
            ("/tenants", "name=Evil".to_owned()),
            ("/sign-out", String::new()),
            (&format!("/tenants/{}/suspend", world.acme.id), String::new()),
            (&format!("/keys/{}/revoke", world.live.id), String::new()),
            ("/sign-in", format!("key={key}")),
            (&format!("/login/{link}"), String::new()),
        ] {
            let headers = [&[cookie.as_str()][..], foreign].concat();
            let page = send(&manage, "POST", path, &headers, &body);
            assert_eq!(page.status, 403, "{path} {foreign:?}");
            assert!(!page.headers.contains_key("set-cookie"), "{path} {foreign:?}");
        }
    }
    assert_eq!(world.db.json(&["tenant", "list"]), before);
    assert_eq!(get(&manage, "/", &cookie).status, 200, "still signed in");
    // Opening a link with GET does not use it up, and neither did the rejected requests.
    assert_eq!(send(&manage, "GET", &format!("/login/{link}"), &[], "").status, 200);
    assert_eq!(send(&manage, "HEAD", &format!("/login/{link}"), &[], "").status, 200);
    let page = send(&manage, "POST", &format!("/login/{link}"), &OURS, "");
    assert_eq!(page.status, 303, "{}", page.body);
    assert_eq!(send(&manage, "POST", &format!("/login/{link}"), &OURS, "").status, 401);
}

fn a_session_cannot_be_planted(world: &World) {
    let key = owner(world);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let planted = "__Host-tenantgate=chosen-by-somebody-else";
    let cookie = format!("cookie: {planted}");
    let headers = [&[cookie.as_str()][..], &OURS].concat();
    let page = send(&manage, "POST", "/sign-in", &headers, &format!("key={key}"));
    let first = cookie_of(&page);
    assert_ne!(first, planted);
    assert_eq!(get(&manage, "/", &format!("cookie: {planted}")).status, 303);
    // A second sign-in starts another session and ends the first one.
    let cookie = format!("cookie: {first}");
    let headers = [&[cookie.as_str()][..], &OURS].concat();
    let second = cookie_of(&send(&manage, "POST", "/sign-in", &headers, &format!("key={key}")));
    assert_ne!(first, second);
    assert_eq!(get(&manage, "/", &format!("cookie: {first}")).status, 303);
    assert_eq!(get(&manage, "/", &format!("cookie: {second}")).status, 200);
    // Of two cookies with this name, one may have been planted.
    assert_eq!(get(&manage, "/", &format!("cookie: {second}; {first}")).status, 303);
    assert_eq!(get(&manage, "/", &format!("cookie: tenantgate={}", &second[18..])).status, 303);
}

fn wrong_keys_and_links_are_counted_together(world: &World) {
    let key = owner(world);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let wrong_secret = almost(&key);
    let unknown = "llma_nobody_0123456789abcdefghijkl";
    let at = |form: &str| send(&manage, "POST", "/sign-in", &OURS, &format!("key={form}"));
    // The responses do not tell what was wrong.
    let (one, other, neither) = (at(&wrong_secret), at(unknown), at("x"));
    assert_eq!((one.status, &one.body), (401, &other.body));
    assert_eq!(other.body, neither.body);
    assert!(!one.headers.contains_key("set-cookie") && !one.body.contains(&wrong_secret));
    for _ in 3..10 {
        assert_eq!(send(&manage, "POST", "/login/nothing", &OURS, "").status, 401);
    }
    for page in [at(unknown), send(&manage, "POST", "/login/nothing", &OURS, "")] {
        assert_eq!(page.status, 429);
        assert!((1..=60).contains(&page.headers["retry-after"].parse::<u64>().unwrap()));
    }
    assert_eq!(at(&key).status, 303, "a valid key always passes");
    assert!(!manage.stderr.text().contains(&wrong_secret));
}

fn every_text_is_escaped(world: &World) {
    const NASTY: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;";
    let key = string(&create(world, &[&format!("ops {NASTY}")]), "key");
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let agent = format!("user-agent: {NASTY}");
    let page = send(&manage, "POST", "/sign-in", &[&OURS[..], &[&agent]].concat(), &format!("key={key}"));
    let cookie = format!("cookie: {}", cookie_of(&page));
    let nasty = escaped(NASTY);
    let made = post(&manage, "/tenants", &cookie, &format!("name={nasty}&schema=nasty"));
    let tenant = made.headers["location"].split('?').next().unwrap().to_owned();
    let body = format!("name={nasty}&expiry=30d&labels=a%3D{}", escaped("<b>x</b>"));
    let issued = post(&manage, &format!("{tenant}/keys"), &cookie, &body);
    assert_eq!(issued.status, 200, "{}", issued.body);
    let prefix = world.db.text("SELECT key_prefix FROM api_keys WHERE name LIKE '<script>%'").unwrap();
    let reason = post(&manage, &format!("/keys/{prefix}/revoke"), &cookie, &format!("reason={nasty}"));
    assert_eq!(reason.status, 303, "{}", reason.body);
    let rule = post(&manage, "/routes", &cookie, &format!("path=%2Fa&name={nasty}"));
    assert_eq!(rule.status, 303, "{}", rule.body);
    let own = world.db.text("SELECT CAST(id AS text) FROM tenantgate_admin_key").unwrap();
    for path in [
        "/",
        "/tenants",
        &format!("/tenants?q={nasty}"),
        &tenant,
        &format!("{tenant}/keys/new"),
        "/keys",
        &format!("/keys?q={nasty}&scope={nasty}"),
        &format!("/keys/{prefix}"),
        &format!("/keys/{prefix}?path=%2F{nasty}&host={nasty}&method={nasty}"),
        &format!("/keys/{prefix}?done={nasty}"),
        "/routes",
        &format!("/routes?path=%2F{nasty}&host={nasty}&method={nasty}"),
        "/usage",
        "/audit",
        &format!("/audit?actor={nasty}&subject={nasty}"),
        "/admin-keys",
        &format!("/admin-keys/{own}"),
        &format!("/login/{nasty}"),
        "/sign-in",
    ] {
        let page = get(&manage, path, &cookie);
        assert!(page.status < 500, "{path}: {}", page.status);
        assert!(
            !page.body.contains("<script>") && !page.body.contains("<img src=x"),
            "{path}: {}",
            page.body
        );
        assert!(!page.body.contains("<b>x</b>"), "{path}");
    }
    for (path, shown) in [(tenant.as_str(), true), ("/audit", true), (&*format!("/admin-keys/{own}"), true)] {
        let page = get(&manage, path, &cookie);
        assert_eq!(page.body.contains("&lt;script&gt;alert(1)"), shown, "{path}: {}", page.body);
    }
    // The forms show the typed text again, escaped.
    let again = post(&manage, "/tenants", &cookie, &format!("name={nasty}&schema={nasty}"));
    assert_eq!(again.status, 400);
    assert!(again.body.contains("&lt;script&gt;") && !again.body.contains("<script>"));
}

fn actions_without_permission_are_neither_offered_nor_performed(world: &World) {
    let only = |name: &str, permissions: &[Permission]| {
        key_with(world, name, permissions, Some(vec![world.acme.id.clone()]))
    };
    let viewer = only("viewer", &[Permission::TenantsRead, Permission::KeysRead]);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let cookie = sign_in(&manage, &viewer);
    let (acme, sleepy) = (format!("/tenants/{}", world.acme.id), format!("/tenants/{}", world.sleepy.id));
    let (ours, theirs) = (format!("/keys/{}", world.live.id), format!("/keys/{}", world.of_sleepy.id));
    let page = get(&manage, &acme, &cookie);
    assert_eq!(page.status, 200);
    for offer in ["New key", "Suspend", "Delete tenant", "/usage", "/audit", "/admin-keys", "/routes"] {
        assert!(!page.body.contains(offer), "{offer} is offered");
    }
    let page = get(&manage, &ours, &cookie);
    for offer in ["Revoke key", "Rotate key", "Disable key"] {
        assert!(!page.body.contains(offer), "{offer} is offered");
    }
    assert!(!get(&manage, "/tenants", &cookie).body.contains(&world.sleepy.name));
    assert!(!get(&manage, "/keys", &cookie).body.contains(&world.of_sleepy.prefix));
    for path in [&sleepy, &theirs, &format!("/keys?tenant={}", world.sleepy.schema)] {
        let page = get(&manage, path, &cookie);
        assert!(page.status == 404 || page.body.contains("No key matches"), "{path}");
        assert!(!page.body.contains(&world.of_sleepy.prefix));
    }
    for path in ["/usage", "/audit", "/admin-keys", "/routes", "/plans", "/tenants/new"] {
        assert_eq!(get(&manage, path, &cookie).status, 403, "{path}");
    }
    for path in [
        "/tenants".to_owned(),
        format!("{acme}/suspend"),
        format!("{acme}/delete"),
        format!("{acme}/keys"),
        format!("{ours}/revoke"),
        format!("{ours}/rotate"),
        format!("{ours}/disable"),
        "/routes".to_owned(),
        "/plans".to_owned(),
        "/admin-keys".to_owned(),
    ] {
        let page = post(&manage, &path, &cookie, "grace=1h&name=x&path=%2Fx");
        assert_eq!(page.status, 403, "{path}: {}", page.body);
    }
    // A key that may change keys cannot change keys of another tenant.
    let writer = only("writer", &[Permission::KeysRead, Permission::KeysWrite, Permission::KeysRevoke]);
    let cookie = sign_in(&manage, &writer);
    for path in [format!("{theirs}/revoke"), format!("{theirs}/rotate"), format!("{sleepy}/keys")] {
        assert_eq!(post(&manage, &path, &cookie, "grace=1h&name=x").status, 404, "{path}");
    }
    assert_eq!(post(&manage, &format!("{ours}/disable"), &cookie, "").status, 303);
}

fn sessions_are_listed_and_ended(world: &World) {
    let key = owner(world);
    let id = world.db.text("SELECT CAST(id AS text) FROM tenantgate_admin_key").unwrap();
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let (one, other) = (sign_in(&manage, &key), sign_in(&manage, &key));
    let page = get(&manage, &format!("/admin-keys/{id}"), &one);
    assert_eq!(page.body.matches("127.0.0.1").count(), 2, "{}", page.body);
    assert_eq!(page.body.matches("this browser").count(), 1);
    let sessions =
        world.db.texts("SELECT CAST(id AS text) FROM tenantgate_admin_session ORDER BY created_at");
    let second = sessions[1].clone().unwrap();
    let ended = post(&manage, &format!("/sessions/{second}/sign-out"), &one, "");
    assert_eq!(ended.headers["location"], format!("/admin-keys/{id}?done=signed-out"));
    assert_eq!((get(&manage, "/", &one).status, get(&manage, "/", &other).status), (200, 303));
    let third = sign_in(&manage, &key);
    post(&manage, &format!("/admin-keys/{id}/sign-out"), &one, "");
    assert_eq!((get(&manage, "/", &one).status, get(&manage, "/", &third).status), (303, 303));
    let (admin, _) = with_clock(world);
    assert_eq!(wait(admin.end_sessions(Ending::OfKey(caller(&admin, &key).key.id))).unwrap(), 0);
}

fn caller(admin: &Admin, key: &str) -> Caller {
    wait(admin.authenticate(parse_management(key.as_bytes()).unwrap())).unwrap().unwrap()
}

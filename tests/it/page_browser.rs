//! Tests the page of `manage` in a real Chromium: common tasks, with and without scripts, by keyboard, and its
//! accessibility.
//!
//! `UPDATE_SNAPSHOTS=1` rewrites the screenshots of the documentation.

use std::path::Path;

use serde_json::{Value, json};

use crate::admin_keys::create;
use crate::manage::Manage;
use crate::support::browser::{Browser, axe};
use crate::support::envoy::Envoy;
use crate::support::world::string;
use crate::support::{Ask, Backend, PATIENCE, Server, World};
use crate::usage::stop;

/// Signs a browser in to the page of this world with a link.
fn signed_in(world: &World, manage: &Manage, browser: &mut Browser) {
    let base = format!("http://{}", manage.address);
    let link = world.db.json(&["admin-key", "login-link", "Ops team", "--url", &base]);
    browser.goto(&string(&link, "url"));
    assert!(browser.text().contains("signs you in once"));
    browser.loading(|browser| browser.click("button", "Continue"));
    assert_eq!(browser.path(), "/");
}

fn world() -> World {
    let world = World::on(Backend::Sqlite).expect("SQLite is always there");
    create(&world, &["Ops team", "--role", "owner"]);
    world
}

fn go(browser: &mut Browser, selector: &str, text: &str) {
    browser.loading(|browser| browser.click(selector, text));
}

#[test]
fn a_key_is_created_used_rotated_and_revoked() {
    let Some(mut browser) = Browser::start() else { return };
    let world = world();
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    browser.resize(1440, 900);
    signed_in(&world, &manage, &mut browser);
    let origin = json!({ "origin": format!("http://{}", manage.address), "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"] });
    browser.call("Browser.grantPermissions", origin);
    let key = new_customer_and_key(&mut browser, true);
    browser.click("button", "Copy");
    let copied = "new Promise(done => { const look = () => /[Cc]opied/.test(document.body.innerText) ? done(true) : setTimeout(look, 10); look() })";
    browser.eval(copied);
    assert_eq!(browser.eval("navigator.clipboard.readText()"), key.as_str());
    go(&mut browser, "a", "I have stored it");
    assert!(!browser.text().contains(&key), "it is shown once");
    let page = browser.path();

    // Through Envoy, if it is installed.
    let mut server = Server::on(&world.db).start();
    let used = match Envoy::before(&server).start() {
        Some(envoy) => {
            envoy.finds_tenantgate(true);
            envoy.send("GET", "/v1/models", &[("x-llmcore-api-key", &key)]).page.status
        }
        None => {
            if server.check(Ask::with_key(&key)).reason() == "ok" {
                200
            } else {
                403
            }
        }
    };
    assert_eq!(used, 200);
    // A server writes its counts when it stops.
    server.signal("TERM");
    assert_eq!(server.exit_code(PATIENCE), Some(0));
    browser.goto(&format!("http://{}{page}", manage.address));
    assert!(browser.text().contains("1 passed"), "{}", browser.text());

    browser.click("summary", "Rotate");
    go(&mut browser, "button", "Rotate key");
    assert!(browser.text().contains("stays valid for the grace period"), "{}", browser.text());
    let second = browser.eval("document.querySelector('#new-key').value");
    let second = second.as_str().expect("a key").to_owned();
    let server = Server::on(&world.db).start();
    for key in [&key, &second] {
        assert_eq!(server.check(Ask::with_key(key)).reason(), "ok", "both keys work during the grace period");
    }
    go(&mut browser, "a", "I have stored it");
    browser.click("summary", "Revoke");
    browser.fill("#reason", "leaked");
    go(&mut browser, "button", "Revoke key");
    assert!(browser.text().contains("refused for good") && browser.text().contains("leaked"));
    server.row_becomes("401 revoked", PATIENCE, Ask::with_key(&second));
    browser.fill("#path", "/v1/models");
    go(&mut browser, "button", "Explain");
    assert!(browser.text().contains("It would be refused: revoked"), "{}", browser.text());
    // The client gets a decision id instead of the reason.
    let decision_id = server.check(Ask::with_key(&second)).metadata["decision_id"].clone();
    stop(server);
    go(&mut browser, "nav a", "Overview");
    browser.fill("#id", &decision_id);
    go(&mut browser, "button", "Find");
    assert!(browser.text().contains("Refused: revoked"), "{}", browser.text());
    assert!(browser.text().contains("The key was revoked.") && browser.text().contains("production"));
    go(&mut browser, "button", "Sign out");
    assert_eq!(browser.path(), "/sign-in");
    assert_eq!(browser.complaints(), [""; 0]);
}

/// Creates a tenant and a key with the mouse. Returns the key.
fn new_customer_and_key(browser: &mut Browser, scripts: bool) -> String {
    go(browser, "nav a", "Tenants");
    go(browser, "a", "New tenant");
    browser.fill("#name", "Blue Harbour");
    go(browser, "button", "Create tenant");
    assert!(browser.text().contains("Blue Harbour") && browser.text().contains("has no keys yet"));
    go(browser, "a", "New key");
    browser.fill("#name", "production");
    go(browser, "button", "Create key");
    assert!(browser.text().contains("it is not shown again"));
    let copy =
        browser.eval("[...document.querySelectorAll('button.copy')].some(b => b.getClientRects().length)");
    assert_eq!(copy, scripts, "without scripts, the copy button is hidden");
    let key = browser.eval("document.querySelector('#new-key').value");
    let key = key.as_str().expect("a key").to_owned();
    assert!(key.starts_with("llmk_"));
    key
}

#[test]
fn everything_works_without_script() {
    let Some(mut browser) = Browser::start() else { return };
    let world = world();
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    browser.scripts(false);
    browser.resize(1440, 900);
    signed_in(&world, &manage, &mut browser);
    let key = new_customer_and_key(&mut browser, false);
    go(&mut browser, "a", "I have stored it");
    for (action, button, shown) in [
        ("Disable", "Disable key", "Disabled:"),
        ("Enable", "Enable key", "Enabled:"),
        ("Revoke", "Revoke key", "Revoked:"),
    ] {
        browser.click("summary", action);
        go(&mut browser, "button", button);
        assert!(browser.text().contains(shown), "{}", browser.text());
    }
    go(&mut browser, "nav a", "Keys");
    browser.fill("#q", "PRODUCTION");
    go(&mut browser, "button", "Filter");
    assert!(browser.text().contains(key.rsplit_once('_').unwrap().0), "{}", browser.text());
    go(&mut browser, "nav a", "Routes");
    browser.click("summary", "Add a rule");
    browser.fill("#add-path", "/v1/**");
    browser.fill("#add-scopes", "chat:read");
    go(&mut browser, "button", "Add rule");
    browser.fill("#path", "/v1/models");
    go(&mut browser, "button", "Test");
    assert!(browser.text().contains("It would be refused: missing"), "{}", browser.text());
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn everything_works_by_keyboard() {
    let Some(mut browser) = Browser::start() else { return };
    let world = world();
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    browser.resize(1440, 900);
    let base = format!("http://{}", manage.address);
    let link = world.db.json(&["admin-key", "login-link", "Ops team", "--url", &base]);
    browser.goto(&string(&link, "url"));
    let enter = |browser: &mut Browser, to: &str| {
        browser.tab_to(to);
        browser.loading(|browser| browser.press("Enter"));
    };
    browser.wait_for_focus("button");
    browser.loading(|browser| browser.press("Enter"));
    assert_eq!(browser.path(), "/");
    browser.press("Tab");
    assert_eq!(browser.eval("document.activeElement.innerText"), "Skip to content");
    enter(&mut browser, "Tenants");
    enter(&mut browser, "New tenant");
    browser.tab_to("Name");
    browser.type_text("Keyboard Ltd");
    enter(&mut browser, "Create tenant");
    enter(&mut browser, "New key");
    browser.tab_to("Name");
    browser.type_text("ci");
    enter(&mut browser, "Create key");
    browser.wait_for_focus("#new-key");
    enter(&mut browser, "I have stored it");
    browser.tab_to("Revoke");
    browser.press("Enter");
    browser.tab_to("Reason");
    browser.type_text("no longer needed");
    enter(&mut browser, "Revoke key");
    assert!(browser.text().contains("no longer needed"));
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn the_search_updates_while_typing() {
    let Some(mut browser) = Browser::start() else { return };
    let world = world();
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    browser.resize(1440, 900);
    signed_in(&world, &manage, &mut browser);
    go(&mut browser, "nav a", "Tenants");
    browser.fill("#q", "acme");
    let found =
        "new Promise(done => { const look = () => { const t = document.querySelector('#results').innerText;
                 if (t.startsWith('1 tenant')) done(t); else setTimeout(look, 10) }; look() })";
    let found = browser.eval(found);
    assert!(found.as_str().unwrap().contains(&world.acme.name), "{found}");
    assert_eq!(browser.eval("document.activeElement.id"), "q", "the field keeps the focus");
    assert_eq!(browser.eval("location.search"), "?q=acme");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn the_browser_enforces_the_content_security_policy() {
    let Some(mut browser) = Browser::start() else { return };
    let world = world();
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    signed_in(&world, &manage, &mut browser);
    assert_eq!(browser.complaints(), [""; 0]);
    browser.eval("document.body.insertAdjacentHTML('beforeend', '<img src=\"https://evil.example/x.png\">')");
    browser.eval("new Promise(done => setTimeout(done, 50))");
    assert!(!browser.complaints().is_empty(), "the policy must reject something here");
    // Other pages cannot show this page in a frame.
    browser.goto(&format!("data:text/html,<iframe src='http://{}/sign-in'></iframe>", manage.address));
    let tree = browser.call("Page.getFrameTree", json!({}));
    let frame = &tree["frameTree"]["childFrames"][0]["frame"];
    assert!(frame["unreachableUrl"].is_string(), "the page is shown in a frame: {tree}");
}

/// The decision id of an existing rejection.
const REFUSAL: &str = "019f0c8a-1b2c-7d3e-8f40-5a6b7c8d9e0f";

/// Returns the paths of all screens with content.
fn screens(world: &World) -> Vec<(&'static str, String)> {
    populate(world);
    vec![
        ("sign-in", "/sign-in".into()),
        ("overview", "/".into()),
        ("tenants", "/tenants".into()),
        ("tenant", format!("/tenants/{}", world.acme.id)),
        ("keys", "/keys".into()),
        ("key", format!("/keys/{}?path=/v1/files/7&method=DELETE", world.live.id)),
        ("edit-plan", "/plans/gold/edit".into()),
        ("edit-key", format!("/keys/{}/edit", world.live.id)),
        ("refusal", format!("/refusals?id={REFUSAL}")),
        ("new-key", format!("/tenants/{}/keys/new", world.acme.id)),
        ("new-tenant", "/tenants/new".into()),
        ("routes", "/routes?method=POST&host=api.example.com&path=/v1/chat/completions".into()),
        ("plans", "/plans".into()),
        ("usage", "/usage".into()),
        ("audit", "/audit".into()),
        ("admin-keys", "/admin-keys".into()),
    ]
}

/// Creates names, rules and requests as in a real deployment.
fn populate(world: &World) {
    let db = &world.db;
    for (name, limit) in [("free", "60/MINUTE"), ("gold", "1000/MINUTE")] {
        db.json(&["plan", "create", name, "--request-limit", limit]);
    }
    db.json(&["tenant", "update", &world.acme.id, "--plan", "gold"]);
    for (path, more) in [
        ("/v1/models", &["--method", "GET", "--mode", "optional", "--name", "catalogue"][..]),
        ("/v1/chat/**", &["--scopes", "chat:read", "--name", "chat"]),
        ("/v1/files/{id}", &["--method", "DELETE", "--scopes", "files:write | admin"]),
        ("/docs/**", &["--mode", "public", "--name", "docs"]),
        ("/v2/**", &["--scopes", "beta", "--shadow", "--name", "beta"]),
    ] {
        db.json(&[&["route", "add", "--path", path][..], more].concat());
    }
    for (key, name) in
        [(&world.live, "production"), (&world.other, "mobile app"), (&world.revoked, "old laptop")]
    {
        db.json(&["key", "update", &key.id, "--name", name, "--label", "team=search"]);
    }
    db.sql(
        "WITH RECURSIVE days (ago) AS (SELECT 0 UNION ALL SELECT ago + 1 FROM days WHERE ago < 29),
              reasons (reason, share) AS (VALUES ('ok', 100), ('scope', 3), ('missing', 9), ('revoked', 5), ('expired', 1))
         INSERT INTO tenantgate_usage
         SELECT date('now', '-' || ago || ' days'),
                CASE reason WHEN 'missing' THEN '00000000-0000-0000-0000-000000000000' ELSE k.id END, reason,
                share * (12 + (ago * 7 + 5 * length(k.name)) % 11 - CASE WHEN ago % 7 < 2 THEN 9 ELSE 0 END) / 3 + 1
         FROM days, reasons, api_keys k WHERE k.name IN ('production', 'mobile app')
           AND NOT (reason IN ('revoked', 'missing') AND k.name = 'mobile app')",
    );
    db.sql(
        "INSERT INTO tenantgate_replica
         SELECT lower(hex(randomblob(4))) || '-0000-4000-8000-' || lower(hex(randomblob(6))), name,
                (SELECT max(id) FROM tenantgate_change), strftime('%Y-%m-%dT%H:%M:%fZ', 'now'),
                strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+1 hour')
         FROM (SELECT 'gate-7d9f:1' AS name UNION SELECT 'gate-x2k1:1')",
    );
    db.sql(&format!(
        "INSERT INTO tenantgate_refusal
         SELECT '{REFUSAL}', strftime('%Y-%m-%dT%H:%M:%f000Z', 'now', '-3 minutes'), 'revoked', id
         FROM api_keys WHERE name = 'old laptop'"
    ));
    db.sql("UPDATE api_keys SET last_used_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-2 hours') WHERE name IS NOT NULL");
}

/// Returns the serious findings of axe.
fn serious(browser: &mut Browser, axe: &str) -> Vec<String> {
    browser.eval(&format!("{axe};0"));
    let found = browser.eval(
        "axe.run(document).then(found => (found.passes.length < 10 ? [{ id: 'too few rules ran', impact: 'critical', nodes: [] }] : [])
           .concat(found.violations).filter(v => ['serious', 'critical'].includes(v.impact))
           .map(v => v.id + ': ' + v.nodes.map(n => n.html + ' ' + n.failureSummary).join(' | ')))",
    );
    let found = found.as_array().expect("a list").iter();
    found.filter_map(Value::as_str).map(str::to_owned).collect()
}

#[test]
fn no_screen_has_serious_accessibility_problems() {
    let (Some(mut browser), Some(axe)) = (Browser::start(), axe()) else { return };
    let world = world();
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let screens = screens(&world);
    browser.resize(1440, 900);
    signed_in(&world, &manage, &mut browser);
    let mut findings = Vec::new();
    for (width, height) in [(320, 720), (1440, 900)] {
        browser.resize(width, height);
        for scheme in ["light", "dark"] {
            browser.scheme(scheme);
            for (name, path) in &screens {
                browser.goto(&format!("http://{}{path}", manage.address));
                let wide = browser.eval("document.documentElement.scrollWidth - innerWidth");
                let mut found: Vec<_> = browser.complaints();
                if wide.as_i64() > Some(0) {
                    found.push(format!("the page is {wide} px too wide"));
                }
                browser.eval("document.querySelectorAll('details').forEach(d => d.open = true)");
                found.extend(serious(&mut browser, &axe));
                // axe itself causes requests that the policy rejects.
                browser.complaints();
                findings.extend(found.into_iter().map(|found| format!("{name} {width} {scheme}: {found}")));
            }
        }
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

#[test]
fn the_screenshots_of_the_documentation_are_current() {
    let Some(mut browser) = Browser::start() else { return };
    let world = world();
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let screens = screens(&world);
    browser.resize(1280, 800);
    browser.scheme("light");
    signed_in(&world, &manage, &mut browser);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images");
    for (name, path) in
        screens.iter().filter(|(name, _)| ["overview", "tenant", "key", "routes"].contains(name))
    {
        browser.goto(&format!("http://{}{path}", manage.address));
        let picture = browser.screenshot();
        let file = folder.join(format!("page-{name}.png"));
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            std::fs::create_dir_all(&folder).expect("a folder");
            std::fs::write(&file, &picture).expect("the picture is written");
        }
        let committed =
            std::fs::read(&file).expect("the screenshot is committed: UPDATE_SNAPSHOTS=1 creates it");
        // Ids and times, and therefore the screenshots, differ between runs. Their format and size must not.
        assert_eq!(committed[..24], picture[..24], "{name}: UPDATE_SNAPSHOTS=1 rewrites it");
        assert!(committed.len() < 200_000, "{name} has {} bytes", committed.len());
    }
    assert_eq!(browser.complaints(), [""; 0]);
}

//! Tests the forms of the page on both stores: their changes, forms that are sent twice or too late, and the search for
//! a rejection by its decision id.

use serde_json::{Value, json};
use tenantgate::admin::{Admin, AdminError, ChangeOrigin, Expiry, KeyUpdate, Setting};
use tenantgate::clock::SystemClock;
use tenantgate::config::{Database, management};
use tenantgate::key::format::parse_management;
use tenantgate::permission::Permission;
use tenantgate::tenant::TenantStatus;
use tenantgate::verify::memo::Peppers;

use crate::admin_keys::create;
use crate::manage::{Manage, is_problem, key_with, owner};
use crate::page::{escaped, get, post, sign_in};
use crate::support::http::Page;
use crate::support::world::string;
use crate::support::{Ask, PATIENCE, Server, World, eventually, on_every_store, wait};
use crate::usage::stop;

on_every_store![
    a_key_is_edited,
    plans_rules_and_tenants_are_edited,
    a_form_does_not_undo_a_concurrent_change,
    a_button_does_not_act_on_what_was_changed_meanwhile,
    a_form_that_is_sent_twice_makes_one_key,
    with_a_pepper_a_reload_shows_the_same_key_again,
    a_management_key_is_made_for_some_tenants,
    a_refusal_is_found_by_its_decision_id,
    a_refusal_of_another_tenant_is_not_found,
    a_management_key_that_is_revoked_meanwhile_completes_no_change,
    the_mode_of_a_tenant_is_changed_over_http,
    the_pages_of_the_audit_log_show_each_change_once,
    the_pages_of_tenants_show_each_once,
];

fn page_of(world: &World) -> (Manage, String) {
    let key = owner(world);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let cookie = sign_in(&manage, &key);
    (manage, cookie)
}

/// Returns the value of a hidden field of a page.
#[track_caller]
fn hidden(page: &Page, name: &str) -> String {
    let field = format!("type=\"hidden\" name=\"{name}\" value=\"");
    let (_, rest) = page.body.split_once(&field).unwrap_or_else(|| panic!("no {name}: {}", page.body));
    rest.split('"').next().expect("a value").to_owned()
}

fn body(fields: &[(&str, &str)]) -> String {
    let pairs: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
    pairs.join("&")
}

#[track_caller]
fn redirects_to(page: &Page, path: &str) {
    assert_eq!(
        (page.status, page.headers.get("location").map(String::as_str)),
        (303, Some(path)),
        "{}",
        page.body
    );
}

fn a_key_is_edited(world: &World) {
    world.db.json(&["plan", "create", "gold", "--request-limit", "5/MINUTE"]);
    world.db.json(&["key", "update", &world.live.id, "--label", "old=1", "--scopes", "a"]);
    let (manage, cookie) = page_of(world);
    let path = format!("/keys/{}", world.live.id);
    let form = get(&manage, &format!("{path}/edit"), &cookie);
    assert!(form.body.contains("old=1"), "{}", form.body);
    let version = hidden(&form, "version");
    let fields = [
        ("version", version.as_str()),
        ("name", "Büro <1>"),
        ("expiry", "30d"),
        ("not_before", "2026-01-31T12:00:00Z"),
        ("scopes", ""),
        ("networks", "192.0.2.0/24"),
        ("plan", "gold"),
        ("labels", "team=search\r\n\r\nenv=prod"),
    ];
    redirects_to(
        &post(&manage, &format!("{path}/update"), &cookie, &body(&fields)),
        &format!("{path}?done=updated"),
    );
    let key = world.db.json(&["key", "show", &world.live.id]);
    assert_eq!(key["name"], "Büro <1>");
    assert_eq!(key["scopes"], Value::Null);
    assert_eq!((&key["networks"], &key["plan"]), (&json!("192.0.2.0/24"), &json!("gold")));
    assert_eq!(key["labels"], json!({ "team": "search", "env": "prod" }));
    assert!(string(&key, "not_before").starts_with("2026-01-31T12:00:00") && key["expires_at"].is_string());
    // The error is shown together with the input, and nothing is changed.
    let version = hidden(&get(&manage, &format!("{path}/edit"), &cookie), "version");
    let wrong = body(&[("version", &version), ("name", "typed"), ("networks", "moon")]);
    let page = post(&manage, &format!("{path}/update"), &cookie, &wrong);
    assert_eq!(page.status, 400, "{}", page.body);
    assert!(page.body.contains("value=\"typed\"") && page.body.contains("value=\"moon\""));
    assert_eq!(world.db.json(&["key", "show", &world.live.id]), key);
    // A visitor without the permission does not see the form, and cannot send it.
    let viewer = key_with(world, "viewer", &[Permission::KeysRead], None);
    let cookie = sign_in(&manage, &viewer);
    assert!(!get(&manage, &path, &cookie).body.contains("Edit key"));
    assert_eq!(get(&manage, &format!("{path}/edit"), &cookie).status, 403);
    assert_eq!(post(&manage, &format!("{path}/update"), &cookie, "name=x").status, 403);
}

fn plans_rules_and_tenants_are_edited(world: &World) {
    world.db.json(&["plan", "create", "gold", "--request-limit", "5/MINUTE"]);
    let rule = string(&world.db.json(&["route", "add", "--path", "/v1/**", "--name", "all"]), "id");
    let (manage, cookie) = page_of(world);
    let version = hidden(&get(&manage, "/plans/gold/edit", &cookie), "version");
    let fields = body(&[("version", &version), ("request_limit", ""), ("total_limit", "7/DAY")]);
    redirects_to(&post(&manage, "/plans/gold/update", &cookie, &fields), "/plans?done=updated");
    let plan = world.db.json(&["plan", "show", "gold"]);
    assert_eq!((&plan["request_limit"], &plan["total_limit"]), (&Value::Null, &json!("7/DAY")));
    let form = get(&manage, &format!("/routes/{rule}/edit"), &cookie);
    assert!(form.body.contains("value=\"/v1/**\"") && form.body.contains("value=\"all\""), "{}", form.body);
    let version = hidden(&form, "version");
    let fields = [
        ("version", version.as_str()),
        ("path", "/v2/**"),
        ("mode", "optional"),
        ("scopes", "a | b"),
        ("shadow", "yes"),
    ];
    redirects_to(
        &post(&manage, &format!("/routes/{rule}/update"), &cookie, &body(&fields)),
        "/routes?done=updated",
    );
    let rules = world.db.json(&["route", "list"]);
    let after = &rules.as_array().expect("a list")[0];
    assert_eq!(
        (&after["id"], &after["path"], &after["name"]),
        (&json!(rule), &json!("/v2/**"), &Value::Null)
    );
    assert_eq!((&after["mode"], &after["shadow"]), (&json!("optional"), &json!(true)));
    let wrong = post(&manage, &format!("/routes/{rule}/update"), &cookie, &body(&[("path", "no slash")]));
    assert_eq!(wrong.status, 409, "{}", wrong.body);
    assert!(wrong.body.contains("value=\"no slash\""), "{}", wrong.body);
    assert_eq!(get(&manage, "/routes/nothing/edit", &cookie).status, 404);
    let acme = format!("/tenants/{}", world.acme.id);
    let version = hidden(&get(&manage, &acme, &cookie), "version");
    let fields = body(&[("version", &version), ("name", "Acme 2"), ("plan", "gold"), ("mode", "shadow")]);
    redirects_to(
        &post(&manage, &format!("{acme}/update"), &cookie, &fields),
        &format!("{acme}?done=updated"),
    );
    let tenant = world.db.json(&["tenant", "show", &world.acme.id]);
    assert_eq!(
        (&tenant["name"], &tenant["plan"], &tenant["mode"]),
        (&json!("Acme 2"), &json!("gold"), &json!("shadow"))
    );
}

fn a_form_does_not_undo_a_concurrent_change(world: &World) {
    world.db.json(&["plan", "create", "gold", "--request-limit", "5/MINUTE"]);
    let rule = string(&world.db.json(&["route", "add", "--path", "/v1/**", "--name", "all"]), "id");
    let (manage, cookie) = page_of(world);
    let (key, acme) = (format!("/keys/{}", world.live.id), format!("/tenants/{}", world.acme.id));
    let forms = [
        (format!("{key}/edit"), format!("{key}/update"), "name=mine"),
        (acme.clone(), format!("{acme}/update"), "name=mine"),
        ("/plans/gold/edit".into(), "/plans/gold/update".into(), "request_limit=9%2FDAY"),
        (format!("/routes/{rule}/edit"), format!("/routes/{rule}/update"), "path=%2Fmine"),
    ];
    let open: Vec<_> =
        forms.iter().map(|(from, _, _)| hidden(&get(&manage, from, &cookie), "version")).collect();
    world.db.json(&["key", "update", &world.live.id, "--name", "theirs"]);
    world.db.json(&["tenant", "update", &world.acme.id, "--name", "theirs"]);
    world.db.json(&["plan", "update", "gold", "--request-limit", "6/MINUTE"]);
    let id = world.db.text("SELECT CAST(id AS text) FROM tenantgate_route").unwrap();
    manage.change(&owner_again(world), "PATCH", &format!("/v1/routes/{id}"), &json!({ "name": "theirs" }));
    for ((_, to, fields), version) in forms.iter().zip(&open) {
        let page = post(&manage, to, &cookie, &format!("version={version}&{fields}"));
        assert_eq!(page.status, 409, "{to}: {}", page.body);
        assert!(page.body.contains("in the meantime"), "{to}: {}", page.body);
    }
    for args in
        [&["key", "show", &*world.live.id][..], &["tenant", "show", &*world.acme.id], &["route", "list"]]
    {
        let object = world.db.json(args).to_string();
        assert!(object.contains("theirs") && !object.contains("mine"), "{object}");
    }
    assert_eq!(world.db.json(&["plan", "show", "gold"])["request_limit"], "6/MINUTE");
}

fn a_button_does_not_act_on_what_was_changed_meanwhile(world: &World) {
    let key = &world.live.id;
    world.db.json(&["key", "disable", key]);
    world.db.json(&["plan", "create", "gold", "--request-limit", "5/MINUTE"]);
    let rule = string(&world.db.json(&["route", "add", "--path", "/v1/**", "--name", "all"]), "id");
    let (manage, cookie) = page_of(world);
    let acme = format!("/tenants/{}", world.acme.id);
    let asleep = format!("/tenants/{}", world.sleepy.id);
    let confirm = format!("confirm={}", world.acme.schema);
    let buttons = [
        (format!("/keys/{key}"), format!("/keys/{key}/enable"), ""),
        (asleep.clone(), format!("{asleep}/activate"), ""),
        (acme.clone(), format!("{acme}/delete"), confirm.as_str()),
        ("/plans".into(), "/plans/gold/delete".into(), ""),
        ("/routes".into(), format!("/routes/{rule}/remove"), ""),
    ];
    let shown: Vec<_> =
        buttons.iter().map(|(from, _, _)| hidden(&get(&manage, from, &cookie), "version")).collect();
    world.db.json(&["key", "enable", key]);
    world.db.json(&["key", "disable", key]);
    world.db.json(&["tenant", "update", &world.sleepy.id, "--name", "theirs"]);
    world.db.json(&["tenant", "update", &world.acme.id, "--name", "theirs"]);
    world.db.json(&["plan", "update", "gold", "--request-limit", "6/MINUTE"]);
    manage.change(&owner_again(world), "PATCH", &format!("/v1/routes/{rule}"), &json!({ "name": "theirs" }));
    let press = |to: &str, version: &str, fields: &str| {
        post(&manage, to, &cookie, &format!("version={version}&{fields}"))
    };
    for ((_, to, fields), version) in buttons.iter().zip(&shown) {
        let page = press(to, version, fields);
        assert_eq!(page.status, 409, "{to}: {}", page.body);
        assert!(page.body.contains("in the meantime"), "{to}: {}", page.body);
    }
    // What is shown now may be acted on.
    for (from, to, fields) in &buttons {
        let page = press(to, &hidden(&get(&manage, from, &cookie), "version"), fields);
        assert_eq!(page.status, 303, "{to}: {}", page.body);
    }
}

fn owner_again(world: &World) -> String {
    string(&create(world, &["another owner", "--role", "owner"]), "key")
}

/// Returns the number of Acme's keys.
fn keys(world: &World) -> usize {
    world.db.json(&["key", "list", "--tenant", &world.acme.id]).as_array().expect("a list").len()
}

fn a_form_that_is_sent_twice_makes_one_key(world: &World) {
    let (manage, cookie) = page_of(world);
    let path = format!("/tenants/{}/keys", world.acme.id);
    let form = get(&manage, &format!("{path}/new"), &cookie);
    let (once, before) = (hidden(&form, "once"), keys(world));
    let fields = body(&[("once", &once), ("name", "ci"), ("expiry", "30d")]);
    let first = post(&manage, &path, &cookie, &fields);
    assert!(first.status == 200 && first.body.contains("it is not shown again"), "{}", first.body);
    let again = post(&manage, &path, &cookie, &fields);
    assert_eq!((again.status, keys(world)), (200, before + 1), "{}", again.body);
    assert!(
        again.body.contains("cannot be shown again") && !again.body.contains("new-key"),
        "{}",
        again.body
    );
    let other = post(&manage, &path, &cookie, &body(&[("once", &once), ("name", "other")]));
    assert_eq!((other.status, keys(world)), (409, before + 1), "{}", other.body);
    // A form that failed can be corrected and sent again.
    let form = get(&manage, &format!("{path}/new"), &cookie);
    let wrong = body(&[("once", &hidden(&form, "once")), ("name", "x"), ("plan", "none-such")]);
    let page = post(&manage, &path, &cookie, &wrong);
    assert_eq!(page.status, 422, "{}", page.body);
    let right = body(&[("once", &hidden(&page, "once")), ("name", "x")]);
    assert_eq!((post(&manage, &path, &cookie, &right).status, keys(world)), (200, before + 2));
    // Rotations likewise.
    let key = format!("/keys/{}", world.live.id);
    let once = hidden(&get(&manage, &key, &cookie), "once");
    let fields = body(&[("once", &once), ("grace", "24h")]);
    for _ in 0..2 {
        assert_eq!(post(&manage, &format!("{key}/rotate"), &cookie, &fields).status, 200);
    }
    assert_eq!(keys(world), before + 3);
    // And management keys.
    let once = hidden(&get(&manage, "/admin-keys", &cookie), "once");
    let fields = body(&[("once", &once), ("name", "bot"), ("role", "viewer")]);
    for _ in 0..2 {
        let page = post(&manage, "/admin-keys", &cookie, &fields);
        assert_eq!(page.status, 200, "{}", page.body);
    }
    let named = "SELECT CAST(count(*) AS text) FROM tenantgate_admin_key WHERE name = 'bot'";
    assert_eq!(world.db.text(named).unwrap(), "1");
}

fn with_a_pepper_a_reload_shows_the_same_key_again(world: &World) {
    let key = owner(world);
    let file = world.db.dir().join("pepper");
    let pepper = file.display().to_string();
    world.db.json(&["pepper", "new", &pepper]);
    let manage = Manage::with(&world.db, "127.0.0.1:0", &["--pepper-file", &pepper]);
    let cookie = sign_in(&manage, &key);
    let path = format!("/tenants/{}/keys", world.acme.id);
    let once = hidden(&get(&manage, &format!("{path}/new"), &cookie), "once");
    let fields = body(&[("once", &once), ("name", "ci")]);
    let shown = |page: &Page| {
        let (_, rest) = page.body.split_once("data-copy=\"llmk_").unwrap_or_else(|| panic!("{}", page.body));
        rest.split('"').next().expect("a key").to_owned()
    };
    let (first, again) = (post(&manage, &path, &cookie, &fields), post(&manage, &path, &cookie, &fields));
    assert_eq!(shown(&first), shown(&again));
    let other = post(&manage, &path, &sign_in(&manage, &owner_again(world)), &fields);
    assert!(
        other.status == 200 && shown(&other) != shown(&first),
        "a form of another management key is another one"
    );
}

fn a_management_key_is_made_for_some_tenants(world: &World) {
    let (manage, cookie) = page_of(world);
    let fields = body(&[("name", "support"), ("role", "viewer"), ("tenants", &world.acme.schema)]);
    assert_eq!(post(&manage, "/admin-keys", &cookie, &fields).status, 200);
    let made = "SELECT tenants FROM tenantgate_admin_key WHERE name = 'support'";
    assert_eq!(world.db.text(made).unwrap(), world.acme.id);
    let fields = body(&[("name", "none"), ("role", "viewer"), ("tenants", "no_such_tenant")]);
    let page = post(&manage, "/admin-keys", &cookie, &fields);
    assert_eq!(page.status, 422, "{}", page.body);
    assert!(page.body.contains("value=\"no_such_tenant\""), "{}", page.body);
    // A value that the form does not offer must not give the key everything that its creator has.
    for (role, expiry) in
        [("", "7"), ("no_such_role", "7"), ("viewer", "soon"), ("viewer", "0"), ("viewer", "99999")]
    {
        let fields = body(&[("name", "odd"), ("role", role), ("expiry", expiry)]);
        assert_eq!(post(&manage, "/admin-keys", &cookie, &fields).status, 400, "{role} {expiry}");
    }
}

fn a_refusal_is_found_by_its_decision_id(world: &World) {
    let (manage, cookie) = page_of(world);
    let server = Server::on(&world.db).start();
    let refused = server.check(Ask::with_key(&world.revoked.text)).metadata["decision_id"].clone();
    let nobody = server.check(Ask::get("/v1")).metadata["decision_id"].clone();
    let passed = server.check(Ask::with_key(&world.live.text)).metadata["decision_id"].clone();
    let find = |id: &str| get(&manage, &format!("/refusals?id={}", escaped(id)), &cookie);
    // The server writes it while it runs.
    let page = eventually("the refusal is there", PATIENCE, || {
        let page = find(&refused);
        if page.body.contains("Refused: revoked") { Ok(page) } else { Err(page.body) }
    });
    assert!(
        page.body.contains(&world.revoked.prefix) && page.body.contains("The key was revoked."),
        "{}",
        page.body
    );
    let page = find(&nobody);
    assert!(page.body.contains("Refused: missing") && page.body.contains("none was proven"), "{}", page.body);
    stop(server);
    assert!(find(&passed).body.contains("no refusal with this id"), "only refusals are written");
    assert!(find("nonsense").body.contains("not a decision id"));
    assert!(get(&manage, "/", &cookie).body.contains("Find a refusal"));
    // It is deleted after three days.
    world.db.sql("UPDATE tenantgate_refusal SET at = '2020-01-01T00:00:00.000000Z'");
    let server = Server::on(&world.db).start();
    server.check(Ask::get("/v1"));
    stop(server);
    assert_eq!(world.db.text("SELECT CAST(count(*) AS text) FROM tenantgate_refusal").unwrap(), "1");
}

fn a_refusal_of_another_tenant_is_not_found(world: &World) {
    let server = Server::on(&world.db).start();
    let theirs = server.check(Ask::with_key(&world.of_sleepy.text)).metadata["decision_id"].clone();
    let ours = server.check(Ask::with_key(&world.revoked.text)).metadata["decision_id"].clone();
    let nobody = server.check(Ask::get("/v1")).metadata["decision_id"].clone();
    stop(server);
    let key = key_with(world, "acme", &[Permission::KeysRead], Some(vec![world.acme.id.clone()]));
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let cookie = sign_in(&manage, &key);
    assert!(get(&manage, &format!("/refusals?id={ours}"), &cookie).body.contains("Refused: revoked"));
    for other in [&theirs, &nobody] {
        let page = get(&manage, &format!("/refusals?id={other}"), &cookie);
        assert!(page.status == 200 && page.body.contains("no refusal with this id"), "{}", page.body);
    }
    let cookie = sign_in(&manage, &key_with(world, "none", &[Permission::TenantsRead], None));
    assert_eq!(get(&manage, &format!("/refusals?id={ours}"), &cookie).status, 403);
}

fn a_management_key_that_is_revoked_meanwhile_completes_no_change(world: &World) {
    let creator = string(&create(world, &["creator", "--role", "owner"]), "key");
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let child = manage.change(&creator, "POST", "/v1/admin_keys", &json!({ "name": "child" }));
    let store = management(&Database::at(world.db.url()), tenantgate::audit::Actor::default()).unwrap();
    let admin = Admin::new(store, std::sync::Arc::new(SystemClock), Peppers::default());
    // The key is still valid when the request is accepted.
    let text = string(&child, "key");
    let caller = wait(admin.authenticate(parse_management(text.as_bytes()).unwrap())).unwrap().unwrap();
    let ours = admin.on_behalf(&caller, &ChangeOrigin::default());
    let named = |name: &str| KeyUpdate {
        name: Setting::Set(name.into()),
        expiry: Expiry::Unsaid,
        ..KeyUpdate::default()
    };
    assert!(wait(ours.update_key(&world.live.id, &named("before"))).is_ok());
    world.db.json(&["admin-key", "revoke", "creator"]);
    let is_over = |error: AdminError| assert!(matches!(error, AdminError::Ended), "{error}");
    is_over(wait(ours.update_key(&world.live.id, &named("after"))).unwrap_err());
    is_over(wait(ours.create_key(&world.acme.id, &named("after"))).unwrap_err());
    is_over(wait(ours.suspend_tenant(&world.acme.id)).unwrap_err());
    is_over(wait(ours.create_tenant("after", None, false, TenantStatus::Active, None)).unwrap_err());
    is_over(wait(ours.revoke_keys(std::slice::from_ref(&world.live.id), None)).unwrap_err());
    let key = world.db.json(&["key", "show", &world.live.id]);
    assert_eq!((&key["name"], &key["revoked_at"]), (&json!("before"), &Value::Null));
    assert!(!world.db.json(&["tenant", "list"]).to_string().contains("after"));
}

fn the_mode_of_a_tenant_is_changed_over_http(world: &World) {
    let (key, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    let path = format!("/v1/tenants/{}", world.acme.id);
    let after = manage.change(&key, "PATCH", &path, &json!({ "mode": "shadow" }));
    assert_eq!((&after["mode"], &after["name"]), (&json!("shadow"), &json!(world.acme.name)));
    let after = manage.change(&key, "PATCH", &path, &json!({ "mode": null }));
    assert_eq!(after["mode"], Value::Null);
    is_problem(&manage.send(&key, "PATCH", &path, r#"{"mode":"maybe"}"#, &[]), 400, "invalid_request");
    world.db.json(&["audit", "verify"]);
}

/// Returns the values in a page between two texts.
fn between(page: &Page, before: &str, after: &str) -> Vec<String> {
    let parts = page.body.split(before).skip(1);
    parts.filter_map(|part| part.split_once(after)).map(|(value, _)| value.to_owned()).collect()
}

fn the_pages_of_the_audit_log_show_each_change_once(world: &World) {
    let (manage, cookie) = page_of(world);
    let hash = "0".repeat(64);
    for number in 0..110 {
        world.db.sql(&format!(
            "INSERT INTO tenantgate_audit_log (seq, at, actor, action, subject, hash)
             SELECT max(seq) + 1, max(at), 'filler-{number}-', 'key.update', 'x', '{hash}' FROM tenantgate_audit_log"
        ));
    }
    let pages: Vec<_> = (0..4).map(|at| get(&manage, &format!("/audit?page={at}"), &cookie)).collect();
    let shown: Vec<_> = pages.iter().flat_map(|page| between(page, "filler-", "-")).collect();
    let expected: Vec<_> = (0..110).rev().map(|number| number.to_string()).collect();
    assert_eq!(shown, expected);
    let beyond = get(&manage, "/audit?page=9999", &cookie);
    assert!(beyond.status == 200 && beyond.body.contains("No change matches"), "{}", beyond.body);
}

fn the_pages_of_tenants_show_each_once(world: &World) {
    for number in 0..55 {
        world.db.sql(&format!(
            "INSERT INTO tenants (id, name, db_schema_name, status, created_at)
             SELECT '00000000-0000-4000-8000-0000000000{number:02}', 'Filler {number:02}', 'filler_{number:02}', 'active', max(created_at)
             FROM tenants"
        ));
    }
    let (manage, cookie) = page_of(world);
    let first = get(&manage, "/tenants?q=FILLER", &cookie);
    let mut names = between(&first, ">Filler ", "<");
    assert!(first.body.contains("50+"), "{}", first.body);
    let next = between(&first, "href=\"/tenants?", "\" rel=\"next\"").pop().expect("a next page");
    // Tenants that come meanwhile move nothing.
    world.db.json(&["tenant", "create", "Filler new", "--schema", "filler_new"]);
    let second = get(&manage, &format!("/tenants?{}", next.replace("&amp;", "&")), &cookie);
    names.extend(between(&second, ">Filler ", "<"));
    let expected: Vec<_> = (0..55).rev().map(|number| format!("{number:02}")).collect();
    assert_eq!(names, expected);
    assert!(get(&manage, "/tenants?q=none%00", &cookie).body.contains("No tenant matches"));
    // Over HTTP, oldest first.
    let key = owner_again(world);
    let (mut token, mut schemas) = (String::new(), Vec::new());
    loop {
        let part = manage.json(&format!("/v1/tenants?page_size=7&page_token={token}"), &key);
        let items = part["items"].as_array().expect("a list");
        schemas.extend(items.iter().map(|tenant| string(tenant, "db_schema_name")));
        token = string(&part, "next_page_token");
        if token.is_empty() {
            break;
        }
    }
    let all = world.db.json(&["tenant", "list"]);
    let all: Vec<_> =
        all.as_array().expect("a list").iter().map(|tenant| string(tenant, "db_schema_name")).collect();
    let (mut sorted, mut expected) = (schemas.clone(), all);
    sorted.sort();
    expected.sort();
    assert_eq!(sorted, expected);
    assert_eq!(schemas.last().map(String::as_str), Some("filler_new"));
}

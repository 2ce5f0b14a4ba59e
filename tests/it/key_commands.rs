//! Tests the key commands on both stores.

use chrono::{DateTime, FixedOffset, TimeDelta};
use serde_json::Value;

use crate::support::world::string;
use crate::support::{Ask, PATIENCE, Server, World, on_every_store};

/// The fields of `key create`, the only output with a key.
const ISSUED: [&str; 13] = [
    "created_at",
    "disabled_at",
    "expires_at",
    "id",
    "key",
    "key_prefix",
    "labels",
    "name",
    "networks",
    "not_before",
    "plan",
    "scopes",
    "tenant_id",
];

/// The fields of every other view of a key.
const SHOWN: [&str; 15] = [
    "created_at",
    "disabled_at",
    "expires_at",
    "id",
    "key_prefix",
    "labels",
    "last_used_at",
    "name",
    "networks",
    "not_before",
    "plan",
    "revoked_at",
    "scopes",
    "status",
    "tenant_id",
];

on_every_store![
    an_issued_key_is_shown_once,
    no_output_about_keys_has_a_hash_or_a_secret,
    a_key_has_the_requested_lifetime,
    an_expiry_must_be_valid,
    a_deleted_tenant_gets_no_keys,
    a_key_is_found_by_id_or_prefix_but_not_by_its_whole_text,
    keys_are_listed_by_tenant,
    the_first_revocation_is_kept,
    rotation_creates_a_successor,
    rotation_keeps_the_old_key_for_its_grace,
    rotation_gives_the_new_key_the_old_ones_lifetime,
    revoked_and_expired_keys_cannot_be_rotated,
];

fn names(object: &Value) -> Vec<&str> {
    object.as_object().unwrap_or_else(|| panic!("no object: {object}")).keys().map(String::as_str).collect()
}

fn time(object: &Value, name: &str) -> DateTime<FixedOffset> {
    DateTime::parse_from_rfc3339(&string(object, name))
        .unwrap_or_else(|error| panic!("{name}: {error}: {object}"))
}

/// How long after its creation a key expires, to the second.
fn lifetime(key: &Value) -> TimeDelta {
    let exact = time(key, "expires_at") - time(key, "created_at");
    TimeDelta::seconds((exact.num_milliseconds() + 500).div_euclid(1000))
}

/// Whether two times differ by no more than the duration of a command.
fn close(one: TimeDelta, other: TimeDelta) -> bool {
    (one - other).num_seconds().abs() <= 5
}

fn an_issued_key_is_shown_once(world: &World) {
    let made = world.db.json(&["key", "create", &world.acme.name, "--name", "ci runner"]);
    assert_eq!(names(&made), ISSUED);
    assert_eq!((&made["name"], &made["expires_at"]), (&"ci runner".into(), &Value::Null));
    assert_eq!(made["tenant_id"], world.acme.id.as_str());
    assert!(string(&made, "key").starts_with(&format!("{}_", string(&made, "key_prefix"))));
    let shown = world.db.json(&["key", "show", &string(&made, "id")]);
    assert!(SHOWN.iter().all(|name| names(&shown).contains(name)), "{shown}");
    for name in ["id", "key_prefix", "name", "tenant_id", "created_at", "expires_at"] {
        assert_eq!(shown[name], made[name], "{name}");
    }
    assert_eq!(
        (&shown["status"], &shown["revoked_at"], &shown["last_used_at"]),
        (&"active".into(), &Value::Null, &Value::Null)
    );
    let nameless = world.db.json(&["key", "create", &world.acme.schema]);
    assert_eq!(nameless["name"], Value::Null);
    let text = world.db.cli(&["key", "create", &world.acme.id]).ok();
    assert!(
        text.split_whitespace().any(|word| word.starts_with("llmk_") && word.len() == 5 + 16 + 1 + 38),
        "{text}"
    );
}

fn no_output_about_keys_has_a_hash_or_a_secret(world: &World) {
    let secrets = [&world.issued, &world.live, &world.revoked]
        .map(|key| key.text.rsplit_once('_').expect("a secret").1);
    let commands: [&[&str]; 4] = [
        &["key", "list"],
        &["key", "list", &world.acme.id],
        &["key", "show", &world.issued.id],
        &["key", "revoke", &world.issued.id],
    ];
    for command in commands {
        for format in ["text", "json"] {
            let said = world.db.cli(&[command, &["-o", format]].concat()).ok();
            assert!(!said.contains("$2") && !said.contains("hashed"), "a hash: {said}");
            assert!(secrets.iter().all(|secret| !said.contains(secret)), "a secret: {said}");
        }
    }
    let list = world.db.json(&["key", "list"]);
    for key in list.as_array().expect("an array") {
        assert!(SHOWN.iter().all(|name| names(key).contains(name)), "{key}");
        assert!(!names(key).contains(&"key") && !names(key).contains(&"hashed_key"), "{key}");
    }
}

fn a_key_has_the_requested_lifetime(world: &World) {
    let lifetimes = [
        ("90s", TimeDelta::seconds(90)),
        ("90m", TimeDelta::minutes(90)),
        ("12h", TimeDelta::hours(12)),
        ("90d", TimeDelta::days(90)),
        ("2w", TimeDelta::weeks(2)),
    ];
    for (asked, wanted) in lifetimes {
        let made = world.db.json(&["key", "create", &world.acme.id, "--expires-in", asked]);
        assert!(close(lifetime(&made), wanted), "{asked}: {made}");
    }
    for asked in ["2099-12-31T23:59:59Z", "2099-12-31T23:59:59+02:00", "2099-12-31T23:59:59.5Z"] {
        let made = world.db.json(&["key", "create", &world.acme.id, "--expires-at", asked]);
        assert_eq!(
            time(&made, "expires_at"),
            DateTime::parse_from_rfc3339(asked).expect("RFC 3339"),
            "{asked}"
        );
    }
}

fn an_expiry_must_be_valid(world: &World) {
    let create = |args: &[&str]| world.db.cli(&[&["key", "create", &world.acme.id], args].concat());
    for duration in
        ["90", "d", "-1d", "1.5d", "90x", "", "d90", "90 days ago", "99999999999999999999d", "1d1x", "９d"]
    {
        create(&["--expires-in", duration]).usage();
    }
    for moment in
        ["tomorrow", "2099-01-01", "2099-01-01 00:00:00", "2099-13-01T00:00:00Z", "2099-01-01T00:00:00", ""]
    {
        create(&["--expires-at", moment]).usage();
    }
    create(&["--expires-in", "1d", "--expires-at", "2099-01-01T00:00:00Z"]).usage();
    let line = create(&["--expires-at", "2020-01-01T00:00:00Z"]).refused();
    assert!(line.contains("past"), "{line}");
    let keys = world.db.json(&["key", "list", &world.acme.id]);
    assert_eq!(keys.as_array().map(Vec::len), Some(5), "none of these made a key");
}

fn a_deleted_tenant_gets_no_keys(world: &World) {
    let line = world.db.cli(&["key", "create", &world.gone.id]).refused();
    assert!(line.contains("deleted"), "{line}");
    world.db.json(&["key", "create", &world.sleepy.id]);
}

fn a_key_is_found_by_id_or_prefix_but_not_by_its_whole_text(world: &World) {
    for reference in [&world.live.id, &world.live.prefix] {
        assert_eq!(world.db.json(&["key", "show", reference])["id"], world.live.id.as_str());
    }
    for command in ["show", "revoke", "rotate"] {
        let run = world.db.cli(&["key", command, &world.live.text]);
        assert!([Some(1), Some(2)].contains(&run.code) && run.stdout.is_empty(), "{run:#?}");
    }
    assert_eq!(world.db.json(&["key", "show", &world.live.id])["status"], "active");
    world.db.cli(&["key", "show", "live"]).refused();
    world.db.cli(&["key", "show", "llmk_%"]).refused();
}

fn keys_are_listed_by_tenant(world: &World) {
    let count = |args: &[&str]| {
        world.db.json(&[&["key", "list"], args].concat()).as_array().map(Vec::len).expect("an array")
    };
    assert_eq!(count(&[]), 8);
    for reference in [&world.acme.id, &world.acme.name, &world.acme.schema] {
        assert_eq!(count(&[reference]), 5, "{reference}");
    }
    assert_eq!(count(&[&world.gone.id]), 1, "the keys of a deleted tenant can still be listed");
    let list = world.db.json(&["key", "list", &world.acme.id]);
    let status = |id: &str| {
        list.as_array()
            .and_then(|keys| keys.iter().find(|key| key["id"] == id))
            .map(|key| key["status"].clone())
    };
    assert_eq!(status(&world.live.id), Some("active".into()));
    assert_eq!(status(&world.expired.id), Some("expired".into()));
    assert_eq!(status(&world.revoked.id), Some("revoked".into()));
}

fn the_first_revocation_is_kept(world: &World) {
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    let first = world.db.json(&["key", "revoke", &world.live.prefix, "--reason", "found on a laptop"]);
    assert_eq!(first["status"], "revoked");
    let again = world.db.json(&["key", "revoke", &world.live.id, "--reason", "again"]);
    assert_eq!(time(&again, "revoked_at"), time(&first, "revoked_at"));
    server.row_becomes("401 revoked", PATIENCE, Ask::with_key(&world.live.text));
    let expired = world.db.json(&["key", "revoke", &world.expired.id]);
    assert_eq!(expired["status"], "revoked", "an expired key can be revoked too");
}

fn rotation_creates_a_successor(world: &World) {
    let server = Server::on(&world.db).start();
    let rotated = world.db.json(&["key", "rotate", &world.live.prefix]);
    let (old, new) = (&rotated["old"], &rotated["new"]);
    assert_eq!(names(&rotated), ["new", "old"]);
    assert!(!names(old).contains(&"key") && names(new).contains(&"key"), "{rotated}");
    assert_eq!(old["id"], world.live.id.as_str());
    assert_ne!(new["id"], old["id"]);
    assert_eq!((&new["tenant_id"], &new["name"]), (&old["tenant_id"], &old["name"]));
    assert_eq!(new["expires_at"], Value::Null, "the old key never expired");
    server.row_becomes("200 ok", PATIENCE, Ask::with_key(&string(new, "key")));
    server.row_becomes("401 expired", PATIENCE, Ask::with_key(&world.live.text));
}

fn rotation_keeps_the_old_key_for_its_grace(world: &World) {
    let server = Server::on(&world.db).start();
    let rotated = world.db.json(&["key", "rotate", &world.live.id, "--grace", "7d"]);
    let grace = time(&rotated["old"], "expires_at") - time(&rotated["new"], "created_at");
    assert!(close(grace, TimeDelta::days(7)), "{rotated}");
    server.row_becomes("200 ok", PATIENCE, Ask::with_key(&string(&rotated["new"], "key")));
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    // Its own expiry comes first where it is the earlier one.
    let soon = world.db.json(&["key", "create", &world.acme.id, "--expires-in", "1h"]);
    let rotated = world.db.json(&["key", "rotate", &string(&soon, "id"), "--grace", "7d"]);
    assert_eq!(time(&rotated["old"], "expires_at"), time(&soon, "expires_at"));
}

fn rotation_gives_the_new_key_the_old_ones_lifetime(world: &World) {
    let rotated = world.db.json(&["key", "rotate", &world.issued.id, "--grace", "1d"]);
    assert!(close(lifetime(&rotated["new"]), TimeDelta::days(90)), "{rotated}");
    let id = string(&rotated["new"], "id");
    let otherwise = world.db.json(&["key", "rotate", &id, "--expires-in", "2d"]);
    assert!(close(lifetime(&otherwise["new"]), TimeDelta::days(2)), "{otherwise}");
    let id = string(&otherwise["new"], "id");
    let until = world.db.json(&["key", "rotate", &id, "--expires-at", "2099-01-01T00:00:00Z"]);
    assert_eq!(time(&until["new"], "expires_at").timestamp(), 4_070_908_800);
    let both = ["key", "rotate", &id, "--expires-in", "1d", "--expires-at", "2099-01-01T00:00:00Z"];
    world.db.cli(&both).usage();
}

fn revoked_and_expired_keys_cannot_be_rotated(world: &World) {
    let line = world.db.cli(&["key", "rotate", &world.revoked.id]).refused();
    assert!(line.contains("revoked"), "{line}");
    let line = world.db.cli(&["key", "rotate", &world.expired.id, "--grace", "7d"]).refused();
    assert!(line.contains("expired"), "{line}");
    let keys = world.db.json(&["key", "list", &world.acme.id]);
    assert_eq!(keys.as_array().map(Vec::len), Some(5), "no new key was made");
}

//! Tests how commands and use cases create, list, change and revoke management keys, on both stores.

use std::sync::Arc;

use serde_json::{Value, json};
use tenantgate::admin::{
    Admin, AdminError, AdminKeyUpdate, AdminKeyWish, Caller, ChangeOrigin, Creator, Expiry, KeyUpdate,
    Setting,
};
use tenantgate::audit::Actor;
use tenantgate::clock::SystemClock;
use tenantgate::config::Database;
use tenantgate::key::format::{checksum, parse, parse_management};
use tenantgate::permission::{Authority, Ended, Permission, Permissions, Reach, Role};
use tenantgate::tenant::TenantId;
use tenantgate::verify::management;
use tenantgate::verify::memo::Peppers;

use crate::support::world::string;
use crate::support::{Backend, World, on_every_store, runtime};

on_every_store![
    a_management_key_is_shown_once_and_its_hash_is_kept,
    permissions_and_tenants_are_as_requested,
    invalid_requests_are_rejected_and_create_nothing,
    names_are_unique_and_a_revoked_key_keeps_its_name,
    a_revocation_happens_once,
    every_change_of_a_management_key_is_in_the_audit_log,
    a_key_cannot_grant_more_than_it_has,
    a_caller_sees_only_the_tenants_of_its_key,
    a_key_cannot_be_changed_to_have_more_than_its_changer,
    a_key_ends_with_its_creator,
    a_key_with_more_authority_is_hidden,
    the_database_rejects_invalid_management_keys,
];

pub(crate) fn create(world: &World, args: &[&str]) -> Value {
    world.db.json(&[&["admin-key", "create"], args].concat())
}

fn list(world: &World) -> Vec<Value> {
    world.db.json(&["admin-key", "list"]).as_array().expect("an array").clone()
}

fn a_management_key_is_shown_once_and_its_hash_is_kept(world: &World) {
    assert!(list(world).is_empty());
    let made = create(world, &["Ops team", "--role", "viewer"]);
    let names: Vec<_> = made.as_object().expect("an object").keys().cloned().collect();
    let mut expected =
        ["id", "key", "key_prefix", "name", "permissions", "tenants", "created_at", "expires_at"];
    expected.sort_unstable();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, expected);
    let key = string(&made, "key");
    let presented = parse_management(key.as_bytes()).expect("a management key");
    assert!(parse(key.as_bytes()).is_err(), "it is not an API key");
    assert_eq!(presented.prefix(), string(&made, "key_prefix"));
    assert!(presented.prefix().starts_with("llma_opsteam"), "{}", presented.prefix());
    let (body, sum) = key.split_at(key.len() - 6);
    assert_eq!(sum.as_bytes(), checksum(body.as_bytes()));
    let hash = management::hash(presented);
    world.db.refuses(&format!(
        "INSERT INTO tenantgate_admin_key (id, key_prefix, hashed_key, name, permissions, created_at)
         SELECT '00000000-0000-4000-8000-000000000001', 'llma_x', '{hash}', 'x', 'keys:read', created_at FROM tenantgate_admin_key"
    ));
    let listed = list(world);
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0]["status"], &listed[0]["created_by"]), (&"active".into(), &Value::Null));
    assert!(!listed[0].to_string().contains(&key) && listed[0].get("key").is_none());
    assert!(!world.db.cli(&["audit", "list"]).ok().contains(&hash));
    // The text output.
    let text = world.db.cli(&["admin-key", "create", "text", "--expires-in", "1d"]).ok();
    assert!(text.contains("key        llma_text") && text.contains("not shown again"), "{text}");
    assert!(world.db.cli(&["admin-key", "list"]).ok().contains("llma_opsteam"));
}

fn permissions_and_tenants_are_as_requested(world: &World) {
    let permissions = |made: &Value| {
        let names = made["permissions"].as_array().expect("an array").clone();
        names.iter().map(|name| name.as_str().expect("a text").to_owned()).collect::<Vec<_>>().join(" ")
    };
    for role in Role::ALL {
        let made = create(world, &[role.as_str(), "--role", role.as_str()]);
        assert_eq!(permissions(&made), role.permissions().to_string());
        assert_eq!((&made["tenants"], &made["expires_at"]), (&Value::Null, &Value::Null));
    }
    assert_eq!(permissions(&create(world, &["unsaid"])), Role::Owner.permissions().to_string());
    let few = create(
        world,
        &[
            "few",
            "--permission",
            "keys:revoke",
            "--permission",
            "keys:read",
            "--permission",
            "keys:read",
            "--tenant",
            &world.acme.id,
            "--tenant",
            &world.acme.schema,
            "--expires-in",
            "90d",
        ],
    );
    assert_eq!(permissions(&few), "keys:read keys:revoke");
    assert_eq!(few["tenants"], json!([world.acme.id]));
    assert!(few["expires_at"].is_string());
    let listed = list(world);
    assert_eq!(listed.len(), 5);
    for name in ["id", "key_prefix", "name", "permissions", "tenants", "created_at", "expires_at"] {
        assert_eq!(listed[4][name], few[name], "{name}");
    }
}

fn invalid_requests_are_rejected_and_create_nothing(world: &World) {
    let usage = |args: &[&str], says: &str| {
        let said = world.db.cli(&[&["admin-key", "create"], args].concat()).usage();
        assert!(said.contains(says), "{said}");
    };
    usage(&["a", "--role", "root"], "choose owner, operator or viewer");
    usage(&["a", "--permission", "keys:*"], "choose from tenants:read");
    usage(&["a", "--role", "viewer", "--permission", "keys:read"], "cannot be used with");
    usage(&["a", "--expires-in", "90"], "invalid duration");
    usage(&[""], "1 to 255 characters");
    usage(&["llma_ops_secret123"], "must not contain a key");
    let refused = |args: &[&str], says: &str| {
        let said = world.db.cli(&[&["admin-key"], args].concat()).refused();
        assert!(said.contains(says), "{said}");
    };
    refused(&["create", "a", "--tenant", "nobody"], "nobody");
    refused(&["create", "a", "--expires-in", "0s"], "in the past");
    refused(&["revoke", "nobody"], "there is no management key \"nobody\"");
    refused(&["revoke", "llma_ops_secret123"], "this is a whole key");
    assert!(list(world).is_empty());
}

fn names_are_unique_and_a_revoked_key_keeps_its_name(world: &World) {
    create(world, &["ops"]);
    world.db.json(&["admin-key", "revoke", "ops"]);
    let said = world.db.cli(&["admin-key", "create", "ops"]).refused();
    assert!(said.contains("there is, or was, a management key \"ops\""), "{said}");
    assert_eq!(list(world).len(), 1);
}

fn a_revocation_happens_once(world: &World) {
    let made = create(world, &["ops"]);
    let by_prefix = world.db.json(&["admin-key", "revoke", &string(&made, "key_prefix")]);
    let by_id = world.db.json(&["admin-key", "revoke", &string(&made, "id")]);
    let by_name = world.db.json(&["admin-key", "revoke", "ops"]);
    assert_eq!(by_prefix["status"], "revoked");
    assert!(by_prefix["revoked_at"].is_string());
    assert_eq!((&by_prefix, &by_prefix), (&by_id, &by_name));
    assert_eq!(list(world), [by_prefix]);
}

fn every_change_of_a_management_key_is_in_the_audit_log(world: &World) {
    let made = create(world, &["ops", "--permission", "keys:read", "--tenant", &world.acme.id]);
    world.db.json(&["admin-key", "revoke", "ops"]);
    world.db.json(&["admin-key", "revoke", "ops"]);
    let log = world.db.json(&["audit", "list", "--subject", &string(&made, "id")]);
    let log = log.as_array().expect("an array");
    let actions: Vec<_> = log.iter().map(|entry| string(entry, "action")).collect();
    assert_eq!(actions, ["admin_key.create", "admin_key.revoke"]);
    assert_eq!(log[0]["before"], Value::Null);
    assert_eq!(log[0]["after"]["permissions"], "keys:read");
    assert_eq!(log[0]["after"]["tenants"], world.acme.id.as_str());
    assert_eq!(log[1]["before"]["revoked_at"], Value::Null);
    assert!(log[1]["after"]["revoked_at"].is_string());
    world.db.json(&["audit", "verify"]);
}

pub(crate) fn admin(world: &World) -> Admin {
    let database = Database::at(world.db.url());
    let store = tenantgate::config::management(&database, Actor::default()).expect("a store");
    Admin::new(store, Arc::new(SystemClock), Peppers::default())
}

fn wish(name: &str, permissions: &[Permission]) -> AdminKeyWish {
    AdminKeyWish {
        name: name.into(),
        permissions: Some(Permissions::of(permissions)),
        tenants: None,
        expiry: Expiry::Unsaid,
    }
}

/// A caller with all permissions for one tenant.
fn caller_of(admin: &Admin, tenant: &str) -> Caller {
    let wish = AdminKeyWish {
        name: "of one".into(),
        permissions: None,
        tenants: Some(vec![tenant.to_owned()]),
        expiry: Expiry::Unsaid,
    };
    let made = runtime().block_on(admin.create_admin_key(&Creator::database(), &wish)).expect("made");
    let key = made.details;
    Caller { creator: Creator { id: Some(key.id), authority: key.given.clone() }, key }
}

fn a_caller_sees_only_the_tenants_of_its_key(world: &World) {
    let whole = admin(world);
    let caller = caller_of(&whole, &world.acme.id);
    let origin = ChangeOrigin { request_id: Some("r1".into()), address: "192.0.2.1".parse().ok() };
    let ours = whole.on_behalf(&caller, &origin);
    let (of_sleepy, update) =
        (world.of_sleepy.id.as_str(), KeyUpdate { clear_labels: true, ..KeyUpdate::default() });
    runtime().block_on(async {
        for reference in [&world.sleepy.id, &world.sleepy.schema, &world.sleepy.name] {
            let missing = [
                ours.tenant(reference).await.map(drop),
                ours.suspend_tenant(reference).await.map(drop),
                ours.activate_tenant(reference).await.map(drop),
                ours.create_key(reference, &KeyUpdate::default()).await.map(drop),
                ours.keys_to_revoke(reference).await.map(drop),
            ];
            for missing in missing {
                assert!(matches!(missing, Err(AdminError::Missing(_))), "{missing:?}");
            }
        }
        let key = whole.key(of_sleepy).await.expect("it exists");
        assert_eq!(key.tenant_id.0.to_string(), world.sleepy.id);
        let missing = [
            ours.key(of_sleepy).await.map(drop),
            ours.update_key(of_sleepy, &update).await.map(drop),
            ours.disable_key(of_sleepy).await.map(drop),
            ours.rotate_key(of_sleepy, std::time::Duration::ZERO, Expiry::Unsaid).await.map(drop),
            ours.revoke_keys(&[world.live.id.clone(), of_sleepy.to_owned()], None).await.map(drop),
            // Only the transaction checks the tenant, because the key is given by its id.
            ours.revoke(&[key.id], None).await.map(drop),
        ];
        for missing in missing {
            assert!(matches!(missing, Err(AdminError::Missing(_))), "{missing:?}");
        }
        assert_eq!(whole.key(of_sleepy).await.expect("it exists"), key);
        ours.suspend_tenant(&world.acme.schema).await.expect("its own");
        let one = ours.tenants().await.expect("a list");
        assert_eq!(
            one.iter().map(|tenant| tenant.id.0.to_string()).collect::<Vec<_>>(),
            std::slice::from_ref(&world.acme.id)
        );
    });
    let log = world.db.json(&["audit", "list", "--limit", "1"]);
    let (row, actor) = (&log[0], format!("of one ({})", caller.key.prefix));
    assert_eq!((&row["action"], &row["actor"]), (&"tenant.suspend".into(), &actor.into()));
    assert_eq!((&row["request_id"], &row["address"]), (&"r1".into(), &"192.0.2.1".into()));
    world.db.json(&["audit", "verify"]);
}

fn a_key_cannot_be_changed_to_have_more_than_its_changer(world: &World) {
    let whole = admin(world);
    let caller = caller_of(&whole, &world.acme.id);
    let ours = whole.on_behalf(&caller, &ChangeOrigin::default());
    let creator = &caller.creator;
    runtime().block_on(async {
        let child = AdminKeyWish { name: "child".into(), ..wish("child", &[Permission::KeysRead]) };
        let child = ours.create_admin_key(creator, &child).await.expect("made").details;
        let id = child.id.0.to_string();
        let change = async |update: AdminKeyUpdate| ours.update_admin_key(creator, &id, &update).await;
        let all = AdminKeyUpdate { tenants: Setting::Unset, ..AdminKeyUpdate::default() };
        assert!(matches!(change(all.clone()).await, Err(AdminError::Excess(_))));
        let foreign = AdminKeyUpdate {
            tenants: Setting::Set(vec![world.sleepy.id.clone()]),
            ..AdminKeyUpdate::default()
        };
        assert!(matches!(change(foreign).await, Err(AdminError::Excess(_))));
        let same = change(AdminKeyUpdate::default()).await.expect("nothing changes");
        assert_eq!(same.key, child);
        let more = Permissions::of(&[Permission::KeysRead, Permission::KeysRevoke]);
        let wider = AdminKeyUpdate { permissions: Some(more), ..AdminKeyUpdate::default() };
        assert_eq!(change(wider).await.expect("its own").key.given.permissions, more);
        let taken = AdminKeyUpdate { name: Some("of one".into()), ..AdminKeyUpdate::default() };
        assert!(matches!(change(taken).await, Err(AdminError::Refused(_))));
        // It cannot extend itself, either.
        let own = caller.key.id.0.to_string();
        let error = ours.update_admin_key(creator, &own, &all).await;
        assert!(matches!(error, Err(AdminError::Excess(_))), "{error:?}");
        let elder =
            whole.create_admin_key(&Creator::database(), &wish("elder", &[Permission::KeysRead])).await;
        let elder = elder.expect("made").details.id.0.to_string();
        let error = ours.update_admin_key(creator, &elder, &all).await;
        assert!(matches!(error, Err(AdminError::Missing(_))), "{error:?}");
    });
    let log = world.db.json(&["audit", "list", "--subject", "child"]);
    let actions: Vec<_> = log.as_array().expect("an array").iter().map(|row| string(row, "action")).collect();
    assert_eq!(actions, ["admin_key.create", "admin_key.update"]);
}

fn a_key_cannot_grant_more_than_it_has(world: &World) {
    let admin = admin(world);
    runtime().block_on(async {
        let few = AdminKeyWish {
            tenants: Some(vec![world.acme.id.clone()]),
            expiry: Expiry::In(std::time::Duration::from_hours(1)),
            ..wish("few", &[Permission::KeysRead, Permission::AdminKeysWrite])
        };
        let made = admin.create_admin_key(&Creator::database(), &few).await.expect("made").details;
        let creator = Creator { id: Some(made.id), authority: made.given.clone() };
        let refused = async |wish: AdminKeyWish, says: &str| {
            let error = admin.create_admin_key(&creator, &wish).await.expect_err("refused");
            assert!(matches!(&error, AdminError::Excess(why) if why.contains(says)), "{error}");
        };
        refused(wish("more", &[Permission::KeysRevoke]), "lacks keys:revoke").await;
        let elsewhere = AdminKeyWish {
            tenants: Some(vec![world.sleepy.id.clone()]),
            ..wish("x", &[Permission::KeysRead])
        };
        refused(elsewhere, "cannot access all of these tenants").await;
        refused(
            AdminKeyWish { expiry: Expiry::Never, ..wish("x", &[Permission::KeysRead]) },
            "choose an expiry that is not later",
        )
        .await;
        let unsaid = AdminKeyWish { name: "child".into(), ..AdminKeyWish::default() };
        let child = admin.create_admin_key(&creator, &unsaid).await.expect("made").details;
        assert_eq!((child.given, child.created_by), (made.given, Some(made.id)));
    });
    assert_eq!(list(world).len(), 2);
}

fn a_key_ends_with_its_creator(world: &World) {
    let admin = admin(world);
    runtime().block_on(async {
        let mut creator = Creator::database();
        for name in ["first", "second", "third"] {
            let wish = AdminKeyWish { name: name.into(), ..AdminKeyWish::default() };
            let made = admin.create_admin_key(&creator, &wish).await.expect("made").details;
            creator.id = Some(made.id);
        }
        let database = Creator::database();
        let ended = async || {
            let keys = admin.admin_keys(&database).await.expect("listed");
            keys.iter().map(|listed| listed.ended).collect::<Vec<_>>()
        };
        assert_eq!(ended().await, [None, None, None]);
        admin.revoke_admin_key(&database, "second").await.expect("revoked");
        assert_eq!(ended().await, [None, Some(Ended::Revoked), Some(Ended::WithItsCreator)]);
        admin.revoke_admin_key(&database, "first").await.expect("revoked");
        assert_eq!(ended().await, [Some(Ended::Revoked), Some(Ended::Revoked), Some(Ended::WithItsCreator)]);
    });
    assert_eq!(list(world)[2]["status"], "ended_with_maker");
}

fn a_key_with_more_authority_is_hidden(world: &World) {
    create(world, &["owner"]);
    create(world, &["reader", "--permission", "keys:read", "--tenant", &world.acme.id]);
    let admin = admin(world);
    let acme = TenantId(uuid::Uuid::parse_str(&world.acme.id).expect("a UUID"));
    let small = Creator {
        id: None,
        authority: Authority {
            permissions: Permissions::of(&[Permission::KeysRead, Permission::AdminKeysWrite]),
            reach: Reach::Some([acme].into()),
            expires_at: None,
        },
    };
    runtime().block_on(async {
        let seen = admin.admin_keys(&small).await.expect("listed");
        assert_eq!(seen.iter().map(|listed| listed.key.name.as_str()).collect::<Vec<_>>(), ["reader"]);
        let hidden = admin.revoke_admin_key(&small, "owner").await.expect_err("hidden").to_string();
        let missing = admin.revoke_admin_key(&small, "nobody").await.expect_err("missing").to_string();
        assert_eq!(hidden.replace("owner", "nobody"), missing);
        admin.revoke_admin_key(&small, "reader").await.expect("revoked");
    });
    assert_eq!(list(world)[0]["status"], "active");
}

fn the_database_rejects_invalid_management_keys(world: &World) {
    let made = create(world, &["ops"]);
    let id = string(&made, "id");
    for sql in [
        "UPDATE tenantgate_admin_key SET permissions = ''",
        "UPDATE tenantgate_admin_key SET permissions = 'keys:read,keys:write'",
        "UPDATE tenantgate_admin_key SET tenants = ''",
        "UPDATE tenantgate_admin_key SET tenants = 'everyone'",
        "UPDATE tenantgate_admin_key SET key_prefix = 'llmk_ops'",
        "UPDATE tenantgate_admin_key SET key_prefix = 'llma_a_b'",
        "UPDATE tenantgate_admin_key SET hashed_key = 'plain'",
        "UPDATE tenantgate_admin_key SET name = ''",
        "UPDATE tenantgate_admin_key SET created_by = '00000000-0000-4000-8000-000000000001'",
    ] {
        world.db.refuses(sql);
    }
    // The program ignores a permission that the database accepts, but that it does not know.
    world.db.sql("UPDATE tenantgate_admin_key SET permissions = 'keys:read moon:write'");
    let said = world.db.cli(&["admin-key", "list"]).refused();
    assert!(said.contains(&id) && said.contains("moon:write"), "{said}");
}

#[test]
fn management_keys_are_not_replicated() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    world.db.json(&["admin-key", "create", "ours"]);
    let insert = "SET session_replication_role = replica;
         INSERT INTO tenantgate_admin_key (id, key_prefix, hashed_key, name, permissions, created_at)
         SELECT gen_random_uuid(), 'llma_theirs', repeat('0', 64), 'theirs', 'keys:read', now();
         DELETE FROM tenantgate_admin_key;
         SET session_replication_role = origin";
    world.db.sql(insert);
    let names: Vec<_> = list(&world).iter().map(|key| string(key, "name")).collect();
    assert_eq!(names, ["ours"]);
}

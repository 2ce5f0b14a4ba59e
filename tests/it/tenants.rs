//! Tests the tenant commands on both stores.

use serde_json::Value;

use crate::support::world::string;
use crate::support::{Backend, World, on_every_store};

/// The fields of a tenant.
const SHAPE: [&str; 6] = ["created_at", "db_schema_name", "id", "name", "plan", "status"];

on_every_store![
    a_tenant_has_one_shape_everywhere,
    a_tenant_is_found_by_id_schema_or_name,
    an_ambiguous_name_lists_the_ids,
    a_taken_schema_is_reported_with_what_to_do,
    suspend_activate_and_delete_change_only_the_status,
    names_have_a_length_and_no_control_characters,
    schema_names_have_a_grammar,
    the_status_can_be_chosen,
    seeding_creates_the_demo,
];

fn names(object: &Value) -> Vec<&str> {
    object.as_object().expect("an object").keys().map(String::as_str).collect()
}

fn a_tenant_has_one_shape_everywhere(world: &World) {
    let made = world.db.json(&["tenant", "create", "Fresh"]);
    assert_eq!(names(&made), SHAPE);
    assert_eq!((&made["name"], &made["status"]), (&"Fresh".into(), &"active".into()));
    assert_eq!(made["db_schema_name"], "tenant_fresh");
    assert!(uuid::Uuid::parse_str(&string(&made, "id")).is_ok());
    assert!(chrono::DateTime::parse_from_rfc3339(&string(&made, "created_at")).is_ok(), "{made}");
    let id = string(&made, "id");
    assert_eq!(world.db.json(&["tenant", "show", &id]), made);
    let list = world.db.json(&["tenant", "list"]);
    assert_eq!(list.as_array().map(Vec::len), Some(5));
    assert!(list.as_array().is_some_and(|rows| rows.contains(&made)), "{list}");
    let mut suspended = made.clone();
    suspended["status"] = "suspended".into();
    assert_eq!(world.db.json(&["tenant", "suspend", &id]), suspended);
}

fn a_tenant_is_found_by_id_schema_or_name(world: &World) {
    for reference in [&world.acme.id, &world.acme.schema, &world.acme.name, &world.acme.id.to_uppercase()] {
        assert_eq!(
            world.db.json(&["tenant", "show", reference])["id"],
            world.acme.id.as_str(),
            "{reference}"
        );
    }
    for reference in ["acme corp", "Acme", "Acme Corp ", "%", "tenant_%", "", "' OR 1=1 --"] {
        let run = world.db.cli(&["tenant", "show", reference]);
        assert!([Some(1), Some(2)].contains(&run.code), "not an exact name: {run:#?}");
    }
}

fn an_ambiguous_name_lists_the_ids(world: &World) {
    let twin = world.db.json(&["tenant", "create", &world.acme.name, "--schema", "acme_two"]);
    let twin = string(&twin, "id");
    for command in [&["tenant", "show"][..], &["tenant", "suspend"], &["key", "create"], &["key", "list"]] {
        let line = world.db.cli(&[command, &[&world.acme.name]].concat()).refused();
        assert!(line.contains(&world.acme.id) && line.contains(&twin), "{line}");
    }
    assert_eq!(
        world.db.json(&["tenant", "show", "acme_two"])["id"],
        twin.as_str(),
        "the schema is not ambiguous"
    );
}

fn a_taken_schema_is_reported_with_what_to_do(world: &World) {
    let by_default = world.db.cli(&["tenant", "create", &world.acme.name]).refused();
    let by_choice = world.db.cli(&["tenant", "create", "Other", "--schema", &world.acme.schema]).refused();
    for line in [by_default, by_choice] {
        assert!(line.contains("--schema") && line.contains(&world.acme.schema), "{line}");
    }
    assert_eq!(
        world.db.json(&["tenant", "list"]).as_array().map(Vec::len),
        Some(4),
        "nothing was created partially"
    );
}

fn suspend_activate_and_delete_change_only_the_status(world: &World) {
    let before = world.db.json(&["tenant", "show", &world.acme.id]);
    let commands: [(&[&str], &str); 5] = [
        (&["tenant", "suspend", &world.acme.name], "suspended"),
        (&["tenant", "suspend", &world.acme.name], "suspended"),
        (&["tenant", "activate", &world.acme.name], "active"),
        (&["tenant", "activate", &world.acme.name], "active"),
        (&["tenant", "delete", &world.acme.name, "--yes"], "deleted"),
    ];
    for (command, status) in commands {
        let mut wanted = before.clone();
        wanted["status"] = status.into();
        assert_eq!(world.db.json(command), wanted, "{command:?}");
        assert_eq!(world.db.json(&["tenant", "show", &world.acme.id]), wanted, "{command:?}");
    }
    let keys = world.db.json(&["key", "list", &world.acme.id]);
    assert_eq!(keys.as_array().map(Vec::len), Some(5), "the rows stay");
}

fn names_have_a_length_and_no_control_characters(world: &World) {
    let longest = "ü".repeat(255);
    let made = world.db.json(&["tenant", "create", &longest, "--schema", "longest"]);
    assert_eq!(made["name"], longest.as_str(), "characters are counted, not bytes");
    let made = world.db.json(&["tenant", "create", &"n".repeat(255)]);
    assert!(string(&made, "db_schema_name").len() <= 63, "{made}");
    for name in ["", &"n".repeat(256), "a\nb", "a\tb", "a\u{7f}b", "a\u{85}b", "\u{1b}[31mred"] {
        world.db.cli(&["tenant", "create", name, "--schema", "odd_name"]).usage();
    }
}

fn schema_names_have_a_grammar(world: &World) {
    let bad = [
        "",
        "Upper",
        "1st",
        "with-dash",
        "with space",
        "dot.ted",
        "ümlaut",
        "x\"; DROP SCHEMA x; --",
        "pg_mine",
        "pg_",
        "public",
        "information_schema",
        &"s".repeat(64),
    ];
    for schema in bad {
        world.db.cli(&["tenant", "create", "Odd", "--schema", schema]).usage();
    }
    for schema in ["_", "select", "user", "a0_", &"s".repeat(63), "pgx", "publicity"] {
        let made = world.db.json(&["tenant", "create", "Fine", "--schema", schema]);
        assert_eq!(made["db_schema_name"], schema);
    }
}

fn the_status_can_be_chosen(world: &World) {
    for status in ["active", "suspended", "pending_provisioning"] {
        let made = world.db.json(&["tenant", "create", status, "--status", status]);
        assert_eq!(made["status"], status);
    }
    world.db.cli(&["tenant", "create", "Odd", "--status", "frozen"]).usage();
}

fn seeding_creates_the_demo(world: &World) {
    let line = world.db.cli(&["seed-demo"]).refused();
    assert!(line.contains("--force"), "there are other tenants: {line}");
    let seeded = world.db.json(&["seed-demo", "--force"]);
    let (tenant, key) = (&seeded["tenant"], &seeded["key"]);
    assert_eq!(names(tenant), SHAPE);
    assert_eq!(tenant["id"], "550e8400-e29b-41d4-a716-446655440000");
    assert_eq!((&tenant["name"], &tenant["db_schema_name"]), (&"Demo Tenant".into(), &"tenant_demo".into()));
    assert_eq!((&tenant["status"], &key["tenant_id"]), (&"active".into(), &tenant["id"]));
    assert_eq!(key["id"], "660e8400-e29b-41d4-a716-446655440001");
    assert_eq!((&key["key"], &key["key_prefix"]), (&"llmk_demo_secret123".into(), &"llmk_demo".into()));
    let hashed =
        world.db.text("SELECT hashed_key FROM api_keys WHERE key_prefix = 'llmk_demo'").expect("a hash");
    assert!(bcrypt::non_truncating_verify("llmk_demo_secret123", &hashed).expect("a real bcrypt hash"));
    assert_eq!(world.db.json(&["seed-demo", "--force"]), seeded, "the second run returns the same");
}

#[test]
fn the_demo_can_be_seeded_twice_without_other_tenants() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let Some(database) = crate::support::Database::empty(backend) else { continue };
        database.cli(&["migrate"]).ok();
        let seeded = database.json(&["seed-demo"]);
        assert_eq!(database.json(&["seed-demo"]), seeded, "{backend:?}");
        assert_eq!(database.json(&["tenant", "list"]).as_array().map(Vec::len), Some(1));
        let server = crate::support::Server::on(&database).start();
        let answer = server.check(crate::support::Ask::with_key("llmk_demo_secret123"));
        assert_eq!((answer.row().as_str(), answer.meta("tenant_schema")), ("200 ok", "tenant_demo"));
    }
}

#[test]
fn on_postgres_an_active_tenant_has_its_schema() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let schemas = || -> Vec<String> {
        world.db.texts("SELECT nspname::text FROM pg_namespace").into_iter().flatten().collect()
    };
    assert!(schemas().contains(&world.acme.schema));
    assert!(
        !schemas().contains(&world.newborn.schema),
        "the tenant stays pending_provisioning, without a schema"
    );
    world.db.json(&["tenant", "activate", &world.newborn.id]);
    assert!(schemas().contains(&world.newborn.schema), "an active tenant has a schema");
    world.db.sql("CREATE SCHEMA already_here");
    let made = world.db.json(&["tenant", "create", "Here", "--schema", "already_here"]);
    assert_eq!(made["status"], "active", "an existing schema is not changed");
    world.db.json(&["tenant", "create", "Quoted", "--schema", "select"]);
    assert!(schemas().contains(&"select".to_owned()));
    world.db.json(&["seed-demo", "--force"]);
    assert!(schemas().contains(&"tenant_demo".to_owned()));
    world.db.json(&["tenant", "delete", &world.acme.id, "--yes"]);
    assert!(schemas().contains(&world.acme.schema), "deleting is a status, not a loss of data");
}

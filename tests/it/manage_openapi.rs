//! Compares the description of the API with the behaviour of the server.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::manage::{Manage, owner};
use crate::support::world::string;
use crate::support::{Backend, World};

/// Returns the description, requested without a key, and a server.
fn described() -> (World, Manage, String, Value) {
    let world = World::on(Backend::Sqlite).expect("a world");
    let key = owner(&world);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let page = manage.ask("GET", "/openapi.json", &[]);
    assert_eq!((page.status, page.headers["content-type"].as_str()), (200, "application/json"));
    let document = serde_json::from_str(&page.body).expect("JSON");
    (world, manage, key, document)
}

fn concrete(path: &str) -> String {
    let nobody = "00000000-0000-4000-8000-000000000001";
    path.replace("{reference}", nobody).replace("{id}", nobody).replace("{name}", "nobody")
}

#[test]
fn every_path_has_the_documented_methods() {
    let (_world, manage, key, document) = described();
    assert_eq!(document["openapi"], "3.1.0");
    let bearer = format!("authorization: Bearer {key}");
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let page = manage.ask("TRACE", &concrete(path), &[&bearer]);
        assert_eq!(page.status, 405, "{path}");
        let allowed: BTreeSet<_> =
            page.headers["allow"].split(',').map(str::to_lowercase).filter(|name| name != "head").collect();
        let methods: BTreeSet<_> = methods.as_object().expect("methods").keys().cloned().collect();
        assert_eq!(allowed, methods, "{path}");
    }
    // The matrix of permissions contains every change, so it would contain an undocumented path.
    for line in include_str!("manage.txt").lines().filter(|line| !line.starts_with('#')) {
        let path = line.split(' ').nth(1).expect("a path").trim_end_matches(':');
        let path = ["{tenant}", "{key}"]
            .iter()
            .fold(path.to_owned(), |path, part| path.replace(part, "{reference}"));
        let path = path.replace("{route}", "{id}").replace("{admin_key}", "{id}").replace("{plan}", "{name}");
        assert!(document["paths"].get(path.split('?').next().expect("a path")).is_some(), "{line}");
    }
}

/// Returns the names of the fields of a schema, and whether each may be null.
fn fields(document: &Value, schema: &str) -> BTreeMap<String, bool> {
    let properties = document["components"]["schemas"][schema]["properties"].as_object().expect("properties");
    let nullable = |of: &Value| of["type"].as_array().is_some_and(|types| types.contains(&json!("null")));
    properties.iter().map(|(name, of)| (name.clone(), nullable(of))).collect()
}

#[test]
fn bodies_have_the_documented_fields() {
    let (_world, manage, key, document) = described();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let content = operation["requestBody"]["content"].as_object();
            let Some(schema) = content.and_then(|content| content.values().next()) else { continue };
            let schema =
                schema["schema"]["$ref"].as_str().expect("a reference").rsplit('/').next().expect("a name");
            let fields = fields(&document, schema);
            // Each value has a wrong type: all are reported, and nothing is changed.
            let mut body: Value =
                fields.keys().map(|name| (name.clone(), json!(7))).collect::<serde_json::Map<_, _>>().into();
            body["no_such_field"] = json!(7);
            let headers: &[&str] = if method == "put" { &["if-match: *"] } else { &[] };
            let page = manage.send(&key, &method.to_uppercase(), &concrete(path), &body.to_string(), headers);
            let problem: Value = serde_json::from_str(&page.body).expect("JSON");
            if method == "put" {
                // A table is a list, whose rules are described.
                assert_eq!(page.status, 400, "{problem}");
                continue;
            }
            assert_eq!(page.status, 400, "{method} {path}: {problem}");
            let errors = problem["errors"].as_array().expect("errors");
            let with = |code: &str| -> BTreeSet<String> {
                let with = errors.iter().filter(|error| error["code"] == code);
                with.map(|error| error["pointer"].as_str().expect("a text")[1..].to_owned()).collect()
            };
            assert_eq!(
                with("unknown_field"),
                BTreeSet::from(["no_such_field".to_owned()]),
                "{method} {path}: {problem}"
            );
            assert_eq!(with("wrong_type"), fields.into_keys().collect(), "{method} {path}: {problem}");
        }
    }
}

#[test]
fn objects_have_the_documented_fields() {
    let (world, manage, key, document) = described();
    let names = |schema: &str| -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        let mut open = vec![document["components"]["schemas"][schema].clone()];
        while let Some(schema) = open.pop() {
            for part in schema["allOf"].as_array().into_iter().flatten() {
                open.push(part.clone());
            }
            if let Some(reference) = schema["$ref"].as_str() {
                let name = reference.rsplit('/').next().expect("a name");
                open.push(document["components"]["schemas"][name].clone());
            }
            all.extend(schema["properties"].as_object().into_iter().flat_map(|of| of.keys().cloned()));
        }
        all
    };
    let got = |object: &Value| -> BTreeSet<String> {
        object.as_object().expect("an object").keys().cloned().collect()
    };
    world.db.json(&["plan", "create", "gold"]);
    world.db.json(&["route", "add", "--path", "/a"]);
    for (schema, path) in [
        ("WhoAmI", "/v1/whoami".to_owned()),
        ("Key", format!("/v1/keys/{}", world.live.id)),
        ("UsedPlan", "/v1/plans/gold".to_owned()),
        ("Impact", format!("/v1/tenants/{}/impact", world.acme.id)),
    ] {
        assert_eq!(got(&manage.json(&path, &key)), names(schema), "{schema}");
    }
    for (schema, path) in [
        ("ListedKey", "/v1/keys"),
        ("Plan", "/v1/plans"),
        ("Route", "/v1/routes"),
        ("AdminKey", "/v1/admin_keys"),
        ("AuditEntry", "/v1/audit"),
    ] {
        assert_eq!(got(&manage.json(path, &key)["items"][0]), names(schema), "{schema}");
    }
    let made =
        manage.change(&key, "POST", &format!("/v1/tenants/{}/keys", world.acme.id), &json!({ "name": "x" }));
    assert_eq!(got(&made), names("IssuedKey"));
    let problem = manage.get("/v1/keys/nobody", &key);
    assert_eq!(got(&serde_json::from_str(&problem.body).expect("JSON")), names("Problem"));
}

#[test]
fn versions_are_described_where_they_are_sent() {
    let (world, manage, key, document) = described();
    world.db.json(&["plan", "create", "gold", "--request-limit", "5/MINUTE"]);
    let rule = string(&world.db.json(&["route", "add", "--path", "/v1/**", "--name", "all"]), "id");
    let admin_key = string(&manage.json("/v1/whoami", &key), "id");
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let id = match path {
            path if path.contains("/tenants/") => &world.acme.id,
            path if path.contains("/keys/") => &world.live.id,
            path if path.contains("/admin_keys/") => &admin_key,
            _ => &rule,
        };
        let concrete = path.replace("{reference}", id).replace("{id}", id).replace("{name}", "gold");
        let Some(success) = methods.get("get").map(|get| &get["responses"]["200"]) else { continue };
        let page = manage.get(&concrete, &key);
        assert_eq!(page.status, 200, "{concrete}: {}", page.body);
        let described = success["headers"].get("ETag").is_some();
        assert_eq!(described, page.headers.contains_key("etag"), "{path}");
    }
}

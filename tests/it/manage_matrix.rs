//! Compares every change over HTTP, with every permission and for all tenants, the own tenant and another one, with the
//! committed table `manage_changes.txt`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

use tenantgate::admin::{AdminError, AdminKeyWish, Creator, Expiry, KeyUpdate, LimitUpdate, Setting};
use tenantgate::permission::{Permission, Permissions};
use tenantgate::plan::PlanName;
use tenantgate::route::{RouteId, RouteRow};

use crate::admin_keys::admin;
use crate::manage::{Manage, keys_by_permission};
use crate::support::{World, on_every_store, runtime};

on_every_store![every_change_and_permission_is_in_the_committed_table];

/// Each change: method, path, body. `{tenant}` is the tenant in question; `{key}`, `{plan}`, `{route}` and
/// `{admin_key}` are created for each request; `{n}` is an unused number.
const CHANGES: [(&str, &str, &str); 24] = [
    ("POST", "/v1/tenants", r#"{"name":"T{n}","status":"pending_provisioning"}"#),
    ("PATCH", "/v1/tenants/{tenant}", r#"{"name":"N{n}"}"#),
    ("POST", "/v1/tenants/{tenant}/suspend", ""),
    ("POST", "/v1/tenants/{tenant}/delete", r#"{"confirm":"{schema}"}"#),
    ("POST", "/v1/tenants/{tenant}/activate", ""),
    ("POST", "/v1/tenants/{tenant}/keys", r#"{"key_prefix":"llmk_own{n}","hashed_key":"{hash}"}"#),
    ("PATCH", "/v1/keys/{key}", r#"{"name":"N{n}"}"#),
    ("POST", "/v1/keys/{key}/disable", ""),
    ("POST", "/v1/keys/{key}/enable", ""),
    ("POST", "/v1/keys/{key}/rotate", r#"{"grace":"1h"}"#),
    ("POST", "/v1/keys/{key}/rotate ", ""),
    ("POST", "/v1/keys/{key}/revoke", ""),
    ("POST", "/v1/plans", r#"{"name":"p{n}"}"#),
    ("PATCH", "/v1/plans/{plan}", r#"{"total_limit":"1/DAY"}"#),
    ("DELETE", "/v1/plans/{plan}", ""),
    ("POST", "/v1/routes", r#"{"path":"/p{n}"}"#),
    ("PATCH", "/v1/routes/{route}", r#"{"shadow":true}"#),
    ("DELETE", "/v1/routes/{route}", ""),
    ("PUT", "/v1/routes?dry_run=true", "[]"),
    ("PUT", "/v1/routes", "[]"),
    ("POST", "/v1/admin_keys", r#"{"name":"k{n}","permissions":["keys:read"],"tenants":["{tenant}"]}"#),
    ("PATCH", "/v1/admin_keys/{admin_key}", r#"{"name":"m{n}"}"#),
    ("POST", "/v1/admin_keys/{admin_key}/revoke", ""),
    ("POST", "/v1/nothing", ""),
];

/// Creates the objects of the requests, new ones for each request.
struct Furnisher<'w> {
    world: &'w World,
    number: Cell<u32>,
}

impl Furnisher<'_> {
    fn hash(&self) -> String {
        // A hash of no key: 22 digits of salt and 31 of hash, the last of which has no excess bits.
        format!("$2b$04$abcdefghijklmnopqrstuu{:030}2", self.number.get())
    }

    /// Returns the path and the body of a change of this tenant.
    fn filled(&self, path: &str, body: &str, tenant: &str, schema: &str) -> (String, String) {
        let number = self.number.get() + 1;
        self.number.set(number);
        let (admin, n) = (admin(self.world), number.to_string());
        let made = runtime().block_on(async {
            Ok::<_, AdminError>(if path.contains("{key}") {
                let (prefix, hash) = (format!("llmk_fresh{n}"), self.hash());
                // Keys of a deleted tenant cannot be created.
                admin.adopt_key(tenant, &KeyUpdate::default(), &prefix, &hash).await?.id.0.to_string()
            } else if path.contains("{plan}") {
                let name = PlanName::parse(&format!("fresh{n}")).expect("a name");
                admin.create_plan(&name, &LimitUpdate::from([const { Setting::Keep }; 4])).await?.name
            } else if path.contains("{route}") {
                let row = RouteRow {
                    id: RouteId(uuid::Uuid::nil()),
                    name: None,
                    host: "*".into(),
                    method: "*".into(),
                    path: format!("/fresh{n}"),
                    mode: "required".into(),
                    scopes: None,
                    shadow: false,
                };
                admin.add_route(row).await?.id.0.to_string()
            } else if path.contains("{admin_key}") {
                let wish = AdminKeyWish {
                    name: format!("fresh{n}"),
                    permissions: Some(Permissions::of(&[Permission::KeysRead])),
                    tenants: Some(vec![tenant.to_owned()]),
                    expiry: Expiry::Unsaid,
                };
                admin.create_admin_key(&Creator::database(), &wish).await?.details.id.0.to_string()
            } else {
                String::new()
            })
        });
        let made = made.expect("made");
        let path = ["{key}", "{plan}", "{route}", "{admin_key}"]
            .iter()
            .fold(path.to_owned(), |path, it| path.replace(it, &made));
        let hash = self.hash();
        let body = body.replace("{n}", &n).replace("{schema}", schema).replace("{hash}", &hash);
        (path.trim_end().replace("{tenant}", tenant), body.replace("{tenant}", tenant))
    }
}

fn every_change_and_permission_is_in_the_committed_table(world: &World) {
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let furnisher = Furnisher { world, number: Cell::new(0) };
    let keys = keys_by_permission(world);
    let mut table =
        String::from("# change: status for a key of all tenants, of this tenant, of another tenant\n");
    for (method, path, body) in CHANGES {
        let mut rows: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (permission, all, few) in &keys {
            let status = |key: &str, own: bool| {
                let tenant = if own { &world.acme } else { &world.sleepy };
                let (path, body) = furnisher.filled(path, body, &tenant.id, &tenant.schema);
                manage
                    .send(key, method, &path, &body, &["if-match: *"][..usize::from(method == "PUT")])
                    .status
            };
            let row = format!("{} {} {}", status(all, true), status(few, true), status(few, false));
            rows.entry(row).or_default().push(permission.as_str());
        }
        for (row, permissions) in rows {
            let path = path
                .strip_suffix(' ')
                .map_or_else(|| path.to_owned(), |path| format!("{path} without grace"));
            let path = if body.contains("grace") { format!("{path} with grace") } else { path };
            table.extend([method, " ", &path, ": ", &row, ": ", &permissions.join(" "), "\n"]);
        }
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/manage_changes.txt");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&file, &table).expect("the table is written");
    }
    let committed = std::fs::read_to_string(&file).expect("the table is committed");
    assert_eq!(committed, table, "UPDATE_SNAPSHOTS=1 rewrites tests/it/manage_changes.txt");
}

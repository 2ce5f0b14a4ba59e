//! The description of the API: `OpenAPI` 3.1, at `/openapi.json` and in `docs/openapi.json`.
//!
//! [`operations`] lists every operation; objects are described where they are defined. Tests compare the operations
//! with the router, and the fields of bodies with what the handlers read.

mod bodies;
mod operations;
mod parameters;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use self::operations::{OPERATIONS, Operation, SuccessResponse};
use self::parameters::Parameter;
use super::objects::WhoView;
use super::reading::{ImpactView, ReplicaView};
use crate::admin::view::{
    AdminKeyView, EntryView, IssuedAdminKeyView, IssuedView, KeyView, ListedKeyView, PlanView, RotatedView,
    TenantView, UsageView, UsedPlanView,
};
use crate::admin::{RouteDifference, RouteVerdict, RouteView};
use crate::permission::Permission;

/// The description of the API as a whole.
const ABOUT: &str = "Manages tenants, keys, plans, rules of routes and management keys of tenantgate. Lists are pages: pass \
next_page_token as page_token until it is empty; a page can be shorter than page_size before the end. Objects have an ETag, \
which If-Match compares before a change. A POST with an Idempotency-Key can be sent again for 24 hours and gets the same \
answer. With Prefer: wait=N an answer comes when all servers have the change, or says after N seconds which have not. Programs \
send an issued key to the API behind Envoy in the header x-llmcore-api-key, unless its operator chose another one; last_used_at and \
usage count a request within 30 seconds.";

/// The objects that have a version.
const VERSIONED: [&str; 8] =
    ["AdminKey", "IssuedAdminKey", "IssuedKey", "Key", "Plan", "Route", "Tenant", "UsedPlan"];

/// Answers with the description.
pub(super) async fn page() -> Response {
    static TEXT: LazyLock<String> = LazyLock::new(text);
    ([(CONTENT_TYPE, "application/json")], TEXT.as_str()).into_response()
}

/// Formats the description as in the committed file.
pub(super) fn text() -> String {
    let mut text = serde_json::to_string_pretty(&document()).unwrap_or_default();
    text.push('\n');
    text
}

fn document() -> Value {
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for operation in &OPERATIONS {
        let methods = paths.entry(operation.path).or_default();
        methods.insert(operation.method.to_lowercase(), described(operation));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "tenantgate",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "management_key": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": { "management_key": {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "llma_<prefix>_<secret>",
                "description": "A management key; `tenantgate admin-key create` creates the first one",
            } },
            "responses": { "problem": {
                "description": "The request was not performed: code and detail say why, errors says where",
                "headers": { "Retry-After": header("Seconds; only with 429 and 503") },
                "content": { "application/problem+json": { "schema": reference("Problem") } },
            } },
        },
    })
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn header(description: &str) -> Value {
    json!({ "description": description, "schema": { "type": "string" } })
}

/// Describes the headers of a successful response.
fn headers(operation: &Operation) -> Map<String, Value> {
    let versioned = match operation.response {
        SuccessResponse::Object(name) | SuccessResponse::Created(name) => VERSIONED.contains(&name),
        SuccessResponse::List(name) => name == "Route",
        SuccessResponse::Nothing => false,
    };
    let created = matches!(operation.response, SuccessResponse::Created(_));
    let repeatable = operation.changes() && operation.method == "POST";
    let headers = [
        (versioned, "ETag", "The version, for If-Match"),
        (created, "Location", "The path of the new object"),
        (repeatable, "Idempotency-Replayed", "true if this is the answer of an earlier request"),
        (operation.changes(), "Preference-Applied", "wait=N if the request preferred it"),
    ];
    let headers = headers.into_iter().filter(|(is, ..)| *is);
    headers.map(|(_, name, description)| (name.to_owned(), header(description))).collect()
}

fn described(operation: &Operation) -> Value {
    let Operation { id, summary, needs, body, .. } = operation;
    let needs = if needs.is_empty() { "any live management key".to_owned() } else { (*needs).to_owned() };
    let parameters: Vec<_> = operation.parameters().map(Parameter::described).collect();
    let (status, mut success) = response(operation.response);
    let headers = headers(operation);
    if !headers.is_empty() {
        success["headers"] = headers.into();
    }
    let mut responses = json!({ status: &success, "default": { "$ref": "#/components/responses/problem" } });
    if operation.changes() && status != "204" {
        let mut late = success.clone();
        late["description"] = "Done, but some servers have not applied it yet: pending names them".into();
        responses["202"] = late;
    }
    let mut described = json!({
        "operationId": id,
        "summary": summary,
        "description": format!("Needs {needs}."),
        "tags": [operation.tag()],
        "parameters": parameters,
        "responses": responses,
    });
    if let Some(body) = body {
        let kind =
            if operation.method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let mut content = Map::new();
        content.insert(kind.into(), json!({ "schema": reference(body) }));
        if operation.method == "PATCH" {
            content.insert("application/json".into(), json!({ "schema": reference(body) }));
        }
        described["requestBody"] = json!({ "required": operation.needs_body(), "content": content });
    }
    described
}

fn response(success: SuccessResponse) -> (&'static str, Value) {
    let object = |status, text: &str, schema: Value| {
        (status, json!({ "description": text, "content": { "application/json": { "schema": schema } } }))
    };
    match success {
        SuccessResponse::Object(name) => object("200", "The object", reference(name)),
        SuccessResponse::Created(name) => {
            object("201", "The new object; a key is shown only here", reference(name))
        }
        SuccessResponse::List(name) => {
            let page = json!({
                "type": "object",
                "required": ["items", "next_page_token"],
                "properties": {
                    "items": { "type": "array", "items": reference(name) },
                    "next_page_token": { "type": "string", "description": "Empty at the end" },
                },
            });
            object("200", "A page", page)
        }
        SuccessResponse::Nothing => ("204", json!({ "description": "Deleted" })),
    }
}

fn schemas() -> Map<String, Value> {
    let mut all = Map::new();
    add::<TenantView>(&mut all, "Tenant");
    add::<ImpactView>(&mut all, "Impact");
    add::<KeyView>(&mut all, "Key");
    add::<ListedKeyView>(&mut all, "ListedKey");
    add::<IssuedView>(&mut all, "IssuedKey");
    add::<RotatedView>(&mut all, "RotatedKey");
    add::<PlanView>(&mut all, "Plan");
    add::<UsedPlanView>(&mut all, "UsedPlan");
    add::<RouteView>(&mut all, "Route");
    add::<RouteDifference>(&mut all, "RouteDifference");
    add::<RouteVerdict>(&mut all, "RouteVerdict");
    add::<AdminKeyView>(&mut all, "AdminKey");
    add::<IssuedAdminKeyView>(&mut all, "IssuedAdminKey");
    add::<UsageView>(&mut all, "Usage");
    add::<EntryView<'_>>(&mut all, "AuditEntry");
    add::<ReplicaView>(&mut all, "Replica");
    add::<WhoView>(&mut all, "WhoAmI");
    add::<super::problem::ProblemBody>(&mut all, "Problem");
    bodies::add_all(&mut all);
    for schema in all.values_mut() {
        if let Some(items) = schema.pointer_mut("/properties/permissions/items") {
            items["enum"] = Permission::ALL.map(Permission::as_str).to_vec().into();
        }
    }
    // Not described field by field, because explanations grow with the table of outcomes.
    all.insert("Explanation".into(), json!({ "type": "object", "additionalProperties": true }));
    all
}

/// Adds a schema under the name that clients see, and the schemas that it refers to under their own names.
fn add<T: ToSchema>(all: &mut Map<String, Value>, name: &str) {
    let mut parts = Vec::new();
    T::schemas(&mut parts);
    for (part, schema) in parts {
        all.insert(part, serde_json::to_value(schema).unwrap_or_default());
    }
    all.insert(name.to_owned(), serde_json::to_value(T::schema()).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_description_is_current() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
        if std::env::var_os("TENANTGATE_BLESS").is_some() {
            std::fs::write(&file, text()).unwrap();
        }
        let committed = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            committed == text(),
            "docs/openapi.json is not current: run TENANTGATE_BLESS=1 cargo test --lib openapi"
        );
    }

    #[test]
    fn every_reference_resolves_and_the_id_of_every_operation_is_unique() {
        let document = document();
        let mut ids = std::collections::BTreeSet::new();
        for operation in &OPERATIONS {
            assert!(ids.insert(operation.id), "{}", operation.id);
        }
        let text = document.to_string();
        for part in text.split("\"#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
        }
    }
}

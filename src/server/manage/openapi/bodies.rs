//! The description of request bodies. The handlers read bodies field by field, to report all errors at once. A test
//! compares these descriptions with what the handlers read.

#![expect(dead_code, reason = "the fields are only described")]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::add;

/// A tenant to create.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewTenant {
    /// 1 to 255 characters.
    name: String,
    /// The schema of the tenant; derived from the name by default.
    db_schema_name: Option<String>,
    /// The default is `active`.
    status: Option<String>,
    plan: Option<String>,
    /// Accept an existing schema that is not empty.
    adopt_schema: Option<bool>,
}

/// Changes of a tenant: absent fields stay, `null` unsets.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TenantPatch {
    #[schema(nullable = false)]
    name: Option<String>,
    plan: Option<String>,
    /// `enforce` or `shadow`, for rejected requests with its proven keys. `null`: the mode of the server.
    mode: Option<String>,
}

/// Repeats the schema of the tenant, so that no other tenant is deleted by mistake.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Confirmation {
    /// The schema of the tenant.
    confirm: String,
}

/// A key to create. It may do everything that is not limited here.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewKey {
    name: Option<String>,
    /// An RFC 3339 instant.
    expires_at: Option<String>,
    /// Such as `90d`, instead of `expires_at`.
    #[schema(nullable = false)]
    expires_in: Option<String>,
    /// An RFC 3339 instant before which the key is not valid.
    not_before: Option<String>,
    /// Separated by spaces; an empty text grants none.
    scopes: Option<String>,
    /// CIDRs separated by spaces.
    networks: Option<String>,
    plan: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
    /// The bcrypt hash of a key that was created elsewhere; needs `key_prefix`.
    #[schema(nullable = false)]
    hashed_key: Option<String>,
    /// `llmk_` and up to 48 letters, digits and hyphens; needs `hashed_key`.
    #[schema(nullable = false)]
    key_prefix: Option<String>,
}

/// Changes of a key: absent fields stay, `null` unsets, labels are merged one by one.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct KeyPatch {
    name: Option<String>,
    /// An RFC 3339 instant.
    expires_at: Option<String>,
    /// Such as `90d`, instead of `expires_at`.
    #[schema(nullable = false)]
    expires_in: Option<String>,
    not_before: Option<String>,
    scopes: Option<String>,
    networks: Option<String>,
    plan: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
}

/// How a key is replaced.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Rotation {
    /// How long the old key stays valid, such as `24h`; without it, the old key ends at once.
    grace: Option<String>,
    /// When the new key expires, an RFC 3339 instant.
    expires_at: Option<String>,
    /// Such as `90d`, instead of `expires_at`.
    #[schema(nullable = false)]
    expires_in: Option<String>,
}

/// Why a key is revoked.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Revocation {
    reason: Option<String>,
}

/// A plan to create: limits are `N/UNIT`, such as `100/MINUTE`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewPlan {
    name: String,
    request_limit: Option<String>,
    total_limit: Option<String>,
    input_limit: Option<String>,
    output_limit: Option<String>,
}

/// Changes of a plan: absent limits stay, `null` unsets.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the names are those of the contract")]
struct PlanPatch {
    request_limit: Option<String>,
    total_limit: Option<String>,
    input_limit: Option<String>,
    output_limit: Option<String>,
}

/// A rule to add.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewRoute {
    /// Unique.
    name: Option<String>,
    /// `example.com`, `*.example.com` or `*` (the default).
    host: Option<String>,
    /// A method or `*` (the default).
    method: Option<String>,
    /// Such as `/v1/models/{model}/**`.
    path: String,
    /// `required` (the default), `optional` or `public`.
    mode: Option<String>,
    /// The scopes that a key needs, such as `models.read models.list | admin`.
    scopes: Option<String>,
    /// Allow requests whose key lacks a scope, and report them.
    shadow: Option<bool>,
}

/// Changes of a rule: absent fields stay, `null` unsets.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RoutePatch {
    name: Option<String>,
    #[schema(nullable = false)]
    host: Option<String>,
    #[schema(nullable = false)]
    method: Option<String>,
    #[schema(nullable = false)]
    path: Option<String>,
    #[schema(nullable = false)]
    mode: Option<String>,
    scopes: Option<String>,
    #[schema(nullable = false)]
    shadow: Option<bool>,
}

/// A rule of a whole table. Its `id` is ignored.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TableRoute {
    id: Option<String>,
    name: Option<String>,
    host: Option<String>,
    method: Option<String>,
    path: String,
    mode: Option<String>,
    scopes: Option<String>,
    shadow: Option<bool>,
}

/// The whole table of routes, in the form of the list of routes.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewRoutes {
    items: Vec<TableRoute>,
    #[schema(nullable = false)]
    next_page_token: Option<String>,
}

/// A request to test the rules with.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RouteTest {
    method: String,
    host: Option<String>,
    path: String,
    /// The prefix of its key.
    key_prefix: Option<String>,
    /// The context extensions of its Envoy route.
    context: Option<BTreeMap<String, String>>,
}

/// A request to explain.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Explain {
    /// The prefix of the key; never a whole key.
    key_prefix: Option<String>,
    /// The default is `GET`.
    method: Option<String>,
    /// The default is a path that is not public.
    path: Option<String>,
    host: Option<String>,
    client_address: Option<String>,
    context: Option<BTreeMap<String, String>>,
    /// The instant of the decision (RFC 3339); the default is now.
    at: Option<String>,
}

/// A management key to create. Absent fields are taken from the key that creates it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewAdminKey {
    /// Unique.
    name: String,
    /// `owner`, `operator` or `viewer`, instead of `permissions`.
    role: Option<String>,
    #[schema(nullable = false)]
    permissions: Option<Vec<String>>,
    /// Ids or schemas of tenants.
    tenants: Option<Vec<String>>,
    expires_at: Option<String>,
    #[schema(nullable = false)]
    expires_in: Option<String>,
}

/// Changes of a management key: absent fields stay.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AdminKeyPatch {
    #[schema(nullable = false)]
    name: Option<String>,
    #[schema(nullable = false)]
    role: Option<String>,
    #[schema(nullable = false)]
    permissions: Option<Vec<String>>,
    tenants: Option<Vec<String>>,
    expires_at: Option<String>,
    #[schema(nullable = false)]
    expires_in: Option<String>,
}

/// Adds all of them.
pub(super) fn add_all(all: &mut Map<String, Value>) {
    add::<NewTenant>(all, "NewTenant");
    add::<TenantPatch>(all, "TenantPatch");
    add::<Confirmation>(all, "Confirmation");
    add::<NewKey>(all, "NewKey");
    add::<KeyPatch>(all, "KeyPatch");
    add::<Rotation>(all, "Rotation");
    add::<Revocation>(all, "Revocation");
    add::<NewPlan>(all, "NewPlan");
    add::<PlanPatch>(all, "PlanPatch");
    add::<NewRoute>(all, "NewRoute");
    add::<RoutePatch>(all, "RoutePatch");
    add::<NewRoutes>(all, "NewRoutes");
    add::<RouteTest>(all, "RouteTest");
    add::<Explain>(all, "Explain");
    add::<NewAdminKey>(all, "NewAdminKey");
    add::<AdminKeyPatch>(all, "AdminKeyPatch");
}

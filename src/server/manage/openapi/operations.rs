//! The list of all operations of the API.

use super::parameters::{
    AGAIN, DRY_RUN, ID, IF_MATCH, KEYS, NAME, OF_TENANT, PAGE, PREFER, Parameter, REFERENCE, USAGE,
};

/// The successful response of an operation.
#[derive(Clone, Copy, Debug)]
pub(super) enum SuccessResponse {
    /// An object of this schema.
    Object(&'static str),
    /// A new object of this schema.
    Created(&'static str),
    /// A page of objects of this schema.
    List(&'static str),
    /// No body: the object was deleted.
    Nothing,
}

/// A method of a path.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) id: &'static str,
    pub(super) summary: &'static str,
    /// The required permission; empty if any key is enough.
    pub(super) needs: &'static str,
    /// Parameters of the query.
    pub(super) query: &'static [Parameter],
    /// The schema of the body.
    pub(super) body: Option<&'static str>,
    pub(super) response: SuccessResponse,
}

impl Operation {
    /// Returns all parameters: those of the path, of the query, and headers.
    pub(super) fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let path = [("{reference}", &REFERENCE), ("{name}", &NAME), ("{id}", &ID)];
        let path =
            path.into_iter().filter(|(part, _)| self.path.contains(part)).map(|(_, parameter)| parameter);
        let list = PAGE.iter().filter(|_| matches!(self.response, SuccessResponse::List(_)));
        let keys = KEYS.iter().filter(|_| matches!(self.id, "list_keys" | "list_keys_of_tenant"));
        let usage = USAGE.iter().filter(|_| matches!(self.response, SuccessResponse::List("Usage")));
        let tenant = OF_TENANT.iter().filter(|_| matches!(self.id, "list_keys" | "get_usage"));
        let changes = self.changes();
        let version = changes && !matches!(self.response, SuccessResponse::Created(_));
        let headers = [(version, &IF_MATCH), (changes && self.method == "POST", &AGAIN), (changes, &PREFER)];
        let headers = headers.into_iter().filter(|(is, _)| *is).map(|(_, parameter)| parameter);
        path.chain(self.query).chain(keys).chain(usage).chain(tenant).chain(list).chain(headers)
    }

    /// Returns whether it changes something.
    pub(super) fn changes(&self) -> bool {
        self.method != "GET" && !matches!(self.id, "test_route" | "explain")
    }

    /// Returns whether the body is required.
    pub(super) fn needs_body(&self) -> bool {
        !matches!(self.id, "create_key" | "rotate_key" | "revoke_key")
    }

    /// Returns the part of the API that it belongs to.
    pub(super) fn tag(&self) -> &'static str {
        let first = self.path.trim_start_matches("/v1/").split('/').next().unwrap_or_default();
        match first {
            "tenants" if self.path.ends_with("/keys") => "keys",
            first => first,
        }
    }
}

const fn get(
    path: &'static str,
    id: &'static str,
    needs: &'static str,
    response: SuccessResponse,
    summary: &'static str,
) -> Operation {
    Operation { method: "GET", path, id, summary, needs, query: &[], body: None, response }
}

const fn change(
    (method, path): (&'static str, &'static str),
    id: &'static str,
    needs: &'static str,
    body: Option<&'static str>,
    response: SuccessResponse,
    summary: &'static str,
) -> Operation {
    Operation { method, path, id, summary, needs, query: &[], body, response }
}

/// All operations, in the order of the documentation.
pub(super) const OPERATIONS: [Operation; 40] = {
    use SuccessResponse::{Created, List, Nothing, Object};
    let named = Operation {
        query: &[Parameter("name", "string", "The exact name")],
        ..get("/v1/tenants", "list_tenants", "tenants:read", List("Tenant"), "List tenants, oldest first")
    };
    let replaced = Operation {
        query: &DRY_RUN,
        ..change(
            ("PUT", "/v1/routes"),
            "replace_routes",
            "routes:write",
            Some("NewRoutes"),
            Object("RouteDifference"),
            "Replace the whole table of routes; If-Match is required",
        )
    };
    let usage = Operation {
        query: &[Parameter("key", "string", "The id or prefix of a key")],
        ..get("/v1/usage", "get_usage", "usage:read", List("Usage"), "Add up requests by day, reason or key")
    };
    let audit = Operation {
        query: &[
            Parameter("since", "string", "From this RFC 3339 instant on"),
            Parameter("until", "string", "Before this RFC 3339 instant"),
            Parameter("actor", "string", "The author of the changes"),
            Parameter("subject", "string", "About the tenant or key with this id, prefix, schema or name"),
        ],
        ..get("/v1/audit", "list_audit", "audit:read", List("AuditEntry"), "List changes, oldest first")
    };
    [
        get("/v1/whoami", "whoami", "", Object("WhoAmI"), "Show the caller and its permissions"),
        named,
        change(
            ("POST", "/v1/tenants"),
            "create_tenant",
            "tenants:write",
            Some("NewTenant"),
            Created("Tenant"),
            "Create a tenant and its schema",
        ),
        get("/v1/tenants/{reference}", "get_tenant", "tenants:read", Object("Tenant"), "Show a tenant"),
        change(
            ("PATCH", "/v1/tenants/{reference}"),
            "update_tenant",
            "tenants:write",
            Some("TenantPatch"),
            Object("Tenant"),
            "Change the name or plan of a tenant",
        ),
        change(
            ("POST", "/v1/tenants/{reference}/suspend"),
            "suspend_tenant",
            "tenants:write",
            None,
            Object("Tenant"),
            "Stop serving a tenant",
        ),
        change(
            ("POST", "/v1/tenants/{reference}/activate"),
            "activate_tenant",
            "tenants:write",
            None,
            Object("Tenant"),
            "Serve a tenant again",
        ),
        change(
            ("POST", "/v1/tenants/{reference}/delete"),
            "delete_tenant",
            "tenants:write",
            Some("Confirmation"),
            Object("Tenant"),
            "Mark a tenant as deleted",
        ),
        get(
            "/v1/tenants/{reference}/impact",
            "get_impact",
            "tenants:read",
            Object("Impact"),
            "Count the keys that suspending a tenant would affect",
        ),
        get(
            "/v1/tenants/{reference}/keys",
            "list_keys_of_tenant",
            "keys:read",
            List("ListedKey"),
            "List the keys of a tenant, oldest first",
        ),
        change(
            ("POST", "/v1/tenants/{reference}/keys"),
            "create_key",
            "keys:write",
            Some("NewKey"),
            Created("IssuedKey"),
            "Create a key, or import one that was created elsewhere",
        ),
        get("/v1/keys", "list_keys", "keys:read", List("ListedKey"), "List keys, oldest first"),
        get("/v1/keys/{reference}", "get_key", "keys:read", Object("Key"), "Show a key"),
        change(
            ("PATCH", "/v1/keys/{reference}"),
            "update_key",
            "keys:write",
            Some("KeyPatch"),
            Object("Key"),
            "Change what a key may do",
        ),
        change(
            ("POST", "/v1/keys/{reference}/rotate"),
            "rotate_key",
            "keys:write with a grace, keys:revoke without",
            Some("Rotation"),
            Object("RotatedKey"),
            "Replace a key",
        ),
        change(
            ("POST", "/v1/keys/{reference}/revoke"),
            "revoke_key",
            "keys:revoke",
            Some("Revocation"),
            Object("Key"),
            "Revoke a key for good",
        ),
        change(
            ("POST", "/v1/keys/{reference}/disable"),
            "disable_key",
            "keys:write",
            None,
            Object("Key"),
            "Disable a key until it is enabled",
        ),
        change(
            ("POST", "/v1/keys/{reference}/enable"),
            "enable_key",
            "keys:write",
            None,
            Object("Key"),
            "Enable a key",
        ),
        get(
            "/v1/keys/{reference}/usage",
            "get_usage_of_key",
            "usage:read",
            List("Usage"),
            "Add up the requests of a key",
        ),
        get("/v1/plans", "list_plans", "plans:read", List("Plan"), "List plans by name"),
        change(
            ("POST", "/v1/plans"),
            "create_plan",
            "plans:write",
            Some("NewPlan"),
            Created("Plan"),
            "Create a plan",
        ),
        get(
            "/v1/plans/{name}",
            "get_plan",
            "plans:read",
            Object("UsedPlan"),
            "Show a plan and how often it is used",
        ),
        change(
            ("PATCH", "/v1/plans/{name}"),
            "update_plan",
            "plans:write",
            Some("PlanPatch"),
            Object("Plan"),
            "Change the limits of a plan",
        ),
        change(
            ("DELETE", "/v1/plans/{name}"),
            "delete_plan",
            "plans:write",
            None,
            Nothing,
            "Delete a plan that is not used",
        ),
        get("/v1/routes", "list_routes", "routes:read", List("Route"), "List rules by host, path and method"),
        change(
            ("POST", "/v1/routes"),
            "create_route",
            "routes:write",
            Some("NewRoute"),
            Created("Route"),
            "Create a rule",
        ),
        replaced,
        change(
            ("POST", "/v1/routes/test"),
            "test_route",
            "routes:read",
            Some("RouteTest"),
            Object("RouteVerdict"),
            "Show which rule applies to a request and what it decides",
        ),
        get("/v1/routes/{id}", "get_route", "routes:read", Object("Route"), "Show a rule"),
        change(
            ("PATCH", "/v1/routes/{id}"),
            "update_route",
            "routes:write",
            Some("RoutePatch"),
            Object("Route"),
            "Change a rule",
        ),
        change(("DELETE", "/v1/routes/{id}"), "delete_route", "routes:write", None, Nothing, "Delete a rule"),
        get(
            "/v1/admin_keys",
            "list_admin_keys",
            "admin_keys:read",
            List("AdminKey"),
            "List management keys that have no more authority than the caller",
        ),
        change(
            ("POST", "/v1/admin_keys"),
            "create_admin_key",
            "admin_keys:write",
            Some("NewAdminKey"),
            Created("IssuedAdminKey"),
            "Create a management key",
        ),
        get(
            "/v1/admin_keys/{id}",
            "get_admin_key",
            "admin_keys:read",
            Object("AdminKey"),
            "Show a management key",
        ),
        change(
            ("PATCH", "/v1/admin_keys/{id}"),
            "update_admin_key",
            "admin_keys:write",
            Some("AdminKeyPatch"),
            Object("AdminKey"),
            "Change a management key",
        ),
        change(
            ("POST", "/v1/admin_keys/{id}/revoke"),
            "revoke_admin_key",
            "admin_keys:write",
            None,
            Object("AdminKey"),
            "Revoke a management key and the keys that it created",
        ),
        usage,
        audit,
        change(
            ("POST", "/v1/explain"),
            "explain",
            "keys:read",
            Some("Explain"),
            Object("Explanation"),
            "Explain how a request is answered, and why",
        ),
        get("/v1/replicas", "list_replicas", "", List("Replica"), "List the servers that hold keys"),
    ]
};

//! The parameters of the operations.

use serde_json::{Value, json};

/// A parameter: name, type or words, description.
#[derive(Debug)]
pub(super) struct Parameter(pub(super) &'static str, pub(super) &'static str, pub(super) &'static str);

impl Parameter {
    /// Returns the Parameter Object of `OpenAPI`. The name decides where the parameter is: in the path, a header or the
    /// query.
    pub(super) fn described(&self) -> Value {
        let Self(name, kind, description) = self;
        let (place, required) = match *name {
            "reference" | "name_of_plan" | "id" => ("path", true),
            "If-Match" | "Idempotency-Key" | "Prefer" => ("header", false),
            _ => ("query", false),
        };
        let name = if *name == "name_of_plan" { "name" } else { name };
        let schema = match *kind {
            "strings" => json!({ "type": "array", "items": { "type": "string" } }),
            words if words.contains('|') => {
                json!({ "type": "string", "enum": words.split('|').collect::<Vec<_>>() })
            }
            kind => json!({ "type": kind }),
        };
        json!({ "name": name, "in": place, "required": required, "description": description, "schema": schema })
    }
}

pub(super) const PAGE: [Parameter; 2] = [
    Parameter(
        "page_size",
        "integer",
        "The maximum number of objects on a page, 1 to 1000; the default is 100",
    ),
    Parameter("page_token", "string", "next_page_token of the previous page"),
];
pub(super) const REFERENCE: Parameter =
    Parameter("reference", "string", "The id, or the schema of a tenant or the prefix of a key");
pub(super) const NAME: Parameter = Parameter("name_of_plan", "string", "The name of the plan");
pub(super) const ID: Parameter = Parameter("id", "string", "The id");
pub(super) const IF_MATCH: Parameter =
    Parameter("If-Match", "string", "The ETag of the version to change; another version gets 412");
pub(super) const AGAIN: Parameter = Parameter(
    "Idempotency-Key",
    "string",
    "For 24 hours, a request with the same key and body gets the answer of the first one",
);
pub(super) const PREFER: Parameter = Parameter(
    "Prefer",
    "string",
    "wait=N: answer when all servers have applied the change, after N seconds at the latest",
);

pub(super) const KEYS: [Parameter; 6] = [
    Parameter("status", "active|expired|revoked|disabled|not_yet_valid", "The state"),
    Parameter("name", "string", "A part of the name; case is ignored"),
    Parameter("scope", "string", "One of the scopes, exactly as stored"),
    Parameter("label", "strings", "A label, as name=value; if repeated, keys must have all of them"),
    Parameter("expires_before", "string", "An RFC 3339 instant"),
    Parameter("unused_for", "string", "Last used this long ago or longer, such as 90d"),
];
pub(super) const OF_TENANT: [Parameter; 1] = [Parameter("tenant", "string", "The id or schema of a tenant")];
pub(super) const USAGE: [Parameter; 3] = [
    Parameter("from", "string", "The first day (UTC), such as 2027-01-31; the default is the last 30 days"),
    Parameter("to", "string", "The last day (UTC)"),
    Parameter("group_by", "day|reason|key", "What a row counts; the default is day"),
];

pub(super) const DRY_RUN: [Parameter; 1] = [Parameter("dry_run", "boolean", "Only show what would change")];

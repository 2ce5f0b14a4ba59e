//! Versions of rows: a client can detect with them that a row was changed since it read it.
//!
//! A version is a hash of the JSON of the row: 22 characters of base64url. It does not cover what servers write by
//! themselves (the last use of a key, its memo), because otherwise each use of a key would invalidate the version that
//! its client knows; nor the status of a key, which changes by time alone.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::view::{AdminKeyView, KeyView, PlanView, TenantView};
use super::{ListedAdminKey, RouteView};
use crate::clock::Timestamp;
use crate::permission::{AdminKey, Authority};
use crate::plan::PlanRow;
use crate::record::KeyDetails;
use crate::route::RouteRow;
use crate::tenant::Tenant;

/// Returns the version of a tenant.
#[must_use]
pub fn of_tenant(tenant: &Tenant) -> String {
    hashed(&TenantView::from(tenant), &[])
}

/// Returns the version of a key.
#[must_use]
pub fn of_key(key: &KeyDetails) -> String {
    hashed(&KeyView::at(key, Timestamp::MIN), &["status", "last_used_at", "memo", "memo_pepper"])
}

/// Returns the version of a plan.
#[must_use]
pub fn of_plan(plan: &PlanRow) -> String {
    hashed(&PlanView::from(plan), &[])
}

/// Returns the version of a rule.
#[must_use]
pub fn of_route(route: &RouteRow) -> String {
    hashed(&RouteView::from(route), &[])
}

/// Returns the version of the whole table of rules, independent of their order.
#[must_use]
pub fn of_routes(routes: &[RouteRow]) -> String {
    let mut rows: Vec<_> = routes.iter().collect();
    rows.sort_unstable_by_key(|route| route.id.0);
    hashed(&rows.into_iter().map(RouteView::from).collect::<Vec<_>>(), &[])
}

/// Returns the version of a management key.
#[must_use]
pub fn of_admin_key(key: &AdminKey) -> String {
    let listed = ListedAdminKey { key: key.clone(), limit: Authority::whole(), ended: None };
    hashed(&AdminKeyView::from(&listed), &["status", "last_used_at"])
}

fn hashed(shown: &impl Serialize, without: &[&str]) -> String {
    let mut shown = serde_json::to_value(shown).unwrap_or_default();
    if let Value::Object(fields) = &mut shown {
        for name in without {
            fields.remove(*name);
        }
    }
    URL_SAFE_NO_PAD.encode(&Sha256::digest(shown.to_string())[..16])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_that_are_left_out_do_not_change_the_version() {
        let version = |shown: Value| hashed(&shown, &["last_used_at"]);
        let one = version(json!({ "name": "a", "last_used_at": null }));
        assert_eq!(one, version(json!({ "last_used_at": "2026-01-01", "name": "a" })));
        assert_ne!(one, version(json!({ "name": "b", "last_used_at": null })));
        assert_eq!(one.len(), 22);
    }
}

//! Checks the module inside Envoy, if it is in front of an `ext_authz` filter.
//!
//! A running Envoy has the right ABI, because the module does not load in any other. What remains to check is the
//! configuration of `ext_authz`, which the module cannot see, against the operator's statements about it.

use serde_json::Value;

use super::json::{for_each_object, is_of_type, is_true, items, of_type, text};
use crate::diagnostics::Finding;

/// The file of the module, without `lib` and `.so`.
const NAME: &str = "tenantgate_envoy";

/// The metadata namespace in which the module marks its decisions.
pub(super) const NAMESPACE: &str = "envoy.tenantgate";

/// The operator's statement that a route has no `context_extensions` for tenantgate.
const NO_CONTEXT: &str = "context_extensions=none";

/// The prefix of the names of these extensions.
const PREFIX: &str = "tenantgate.";

/// The page that describes the set-up.
const REMEDY: &str = "set it up as docs/guides/inside-envoy.md shows";

/// Examines the module of a connection manager with these routes. Returns nothing if it has none.
pub(super) fn examine(manager: &Value, routes: &[&Value]) -> Vec<Finding> {
    let filters: Vec<_> = items(manager, "/http_filters").collect();
    let ours = filters.iter().position(|filter| is_ours(&filter["typed_config"]));
    let asked = filters.iter().position(|filter| is_of_type(&filter["typed_config"], "ExtAuthz"));
    let (ours, asked) = match (ours, asked) {
        (Some(ours), Some(asked)) => (ours, asked),
        (None, Some(asked)) if skips(&filters[asked]["typed_config"]) => {
            let what = "ext_authz is skipped if metadata envoy.tenantgate/decided is set, but the module is not configured: another filter could disable authentication";
            return vec![Finding::bad(
                "envoy.module_check",
                what,
                "remove filter_enabled_metadata, or add the module",
            )];
        }
        _ => return Vec::new(),
    };
    let (module, check) = (&filters[ours]["typed_config"], &filters[asked]["typed_config"]);
    let name = text(filters[ours], "/name").unwrap_or_default();
    vec![
        skipped(check, ours < asked),
        mark(manager, check, routes),
        route_cache(module_config(module), check),
        context(module_config(module), check, routes, name),
        exempt(routes, name),
    ]
}

/// Returns whether a Check depends on the mark of the module.
fn skips(check: &Value) -> bool {
    text(check, "/filter_enabled_metadata/filter") == Some(NAMESPACE)
}

fn is_ours(config: &Value) -> bool {
    is_of_type(config, "DynamicModuleFilter") && text(config, "/dynamic_module_config/name") == Some(NAME)
}

/// Returns the configuration of the module; empty if it has none.
fn module_config(module: &Value) -> &str {
    text(module, "/filter_config/value").unwrap_or_default()
}

/// Checks that `ext_authz` is behind the module, and runs unless the mark is set.
fn skipped(check: &Value, behind: bool) -> Finding {
    const CHECK: &str = "envoy.module_check";
    let enabled = &check["filter_enabled_metadata"];
    if enabled.is_null() || !behind {
        let what =
            "the module has no effect: ext_authz checks every request, whatever the module has decided";
        return Finding::warn(CHECK, what, REMEDY);
    }
    let path: Vec<_> = items(enabled, "/path").filter_map(|segment| text(segment, "/key")).collect();
    let right = text(enabled, "/filter") == Some(NAMESPACE)
        && path == ["decided"]
        && is_true(enabled, "/value/bool_match")
        && is_true(enabled, "/invert");
    if right {
        Finding::ok(CHECK, "ext_authz checks every request that the module has not decided")
    } else {
        let what = "filter_enabled_metadata of ext_authz is not that of the module: requests could pass without a check";
        Finding::bad(CHECK, what, REMEDY)
    }
}

/// Checks that no other filter writes the mark.
fn mark(manager: &Value, check: &Value, routes: &[&Value]) -> Finding {
    const CHECK: &str = "envoy.module_mark";
    // Routes of a discovery service are not in the connection manager.
    let elsewhere = routes.iter().filter(|_| manager.get("route_config").is_none());
    let all = elsewhere.copied().chain([manager]);
    let others: usize = all.map(|value| naming(value, &check["filter_enabled_metadata"])).sum();
    if others == 0 {
        Finding::ok(CHECK, "no other filter names the metadata of the module")
    } else {
        let what = format!(
            "{others} other settings name the metadata {NAMESPACE}: a filter that writes it lets requests pass"
        );
        Finding::bad(CHECK, what, "use another namespace there")
    }
}

/// Returns how many texts in a configuration contain the namespace, except in `own` and where it is only read. A text may
/// be a program, such as that of the Lua filter.
fn naming(value: &Value, own: &Value) -> usize {
    let names = |text: &str| text.replace("DYNAMIC_METADATA(envoy.tenantgate", "").contains(NAMESPACE);
    match value {
        Value::String(text) => usize::from(names(text)),
        Value::Array(items) => items.iter().map(|item| naming(item, own)).sum(),
        Value::Object(fields) if value != own => fields
            .iter()
            .filter(|(name, _)| *name != "metadata_context_namespaces")
            .map(|(name, value)| usize::from(names(name)) + naming(value, own))
            .sum(),
        _ => 0,
    }
}

fn route_cache(settings: &str, check: &Value) -> Finding {
    const CHECK: &str = "envoy.module_route_cache";
    let module = settings.split_whitespace().find_map(|word| word.strip_prefix("clear_route_cache="));
    let clears = is_true(check, "/clear_route_cache");
    if module == Some(if clears { "true" } else { "false" }) {
        Finding::ok(CHECK, "the module clears the route cache where ext_authz does")
    } else {
        let what = format!(
            "clear_route_cache is {clears} in ext_authz and not in the module: a client could choose its route"
        );
        Finding::bad(
            CHECK,
            what,
            format!("say clear_route_cache={clears} in the configuration of the module"),
        )
    }
}

/// The settings of the module and of `ext_authz` for a route.
#[derive(Clone, Copy, Default)]
struct RouteSettings {
    /// Whether the module may decide: `context_extensions=none`, of the most specific configuration.
    module_decides: bool,
    /// Whether the module is disabled.
    is_off: bool,
    /// Whether there are `context_extensions` for tenantgate, at any level: Envoy merges them; or another server.
    has_context: bool,
}

impl RouteSettings {
    /// Returns these settings with those that a route configuration, virtual host or route adds.
    fn and(mut self, filters: &Value, name: &str) -> Self {
        if let Some(config) = filters.get(name) {
            // As it is, or wrapped by a `FilterConfig`, which may also take the module out.
            let statement =
                text(config, "/filter_config/value").or(text(config, "/config/filter_config/value"));
            self.is_off = is_true(config, "/disabled");
            self.module_decides =
                statement.map_or(self.module_decides, |statement| statement == NO_CONTEXT) && !self.is_off;
        }
        for check in of_type(filters, "ExtAuthzPerRoute") {
            let context = check.pointer("/check_settings/context_extensions").and_then(Value::as_object);
            let other_server = check.pointer("/check_settings/grpc_service").is_some();
            self.has_context |= other_server
                || context.is_some_and(|context| context.keys().any(|key| key.starts_with(PREFIX)));
        }
        self
    }
}

/// Counts of routes: on which the module may decide, which have `context_extensions`, both, and those that have them where
/// the module is disabled.
#[derive(Default)]
struct RouteCounts {
    may_decide: usize,
    has_context: usize,
    both: usize,
    off: usize,
}

impl RouteCounts {
    fn add(&mut self, value: &Value, name: &str, settings: RouteSettings) {
        match value {
            Value::Object(fields) => {
                let filters = fields.get("typed_per_filter_config");
                let settings = filters.map_or(settings, |filters| settings.and(filters, name));
                // A route, or a weighted cluster with a configuration of its own.
                if fields.contains_key("match") || (filters.is_some() && fields.contains_key("weight")) {
                    self.may_decide += usize::from(settings.module_decides);
                    self.has_context += usize::from(settings.has_context);
                    self.both += usize::from(settings.module_decides && settings.has_context);
                    self.off += usize::from(settings.is_off && settings.has_context);
                }
                for (field, value) in fields {
                    if field != "typed_per_filter_config" {
                        self.add(value, name, settings);
                    }
                }
            }
            Value::Array(items) => {
                for value in items {
                    self.add(value, name, settings);
                }
            }
            _ => {}
        }
    }
}

/// Compares `context_extensions` of routes, which the module cannot see, with its configuration.
fn context(settings: &str, check: &Value, routes: &[&Value], name: &str) -> Finding {
    const CHECK: &str = "envoy.module_context";
    let module_decides = settings.split_whitespace().any(|word| word == NO_CONTEXT);
    let mut counts = RouteCounts::default();
    for routes in routes {
        counts.add(routes, name, RouteSettings { module_decides, ..RouteSettings::default() });
    }
    let RouteCounts { may_decide, has_context, both, off } = counts;
    let named = items(check, "/metadata_context_namespaces").any(|name| name.as_str() == Some(NAMESPACE));
    if both > 0 {
        let what = format!(
            "{both} routes have context_extensions or their own grpc_service, and the module may decide there: it allows requests that a check would reject"
        );
        Finding::bad(CHECK, what, "give the module context_extensions=some on these routes")
    } else if !module_decides && may_decide == 0 {
        let what = "the module has no effect: no configuration has context_extensions=none";
        Finding::warn(CHECK, what, REMEDY)
    } else if has_context > 0 && !named {
        let what = format!(
            "{has_context} routes have context_extensions, but ext_authz does not send the metadata envoy.tenantgate: serve will disable the module"
        );
        Finding::warn(CHECK, what, "add envoy.tenantgate to metadata_context_namespaces of ext_authz")
    } else if off > 0 {
        let what = format!(
            "{off} routes have context_extensions and the module is disabled there: a Check does not say so, and serve will disable the module everywhere"
        );
        Finding::warn(
            CHECK,
            what,
            "give the module context_extensions=some on these routes, instead of disabling it",
        )
    } else {
        Finding::ok(CHECK, "the module decides on no route that has context_extensions")
    }
}

/// Checks that the module is disabled on routes where `ext_authz` is.
fn exempt(routes: &[&Value], name: &str) -> Finding {
    const CHECK: &str = "envoy.module_exempt";
    let mut differ = 0;
    for routes in routes {
        for_each_object(routes, &mut |object| {
            let Some(filters) = object.get("typed_per_filter_config").and_then(Value::as_object) else {
                return;
            };
            let off = filters
                .values()
                .any(|config| is_of_type(config, "ExtAuthzPerRoute") && is_true(config, "/disabled"));
            let ours = filters.get(name).is_some_and(|config| is_true(config, "/disabled"));
            differ += usize::from(off && !ours);
        });
    }
    if differ == 0 {
        Finding::ok(CHECK, "where ext_authz is disabled, the module is, too")
    } else {
        let what = format!(
            "ext_authz is disabled on {differ} routes, and the module is not: it rejects requests without a key there"
        );
        Finding::warn(CHECK, what, "disable the module there, too")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::diagnostics::Level;

    #[test]
    fn a_mark_is_found_in_routes_in_lists_and_in_programs_but_not_where_it_is_read() {
        let enabled = json!({"filter": NAMESPACE, "path": [{"key": "decided"}]});
        let check = json!({"filter_enabled_metadata": enabled, "metadata_context_namespaces": [NAMESPACE]});
        let read = "%DYNAMIC_METADATA(envoy.tenantgate:decided)%";
        let manager = |more: Value| json!({"http_filters": [check, more], "access_log": [{"format": read}]});
        let lua = json!({"inline_string": "h:streamInfo():dynamicMetadata():set(\"envoy.tenantgate\", \"decided\", true)"});
        let list = json!({"receiving_namespaces": {"untyped": [NAMESPACE]}});
        let route =
            json!({"typed_per_filter_config": {"x": {"metadata": [{"metadata_namespace": NAMESPACE}]}}});
        for (manager, routes, expected) in [
            (manager(json!(null)), json!({}), Level::Ok),
            (manager(lua), json!({}), Level::Bad),
            (manager(list), json!({}), Level::Bad),
            (manager(json!(null)), route, Level::Bad),
        ] {
            let found = mark(&manager, &check, &[&routes]);
            assert_eq!(found.level, expected, "{manager} {routes}");
        }
    }
}

//! Checks the module inside Envoy, if it is in front of an `ext_authz` filter.
//!
//! An Envoy that runs has the right ABI: the module refuses to load in any other. What can be wrong is what the module
//! cannot see, and what the operator has promised of it.

use serde_json::Value;

use super::json::{for_each_object, is_of_type, is_true, items, of_type, text};
use crate::diagnostics::Finding;

/// The file of the module, without `lib` and `.so`.
const NAME: &str = "tenantgate_envoy";

/// Where the module marks what it has decided.
pub(super) const NAMESPACE: &str = "envoy.tenantgate";

/// Where in the pages the set-up is described.
const REMEDY: &str = "set it up as docs/guides/inside-envoy.md shows";

/// Examines the module of a connection manager with these routes. Returns nothing if it has none.
pub(super) fn examine(manager: &Value, routes: &[&Value]) -> Vec<Finding> {
    let filters: Vec<_> = items(manager, "/http_filters").collect();
    let ours = filters.iter().position(|filter| is_ours(&filter["typed_config"]));
    let asked = filters.iter().position(|filter| is_of_type(&filter["typed_config"], "ExtAuthz"));
    let (ours, asked) = match (ours, asked) {
        (Some(ours), Some(asked)) => (ours, asked),
        (None, Some(asked)) if skips(&filters[asked]["typed_config"]) => {
            let what = "ext_authz is skipped where the module has decided, and there is no module: only another filter can say so";
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
        mark(manager, check),
        route_cache(said(module), check),
        context(routes),
        exempt(routes, name),
    ]
}

/// Whether a Check depends on the mark of the module.
fn skips(check: &Value) -> bool {
    text(check, "/filter_enabled_metadata/filter") == Some(NAMESPACE)
}

fn is_ours(config: &Value) -> bool {
    is_of_type(config, "DynamicModuleFilter") && text(config, "/dynamic_module_config/name") == Some(NAME)
}

/// What the configuration of the module says.
fn said(module: &Value) -> &str {
    text(module, "/filter_config/value").unwrap_or_default()
}

/// The Check has to run unless the mark is there, and to stand behind the module.
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

/// No other filter may write the mark.
fn mark(manager: &Value, check: &Value) -> Finding {
    const CHECK: &str = "envoy.module_mark";
    let mut others = 0;
    for_each_object(manager, &mut |object| {
        let values = object.as_object().into_iter().flatten().map(|(_, value)| value);
        let named = values.filter(|value| value.as_str() == Some(NAMESPACE)).count();
        let keys = object.as_object().is_some_and(|fields| fields.contains_key(NAMESPACE));
        if *object != check["filter_enabled_metadata"] {
            others += named + usize::from(keys);
        }
    });
    if others == 0 {
        Finding::ok(CHECK, "no other filter names the metadata of the module")
    } else {
        let what = format!(
            "{others} other settings name the metadata {NAMESPACE}: a filter that writes it lets requests pass"
        );
        Finding::bad(CHECK, what, "use another namespace there")
    }
}

fn route_cache(said: &str, check: &Value) -> Finding {
    const CHECK: &str = "envoy.module_route_cache";
    let module = said.split_whitespace().find_map(|word| word.strip_prefix("clear_route_cache="));
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

/// The module does not see what routes tell `ext_authz`.
fn context(routes: &[&Value]) -> Finding {
    const CHECK: &str = "envoy.module_context";
    let told = routes.iter().flat_map(|routes| of_type(routes, "ExtAuthzPerRoute")).any(|route| {
        let context = route.pointer("/check_settings/context_extensions").and_then(Value::as_object);
        context.is_some_and(|context| context.keys().any(|name| name.starts_with("tenantgate.")))
    });
    if told {
        let what = "routes have context_extensions, which the module cannot see: it lets requests pass that a check would not";
        Finding::bad(CHECK, what, "remove the module, or use rules (`tenantgate route`) in their place")
    } else {
        Finding::ok(CHECK, "no route has context_extensions, as the module's configuration says")
    }
}

/// Where `ext_authz` is off, the module has to be off.
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
            "ext_authz is disabled on {differ} routes, and the module is not: it refuses requests without a key there"
        );
        Finding::warn(CHECK, what, "disable the module there, too")
    }
}

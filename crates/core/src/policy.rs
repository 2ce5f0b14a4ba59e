//! Combines the rules of the database, `--public` and Envoy's context extensions for a request.
//!
//! The result contains whether the request needs a key, and which scopes the key needs.

use std::borrow::Cow;

use crate::decision::{Entrance, MissingScopes, RuleFact};
use crate::path::{Ambiguous, Path, PathOptions};
use crate::request::{AccessRequest, Waived};
use crate::route::host::{request_host, unambiguous_host};
use crate::route::{Context, RouteEntry, RouteMode, RouteTable};
use crate::scope::{Granted, Scopes};

/// How requests are matched with rules.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PolicyOptions {
    /// How paths are parsed.
    pub path: PathOptions,
    /// `--route-default deny`: requests that no rule matches are denied.
    pub deny_unmatched: bool,
}

/// The facts about a request that are known before its key is looked up.
#[derive(Clone, Copy, Debug)]
pub struct Routing<'a> {
    /// Whether it needs a key.
    pub entrance: Entrance,
    /// Whether a rule matches it.
    pub rule: RuleFact,
    /// The row of the most specific matching rule.
    pub entry: Option<&'a RouteEntry>,
    context: Context<'a>,
}

/// Returns whether paths are judged: a rule, a pattern of `--public` or `--route-default deny` is in force.
fn in_force(routes: &RouteTable, options: PolicyOptions, request: &AccessRequest<'_>) -> bool {
    !routes.is_empty() || options.deny_unmatched || request.patterns
}

/// The host and the path of a request, normalized.
pub type NormalizedTarget<'a> = (Cow<'a, [u8]>, Path<'a>);

/// Normalizes the host and the path of a request, with which rules are compared; `None` if they are not judged. The
/// host is judged only while a rule has a host.
///
/// # Errors
///
/// Returns what makes the path or the host ambiguous.
pub fn target<'a>(
    routes: &RouteTable,
    options: PolicyOptions,
    request: &AccessRequest<'a>,
) -> Result<Option<NormalizedTarget<'a>>, Ambiguous> {
    // A Check from Envoy's network filter is about a connection, and has no path.
    let judged =
        in_force(routes, options, request) && !(request.method.is_empty() && request.path.is_empty());
    if !judged {
        return Ok(None);
    }
    let path = Path::read(request.path, options.path)?;
    let host = if routes.has_hosts() { unambiguous_host(request.host)? } else { request_host(request.host) };
    Ok(Some((host, path)))
}

impl<'a> Routing<'a> {
    /// Matches a request with the rules.
    #[must_use]
    pub fn of(routes: &'a RouteTable, options: PolicyOptions, request: &AccessRequest<'a>) -> Self {
        let plain = if request.waived == Waived::No { Entrance::Required } else { Entrance::Public };
        let context = request.context;
        let routing = Self { entrance: plain, rule: RuleFact::Fine, entry: None, context };
        if !in_force(routes, options, request) && context == Context::default() {
            return routing;
        }
        routing.among(routes, options, request)
    }

    fn with(self, entrance: Entrance) -> Self {
        Self { entrance, ..self }
    }

    fn among(self, routes: &'a RouteTable, options: PolicyOptions, request: &AccessRequest<'a>) -> Self {
        let Ok(target) = target(routes, options, request) else {
            return self.with(Entrance::Ambiguous);
        };
        if self.context.bad {
            return self.with(Entrance::BadContext);
        }
        if request.waived == Waived::Preflight {
            return self.with(Entrance::Public);
        }
        let target = target.filter(|_| !routes.is_empty());
        let entry = target.and_then(|(host, path)| routes.find(&host, request.method, &path));
        let rule = match entry.map(|entry| &entry.rule) {
            Some(Err(_)) => RuleFact::Damaged,
            None if options.deny_unmatched && !self.context.is_a_rule() => RuleFact::None,
            Some(Ok(_)) | None => RuleFact::Fine,
        };
        let by_rule = entry.and_then(|entry| entry.rule.as_ref().ok()).map(|rule| rule.mode);
        let mode = match (self.context.mode, request.waived == Waived::Public, by_rule) {
            (Some(mode), ..) => mode,
            (None, true, _) => RouteMode::Public,
            // Scopes that Envoy's context needs require a key, although the rule is public.
            (None, false, Some(RouteMode::Public)) if self.context.needs.is_some() => RouteMode::Required,
            (None, false, mode) => mode.unwrap_or_default(),
        };
        let entrance = match mode {
            RouteMode::Required => Entrance::Required,
            RouteMode::Optional => Entrance::Optional,
            RouteMode::Public => Entrance::Public,
        };
        Self { entrance, rule, entry, ..self }
    }

    /// Returns the needs that a key does not meet; `None` if it meets all. `granted` has the key's scopes, as parsed
    /// and as compiled; `None` grants everything.
    #[must_use]
    pub fn lacking(&self, granted: Option<(&Scopes, &Granted)>) -> Option<MissingScopes<'a>> {
        let (scopes, granted) = granted?;
        let by_rule = self.entry.filter(|entry| !entry.is_met_by(granted));
        let by_rule = by_rule.and_then(|entry| entry.rule.as_ref().ok()).and_then(|rule| {
            let term = rule.needs.as_ref()?.first_term();
            Some(MissingScopes { term, shadow: rule.shadow })
        });
        let by_envoy = self.context.needs.filter(|needs| !needs.are_met_by(scopes));
        let by_envoy = by_envoy.map(|needs| MissingScopes { term: needs.first_term(), shadow: false });
        match (by_rule, by_envoy) {
            // Shadow mode of a rule applies only to the rule's own needs.
            (Some(lacking), Some(other)) if lacking.shadow => Some(other),
            (one, other) => one.or(other),
        }
    }

    /// Returns the name of the rule, or else the route name from Envoy's context extensions.
    #[must_use]
    pub fn name(&self) -> Option<&'a str> {
        self.entry.and_then(|entry| entry.name.as_deref()).or(self.context.route)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::request::{PublicPaths, RequestOptions, RequestReader};
    use crate::route::{RouteId, RouteRow};

    /// Makes a rule from `METHOD host/path mode needs`; `!` before the mode means shadow.
    fn rule(number: u128, text: &str) -> RouteRow {
        let mut words = text.splitn(4, ' ');
        let mut next = || words.next().unwrap_or_default().to_owned();
        let (method, target, mode, needs) = (next(), next(), next(), next());
        let (host, path) = target.split_at(target.find('/').unwrap());
        RouteRow {
            id: RouteId(Uuid::from_u128(number)),
            name: Some(format!("r{number}")),
            host: host.to_owned(),
            method,
            path: path.to_owned(),
            mode: mode.trim_start_matches('!').to_owned(),
            scopes: Some(needs).filter(|needs| !needs.is_empty()),
            shadow: mode.starts_with('!'),
        }
    }

    struct World {
        routes: RouteTable,
        options: PolicyOptions,
        reading: RequestOptions,
    }

    impl World {
        fn of(rules: &[&str]) -> Self {
            let rows: Vec<_> = (1..).zip(rules).map(|(number, text)| rule(number, text)).collect();
            let reading = RequestOptions { preflight: true, ..RequestOptions::default() };
            Self { routes: RouteTable::of(&rows), options: PolicyOptions::default(), reading }
        }

        /// Parses `METHOD host/path` with context extensions, and returns the entrance, the rule and its name as
        /// text.
        fn see(&self, target: &str, context: &[(&str, &str)]) -> String {
            let request = self.request(target, context, &[]);
            self.shown(&request)
        }

        fn request<'a>(
            &self,
            target: &'a str,
            context: &[(&str, &'a str)],
            headers: &[&'a str],
        ) -> AccessRequest<'a> {
            let (method, target) = target.split_once(' ').unwrap();
            let (host, path) = target.split_at(target.find('/').unwrap_or(target.len()));
            let mut reader = RequestReader::new(&self.reading);
            for (name, value) in context {
                reader.context(name.as_bytes(), value.as_bytes());
            }
            for name in headers {
                reader.header(name.as_bytes(), b"x");
            }
            reader.finish(method.as_bytes(), host.as_bytes(), path.as_bytes())
        }

        fn shown(&self, request: &AccessRequest<'_>) -> String {
            let routing = Routing::of(&self.routes, self.options, request);
            format!("{:?} {:?} {}", routing.entrance, routing.rule, routing.name().unwrap_or("-"))
        }
    }

    #[test]
    fn without_rules_no_path_is_ambiguous_and_public_paths_are_public() {
        let world = World::of(&[]);
        for (target, expected) in [
            ("GET h/docs", "Public Fine -"),
            ("GET h/docs?x", "Public Fine -"),
            ("GET h//docs", "Required Fine -"),
            ("GET h/a/../docs", "Required Fine -"),
            ("CONNECT h", "Required Fine -"),
        ] {
            assert_eq!(world.see(target, &[]), expected, "{target}");
        }
        assert_eq!(world.see("GET h/a", &[("tenantgate.route", "x")]), "Required Fine x");
    }

    #[test]
    fn the_context_of_envoy_applies_without_rules() {
        let world = World::of(&[]);
        for (context, expected) in [
            (("tenantgate.mode", "optional"), "Optional Fine -"),
            (("tenantgate.mode", "public"), "Public Fine -"),
            (("tenantgate.mode", "off"), "BadContext Fine -"),
            (("tenantgate.scopes", "a"), "Required Fine -"),
        ] {
            assert_eq!(world.see("GET h/a", &[context]), expected, "{context:?}");
        }
    }

    #[test]
    fn ambiguous_paths_are_rejected_with_a_rule_a_pattern_or_default_deny() {
        let mut patterns = World::of(&[]);
        let mut public = PublicPaths::none();
        public.add("GET /assets/*").unwrap();
        patterns.reading.public = public;
        let mut deny = World::of(&[]);
        deny.options.deny_unmatched = true;
        for world in [&patterns, &deny, &World::of(&["GET */x required"])] {
            assert_eq!(world.see("GET h/a//b", &[]), "Ambiguous Fine -");
            assert_eq!(world.see("CONNECT h", &[]), "Ambiguous Fine -");
            assert!(world.see(" ", &[]).starts_with("Required"), "neither method nor path");
            assert_eq!(world.see("GET h//", &[("tenantgate.mode", "?")]), "Ambiguous Fine -");
        }
        assert_eq!(patterns.see("GET h/assets/a", &[]), "Public Fine -");
        assert_eq!(patterns.see("GET h/assets/../b", &[]), "Ambiguous Fine -");
        assert_eq!(deny.see("GET h/a", &[]), "Required None -");
        for context in [("tenantgate.mode", "required"), ("tenantgate.scopes", "a")] {
            assert_eq!(deny.see("GET h/a", &[context]), "Required Fine -");
        }
        assert_eq!(deny.see("GET h/a", &[("tenantgate.route", "x")]), "Required None x");
    }

    #[test]
    fn ambiguous_hosts_are_rejected_while_a_rule_has_a_host() {
        let of_hosts =
            [World::of(&["GET a.b/x required"]), World::of(&["GET *.b/x required", "* */** public"])];
        for world in &of_hosts {
            for host in ["a.b..", "u@a.b", "a.b:c", "a.b,x"] {
                assert_eq!(world.see(&format!("GET {host}/x"), &[]), "Ambiguous Fine -", "{host}");
            }
            assert_eq!(world.see("GET A.b.:80/x", &[]), "Required Fine r1");
            assert!(!world.see("GET other/x", &[]).starts_with("Ambiguous"));
        }
        let world = World::of(&["GET */x required"]);
        assert_eq!(world.see("GET a.b,x/x", &[]), "Required Fine r1", "no rule has a host");
    }

    #[test]
    fn the_mode_of_envoy_overrides_options_and_options_override_rules() {
        let world = World::of(&[
            "GET */docs required",
            "GET */o optional",
            "GET */p public",
            "GET */bad nonsense",
            "GET */ required",
        ]);
        for (target, context, expected) in [
            ("GET h/docs", None, "Public Fine r1"),
            ("GET h/docs", Some(("mode", "required")), "Required Fine r1"),
            ("GET h/docs", Some(("mode", "optional")), "Optional Fine r1"),
            ("GET h/docs", Some(("scopes", "a")), "Public Fine r1"),
            ("GET h/o", None, "Optional Fine r2"),
            ("GET h/o", Some(("mode", "public")), "Public Fine r2"),
            ("GET h/p", None, "Public Fine r3"),
            ("GET h/p", Some(("scopes", "a")), "Required Fine r3"),
            ("GET h/p", Some(("route", "x")), "Public Fine r3"),
            ("GET h/bad", None, "Required Damaged r4"),
            ("GET h/bad", Some(("mode", "public")), "Public Damaged r4"),
            ("GET h/none", Some(("route", "x")), "Required Fine x"),
            ("GET h/p", Some(("mode", "off")), "BadContext Fine -"),
            ("GET h/docs", Some(("nonsense", "x")), "BadContext Fine -"),
        ] {
            let context: Vec<_> =
                context.into_iter().map(|(n, v): (&str, &str)| (format!("tenantgate.{n}"), v)).collect();
            let context: Vec<_> = context.iter().map(|(n, v)| (n.as_str(), *v)).collect();
            assert_eq!(world.see(target, &context), expected, "{target} {context:?}");
        }
    }

    #[test]
    fn a_preflight_is_public_if_the_option_is_set() {
        const BOTH: [&str; 2] = ["origin", "access-control-request-method"];
        let mut world = World::of(&["* */** required"]);
        for (target, headers, expected) in [
            ("OPTIONS h/a", &BOTH[..], "Public"),
            ("OPTIONS h/a", &BOTH[..1], "Required"),
            ("OPTIONS h/a", &BOTH[1..], "Required"),
            ("GET h/a", &BOTH[..], "Required"),
            ("OPTIONS h//a", &BOTH[..], "Ambiguous"),
        ] {
            let shown = world.shown(&world.request(target, &[], headers));
            assert!(shown.starts_with(expected), "{target} {headers:?} {shown}");
        }
        let bad = world.request("OPTIONS h/a", &[("tenantgate.mode", "")], &BOTH);
        assert!(world.shown(&bad).starts_with("BadContext"));
        world.reading.preflight = false;
        assert!(world.shown(&world.request("OPTIONS h/a", &[], &BOTH)).starts_with("Required"));
        let mut free = World::of(&[]);
        assert!(free.shown(&free.request("OPTIONS h/a", &[], &BOTH)).starts_with("Public"));
        free.reading.preflight = false;
        assert!(free.shown(&free.request("OPTIONS h/a", &[], &BOTH)).starts_with("Required"));
    }

    #[test]
    fn lacking_returns_the_first_term_of_unmet_needs() {
        let world = World::of(&["GET */a required a b | c", "GET */s !required a b | c"]);
        for (path, by_envoy, granted, expected) in [
            ("/a", None, None, None),
            ("/a", None, Some("c"), None),
            ("/a", None, Some("a"), Some(("a b", false))),
            ("/a", Some("x y|z"), Some("c z"), None),
            ("/a", Some("x y|z"), Some("c"), Some(("x y", false))),
            ("/a", Some("x y|z"), Some(""), Some(("a b", false))),
            ("/s", None, Some("a"), Some(("a b", true))),
            ("/s", Some("x y|z"), Some("a"), Some(("x y", false))),
            ("/s", Some("x y|z"), Some("a z"), Some(("a b", true))),
            ("/none", None, Some(""), None),
            ("/none", Some("x"), Some(""), Some(("x", false))),
            ("/none", Some("x"), None, None),
        ] {
            let target = format!("GET h{path}");
            let context: Vec<_> = by_envoy.into_iter().map(|needs| ("tenantgate.scopes", needs)).collect();
            let request = world.request(&target, &context, &[]);
            let routing = Routing::of(&world.routes, world.options, &request);
            let scopes = granted.map(|granted| Scopes::parse(granted).unwrap());
            let granted = scopes.as_ref().map(|scopes| (scopes, world.routes.granted(scopes)));
            let lacking = routing.lacking(granted.as_ref().map(|(scopes, granted)| (*scopes, granted)));
            assert_eq!(
                lacking.map(|l| (l.term.trim(), l.shadow)),
                expected,
                "{path} {by_envoy:?} {scopes:?}"
            );
        }
    }
}

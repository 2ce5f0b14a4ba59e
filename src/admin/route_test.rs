//! Shows which rule wins for a request, and the resulting outcome.

use super::routes::RouteView;
use super::{Admin, AdminError};
use crate::decision::{Entrance, RuleFact};
use crate::path::Path;
use crate::policy::{self, Routing};
use crate::record::{KeyDetails, KeyState};
use crate::request::{self, RequestReader, Waived};
use crate::route::host::request_host;
use crate::route::{RouteEntry, RouteMode, RouteRow, RouteTable};
use crate::scope::{Needs, Scopes};

/// A hypothetical request.
#[derive(Clone, Debug, Default)]
pub struct TestedRequest {
    /// Its method.
    pub method: String,
    /// Its host.
    pub host: String,
    /// Its path.
    pub path: String,
    /// The prefix or id of its key, if it has one.
    pub key: Option<String>,
    /// The `context_extensions` of its route in Envoy's configuration.
    pub context: Vec<(String, String)>,
    /// Which requests need no key: the options of `serve`.
    pub reading: request::RequestOptions,
    /// How requests are matched with rules: the options of `serve`.
    pub policy: policy::PolicyOptions,
}

/// The outcome of a request by its rules and its key. Networks, plans and the tenant are not considered.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize, utoipa::ToSchema)]
pub struct RouteVerdict {
    /// The rule that wins.
    pub rule: Option<RouteView>,
    /// Why it wins: how it differs from the next one.
    pub why: Option<String>,
    /// Whether a key is needed.
    pub mode: &'static str,
    /// The scopes that a key needs: one alternative of each text.
    pub needs: Vec<String>,
    /// Why the path is ambiguous, if it is.
    pub ambiguous: Option<String>,
    /// The rules that would win next, if the ones before them did not exist.
    pub next: Vec<RouteView>,
    /// The reason in metadata and logs, or `ok`.
    pub outcome: &'static str,
    /// The option of `serve` that decides the outcome before or without a rule, if one does.
    pub option: Option<&'static str>,
    /// What the outcome does not consider, although it could deny the key.
    pub not_considered: Vec<&'static str>,
}

/// What a verdict does not consider of a key.
const NOT_CONSIDERED: [&str; 3] = ["networks", "plan", "tenant"];

impl Admin {
    /// Evaluates the rules for a request.
    ///
    /// # Errors
    ///
    /// As [`Admin::key`].
    pub async fn test_route(&self, request: &TestedRequest) -> Result<RouteVerdict, AdminError> {
        let key = match &request.key {
            Some(reference) => Some(self.key(reference).await?),
            None => None,
        };
        let state = key.as_ref().map(|key| key.state(self.now()));
        Ok(verdict(&self.routes().await?, request, key.as_ref().zip(state)))
    }
}

fn verdict(rows: &[RouteRow], request: &TestedRequest, key: Option<(&KeyDetails, KeyState)>) -> RouteVerdict {
    let table = RouteTable::of(rows);
    let mut reader = RequestReader::new(&request.reading);
    for (name, value) in &request.context {
        reader.context(name.as_bytes(), value.as_bytes());
    }
    let asked = reader.finish(request.method.as_bytes(), request.host.as_bytes(), request.path.as_bytes());
    let routing = Routing::of(&table, request.policy, &asked);
    let path = Path::read(asked.path, request.policy.path);
    let ambiguous = policy::target(&table, request.policy, &asked).err().or(path.as_ref().err().copied());
    let candidates = |path| table.candidates(&request_host(asked.host), asked.method, path);
    let entries = path.as_ref().ok().filter(|_| ambiguous.is_none()).map(candidates).unwrap_or_default();
    let view = |entry: &&RouteEntry| rows.iter().find(|row| row.id == entry.id).map(RouteView::from);
    let rule = entries.first().and_then(view);
    let next: Vec<_> = entries.iter().skip(1).filter_map(view).collect();
    let by_rule = entries.first().and_then(|entry| entry.rule.as_ref().ok()?.needs.as_ref());
    let by_envoy = request.context.iter().filter(|(name, _)| name == "tenantgate.scopes");
    let by_envoy = by_envoy.filter_map(|(_, value)| Needs::parse(value).ok().map(|needs| needs.to_string()));
    let mode = match routing.entrance {
        Entrance::Public => RouteMode::Public,
        Entrance::Optional => RouteMode::Optional,
        Entrance::Required | Entrance::Ambiguous | Entrance::BadContext => RouteMode::Required,
    };
    let outcome = outcome(&table, &routing, key);
    let option = match (outcome, asked.waived) {
        ("public", _) if asked.context.mode.is_some() => None,
        ("public", Waived::Public) => Some("--public"),
        ("public", Waived::Preflight) => Some("--public-preflight"),
        ("route", _) => Some("--route-default"),
        _ => None,
    };
    RouteVerdict {
        why: rule.as_ref().map(|rule| why(rule, next.first())),
        rule,
        mode: mode.as_str(),
        needs: by_rule.map(ToString::to_string).into_iter().chain(by_envoy).collect(),
        ambiguous: ambiguous.map(|ambiguous| ambiguous.to_string()),
        next,
        outcome,
        option,
        not_considered: if key.is_some() { NOT_CONSIDERED.to_vec() } else { Vec::new() },
    }
}

/// Returns why a rule wins over the next one, in the order in which rules are compared: host, path, method.
fn why(rule: &RouteView, next: Option<&RouteView>) -> String {
    let Some(next) = next else { return "no other rule fits".to_owned() };
    if rule.host != next.host {
        return format!("its host {} is more specific than {}", rule.host, next.host);
    }
    let [ours, theirs] = [rule, next].map(|rule| rule.path.split('/').skip(1));
    let differs = |(_, (ours, theirs)): &(usize, (Option<&str>, Option<&str>))| match (ours, theirs) {
        // The names of parameters do not matter.
        (Some(ours), Some(theirs)) => ours != theirs && !(ours.starts_with('{') && theirs.starts_with('{')),
        (ours, theirs) => ours != theirs,
    };
    let ends = || std::iter::repeat(None);
    let pairs = ours.map(Some).chain(ends()).zip(theirs.map(Some).chain(ends())).enumerate();
    let longest = [rule, next].map(|rule| rule.path.split('/').count()).into_iter().max().unwrap_or_default();
    let name = |segment: Option<&str>| segment.map_or("its end".to_owned(), |segment| format!("{segment:?}"));
    match pairs.take(longest).find(differs) {
        Some((at, (ours, theirs))) => format!(
            "segment {} of its path, {}, is more specific than {} of the next rule",
            at + 1,
            name(ours),
            name(theirs)
        ),
        None => format!("its method {} is more specific than {}", rule.method, next.method),
    }
}

/// Returns the reason of the first row that holds, as the decision does.
fn outcome(table: &RouteTable, routing: &Routing<'_>, key: Option<(&KeyDetails, KeyState)>) -> &'static str {
    let (key, state) = match (routing.entrance, key) {
        (Entrance::Ambiguous, _) => return "path_ambiguous",
        (Entrance::BadContext, _) => return "bad_route_context",
        (Entrance::Public, _) => return "public",
        (Entrance::Optional, None) => return "anonymous",
        (Entrance::Required, None) => return "missing",
        (Entrance::Optional | Entrance::Required, Some(key)) => key,
    };
    if state != KeyState::Active {
        return state.as_str();
    }
    let Ok(scopes) = key.terms.scopes.as_deref().map(Scopes::parse).transpose() else {
        return "damaged_row";
    };
    match routing.rule {
        RuleFact::Damaged => return "damaged_route",
        RuleFact::None => return "route",
        RuleFact::Fine => {}
    }
    let granted = scopes.as_ref().map(|scopes| (scopes, table.granted(scopes)));
    let lacking = routing.lacking(granted.as_ref().map(|(scopes, granted)| (*scopes, granted)));
    if lacking.is_some_and(|lacking| !lacking.shadow) { "scope" } else { "ok" }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::route::RouteId;

    fn rule(path: &str, mode: &str, scopes: Option<&str>) -> RouteRow {
        RouteRow {
            id: RouteId(Uuid::from_u128(path.len() as u128)),
            name: None,
            host: "*".into(),
            method: "*".into(),
            path: path.into(),
            mode: mode.into(),
            scopes: scopes.map(Into::into),
            shadow: false,
        }
    }

    fn asked(path: &str, context: &[(&str, &str)]) -> TestedRequest {
        let context = context.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let (method, host) = ("GET".to_owned(), "a.example".to_owned());
        let context = context.collect();
        TestedRequest { method, host, path: path.into(), context, ..TestedRequest::default() }
    }

    #[test]
    fn the_verdict_has_the_winning_rule_and_the_next_ones() {
        let rows = [
            rule("/**", "required", Some("all")),
            rule("/open/{name}", "optional", None),
            rule("/open/door", "public", None),
        ];
        let told = |path: &str| {
            let verdict = verdict(&rows, &asked(path, &[]), None);
            (verdict.mode, verdict.next.len(), verdict.outcome, verdict.ambiguous.is_some())
        };
        let why = |path: &str| verdict(&rows, &asked(path, &[]), None).why;
        let first = r#"segment 2 of its path, "door", is more specific than "{name}" of the next rule"#;
        assert_eq!(why("/open/door").as_deref(), Some(first));
        let second = r#"segment 1 of its path, "open", is more specific than "**" of the next rule"#;
        assert_eq!(why("/open/window").as_deref(), Some(second));
        assert_eq!((why("/else").as_deref(), why("/open//door")), (Some("no other rule fits"), None));
        assert_eq!(told("/open/door?x=1"), ("public", 2, "public", false));
        assert_eq!(told("/open/window"), ("optional", 1, "anonymous", false));
        assert_eq!(told("/else"), ("required", 0, "missing", false));
        assert_eq!(told("/open//door"), ("required", 0, "path_ambiguous", true));
    }

    #[test]
    fn a_rule_wins_by_its_host_then_its_path_then_its_method() {
        let view = |host: &str, method: &str, path: &str| {
            let row = RouteRow { host: host.into(), method: method.into(), ..rule(path, "required", None) };
            RouteView::from(&row)
        };
        let any = view("*", "*", "/a/{x}");
        for (winner, expected) in [
            (view("a.example", "*", "/**"), "its host a.example is more specific than *"),
            (view("*", "GET", "/a/{y}"), "its method GET is more specific than *"),
            (
                view("*", "*", "/a/b"),
                r#"segment 2 of its path, "b", is more specific than "{x}" of the next rule"#,
            ),
        ] {
            assert_eq!(why(&winner, Some(&any)), expected);
        }
        let ends = r#"segment 2 of its path, its end, is more specific than "**" of the next rule"#;
        assert_eq!(why(&view("*", "*", "/a"), Some(&view("*", "*", "/a/**"))), ends);
    }

    #[test]
    fn the_context_of_envoy_overrides_the_mode_and_adds_needs() {
        let rows = [rule("/**", "public", None)];
        let verdict = |context: &[(&str, &str)]| verdict(&rows, &asked("/a", context), None);
        let said = verdict(&[("tenantgate.mode", "required"), ("tenantgate.scopes", "a b | c")]);
        assert_eq!(
            (said.mode, said.outcome, said.needs),
            ("required", "missing", vec!["a b | c".to_owned()])
        );
        assert_eq!(verdict(&[("tenantgate.mode", "no")]).outcome, "bad_route_context");
    }

    #[test]
    fn the_outcome_is_that_of_a_check() {
        let rows = [rule("/open/**", "public", None), rule("/x/**", "required", Some("no scope"))];
        let outcome = |path: &str, context: &[(&str, &str)], policy: policy::PolicyOptions| {
            let said = verdict(&rows, &TestedRequest { policy, ..asked(path, context) }, None);
            (said.mode, said.outcome)
        };
        let policy = policy::PolicyOptions::default();
        // Scopes that Envoy asks for need a key, although the rule is public.
        let scopes = [("tenantgate.scopes", "a")];
        assert_eq!(outcome("/open/a", &scopes, policy), ("required", "missing"));
        assert_eq!(outcome("/health", &[], policy), ("public", "public"));
        let keep = policy::PolicyOptions {
            path: crate::path::PathOptions { keep_encoded_slash: true, ..policy.path },
            ..policy
        };
        assert_eq!(outcome("/open/a%2Fb", &[], policy), ("required", "path_ambiguous"));
        assert_eq!(outcome("/open/a%2Fb", &[], keep), ("public", "public"));
    }
}

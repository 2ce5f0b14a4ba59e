//! Shows which rule wins for a request, and the resulting outcome.

use super::routes::RouteView;
use super::{Admin, AdminError};
use crate::path::{Path, PathOptions};
use crate::record::{KeyDetails, KeyState};
use crate::route::host::request_host;
use crate::route::{Context, RouteMode, RouteRow, RouteTable};
use crate::scope::{Needs, Scopes};

/// A hypothetical request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
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
}

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
    let mut context = Context::default();
    for (name, value) in &request.context {
        context.put(name.as_bytes(), value.as_bytes());
    }
    let mut verdict = RouteVerdict {
        rule: None,
        why: None,
        mode: RouteMode::Required.as_str(),
        needs: Vec::new(),
        ambiguous: None,
        next: Vec::new(),
        outcome: "path_ambiguous",
    };
    let table = RouteTable::of(rows);
    let host = request_host(request.host.as_bytes());
    let entries = match Path::read(request.path.as_bytes(), PathOptions::default()) {
        Ok(path) => table.candidates(&host, request.method.as_bytes(), &path),
        Err(ambiguous) => {
            verdict.ambiguous = Some(ambiguous.to_string());
            if !table.is_empty() {
                return verdict;
            }
            Vec::new()
        }
    };
    let view = |id| rows.iter().find(|row| row.id == id).map(RouteView::from);
    let winner = entries.first().copied();
    verdict.rule = winner.and_then(|entry| view(entry.id));
    verdict.next = entries.iter().skip(1).filter_map(|entry| view(entry.id)).collect();
    verdict.why = verdict.rule.as_ref().map(|rule| why(rule, verdict.next.first()));
    let rule = match winner.map(|entry| entry.rule.as_ref()) {
        Some(Err(_)) => {
            verdict.outcome = "damaged_route";
            return verdict;
        }
        Some(Ok(rule)) => Some(rule),
        None => None,
    };
    let mode = context.mode.or(rule.map(|rule| rule.mode)).unwrap_or_default();
    verdict.mode = mode.as_str();
    let said = request.context.iter().filter(|(name, _)| name == "tenantgate.scopes");
    let said: Vec<_> = said.filter_map(|(_, value)| Needs::parse(value).ok()).collect();
    let needs: Vec<&Needs> = rule.and_then(|rule| rule.needs.as_ref()).into_iter().chain(&said).collect();
    verdict.needs = needs.iter().map(ToString::to_string).collect();
    verdict.outcome = if context.bad {
        "bad_route_context"
    } else {
        outcome(mode, &needs, rule.is_some_and(|rule| rule.shadow), key)
    };
    verdict
}

/// Tells why a rule wins over the next one, in the order in which rules are compared: host, path, method.
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

fn outcome(
    mode: RouteMode,
    needs: &[&Needs],
    shadow: bool,
    key: Option<(&KeyDetails, KeyState)>,
) -> &'static str {
    let (key, state) = match (mode, key) {
        (RouteMode::Public, _) => return "public",
        (RouteMode::Optional, None) => return "anonymous",
        (RouteMode::Required, None) => return "missing",
        (_, Some(key)) => key,
    };
    if state != KeyState::Active {
        return state.as_str();
    }
    let granted = match key.terms.scopes.as_deref().map(Scopes::parse) {
        None => return "ok",
        Some(Err(_)) => return "damaged_row",
        Some(Ok(granted)) => granted,
    };
    if shadow || needs.iter().all(|needs| needs.are_met_by(&granted)) { "ok" } else { "scope" }
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
        TestedRequest { method, host, path: path.into(), key: None, context: context.collect() }
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
}

//! Finds probable mistakes in the rules, for `route list --check`.

use std::ops::ControlFlow;

use super::template::Segment;
use super::{HostPattern, Method, RouteEntry, RouteMode, RouteTable, Rule};
use crate::path::{Path, PathOptions};
use crate::public::PublicPaths;
use crate::scope::{Needs, Scopes};

/// A probable mistake.
#[derive(Clone, Debug)]
pub enum LintFinding<'t> {
    /// More specific rules win for every request that the rule matches.
    NeverWins(&'t Rule),
    /// Every path that the rule matches is ambiguous.
    NeverReached(&'t Rule),
    /// `--public` exempts the requests that the rule matches, before the rule is looked at.
    Public {
        /// The rule.
        rule: &'t Rule,
        /// The methods for which it does.
        methods: Vec<String>,
    },
    /// Requests with the host and path of the rule but another method fall through to a less specific rule.
    FallsThrough {
        /// The rule with a named method.
        rule: &'t Rule,
        /// The first less specific rule that matches another method.
        to: &'t Rule,
        /// The methods for which rules have this host and path, sorted.
        handled: Vec<String>,
    },
    /// No live key has the scopes that the rule needs.
    UnmetNeeds(&'t Rule),
    /// A live key has a scope that no rule needs.
    UnneededScope(String),
}

/// The options of `serve` that come before rules.
#[derive(Clone, Debug, Default)]
pub struct LintOptions {
    /// The requests that need no key.
    pub public: PublicPaths,
    /// Which paths are ambiguous.
    pub path: PathOptions,
}

/// A request that matches a rule. Its host and path are normalized.
#[derive(Clone, Debug)]
struct Sample {
    host: Vec<u8>,
    method: Vec<u8>,
    path: Vec<u8>,
}

impl RouteTable {
    /// Checks the rules against each other, against the options of `serve`, and against `granted`, the scopes of all
    /// live keys (`None` grants everything). Ignores damaged rows.
    #[must_use]
    pub fn lint<'t>(&'t self, granted: &[Option<Scopes>], options: &LintOptions) -> Vec<LintFinding<'t>> {
        let rules = || self.entries().iter().filter_map(|entry| entry.rule.as_ref().ok());
        let mut findings = Vec::new();
        for rule in rules() {
            if self.never_wins(rule) {
                findings.push(LintFinding::NeverWins(rule));
            }
            findings.extend(self.overridden(rule, options));
            findings.extend(self.falls_through(rule));
            let met = |needs: &Needs| granted.iter().any(|g| g.as_ref().is_none_or(|g| needs.are_met_by(g)));
            if rule.needs.as_ref().is_some_and(|needs| !met(needs)) {
                findings.push(LintFinding::UnmetNeeds(rule));
            }
        }
        findings.extend(self.unneeded(granted).into_iter().map(LintFinding::UnneededScope));
        findings
    }

    /// Returns the options that leave no request for `rule`, or take all requests of a method from it.
    fn overridden<'t>(&'t self, rule: &'t Rule, options: &LintOptions) -> Vec<LintFinding<'t>> {
        let samples: Vec<_> =
            self.samples(rule).into_iter().filter(|sample| self.wins(rule, sample)).collect();
        let kept: Vec<_> =
            samples.iter().filter(|sample| Path::read(&sample.path, options.path).is_ok()).collect();
        if kept.is_empty() {
            // A rule that never wins is another finding.
            return samples.first().map(|_| LintFinding::NeverReached(rule)).into_iter().collect();
        }
        if rule.mode == RouteMode::Public {
            return Vec::new();
        }
        let mut methods: Vec<_> = options
            .public
            .iter()
            .map(|(m, _)| m)
            .filter(|m| rule.shape.method.covers(m.as_bytes()))
            .collect();
        methods.sort_unstable();
        methods.dedup();
        // The rule may lose some of these methods to a rule that names them.
        let is_public = |method: &str| {
            let mut of_method = kept
                .iter()
                .map(|sample| Sample { method: method.as_bytes().to_vec(), ..(**sample).clone() })
                .filter(|sample| self.wins(rule, sample))
                .peekable();
            of_method.peek().is_some()
                && of_method.all(|sample| options.public.contains(method.as_bytes(), &sample.path))
        };
        methods.retain(|method| is_public(method));
        let methods = methods.into_iter().map(str::to_owned).collect::<Vec<_>>();
        Some(methods)
            .filter(|methods| !methods.is_empty())
            .map(|methods| LintFinding::Public { rule, methods })
            .into_iter()
            .collect()
    }

    /// Returns whether more specific rules match everything that `rule` matches.
    fn never_wins(&self, rule: &Rule) -> bool {
        !self.samples(rule).iter().any(|sample| self.wins(rule, sample))
    }

    fn wins(&self, rule: &Rule, sample: &Sample) -> bool {
        self.first(sample, Some(&sample.method), |_| true).is_some_and(|winner| winner.id == rule.id)
    }

    /// Returns the less specific rule to which requests fall through that have the host and path of `rule`, but a
    /// method for which no rule has this host and path.
    fn falls_through<'t>(&'t self, rule: &'t Rule) -> Option<LintFinding<'t>> {
        if rule.shape.method == Method::Any {
            return None;
        }
        let same =
            |other: &Rule| other.shape.host == rule.shape.host && other.shape.path.is_same(&rule.shape.path);
        let rules = self.entries().iter().filter_map(|entry| entry.rule.as_ref().ok());
        let siblings: Vec<_> = rules.filter(|other| same(other)).map(|other| &other.shape.method).collect();
        if siblings.contains(&&Method::Any) {
            return None;
        }
        // More specific rules, which match a part of the requests, come before the rule itself.
        let mut less_specific = false;
        let to = self.first(self.samples(rule).first()?, None, |candidate| {
            less_specific |= same(candidate);
            less_specific && !siblings.iter().any(|sibling| covers(sibling, &candidate.shape.method))
        })?;
        let mut handled: Vec<_> = siblings.into_iter().map(ToString::to_string).collect();
        handled.sort_unstable();
        Some(LintFinding::FallsThrough { rule, to, handled })
    }

    /// Returns requests that match `rule` and as few other rules as possible: one for each number of segments that
    /// `**` may stand for, up to the longest template. Longer paths match the same rules.
    fn samples(&self, rule: &Rule) -> Vec<Sample> {
        // A text that no host, no method and no literal segment of a rule can have.
        const OTHER: &str = "%25";
        let host = match &rule.shape.host {
            HostPattern::Exact(name) => name.to_string(),
            HostPattern::Below(name) => format!("{OTHER}.{name}"),
            HostPattern::Any => OTHER.to_owned(),
        };
        let method = match &rule.shape.method {
            Method::Any => OTHER,
            Method::Named(name) => name,
        };
        let segments = rule.shape.path.segments();
        let rules = self.entries().iter().filter_map(|entry| entry.rule.as_ref().ok());
        let longest = rules.map(|rule| rule.shape.path.segments().len()).max().unwrap_or_default();
        let most = if segments.last() == Some(&Segment::Rest) { longest + 2 - segments.len() } else { 0 };
        let path = |more: usize| {
            let mut path = Vec::new();
            for segment in segments {
                let (text, times) = match segment {
                    Segment::Literal(text) => (&**text, 1),
                    Segment::One => (OTHER.as_bytes(), 1),
                    Segment::Rest => (OTHER.as_bytes(), more),
                };
                path.extend(std::iter::repeat_n([b"/", text].concat(), times).flatten());
            }
            if path.is_empty() { b"/".to_vec() } else { path }
        };
        let sample = |more| Sample {
            host: host.clone().into_bytes(),
            method: method.as_bytes().to_vec(),
            path: path(more),
        };
        (0..=most).map(sample).collect()
    }

    /// Returns the most specific rule that matches a sample and that `take` accepts. Without a method, rules of every
    /// method match.
    fn first(
        &self,
        sample: &Sample,
        method: Option<&[u8]>,
        mut take: impl FnMut(&Rule) -> bool,
    ) -> Option<&Rule> {
        let keep = PathOptions { keep_encoded_slash: true, keep_parameters: true };
        let path = Path::read(&sample.path, keep).ok()?;
        let mut found = None;
        let _ = self.walk(&sample.host, method, &path, &mut |entry: &RouteEntry| match &entry.rule {
            Ok(candidate) if take(candidate) => {
                found = Some(entry.id);
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        });
        let at = self.entries().binary_search_by_key(&found?, |entry| entry.id).ok()?;
        self.entries()[at].rule.as_ref().ok()
    }

    fn unneeded(&self, granted: &[Option<Scopes>]) -> Vec<String> {
        let needed = |scope: &str| match Scopes::parse(scope) {
            Ok(one) => self.scopes().iter().any(|needed| one.grants(needed)),
            Err(_) => false,
        };
        let scopes = granted.iter().flatten().flat_map(Scopes::iter).filter(|scope| !needed(scope));
        let mut scopes: Vec<_> = scopes.map(str::to_owned).collect();
        scopes.sort_unstable();
        scopes.dedup();
        scopes
    }
}

/// Returns whether a rule for `one` matches all methods that a rule for `other` matches.
fn covers(one: &Method, other: &Method) -> bool {
    match (one, other) {
        (Method::Any, _) => true,
        (Method::Named(_), Method::Any) => false,
        (one, Method::Named(other)) => one.covers(other.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::RouteRow;
    use super::super::tests::row;
    use super::*;

    fn shown(rows: &[RouteRow], granted: &[Option<&str>]) -> Vec<String> {
        with_options(rows, granted, &LintOptions { public: PublicPaths::none(), ..LintOptions::default() })
    }

    fn with_options(rows: &[RouteRow], granted: &[Option<&str>], options: &LintOptions) -> Vec<String> {
        let granted: Vec<_> = granted.iter().map(|g| g.map(|g| Scopes::parse(g).unwrap())).collect();
        let table = RouteTable::of(rows);
        let name = |rule: &Rule| rule.name.clone().unwrap_or_default();
        let show = |finding: &LintFinding<'_>| match finding {
            LintFinding::NeverWins(rule) => format!("never {}", name(rule)),
            LintFinding::NeverReached(rule) => format!("ambiguous {}", name(rule)),
            LintFinding::Public { rule, methods } => format!("public {} {}", name(rule), methods.join(",")),
            LintFinding::FallsThrough { rule, to, handled } => {
                format!("{} but {} to {}", name(rule), handled.join(","), name(to))
            }
            LintFinding::UnmetNeeds(rule) => format!("unmet {}", name(rule)),
            LintFinding::UnneededScope(scope) => format!("unneeded {scope}"),
        };
        table.lint(&granted, options).iter().map(show).collect()
    }

    fn lint(rules: &[(&str, &str, &str)]) -> Vec<String> {
        let rows: Vec<_> = (1..).zip(rules).map(|(n, (h, m, p))| row(n, h, m, p)).collect();
        shown(&rows, &[])
    }

    #[test]
    fn a_rule_whose_requests_all_match_more_specific_rules_never_wins() {
        for (rules, expected) in [
            (&[("*", "*", "/a/**"), ("*", "*", "/a"), ("*", "*", "/a/{x}/**")][..], &["never r1"][..]),
            (
                &[("*", "*", "/a/**"), ("*", "*", "/a"), ("*", "*", "/a/{x}"), ("*", "*", "/a/{x}/{y}/**")],
                &["never r1"],
            ),
            (&[("*", "*", "/a/**"), ("*", "*", "/a"), ("*", "*", "/a/{x}")], &[]),
            (&[("*", "*", "/a/**"), ("*", "*", "/a/{x}/**")], &[]),
            (&[("*", "*", "/a/**"), ("*", "*", "/a"), ("*", "*", "/a/x/**")], &[]),
            (&[("*", "GET", "/a/**"), ("*", "*", "/a"), ("*", "*", "/a/{x}/**")], &["never r1"]),
            (&[("*", "HEAD", "/**"), ("*", "GET", "/"), ("*", "GET", "/{x}/**")], &["never r1"]),
            (&[("*", "*", "/**"), ("h", "*", "/"), ("h", "*", "/{x}/**")], &[]),
            (&[("*", "*", "/**"), ("*", "GET", "/"), ("*", "GET", "/{x}/**")], &[]),
        ] {
            let found: Vec<_> = lint(rules).into_iter().filter(|f| f.starts_with("never")).collect();
            assert_eq!(found, expected, "{rules:?}");
        }
    }

    #[test]
    fn a_rule_with_a_method_that_falls_through_is_found_with_the_less_specific_rule() {
        for (rules, expected) in [
            (&[("*", "GET", "/a"), ("*", "*", "/**")][..], &["r1 but GET to r2"][..]),
            (&[("*", "GET", "/a"), ("*", "*", "/a"), ("*", "*", "/**")], &[]),
            (&[("*", "GET", "/a"), ("*", "GET", "/**")], &[]),
            (&[("*", "GET", "/a"), ("*", "HEAD", "/**")], &[]),
            (&[("*", "GET", "/a"), ("*", "PUT", "/{x}")], &["r1 but GET to r2"]),
            (&[("h", "GET", "/a"), ("*", "*", "/a")], &["r1 but GET to r2"]),
            (&[("*.h", "GET", "/a"), ("*", "*", "/a")], &["r1 but GET to r2"]),
            (&[("h", "GET", "/a"), ("g", "*", "/**")], &[]),
            (&[("*", "GET", "/a/**"), ("*", "*", "/**")], &["r1 but GET to r2"]),
            (
                &[("*", "PUT", "/a"), ("*", "GET", "/a"), ("*", "*", "/**")],
                &["r1 but GET,PUT to r3", "r2 but GET,PUT to r3"],
            ),
            // Not the more specific rule for PUT, to which no request of the other one falls through.
            (&[("*", "PUT", "/a"), ("*", "GET", "/a/**")], &["r1 but PUT to r2"]),
        ] {
            assert_eq!(lint(rules), expected, "{rules:?}");
        }
    }

    #[test]
    fn a_rule_that_wins_for_one_of_its_methods_is_not_reported() {
        for rules in [
            &[("*", "GET", "/a/**"), ("*", "*", "/a/**")][..],
            &[("*", "*", "/a/**"), ("*", "GET", "/a/**")],
            &[("*", "HEAD", "/**"), ("*", "GET", "/**")],
            &[("*", "GET", "/**"), ("*", "HEAD", "/**")],
            &[("*", "*", "/**"), ("*", "GET", "/"), ("*", "GET", "/{x}/**")],
        ] {
            let found: Vec<_> = lint(rules).into_iter().filter(|f| f.starts_with("never")).collect();
            assert_eq!(found, [""; 0], "{rules:?}");
        }
    }

    #[test]
    fn rules_that_an_option_overrides_are_found() {
        let mut public = PublicPaths::default();
        for rule in ["GET /assets/*", "PUT /a/b"] {
            public.add(rule).unwrap();
        }
        let options = LintOptions { public, path: PathOptions::default() };
        for (rules, expected) in [
            (&[("*", "GET", "/health")][..], &["public r1 GET,HEAD"][..]),
            (&[("*", "*", "/health")], &["public r1 GET,HEAD"]),
            (&[("*", "POST", "/health")], &[]),
            (&[("h", "GET", "/assets/{x}")], &["public r1 GET"]),
            (&[("*", "GET", "/assets/**")], &[]),
            (&[("*", "GET", "/assets"), ("*", "GET", "/assets/**")], &["public r2 GET"]),
            (&[("*", "*", "/**")], &[]),
            (&[("*", "*", "/a/b"), ("*", "PUT", "/a/b")], &["public r2 PUT"]),
            (&[("*", "*", "/a%2Fb")], &["ambiguous r1"]),
            (&[("*", "*", "/a%3Bb/{x}/**")], &["ambiguous r1"]),
        ] {
            let rows: Vec<_> = (1..).zip(rules).map(|(n, (h, m, p))| row(n, h, m, p)).collect();
            assert_eq!(with_options(&rows, &[], &options), expected, "{rules:?}");
        }
        let rows = [RouteRow { mode: "public".into(), ..row(1, "*", "GET", "/docs") }];
        assert_eq!(with_options(&rows, &[], &options), [""; 0], "a public rule loses nothing");
        let keep = PathOptions { keep_encoded_slash: true, keep_parameters: true };
        let options = LintOptions { path: keep, ..options };
        assert_eq!(
            with_options(&[row(1, "*", "*", "/a%2Fb;c".replace(';', "%3B").as_str())], &[], &options),
            [""; 0]
        );
    }

    #[test]
    fn unmet_needs_and_unneeded_scopes_are_found() {
        let needs = |n, path, needs: &str| RouteRow { scopes: Some(needs.into()), ..row(n, "*", "*", path) };
        let rows = [needs(1, "/a", "a.read | a.write"), needs(2, "/b", "b")];
        assert_eq!(shown(&rows, &[Some("a.* c"), Some("d.* c")]), ["unmet r2", "unneeded c", "unneeded d.*"]);
        assert_eq!(shown(&rows, &[None]), [""; 0]);
        assert_eq!(shown(&rows, &[]), ["unmet r1", "unmet r2"]);
    }
}

//! Finds probable mistakes in the rules, for `route list --check`.

use std::ops::ControlFlow;

use super::template::Segment;
use super::{Entry, HostPattern, Method, RouteTable, Rule};
use crate::path::{Path, PathOptions};
use crate::scope::{Needs, Scopes};

/// A probable mistake.
#[derive(Clone, Debug)]
pub enum Finding<'t> {
    /// More specific rules win for every request that the rule matches.
    NeverWins(&'t Rule),
    /// Requests with the host and path of the rule but another method fall through to a less specific rule.
    FallsThrough {
        /// The rule with a named method.
        rule: &'t Rule,
        /// The first less specific rule that matches another method.
        to: &'t Rule,
    },
    /// No live key has the scopes that the rule needs.
    UnmetNeeds(&'t Rule),
    /// A live key has a scope that no rule needs.
    UnneededScope(String),
}

impl RouteTable {
    /// Checks the rules against each other and against `granted`, the scopes of all live keys (`None` grants
    /// everything). Ignores damaged rows.
    #[must_use]
    pub fn lint<'t>(&'t self, granted: &[Option<Scopes>]) -> Vec<Finding<'t>> {
        let rules = || self.entries().iter().filter_map(|entry| entry.rule.as_ref().ok());
        let mut findings = Vec::new();
        for rule in rules() {
            if self.never_wins(rule) {
                findings.push(Finding::NeverWins(rule));
            }
            if let Some(to) = self.falls_through(rule) {
                findings.push(Finding::FallsThrough { rule, to });
            }
            let met = |needs: &Needs| granted.iter().any(|g| g.as_ref().is_none_or(|g| needs.are_met_by(g)));
            if rule.needs.as_ref().is_some_and(|needs| !met(needs)) {
                findings.push(Finding::UnmetNeeds(rule));
            }
        }
        findings.extend(self.unneeded(granted).into_iter().map(Finding::UnneededScope));
        findings
    }

    /// Returns whether more specific rules match everything that `rule` matches. Only rules that end in `**` can be
    /// covered in this way: by rules for the path before `**`, and for any segment after it.
    fn never_wins(&self, rule: &Rule) -> bool {
        let Some((Segment::Rest, front)) = rule.shape.path.segments().split_last() else { return false };
        // Paths with more segments than the longest template match the same rules.
        let longest = self.entries().iter().filter_map(|e| e.rule.as_ref().ok());
        let longest = longest.map(|rule| rule.shape.path.segments().len()).max().unwrap_or_default();
        (0..=longest + 1 - front.len().min(longest)).all(|more| {
            let winner = self.sample(rule, more, |candidate| {
                if candidate.shape.host == rule.shape.host
                    && covers(&candidate.shape.method, &rule.shape.method)
                {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            winner.is_some_and(|winner| winner.id != rule.id)
        })
    }

    /// Returns the first less specific rule that matches a method for which no rule has this host and path.
    fn falls_through(&self, rule: &Rule) -> Option<&Rule> {
        if rule.shape.method == Method::Any {
            return None;
        }
        let same =
            |other: &Rule| other.shape.host == rule.shape.host && other.shape.path.is_same(&rule.shape.path);
        let siblings =
            || self.entries().iter().filter_map(|entry| entry.rule.as_ref().ok()).filter(|r| same(r));
        if siblings().any(|sibling| sibling.shape.method == Method::Any) {
            return None;
        }
        let left_out =
            |other: &Rule| !siblings().any(|sibling| covers(&sibling.shape.method, &other.shape.method));
        self.sample(rule, 0, |candidate| {
            if left_out(candidate) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    }

    /// Visits the rules that match a sample request of `rule`, the most specific first, until `take` breaks. Returns
    /// that rule. The sample has `more` segments in place of `**`.
    fn sample(&self, rule: &Rule, more: usize, take: impl Fn(&Rule) -> ControlFlow<()>) -> Option<&Rule> {
        // A text that no host and no literal segment of a rule can have.
        const OTHER: &str = "%25";
        let host = match &rule.shape.host {
            HostPattern::Exact(name) => name.to_string(),
            HostPattern::Below(name) => format!("{OTHER}.{name}"),
            HostPattern::Any => OTHER.to_owned(),
        };
        let mut path = Vec::new();
        for segment in rule.shape.path.segments() {
            let (text, times) = match segment {
                Segment::Literal(text) => (&**text, 1),
                Segment::One => (OTHER.as_bytes(), 1),
                Segment::Rest => (OTHER.as_bytes(), more),
            };
            for _ in 0..times {
                path.push(b'/');
                path.extend(text);
            }
        }
        if path.is_empty() {
            path.push(b'/');
        }
        let keep = PathOptions { keep_encoded_slash: true, keep_parameters: true };
        let path = Path::read(&path, keep).ok()?;
        let mut found = None;
        let _ = self.walk(host.as_bytes(), None, &path, &mut |entry: &Entry| {
            let Ok(candidate) = &entry.rule else { return ControlFlow::Continue(()) };
            let taken = take(candidate);
            if taken.is_break() {
                found = Some(entry.id);
            }
            taken
        });
        self.entries().iter().find(|entry| Some(entry.id) == found).and_then(|entry| entry.rule.as_ref().ok())
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
        let granted: Vec<_> = granted.iter().map(|g| g.map(|g| Scopes::parse(g).unwrap())).collect();
        let table = RouteTable::of(rows);
        let name = |rule: &Rule| rule.name.clone().unwrap_or_default();
        let show = |finding: &Finding<'_>| match finding {
            Finding::NeverWins(rule) => format!("never {}", name(rule)),
            Finding::FallsThrough { rule, to } => format!("{} to {}", name(rule), name(to)),
            Finding::UnmetNeeds(rule) => format!("unmet {}", name(rule)),
            Finding::UnneededScope(scope) => format!("unneeded {scope}"),
        };
        table.lint(&granted).iter().map(show).collect()
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
            (&[("*", "GET", "/a"), ("*", "*", "/**")][..], &["r1 to r2"][..]),
            (&[("*", "GET", "/a"), ("*", "*", "/a"), ("*", "*", "/**")], &[]),
            (&[("*", "GET", "/a"), ("*", "GET", "/**")], &[]),
            (&[("*", "GET", "/a"), ("*", "HEAD", "/**")], &[]),
            (&[("*", "GET", "/a"), ("*", "PUT", "/{x}")], &["r1 to r2"]),
            (&[("h", "GET", "/a"), ("*", "*", "/a")], &["r1 to r2"]),
            (&[("*.h", "GET", "/a"), ("*", "*", "/a")], &["r1 to r2"]),
            (&[("h", "GET", "/a"), ("g", "*", "/**")], &[]),
            (&[("*", "GET", "/a/**"), ("*", "*", "/**")], &["r1 to r2"]),
        ] {
            assert_eq!(lint(rules), expected, "{rules:?}");
        }
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

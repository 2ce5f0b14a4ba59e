//! Finds the most specific rule that matches a request.
//!
//! Rules are compared by host first: the exact host, then the longest wildcard, then `*`. Within a host they are
//! compared by path, segment by segment: a literal before `{name}` before `**`, and the end of the template before
//! `**`. Then by method: its name before `*`, and for HEAD a rule for HEAD before one for GET. If the more specific
//! branch turns out not to match, the search backtracks. The order of rows does not matter, and there are no
//! priorities.
//!
//! A damaged row never lets a less specific rule win: it wins for every request that it could have matched, and its
//! damage is the result.

use std::ops::ControlFlow;

use hashbrown::HashMap;

use super::template::Segment;
use super::{Damage, HostPattern, Method, PathTemplate, RouteId, RoutePart, RouteRow, Rule, Shape};
use crate::invalid::Invalid;
use crate::path::{Path, split};
use crate::scope::{Granted, Needed, Needs, ScopeNumbers, Scopes};

/// A row of `tenantgate_route`, compiled.
#[derive(Clone, Debug)]
pub struct RouteEntry {
    /// `id`.
    pub id: RouteId,
    /// `name`.
    pub name: Option<Box<str>>,
    /// The rule, or why the row is damaged.
    pub rule: Result<Rule, Damage>,
    needed: Option<Needed>,
}

impl RouteEntry {
    /// Returns whether the key's scopes, compiled by [`RouteTable::granted`], meet the needs of the rule.
    #[must_use]
    pub fn is_met_by(&self, granted: &Granted) -> bool {
        self.needed.as_ref().is_none_or(|needed| needed.are_met_by(granted))
    }
}

/// Rules with the same host and path: the method of each, and the index of its entry.
type Methods = Vec<(Method, u32)>;

#[derive(Debug, Default)]
struct Node {
    /// The next nodes for literal segments. A hash table, because a node can have thousands.
    literals: HashMap<Box<[u8]>, u32>,
    one: Option<u32>,
    /// Rules whose template ends here.
    end: Methods,
    /// Rules whose template continues with `**`.
    rest: Methods,
}

/// The rules of one host, as a tree of segments. The first node is the root, `/`.
#[derive(Debug)]
struct Branch {
    nodes: Vec<Node>,
    /// A row of this host whose method or path is damaged: it could have matched any request.
    damaged: Option<u32>,
}

impl Default for Branch {
    fn default() -> Self {
        Self { nodes: vec![Node::default()], damaged: None }
    }
}

/// All rules, compiled.
#[derive(Debug, Default)]
pub struct RouteTable {
    entries: Vec<RouteEntry>,
    numbers: ScopeNumbers,
    exact: HashMap<Box<[u8]>, Branch>,
    below: HashMap<Box<[u8]>, Branch>,
    /// The length of the longest name in `below`.
    longest: usize,
    any: Option<Branch>,
    /// A row whose host is damaged: it could have matched any request.
    damaged: Option<u32>,
}

impl RouteTable {
    /// Compiles the rows, whose order does not matter.
    #[must_use]
    pub fn of<'r>(rows: impl IntoIterator<Item = &'r RouteRow>) -> Self {
        let mut rows: Vec<_> = rows.into_iter().collect();
        rows.sort_unstable_by_key(|row| row.id);
        let mut table = Self::default();
        for row in rows {
            table.put(row);
        }
        let needs = table.entries.iter().filter_map(|entry| entry.rule.as_ref().ok()?.needs.as_ref());
        table.numbers = ScopeNumbers::of(needs);
        for entry in &mut table.entries {
            let needs = entry.rule.as_ref().ok().and_then(|rule| rule.needs.as_ref());
            entry.needed = needs.map(|needs| table.numbers.needed(needs));
        }
        table
    }

    fn put(&mut self, row: &RouteRow) {
        let place = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        let rule = row.compile();
        let twin = self.insert(row, rule.as_ref().ok().map(|rule| &rule.shape), place);
        let name = row.name.as_deref().map(Into::into);
        self.entries.push(RouteEntry { id: row.id, name, rule, needed: None });
        // Neither rule is more specific, so both are damaged.
        for twin in twin.into_iter().flat_map(|other| [other, place]) {
            let expected = "a host, method and path that no other rule has together";
            let error = Invalid::new("rule", 0, expected);
            self.entries[twin as usize].rule = Err(Damage { part: RoutePart::Shape, error });
        }
    }

    /// Puts a row into the trees. `shape` is that of its rule, if the row is not damaged. Returns another row with the
    /// same shape.
    fn insert(&mut self, row: &RouteRow, shape: Option<&Shape>, place: u32) -> Option<u32> {
        let parsed;
        let shape = if let Some(shape) = shape {
            Ok(shape)
        } else {
            parsed = row.shape();
            parsed.as_ref()
        };
        let Ok(host) = shape.map_or_else(|_| HostPattern::parse(&row.host), |shape| Ok(shape.host.clone()))
        else {
            self.damaged.get_or_insert(place);
            return None;
        };
        let branch = match host {
            HostPattern::Any => self.any.get_or_insert_default(),
            HostPattern::Exact(name) => self.exact.entry(name.into_boxed_bytes()).or_default(),
            HostPattern::Below(name) => {
                self.longest = self.longest.max(name.len());
                self.below.entry(name.into_boxed_bytes()).or_default()
            }
        };
        let Ok(shape) = shape else {
            branch.damaged.get_or_insert(place);
            return None;
        };
        let methods = branch.methods(&shape.path);
        let twin = methods.iter().find(|(method, _)| *method == shape.method).map(|(_, other)| *other);
        if twin.is_none() {
            methods.push((shape.method.clone(), place));
        }
        twin
    }

    /// Returns whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns whether a row has a host other than `*`, so that ambiguous hosts must be rejected before matching.
    #[must_use]
    pub fn has_hosts(&self) -> bool {
        self.longest > 0 || !self.exact.is_empty()
    }

    /// Returns all rows, sorted by id.
    #[must_use]
    pub fn entries(&self) -> &[RouteEntry] {
        &self.entries
    }

    /// Returns the damaged rows.
    pub fn damaged(&self) -> impl Iterator<Item = (&RouteEntry, &Damage)> {
        self.entries.iter().filter_map(|entry| Some((entry, entry.rule.as_ref().err()?)))
    }

    /// Returns the rows that are damaged because they have the shape of another row.
    pub fn twins(&self) -> impl Iterator<Item = (&RouteEntry, &Damage)> {
        self.damaged().filter(|(_, damage)| damage.part == RoutePart::Shape)
    }

    /// Returns another rule with the same shape as `rule`; `None` if there is none.
    #[must_use]
    pub fn twin(&self, rule: &Rule) -> Option<&Rule> {
        let others = self.entries.iter().filter(|entry| entry.id != rule.id);
        others.filter_map(|entry| entry.rule.as_ref().ok()).find(|other| other.shape.is_same(&rule.shape))
    }

    /// Returns the scopes that rules need, sorted.
    #[must_use]
    pub fn scopes(&self) -> &ScopeNumbers {
        &self.numbers
    }

    /// Compiles the granted scopes of a key, for [`RouteEntry::is_met_by`].
    #[must_use]
    pub fn granted(&self, scopes: &Scopes) -> Granted {
        self.numbers.granted(scopes)
    }

    /// Returns the most specific row that matches the request; a damaged one if it could have matched. `None` if none
    /// matches.
    ///
    /// `host` must be normalized by [`request_host`](super::host::request_host).
    #[must_use]
    pub fn find(&self, host: &[u8], method: &[u8], path: &Path<'_>) -> Option<&RouteEntry> {
        let mut found = None;
        let _ = self.walk(host, Some(method), path, &mut |entry| {
            found = Some(entry);
            ControlFlow::Break(())
        });
        found
    }

    /// Returns all rows that match, the most specific first.
    #[must_use]
    pub fn candidates(&self, host: &[u8], method: &[u8], path: &Path<'_>) -> Vec<&RouteEntry> {
        let mut all = Vec::new();
        let _ = self.walk(host, Some(method), path, &mut |entry| {
            all.push(entry);
            ControlFlow::Continue(())
        });
        all
    }

    /// Visits all rows that match, the most specific first. Without a method, matches every method.
    pub(super) fn walk<'t>(
        &'t self,
        host: &[u8],
        method: Option<&[u8]>,
        path: &Path<'_>,
        visit: &mut dyn FnMut(&'t RouteEntry) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if let Some(place) = self.damaged {
            visit(&self.entries[place as usize])?;
        }
        let mut search = Search { table: self, method, visit };
        if let Some(branch) = self.exact.get(host) {
            search.branch(branch, path)?;
        }
        if self.longest > 0 {
            let dots = host.iter().enumerate().filter(|(_, byte)| **byte == b'.');
            for (at, _) in dots.filter(|(at, _)| *at > 0 && host.len() - at - 1 <= self.longest) {
                if let Some(branch) = self.below.get(&host[at + 1..]) {
                    search.branch(branch, path)?;
                }
            }
        }
        self.any.as_ref().map_or(ControlFlow::Continue(()), |branch| search.branch(branch, path))
    }
}

impl Branch {
    /// Returns the rules of `path`, and adds its nodes to the tree.
    fn methods(&mut self, path: &PathTemplate) -> &mut Methods {
        let mut at = 0;
        for segment in path.segments() {
            at = match segment {
                Segment::Rest => return &mut self.nodes[at].rest,
                Segment::One => self.one(at),
                Segment::Literal(text) => self.literal(at, text),
            };
        }
        &mut self.nodes[at].end
    }

    fn add(&mut self) -> u32 {
        self.nodes.push(Node::default());
        u32::try_from(self.nodes.len() - 1).unwrap_or(u32::MAX)
    }

    fn one(&mut self, at: usize) -> usize {
        let next = match self.nodes[at].one {
            Some(next) => next,
            None => self.add(),
        };
        self.nodes[at].one = Some(next);
        next as usize
    }

    fn literal(&mut self, at: usize, text: &[u8]) -> usize {
        if let Some(next) = self.nodes[at].literals.get(text) {
            return *next as usize;
        }
        let next = self.add();
        self.nodes[at].literals.insert(text.into(), next);
        next as usize
    }
}

/// A search through the tree.
struct Search<'t, 's> {
    table: &'t RouteTable,
    method: Option<&'s [u8]>,
    visit: &'s mut dyn FnMut(&'t RouteEntry) -> ControlFlow<()>,
}

impl<'t> Search<'t, '_> {
    fn branch(&mut self, branch: &'t Branch, path: &Path<'_>) -> ControlFlow<()> {
        if let Some(place) = branch.damaged {
            (self.visit)(&self.table.entries[place as usize])?;
        }
        self.node(branch, &branch.nodes[0], path.rest())
    }

    /// Visits the matching rules below `node`. The depth of the recursion is bounded by the longest template.
    fn node(&mut self, branch: &'t Branch, node: &'t Node, rest: Option<&[u8]>) -> ControlFlow<()> {
        let Some(rest) = rest else {
            self.methods(&node.end)?;
            return self.methods(&node.rest);
        };
        let (segment, after) = split(rest);
        if let Some(next) = node.literals.get(segment) {
            self.node(branch, &branch.nodes[*next as usize], after)?;
        }
        if let Some(one) = node.one {
            self.node(branch, &branch.nodes[one as usize], after)?;
        }
        self.methods(&node.rest)
    }

    fn methods(&mut self, methods: &'t Methods) -> ControlFlow<()> {
        let Some(method) = self.method else {
            return methods
                .iter()
                .try_for_each(|(_, place)| (self.visit)(&self.table.entries[*place as usize]));
        };
        let covering = (method == b"HEAD").then_some(&b"GET"[..]);
        for name in [Some(method), covering].into_iter().flatten() {
            for (_, place) in
                methods.iter().filter(|(m, _)| matches!(m, Method::Named(m) if m.as_bytes() == name))
            {
                (self.visit)(&self.table.entries[*place as usize])?;
            }
        }
        for (_, place) in methods.iter().filter(|(m, _)| *m == Method::Any) {
            (self.visit)(&self.table.entries[*place as usize])?;
        }
        ControlFlow::Continue(())
    }
}

impl RouteEntry {
    /// Returns the needs of the rule; `None` if it has none or is damaged.
    #[must_use]
    pub fn needs(&self) -> Option<&Needs> {
        self.rule.as_ref().ok()?.needs.as_ref()
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;

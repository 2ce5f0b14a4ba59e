//! Manages the rules of routes.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use uuid::Uuid;

use super::{Admin, AdminError, Setting};
use crate::audit::{Action, Draft};
use crate::random;
use crate::record::KeyState;
use crate::route::{RouteId, RouteRow, RouteTable, Rule};
use crate::scope::Scopes;
use crate::store::{ChangeError, KeyFilter, RoutesChange, StoreError, StoredKey};

/// A rule in JSON and in the audit log.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, utoipa::ToSchema)]
#[schema(as = Route)]
pub struct RouteView {
    id: String,
    name: Option<String>,
    pub(super) host: String,
    pub(super) method: String,
    pub(super) path: String,
    mode: String,
    scopes: Option<String>,
    shadow: bool,
}

impl From<&RouteRow> for RouteView {
    fn from(route: &RouteRow) -> Self {
        Self {
            id: route.id.0.to_string(),
            name: route.name.clone(),
            host: route.host.clone(),
            method: route.method.clone(),
            path: route.path.clone(),
            mode: route.mode.clone(),
            scopes: route.scopes.clone(),
            shadow: route.shadow,
        }
    }
}

impl RouteView {
    /// Returns the cells of a table row: host, method, path, mode (`shadow` if only reported), scopes, name.
    #[must_use]
    pub fn cells(&self) -> [&str; 6] {
        let (scopes, name) = (self.scopes.as_deref().unwrap_or("-"), self.name.as_deref().unwrap_or("-"));
        [&self.host, &self.method, &self.path, if self.shadow { "shadow" } else { &self.mode }, scopes, name]
    }
}

/// A rule before and after a change.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ChangedRoute {
    /// The rule before.
    pub before: RouteView,
    /// The rule after.
    pub after: RouteView,
}

/// The difference that applying a table makes.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, utoipa::ToSchema)]
pub struct RouteDifference {
    /// New rules.
    pub added: Vec<RouteView>,
    /// Removed rules.
    pub removed: Vec<RouteView>,
    /// Rules for the same requests with another name, mode, needs or shadow.
    pub changed: Vec<ChangedRoute>,
    /// The number of unchanged rules.
    pub unchanged: usize,
    /// Whether nothing was done.
    pub dry_run: bool,
}

impl RouteDifference {
    /// Summarizes a change of the table, which then has this number of `rules`.
    #[must_use]
    pub fn of(change: &RoutesChange, rules: usize, dry_run: bool) -> Self {
        let views = |rows: &[RouteRow]| rows.iter().map(RouteView::from).collect();
        let both = |(before, after): &(RouteRow, RouteRow)| ChangedRoute {
            before: before.into(),
            after: after.into(),
        };
        Self {
            added: views(&change.added),
            removed: views(&change.removed),
            changed: change.changed.iter().map(both).collect(),
            unchanged: rules - change.added.len() - change.changed.len(),
            dry_run,
        }
    }
}

/// Changes of a rule. Fields that are `None` stay unchanged.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RouteUpdate {
    /// Its name.
    pub name: Setting<String>,
    /// Its host.
    pub host: Option<String>,
    /// Its method.
    pub method: Option<String>,
    /// Its path.
    pub path: Option<String>,
    /// Its mode.
    pub mode: Option<String>,
    /// The scopes that it needs.
    pub scopes: Setting<String>,
    /// Whether missing scopes are only reported.
    pub shadow: Option<bool>,
}

impl RouteUpdate {
    /// Returns the rule with the changes.
    #[must_use]
    pub fn applied(&self, route: &RouteRow) -> RouteRow {
        let mut route = route.clone();
        self.name.change(&mut route.name, Clone::clone);
        self.scopes.change(&mut route.scopes, Clone::clone);
        let RouteRow { host, method, path, mode, .. } = &mut route;
        let texts = [(host, &self.host), (method, &self.method), (path, &self.path), (mode, &self.mode)];
        for (part, said) in texts {
            if let Some(said) = said {
                part.clone_from(said);
            }
        }
        route.shadow = self.shadow.unwrap_or(route.shadow);
        route
    }
}

impl Admin {
    /// Returns all rules, by host, path and method.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn routes(&self) -> Result<Vec<RouteRow>, AdminError> {
        Ok(self.store.routes().await?)
    }

    /// Adds a rule. It gets a new id.
    ///
    /// # Errors
    ///
    /// The rule is invalid, or another rule is for the same requests or has the same name.
    pub async fn add_route(&self, route: RouteRow) -> Result<RouteRow, AdminError> {
        let route = RouteRow { id: RouteId(random::new_id()), ..route };
        let rule = route.compile().map_err(|damage| AdminError::BadRequest(damage.to_string()))?;
        let route = RouteRow::from(&rule);
        let plan = |there: &[RouteRow]| {
            self.judge_routes(there)?;
            refuse_twin(there, &route, &rule)?;
            let draft =
                Draft::of(Action::RouteAdd, route.id.0.to_string(), None::<&()>, &RouteView::from(&route));
            Ok(RoutesChange { added: vec![route.clone()], draft: Some(draft), ..RoutesChange::default() })
        };
        self.store.change_routes(&plan).await?;
        Ok(route)
    }

    /// Removes the rule with this name or id.
    ///
    /// # Errors
    ///
    /// There is no such rule.
    pub async fn remove_route(&self, reference: &str) -> Result<RouteRow, AdminError> {
        let id = Uuid::parse_str(reference).ok().map(RouteId);
        let plan = |there: &[RouteRow]| {
            let named = |route: &&RouteRow| Some(route.id) == id || route.name.as_deref() == Some(reference);
            let found = there.iter().find(named);
            let found = found.ok_or(ChangeError::Missing)?;
            self.judge_route(found)?;
            let draft =
                Draft::of_removed(Action::RouteRemove, found.id.0.to_string(), &RouteView::from(found));
            Ok(RoutesChange { removed: vec![found.clone()], draft: Some(draft), ..RoutesChange::default() })
        };
        let no_rule = || AdminError::Missing(no_rule(reference));
        let mut change = self.store.change_routes(&plan).await.map_err(|error| match error {
            StoreError::Missing => no_rule(),
            other => other.into(),
        })?;
        change.removed.pop().ok_or_else(no_rule)
    }

    /// Changes the rule with this id.
    ///
    /// # Errors
    ///
    /// There is no such rule; the changed rule is invalid; or another rule is for the same requests or has the same
    /// name.
    pub async fn update_route(&self, id: RouteId, update: &RouteUpdate) -> Result<RouteRow, AdminError> {
        let reference = id.0.to_string();
        let plan = |there: &[RouteRow]| {
            let before = there.iter().find(|route| route.id == id).ok_or(ChangeError::Missing)?;
            self.judge_route(before)?;
            let rule = update.applied(before).compile().map_err(|damage| damage.to_string())?;
            let after = RouteRow::from(&rule);
            let others: Vec<_> = there.iter().filter(|route| route.id != id).cloned().collect();
            refuse_twin(&others, &after, &rule)?;
            Ok(replacement(before, &after))
        };
        let change = self.store.change_routes(&plan).await.map_err(|error| match error {
            StoreError::Missing => AdminError::Missing(no_rule(&reference)),
            other => other.into(),
        })?;
        let (added, changed) = (change.added, change.changed.into_iter().map(|(_, after)| after));
        match added.into_iter().chain(changed).next() {
            Some(after) => Ok(after),
            // Nothing differs.
            None => self.route(id).await,
        }
    }

    /// Returns the rule with this id.
    ///
    /// # Errors
    ///
    /// There is no such rule.
    pub async fn route(&self, id: RouteId) -> Result<RouteRow, AdminError> {
        let found = self.store.routes().await?.into_iter().find(|route| route.id == id);
        found.ok_or_else(|| AdminError::Missing(no_rule(&id.0.to_string())))
    }

    /// Replaces all rules by these. A rule for the same requests as an existing one keeps its id.
    ///
    /// # Errors
    ///
    /// A rule is invalid, or two are for the same requests or have the same name. The error names their positions,
    /// counted from 1.
    pub async fn apply_routes(
        &self,
        wanted: &[RouteRow],
        dry_run: bool,
    ) -> Result<RouteDifference, AdminError> {
        let wanted = &read_table(wanted)?;
        if dry_run {
            let there = self.store.routes().await?;
            self.judge_routes(&there).map_err(StoreError::from)?;
            let change = difference(&there, wanted);
            return Ok(RouteDifference::of(&change, wanted.len(), true));
        }
        let plan = |there: &[RouteRow]| {
            self.judge_routes(there)?;
            let mut change = difference(there, wanted);
            let shown = RouteDifference::of(&change, wanted.len(), false);
            let changes = !(shown.added.is_empty() && shown.removed.is_empty() && shown.changed.is_empty());
            change.draft =
                changes.then(|| Draft::of(Action::RouteApply, "routes".into(), None::<&()>, &shown));
            change.table = after(there, &change);
            Ok(change)
        };
        let change = self.store.change_routes(&plan).await?;
        Ok(RouteDifference::of(&change, wanted.len(), false))
    }

    /// Returns the distinct lists of scopes that live keys are granted; `None` in it is a key without limits.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn granted_scopes(&self) -> Result<Vec<Option<Scopes>>, AdminError> {
        let now = self.now();
        let filter = KeyFilter { state: Some(KeyState::Active), now, ..KeyFilter::default() };
        let mut lists = HashSet::new();
        self.each_key(&filter, None, |key: &StoredKey| {
            if !lists.contains(&key.details.terms.scopes) {
                lists.insert(key.details.terms.scopes.clone());
            }
            Ok::<_, AdminError>(true)
        })
        .await?;
        let read = |list: Option<String>| match list {
            None => Some(None),
            Some(text) => Scopes::parse(&text).ok().map(Some),
        };
        Ok(lists.into_iter().filter_map(read).collect())
    }
}

/// Rejects a rule if another one is for the same requests or has the same name.
fn refuse_twin(others: &[RouteRow], route: &RouteRow, rule: &Rule) -> Result<(), ChangeError> {
    if let Some(twin) = RouteTable::of(others).twin(rule) {
        let twin = twin.name.as_deref().map_or_else(|| twin.id.0.to_string(), str::to_owned);
        return Err(ChangeError::Refused(format!(
            "the rule {twin} is for the same requests: remove it first"
        )));
    }
    if others.iter().any(|other| other.name.is_some() && other.name == route.name) {
        let name = route.name.as_deref().unwrap_or_default();
        return Err(ChangeError::Refused(format!("there is a rule named {name:?}: choose another name")));
    }
    Ok(())
}

/// Returns the change that replaces `before` by `after`, which has the same id.
fn replacement(before: &RouteRow, after: &RouteRow) -> RoutesChange {
    if before == after {
        return RoutesChange { unchanged: Some(before.clone()), ..RoutesChange::default() };
    }
    let (was, is) = (RouteView::from(before), RouteView::from(after));
    let draft = Some(Draft::of(Action::RouteUpdate, after.id.0.to_string(), Some(&was), &is));
    // Host, method and path of a row cannot be updated, so a row with other ones replaces it.
    if (&before.host, &before.method, &before.path) == (&after.host, &after.method, &after.path) {
        RoutesChange { changed: vec![(before.clone(), after.clone())], draft, ..RoutesChange::default() }
    } else {
        let (added, removed) = (vec![after.clone()], vec![before.clone()]);
        RoutesChange { added, removed, draft, ..RoutesChange::default() }
    }
}

fn no_rule(reference: &str) -> String {
    format!("there is no rule {reference:?}: `tenantgate route list` shows all")
}

/// Validates a table. Rejects invalid rules, and two rules for the same requests or with the same name.
fn read_table(rows: &[RouteRow]) -> Result<Vec<RouteRow>, AdminError> {
    let wrong = |place: usize, why: String| {
        Err::<Vec<_>, _>(AdminError::BadRequest(format!("rule {}: {why}", place + 1)))
    };
    let (mut shapes, mut names) = (HashMap::new(), HashMap::new());
    let mut table = Vec::with_capacity(rows.len());
    for (place, row) in rows.iter().enumerate() {
        match row.compile() {
            Ok(rule) => table.push(RouteRow::from(&rule)),
            Err(damage) => return wrong(place, format!("{}: {damage}", damage.part.as_str())),
        }
        if let Some(other) = shapes.insert(shape(row), place) {
            return wrong(place, format!("host, method and path are those of rule {}", other + 1));
        }
        if let Some(other) = row.name.as_ref().and_then(|name| names.insert(name, place)) {
            return wrong(place, format!("the name is that of rule {}", other + 1));
        }
    }
    Ok(table)
}

/// Returns host, method and path without the names of parameters, which is equal for rules for the same requests.
fn shape(row: &RouteRow) -> String {
    let (host, method, path) = match row.shape() {
        Ok(shape) => (shape.host.to_string(), shape.method.to_string(), shape.path.to_string()),
        Err(_) => (row.host.clone(), row.method.clone(), row.path.clone()),
    };
    let segment = |segment: &str| if segment.starts_with('{') { "{}".to_owned() } else { segment.to_owned() };
    let path: Vec<_> = path.split('/').map(segment).collect();
    format!("{host} {method} {}", path.join("/"))
}

/// Returns the table after a change.
fn after(there: &[RouteRow], change: &RoutesChange) -> Vec<RouteRow> {
    let gone = |id: RouteId| change.removed.iter().any(|route| route.id == id);
    let changed = |id: RouteId| change.changed.iter().find(|(before, _)| before.id == id);
    let stay = there.iter().filter(|route| !gone(route.id));
    let stay = stay.map(|route| changed(route.id).map_or(route, |(_, after)| after));
    stay.chain(&change.added).cloned().collect()
}

/// Returns the change that turns the table into `wanted`.
fn difference(there: &[RouteRow], wanted: &[RouteRow]) -> RoutesChange {
    let mut change = RoutesChange::default();
    let known: HashMap<String, &RouteRow> = there.iter().map(|row| (shape(row), row)).collect();
    let mut kept = HashSet::new();
    for row in wanted {
        // A rule whose path names its parameters differently is replaced, not updated.
        let same = |known: &&&RouteRow| {
            (&known.host, &known.method, &known.path) == (&row.host, &row.method, &row.path)
        };
        let Some(known) = known.get(&shape(row)).filter(same) else {
            change.added.push(RouteRow { id: RouteId(random::new_id()), ..row.clone() });
            continue;
        };
        kept.insert(known.id);
        let after = RouteRow { id: known.id, ..row.clone() };
        if after != **known {
            change.changed.push(((*known).clone(), after));
        }
    }
    change.removed = there.iter().filter(|row| !kept.contains(&row.id)).cloned().collect();
    change
}

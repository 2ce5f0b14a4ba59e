//! Checks whether a server could load this database, and what it would load.
//!
//! Loads all rows as a server does, without keeping them, and counts damaged rows, keys without a tenant, and memos by
//! pepper.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::diagnostics::Finding;
use crate::plan::PlanName;
use crate::record::{KeyRecord, Memo, PepperId};
use crate::route::{RouteRow, RouteTable};
use crate::store::inspect::Inspect;
use crate::store::{SnapshotRow, StoreError};
use crate::tenant::TenantId;
use crate::verify::memo::{MemoPolicy, Peppers};

/// The remedy for every row of a subscriber. If the row is right at the publisher, it may only not have arrived yet.
const AT_THE_PUBLISHER: &str = "change nothing here, a subscription writes these rows: run doctor on the publisher, and wait for what it has sent";

/// The counts.
#[derive(Default)]
pub(super) struct RowCounts {
    keys: usize,
    tenants: HashSet<TenantId>,
    tenants_of_keys: HashSet<TenantId>,
    damaged: usize,
    /// The first damaged row.
    first: Option<DamagedRow>,
    plans: HashSet<String>,
    /// The plans that keys and tenants have.
    named_plans: BTreeSet<String>,
    routes: Vec<RouteRow>,
    /// The number of keys by the pepper of their memo.
    memos: HashMap<PepperId, usize>,
    without_memo: usize,
    /// Whether rows are corrected in another database.
    subscriber: bool,
    /// Why the load failed; `None` if it succeeded.
    refused: Option<String>,
}

/// A damaged row.
struct DamagedRow {
    /// Which row it is, why it is damaged, and what follows.
    what: String,
    remedy: &'static str,
}

impl DamagedRow {
    fn of(row: &SnapshotRow, why: &str) -> Self {
        let (what, remedy) = match row {
            SnapshotRow::Key(key, ..) => (
                format!("key {}: {why}; it gets 503", key.id.0),
                "UPDATE the row, or revoke the key and create another",
            ),
            SnapshotRow::Tenant(tenant) => {
                (format!("tenant {}: {why}; its keys get 503", tenant.id.0), "UPDATE the row of tenants")
            }
            SnapshotRow::Plan(plan) => (
                format!("plan {:?}: {why}; keys on it get 503", plan.name),
                "change the plan with `tenantgate plan update`",
            ),
            SnapshotRow::Route(route) => (
                format!("route {}: {why}; requests that it could match get 503", route.id.0),
                "remove the rule with `tenantgate route remove` and add it again",
            ),
        };
        Self { what, remedy }
    }
}

impl RowCounts {
    /// Loads and counts all rows.
    pub(super) async fn load(store: &dyn Inspect) -> Result<Self, StoreError> {
        let mut rows = Self { subscriber: store.is_subscriber().await?, ..Self::default() };
        let loaded = match store.session().await {
            Ok(mut session) => session.load(&mut |row| rows.count(&row)).await.map(|_| ()),
            Err(error) => Err(error),
        };
        match loaded {
            Err(error @ StoreError::Unavailable(_)) => return Err(error),
            Err(error) => rows.refused = Some(error.to_string()),
            Ok(()) => rows.count_combinations(),
        }
        Ok(rows)
    }

    /// Counts rows that are damaged by what other rows are, or are not.
    fn count_combinations(&mut self) {
        for (entry, why) in RouteTable::of(&self.routes).twins() {
            let row = self.routes.iter().find(|row| row.id == entry.id);
            if let Some(row) = row {
                self.damaged += 1;
                self.first.get_or_insert_with(|| {
                    DamagedRow::of(&SnapshotRow::Route(row.clone()), &why.to_string())
                });
            }
        }
        let is_missing = |plan: &&String| !self.plans.contains(*plan) && PlanName::parse(plan).is_ok();
        for plan in self.named_plans.iter().filter(is_missing) {
            self.damaged += 1;
            self.first.get_or_insert_with(|| DamagedRow {
                what: format!("keys or tenants have the plan {plan:?}, which does not exist; their keys get 503"),
                remedy: "create the plan with `tenantgate plan create`, or give the keys and tenants another one",
            });
        }
    }

    fn count(&mut self, row: &SnapshotRow) {
        if let Some(why) = row.damage() {
            self.damaged += 1;
            self.first.get_or_insert_with(|| DamagedRow::of(row, &why));
        }
        if let Some(plan) = row.plan().filter(|plan| !self.named_plans.contains(*plan)) {
            self.named_plans.insert(plan.to_owned());
        }
        match row {
            SnapshotRow::Key(key, memo, _) => self.count_key(key, memo.as_ref()),
            SnapshotRow::Tenant(tenant) => drop(self.tenants.insert(tenant.id)),
            SnapshotRow::Plan(plan) => drop(self.plans.insert(plan.name.clone())),
            SnapshotRow::Route(route) => self.routes.push(route.clone()),
        }
    }

    fn count_key(&mut self, key: &KeyRecord, memo: Option<&Memo>) {
        self.keys += 1;
        self.tenants_of_keys.insert(key.tenant_id);
        match memo {
            Some(memo) => *self.memos.entry(memo.pepper).or_default() += 1,
            None => self.without_memo += 1,
        }
    }

    /// Returns the findings. Without peppers there is no finding about memos, because the pepper file already has one.
    pub(super) fn findings(&self, peppers: Option<&Peppers>) -> Vec<Finding> {
        if let Some(why) = &self.refused {
            return vec![Finding::bad(
                "database.load",
                why,
                "correct this: a server could not load it either",
            )];
        }
        let what = format!("{} keys of {} tenants", self.keys, self.tenants.len());
        let mut findings = vec![Finding::ok("database.load", what), self.damage()];
        findings.extend(peppers.map(|peppers| self.proofs(peppers)));
        findings
    }

    fn damage(&self) -> Finding {
        const CHECK: &str = "database.rows";
        let remedy = |here| if self.subscriber { AT_THE_PUBLISHER } else { here };
        let orphan = self.tenants_of_keys.difference(&self.tenants).next();
        match (&self.first, orphan) {
            (None, None) => Finding::ok(CHECK, "no row is damaged"),
            (None, Some(tenant)) => {
                let what =
                    format!("there are keys of the tenant {}, which does not exist: they get 503", tenant.0);
                Finding::bad(CHECK, what, remedy("restore the tenant, or DELETE its keys"))
            }
            (Some(first), _) => {
                let what = match self.damaged {
                    1 => format!("a row is damaged: {}", first.what),
                    rows => format!("{rows} rows are damaged; the first: {}", first.what),
                };
                Finding::bad(CHECK, what, remedy(first.remedy))
            }
        }
    }

    fn proofs(&self, peppers: &Peppers) -> Finding {
        const CHECK: &str = "pepper.memos";
        let known = |id: &PepperId| peppers.list().iter().any(|pepper| pepper.id() == *id);
        let of =
            |ours: bool| self.memos.iter().filter(|(id, _)| known(id) == ours).map(|(_, n)| n).sum::<usize>();
        let (known_memos, foreign) = (of(true), of(false));
        let rest = self.without_memo + foreign;
        let counts = format!("{known_memos} of {} keys have a memo of a pepper in the file", self.keys);
        if peppers.policy() == MemoPolicy::Required && rest > 0 {
            let what = format!("{counts}: --memo required rejects the other {rest}");
            Finding::warn(CHECK, what, "run with --memo optional until every key in use has one")
        } else if foreign > 0 {
            let what = format!(
                "{foreign} keys have a memo of an unknown pepper: each costs one bcrypt after a restart"
            );
            Finding::warn(CHECK, what, "add the old pepper below the new one")
        } else if peppers.list().is_empty() {
            Finding::ok(CHECK, "no --pepper-file: after a restart each key costs one bcrypt")
        } else {
            Finding::ok(CHECK, counts)
        }
    }
}

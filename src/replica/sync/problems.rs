//! What the synchronization logs for operators: outages, damaged rows and missing plans.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tracing::{debug, error, warn};

use super::PANICKED;
use crate::plan::PlanName;
use crate::replica::Snapshot;
use crate::route::RouteId;
use crate::store::{Change, SnapshotRow, StoreError};

/// What was logged since the database was lost. The causes of an outage can follow each other (a lost connection, a
/// refused one, then a wrong password), and can alternate at every attempt.
#[derive(Default)]
pub(super) struct OutageLog {
    /// The cause in the last line.
    last: String,
    /// The causes in the lines of the last minute, with the uptime of each line.
    lines: Vec<(String, Duration)>,
}

impl OutageLog {
    /// A cause is logged again after this time, if another one was logged meanwhile.
    const REPEAT: Duration = Duration::from_mins(1);
    /// The most lines within that time.
    const LINES: usize = 10;

    /// Returns whether to log this cause now.
    fn is_news(&mut self, cause: &str, uptime: Duration) -> bool {
        self.lines.retain(|(_, at)| uptime.saturating_sub(*at) < Self::REPEAT);
        let known = self.last == cause || self.lines.iter().any(|(known, _)| known == cause);
        if known || self.lines.len() >= Self::LINES {
            return false;
        }
        cause.clone_into(&mut self.last);
        self.lines.push((cause.to_owned(), uptime));
        true
    }

    /// Logs the loss of the database, and each new cause, but not each attempt.
    pub(super) fn log(&mut self, error: &StoreError, loaded: bool, uptime: Duration) {
        let gone = matches!(error, StoreError::Unavailable(_) | StoreError::Locked(_));
        if matches!(error, StoreError::Unavailable(why) if why == PANICKED) {
            error!(part = "replica", "a part of the server panicked and is restarted");
        } else if !self.is_news(&error.to_string(), uptime) {
            debug!(%error, "the database is still not there");
        } else if matches!(error, StoreError::Credentials(_)) {
            error!(%error, "the database rejects the password or the role, known keys are served while it does");
        } else if !loaded {
            warn!(%error, "no database yet, trying again");
        } else if gone {
            warn!(%error, "lost the database, known keys are served while it is gone");
        } else {
            error!(%error, "the database is not usable, known keys are served until that is fixed");
        }
    }
}

/// Damaged rows, to be logged so that operators can fix them.
#[derive(Default)]
pub(super) struct DamagedRows(Vec<SnapshotRow>);

impl DamagedRows {
    /// The most rows that are logged for one load or poll.
    const LINES: usize = 100;

    pub(super) fn add(&mut self, row: &SnapshotRow) {
        if self.0.len() < Self::LINES {
            self.0.push(row.clone());
        }
    }

    pub(super) fn log(self) {
        for row in self.0 {
            let why = row.damage();
            match row {
                SnapshotRow::Key(k, ..) => {
                    warn!(key.id = %k.id.0, key.prefix = %k.prefix, why, "damaged row of api_keys, its key gets 503 until it is fixed");
                }
                SnapshotRow::Tenant(t) => {
                    warn!(tenant.id = %t.id.0, why, "damaged row of tenants, its keys get 503 until it is fixed");
                }
                SnapshotRow::Plan(p) => {
                    warn!(
                        plan = p.name,
                        why, "damaged row of tenantgate_plan, keys on it get 503 until it is fixed"
                    );
                }
                // See `log_damaged_rules`.
                SnapshotRow::Route(_) => {}
            }
        }
    }
}

/// Returns the plan that a change makes necessary: one that a row names, or one that was deleted while rows name it.
pub(super) fn named_plan<'c>(change: &'c Change, before: &Snapshot) -> Option<&'c str> {
    match change {
        Change::Now(row) => row.plan(),
        Change::NoPlan(name) => Some(&**name).filter(|name| before.names_plan(name)),
        Change::NoKey(_) | Change::NoTenant(_) | Change::NoRoute(_) | Change::Mark => None,
    }
}

/// Logs those of these plans, which rows name, that do not exist.
pub(super) fn log_missing_plans(next: &Snapshot, named: HashSet<Box<str>>) {
    // An invalid name is damage of the row itself.
    let mut missing: Vec<_> =
        named.into_iter().filter(|plan| next.plan(plan).is_none() && PlanName::parse(plan).is_ok()).collect();
    missing.sort_unstable();
    for plan in missing.into_iter().take(DamagedRows::LINES) {
        warn!(
            plan = &*plan,
            "keys or tenants have a plan that does not exist, their keys get 503 until it is created"
        );
    }
}

/// Returns the ids of the rules in a change.
pub(super) fn changed_rules(changes: &[Change]) -> HashSet<RouteId> {
    let rule = |change: &Change| match change.row() {
        Some(SnapshotRow::Route(rule)) => Some(rule.id),
        _ => None,
    };
    changes.iter().filter_map(rule).collect()
}

/// Logs damaged rules: those of these ids, and those that are damaged in another way than before. Some are valid rows, but
/// have the host, method and path of another rule.
pub(super) fn log_damaged_rules(before: &Snapshot, next: &Snapshot, changed: &HashSet<RouteId>) {
    if std::ptr::eq(before.routes(), next.routes()) {
        return;
    }
    let known: HashMap<_, _> = before.routes().damaged().map(|(entry, damage)| (entry.id, damage)).collect();
    let is_news = |id: &RouteId, damage| changed.contains(id) || known.get(id) != Some(&damage);
    let damaged = next.routes().damaged().filter(|(entry, damage)| is_news(&entry.id, *damage));
    for (entry, damage) in damaged.take(DamagedRows::LINES) {
        warn!(route.id = %entry.id.0, why = %damage, "damaged row of tenantgate_route, requests that it could match get 503 until it is fixed");
    }
}

#[cfg(test)]
mod tests;

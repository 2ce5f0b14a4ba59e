//! Counts decisions until the thread sends them.
//!
//! A worker of Envoy never waits: it uses the first map that no other thread has locked. Other workers and the
//! background thread lock a map for less than a microsecond.

use std::collections::HashMap;
use std::sync::Mutex;

use tenantgate_core::clock::Timestamp;
use tenantgate_snapshot::Report;

/// The number of maps: usually more than there are workers at the same time.
const MAPS: usize = 16;

/// The maximum number of keys in a map. Further decisions are only in Envoy's counters.
const MOST_KEYS: usize = 1 << 16;

type Counts = HashMap<(Box<str>, Box<str>), (u64, i64)>;

/// The numbers of decisions by key and reason.
#[derive(Debug, Default)]
pub(crate) struct Reports([Mutex<Counts>; MAPS]);

impl Reports {
    /// Counts a decision.
    pub(crate) fn add(&self, prefix: &str, reason: &str, now: Timestamp) {
        for map in &self.0 {
            let Ok(mut counts) = map.try_lock() else { continue };
            let full = counts.len() >= MOST_KEYS;
            let slot = (prefix.into(), reason.into());
            if full && !counts.contains_key(&slot) {
                return;
            }
            let (requests, at) = counts.entry(slot).or_insert((0, i64::MIN));
            *requests += 1;
            *at = now.0.max(*at);
            return;
        }
    }

    /// Removes and returns all counts.
    pub(crate) fn take(&self) -> Vec<Report> {
        let mut reports = Vec::new();
        for map in &self.0 {
            let counts = map.lock().map(|mut counts| std::mem::take(&mut *counts)).unwrap_or_default();
            let each = counts.into_iter();
            reports.extend(each.map(|((prefix, reason), (requests, at))| Report {
                prefix: prefix.into(),
                reason: reason.into(),
                requests,
                at,
            }));
        }
        reports
    }
}

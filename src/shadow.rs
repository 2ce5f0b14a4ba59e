//! Whom would enforcing hurt?
//!
//! In shadow mode a request that was to be refused passes, and is noted here
//! ([`Report::note`]): from which network, with which program, for what, and why it
//! would have been refused. Requests that are alike in all of that are one entry; the
//! entries of a day are bounded, and what finds no room any more is counted together.
//! What was noted is added to a table every half minute, where
//! `tenantgate report shadow` reads it.
//!
//! All of this comes from strangers, so it is kept short, printable, and free of what
//! could be a secret ([`plain`]). What Envoy calls these things is not known here.

mod plain;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::interval;

use crate::clock::Timestamp;
use crate::decision::Objection;
use crate::stats::Count;
use crate::store::{Shadowed, ShadowedKind, Store};
use crate::writing::Writing;

/// How the report is kept.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often it is written down.
    pub interval: Duration,
    /// How long one batch may take before it is left for the next time.
    pub timeout: Duration,
    /// How many entries a day may have, half a kilobyte each.
    pub bound: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { interval: Duration::from_secs(30), timeout: Duration::from_secs(5), bound: 2_000 }
    }
}

/// Rows per statement.
const BATCH: usize = 500;

/// What stands for everything that found no room.
pub const OTHERS: &str = "(others)";

/// Where a request comes from and what it is for, as the client says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin<'a> {
    /// The client's address, if it is known.
    pub address: Option<IpAddr>,
    /// The program it says it is.
    pub user_agent: &'a [u8],
    /// The method.
    pub method: &'a [u8],
    /// The path, query and all.
    pub path: &'a [u8],
}

/// What was noted, and is not all written down yet. Cheap to clone.
#[derive(Clone)]
pub struct Report(Arc<Shared>);

struct Shared {
    options: Options,
    day: Mutex<Day>,
    writing: Writing,
    crowded: Count,
}

/// The entries of a day, those written down too: they count against the bound.
#[derive(Default)]
struct Day {
    number: i64,
    entries: HashMap<ShadowedKind, Tally>,
}

/// What is not written down of an entry.
#[derive(Clone, Copy)]
struct Tally {
    requests: u64,
    first: Timestamp,
    last: Timestamp,
}

impl Report {
    /// An empty report.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let (day, writing) = (Mutex::default(), Writing::of("the shadow report"));
        Self(Arc::new(Shared { options, day, writing, crowded: Count::default() }))
    }

    /// Takes note of a request that passed and was to be refused.
    pub fn note(&self, objection: &Objection<'_>, origin: &Origin<'_>, now: Timestamp) {
        let kind = ShadowedKind {
            reason: objection.as_str().into(),
            network: plain::network(origin.address),
            user_agent: plain::text(origin.user_agent, plain::USER_AGENT),
            method: plain::text(origin.method, plain::METHOD),
            path: plain::path(origin.path),
            key_prefix: objection.identity().map_or_else(String::new, |holder| holder.key.prefix.to_string()),
        };
        let mut day = self.lock();
        day.turn(now);
        let crowded = day.entries.len() >= self.0.options.bound && !day.entries.contains_key(&kind);
        let kind = if crowded { others(&kind.reason) } else { kind };
        if crowded {
            self.0.crowded.add_one();
        }
        day.entries.entry(kind).or_insert(Tally { requests: 0, first: now, last: now }).add(now);
    }

    /// What came of writing it.
    #[must_use]
    pub fn writing(&self) -> &Writing {
        &self.0.writing
    }

    /// Requests that found no room of their own.
    #[must_use]
    pub fn crowded(&self) -> &Count {
        &self.0.crowded
    }

    /// Writes down what was noted every [`Options::interval`], for ever.
    pub async fn run(self, store: Arc<dyn Store>) {
        let mut ticks = interval(self.0.options.interval);
        loop {
            ticks.tick().await;
            self.flush(store.as_ref()).await;
        }
    }

    /// Writes down what was noted. What cannot be is kept for the next time.
    ///
    /// # Cancel safety
    ///
    /// What is being written when it is dropped may be counted twice.
    pub async fn flush(&self, store: &dyn Store) {
        for batch in self.unwritten().chunks(BATCH) {
            let write = store.write_shadowed(batch);
            if self.0.writing.attempt(batch.len(), self.0.options.timeout, write).await.is_none() {
                return;
            }
            self.lock().forget(batch);
        }
    }

    /// In an order that all servers keep, so that two that write the same rows wait for each other and no more.
    fn unwritten(&self) -> Vec<Shadowed> {
        let day = self.lock();
        let noted = day.entries.iter().filter(|(_, tally)| tally.requests > 0);
        let mut rows: Vec<_> = noted.map(|(kind, tally)| tally.row(kind.clone())).collect();
        drop(day);
        rows.sort_unstable_by(|a, b| (a.first_seen.day(), &a.kind).cmp(&(b.first_seen.day(), &b.kind)));
        rows
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Day> {
        self.0.day.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Day {
    /// Makes room when a new day begins.
    fn turn(&mut self, now: Timestamp) {
        if self.number != now.day() {
            self.number = now.day();
            self.entries.retain(|_, tally| tally.requests > 0);
        }
    }

    /// Takes what was written off what is to be.
    fn forget(&mut self, written: &[Shadowed]) {
        for row in written {
            if let Some(tally) = self.entries.get_mut(&row.kind) {
                tally.requests = tally.requests.saturating_sub(row.requests);
            }
        }
    }
}

impl Tally {
    fn add(&mut self, now: Timestamp) {
        if self.requests == 0 {
            (self.first, self.last) = (now, now);
        }
        self.requests += 1;
        self.last = self.last.max(now);
    }

    fn row(self, kind: ShadowedKind) -> Shadowed {
        Shadowed { kind, requests: self.requests, first_seen: self.first, last_seen: self.last }
    }
}

fn others(reason: &str) -> ShadowedKind {
    let others = || OTHERS.to_owned();
    ShadowedKind {
        reason: reason.to_owned(),
        network: others(),
        user_agent: others(),
        method: others(),
        path: others(),
        key_prefix: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::{Denial, Reason};

    const DAY: i64 = 86_400_000_000;

    fn missing() -> Objection<'static> {
        Objection::Denied(Denial { reason: Reason::Missing, identity: None, needs: None })
    }

    fn report(bound: usize) -> Report {
        Report::new(Options { bound, ..Options::default() })
    }

    fn note(report: &Report, path: &str, at: i64) {
        let origin = Origin { address: "192.0.2.7".parse().ok(), path: path.as_bytes(), ..Origin::default() };
        report.note(&missing(), &origin, Timestamp(at));
    }

    fn rows(report: &Report) -> Vec<(String, u64, i64, i64)> {
        let row = |row: Shadowed| (row.kind.path, row.requests, row.first_seen.0, row.last_seen.0);
        report.unwritten().into_iter().map(row).collect()
    }

    #[test]
    fn requests_that_are_alike_are_one_entry() {
        let report = report(10);
        note(&report, "/a", 5);
        note(&report, "/a?x=1", 9);
        note(&report, "/b", 7);
        assert_eq!(rows(&report), [("/a".into(), 2, 5, 9), ("/b".into(), 1, 7, 7)]);
    }

    #[test]
    fn a_day_has_so_many_entries_and_what_finds_no_room_is_counted_together() {
        let report = report(2);
        for path in ["/a", "/b", "/c", "/d", "/a"] {
            note(&report, path, 1);
        }
        assert_eq!(rows(&report), [(OTHERS.into(), 2, 1, 1), ("/a".into(), 2, 1, 1), ("/b".into(), 1, 1, 1)]);
        assert_eq!(report.crowded().value(), 2);
    }

    #[test]
    fn what_was_written_is_not_written_again_and_makes_room_the_next_day() {
        let report = report(1);
        note(&report, "/a", 1);
        let written = report.unwritten();
        note(&report, "/a", 2);
        report.lock().forget(&written);
        assert_eq!(rows(&report), [("/a".into(), 1, 1, 2)]);
        let written = report.unwritten();
        report.lock().forget(&written);
        note(&report, "/b", 3);
        assert_eq!(rows(&report), [(OTHERS.into(), 1, 3, 3)], "written entries count against the bound");
        let written = report.unwritten();
        report.lock().forget(&written);
        note(&report, "/b", DAY);
        assert_eq!(rows(&report), [("/b".into(), 1, DAY, DAY)]);
    }
}

//! Collects what enforcement would reject, for the shadow report.
//!
//! In shadow mode, a request that would be rejected passes and is recorded ([`ShadowReport::note`]): its network,
//! client program, method, path, and the reason. Requests that are equal in all of these share one entry. The number of
//! entries a day is bounded; requests beyond the bound are counted together. Every half minute the entries are added to
//! a table, which `tenantgate report shadow` reads.
//!
//! Clients choose all of this text. It is therefore cut, made printable, and cleaned of everything that could be a
//! secret ([`plain`]). Depends on: no message of Envoy.

mod plain;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::batch_writer::{BatchWriter, Buffer, Schedule};
use crate::clock::Timestamp;
use crate::decision::Objection;
use crate::stats::Counter;
use crate::store::{Shadowed, ShadowedKind, Store, StoreError};

/// The default interval.
pub const INTERVAL: Duration = Duration::from_secs(30);

/// The maximum number of entries a day, half a kilobyte each.
const BOUND: usize = 2_000;

/// Stands for all requests beyond the bound.
pub const OTHERS: &str = "(others)";

/// The origin and the target of a request, as the client gives them.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestOrigin<'a> {
    /// The client's address, if it is known.
    pub address: Option<IpAddr>,
    /// The `user-agent` header.
    pub user_agent: &'a [u8],
    /// The method.
    pub method: &'a [u8],
    /// The path with its query.
    pub path: &'a [u8],
}

/// Collects and writes the report. Cheap to clone.
pub type ShadowReport = BatchWriter<Entries>;

/// The entries of the current day, and those not written yet.
pub struct Entries {
    bound: usize,
    day: Mutex<Day>,
    crowded: Counter,
}

/// The entries of a day. Written entries stay until the day ends, because they count against the bound.
#[derive(Default)]
struct Day {
    number: i64,
    /// By day, because requests of the day before may wait for the database.
    entries: HashMap<(i64, ShadowedKind), Tally>,
}

/// The requests of an entry that are not written yet.
#[derive(Clone, Copy)]
struct Tally {
    requests: u64,
    first: Timestamp,
    last: Timestamp,
}

impl ShadowReport {
    /// Creates an empty report.
    #[must_use]
    pub fn new(schedule: Schedule) -> Self {
        Self::of(Entries::new(BOUND), schedule)
    }

    /// Records a request that passed and would be rejected by enforcement.
    pub fn note(&self, objection: &Objection<'_>, origin: &RequestOrigin<'_>, now: Timestamp) {
        self.buffer().note(objection, origin, now);
    }

    /// Returns the number of requests beyond the bound.
    #[must_use]
    pub fn crowded(&self) -> &Counter {
        &self.buffer().crowded
    }
}

impl Entries {
    fn new(bound: usize) -> Self {
        Self { bound, day: Mutex::default(), crowded: Counter::default() }
    }

    fn note(&self, objection: &Objection<'_>, origin: &RequestOrigin<'_>, now: Timestamp) {
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
        let mut kind = (now.day(), kind);
        if day.entries.len() >= self.bound && !day.entries.contains_key(&kind) {
            kind.1 = others(&kind.1.reason);
            self.crowded.add_one();
        }
        day.add(kind, Tally { requests: 1, first: now, last: now });
    }

    fn lock(&self) -> MutexGuard<'_, Day> {
        self.day.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer for Entries {
    type Row = Shadowed;
    const NAME: &'static str = "the shadow report";
    const BATCH: usize = 500;

    /// Takes the rows in an order that is the same on all servers, so that two servers cannot deadlock.
    fn take(&self) -> Vec<Shadowed> {
        let mut day = self.lock();
        let waiting = day.entries.iter_mut().filter(|(_, tally)| tally.requests > 0);
        let mut rows: Vec<_> = waiting.map(|((_, kind), tally)| tally.take().row(kind.clone())).collect();
        drop(day);
        rows.sort_unstable_by(|a, b| (a.first_seen.day(), &a.kind).cmp(&(b.first_seen.day(), &b.kind)));
        rows
    }

    fn put_back(&self, rows: Vec<Shadowed>) {
        let mut day = self.lock();
        for Shadowed { kind, requests, first_seen: first, last_seen: last } in rows {
            day.add((first.day(), kind), Tally { requests, first, last });
        }
    }

    async fn write(&self, store: &dyn Store, batch: &[Shadowed]) -> Result<Vec<Shadowed>, StoreError> {
        store.write_shadowed(batch).await?;
        Ok(Vec::new())
    }
}

impl Day {
    /// Drops the written entries of the day before when a new day begins.
    fn turn(&mut self, now: Timestamp) {
        if self.number != now.day() {
            self.number = now.day();
            self.entries.retain(|_, tally| tally.requests > 0);
        }
    }

    fn add(&mut self, kind: (i64, ShadowedKind), more: Tally) {
        let tally = self.entries.entry(kind).or_insert(Tally { requests: 0, ..more });
        *tally = if tally.requests == 0 { more } else { tally.plus(more) };
    }
}

impl Tally {
    fn plus(self, more: Self) -> Self {
        Self {
            requests: self.requests + more.requests,
            first: self.first.min(more.first),
            last: self.last.max(more.last),
        }
    }

    /// Takes the requests, so that none remain to be written.
    fn take(&mut self) -> Self {
        let taken = *self;
        self.requests = 0;
        taken
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
    use crate::clock::MICROS_PER_DAY as DAY;
    use crate::decision::{Denial, Reason};

    fn missing() -> Objection<'static> {
        Objection::Denied(Denial { reason: Reason::Missing, identity: None, needs: None })
    }

    fn note(entries: &Entries, path: &str, at: i64) {
        let origin = RequestOrigin {
            address: "192.0.2.7".parse().ok(),
            path: path.as_bytes(),
            ..RequestOrigin::default()
        };
        entries.note(&missing(), &origin, Timestamp(at));
    }

    fn written(entries: &Entries) -> Vec<(String, u64, i64, i64)> {
        let row = |row: Shadowed| (row.kind.path, row.requests, row.first_seen.0, row.last_seen.0);
        entries.take().into_iter().map(row).collect()
    }

    #[test]
    fn equal_requests_share_one_entry() {
        let entries = Entries::new(10);
        note(&entries, "/a", 5);
        note(&entries, "/a?x=1", 9);
        note(&entries, "/b", 7);
        assert_eq!(written(&entries), [("/a".into(), 2, 5, 9), ("/b".into(), 1, 7, 7)]);
    }

    #[test]
    fn requests_beyond_the_bound_of_a_day_are_counted_together() {
        let entries = Entries::new(2);
        for path in ["/a", "/b", "/c", "/d", "/a"] {
            note(&entries, path, 1);
        }
        let expected = [(OTHERS.into(), 2, 1, 1), ("/a".into(), 2, 1, 1), ("/b".into(), 1, 1, 1)];
        assert_eq!(written(&entries), expected);
        assert_eq!(entries.crowded.value(), 2);
    }

    #[test]
    fn a_request_is_written_once_and_its_entry_is_dropped_the_next_day() {
        let entries = Entries::new(1);
        note(&entries, "/a", 1);
        assert_eq!(written(&entries), [("/a".into(), 1, 1, 1)]);
        note(&entries, "/a", 2);
        assert_eq!(written(&entries), [("/a".into(), 1, 2, 2)]);
        note(&entries, "/b", 3);
        assert_eq!(written(&entries), [(OTHERS.into(), 1, 3, 3)], "written entries count against the bound");
        note(&entries, "/b", DAY);
        assert_eq!(written(&entries), [("/b".into(), 1, DAY, DAY)]);
    }

    #[test]
    fn rows_that_were_put_back_are_added_to_later_requests() {
        let entries = Entries::new(10);
        note(&entries, "/a", 5);
        note(&entries, "/a", 7);
        let failed = entries.take();
        note(&entries, "/a", 9);
        entries.put_back(failed);
        assert_eq!(written(&entries), [("/a".into(), 3, 5, 9)]);
        assert_eq!(written(&entries), []);
    }

    #[test]
    fn rows_that_were_put_back_after_midnight_stay_rows_of_their_day() {
        let entries = Entries::new(10);
        note(&entries, "/a", 5);
        let failed = entries.take();
        note(&entries, "/a", DAY);
        entries.put_back(failed);
        assert_eq!(written(&entries), [("/a".into(), 1, 5, 5), ("/a".into(), 1, DAY, DAY)]);
    }
}

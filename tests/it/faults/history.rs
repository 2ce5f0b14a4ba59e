//! The history of a play: every change of validity, and every loss of the connection.
//!
//! An act has an instant before it and one after it, and took effect in between, because the time of a commit is not
//! known more precisely. All instants count from the start of the play.

use std::collections::BTreeMap;
use std::time::Duration;

/// An instant of a play.
pub(super) type At = Duration;

/// The interval from just before an act to just after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) begin: At,
    pub(super) end: At,
}

impl Span {
    /// An act that has not happened.
    pub(super) const NEVER: Self = Self { begin: At::MAX, end: At::MAX };
}

/// The state of a key after an act, as the row of its answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Version {
    pub(super) row: &'static str,
    pub(super) since: Span,
    pub(super) by: By,
}

/// The cause of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// A commit.
    Commit,
    /// The clock: an expiry.
    Clock,
}

/// A time in which a server may not, or cannot, read the database.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    pub(super) sort: Sort,
    pub(super) begins: Span,
    pub(super) ends: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// Nothing was loaded yet, and nothing can be loaded.
    Unloaded,
    /// No poll can succeed.
    Cut,
    /// A poll may succeed or fail.
    Doubtful,
}

/// The keys changed by one transaction, with the versions that it created.
pub(super) type Transaction = Vec<(&'static str, usize)>;

/// All acts.
#[derive(Clone, Debug)]
pub(super) struct History {
    pub(super) max_staleness: Duration,
    pub(super) lives: BTreeMap<&'static str, Vec<Version>>,
    pub(super) transactions: Vec<Transaction>,
    pub(super) outages: Vec<Outage>,
    /// Pauses of the server process: from when it was certainly paused until it may have continued.
    pub(super) stops: Vec<Span>,
    /// Pauses of the machine.
    pub(super) stalls: Vec<Span>,
    /// When the server was told to stop.
    pub(super) goodbye: Option<At>,
}

impl History {
    /// An empty history.
    pub(super) fn of(max_staleness: Duration, rows: &[(&'static str, &'static str)]) -> Self {
        let since = Span { begin: At::ZERO, end: At::ZERO };
        let life = |&(key, row)| (key, vec![Version { row, since, by: By::Commit }]);
        Self {
            max_staleness,
            lives: rows.iter().map(life).collect(),
            transactions: Vec::new(),
            outages: Vec::new(),
            stops: Vec::new(),
            stalls: Vec::new(),
            goodbye: None,
        }
    }

    /// Records a transaction that set these keys to these rows.
    pub(super) fn commit(&mut self, since: Span, changes: &[(&'static str, &'static str)]) {
        let transaction = changes.iter().map(|&(key, row)| (key, self.change(key, row, since, By::Commit)));
        let transaction = transaction.collect();
        self.transactions.push(transaction);
    }

    /// Returns the number of the version.
    pub(super) fn change(&mut self, key: &'static str, row: &'static str, since: Span, by: By) -> usize {
        let life = self.lives.get_mut(key).expect("a key of the cast");
        life.push(Version { row, since, by });
        life.len() - 1
    }

    /// Records that the database is unreachable from an act on.
    pub(super) fn outage(&mut self, sort: Sort, begins: Span) {
        self.outages.push(Outage { sort, begins, ends: Span::NEVER });
    }

    /// Records that it is reachable again.
    pub(super) fn outage_ends(&mut self, ends: Span) {
        let open = self.outages.last_mut().filter(|outage| outage.ends.begin == At::MAX);
        open.expect("an outage that has not ended").ends = ends;
    }
}

//! The history of a play: every change of validity, and every loss of the connection.
//!
//! An act has an instant before it and one after it, and took effect in between, because the time of a commit is not
//! known more precisely. All instants count from the start of the play.

use std::collections::BTreeMap;
use std::time::Duration;

/// An instant of a play.
pub(super) type At = Duration;

/// From just before an act to just after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) begin: At,
    pub(super) end: At,
}

impl Span {
    /// What has not happened.
    pub(super) const NEVER: Self = Self { begin: At::MAX, end: At::MAX };
}

/// What a key is from an act on, as the row of the answers it gets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Version {
    pub(super) row: &'static str,
    pub(super) since: Span,
    pub(super) by: By,
}

/// What brings a version about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// A commit, of which a server hears.
    Commit,
    /// The clock, which needs no database.
    Clock,
}

/// A time in which a server may not know, or cannot know, what the database says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    pub(super) sort: Sort,
    pub(super) begins: Span,
    pub(super) ends: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// Nothing was ever loaded, and nothing can be.
    Unloaded,
    /// No look at the database can be good.
    Cut,
    /// A look may be good or not.
    Doubtful,
}

/// The keys changed by one transaction, and which of their versions it made.
pub(super) type Transaction = Vec<(&'static str, usize)>;

/// Everything that was done.
#[derive(Clone, Debug)]
pub(super) struct History {
    pub(super) max_staleness: Duration,
    pub(super) lives: BTreeMap<&'static str, Vec<Version>>,
    pub(super) transactions: Vec<Transaction>,
    pub(super) outages: Vec<Outage>,
    /// When the process of the server stood still: from when it surely did until it might not any more.
    pub(super) stops: Vec<Span>,
    /// When nobody on this machine got anything done.
    pub(super) stalls: Vec<Span>,
    /// When the server was told to go.
    pub(super) goodbye: Option<At>,
}

impl History {
    /// Nothing happened yet.
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

    /// One transaction made these keys what their rows say.
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

    /// The database is out of reach from an act on.
    pub(super) fn outage(&mut self, sort: Sort, begins: Span) {
        self.outages.push(Outage { sort, begins, ends: Span::NEVER });
    }

    /// And in reach again.
    pub(super) fn outage_ends(&mut self, ends: Span) {
        let open = self.outages.last_mut().filter(|outage| outage.ends.begin == At::MAX);
        open.expect("an outage that goes on").ends = ends;
    }
}

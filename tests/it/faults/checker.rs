//! A pure function that checks each answer against the history of the database.
//!
//! An answer depends on the state of the database at some instant, and on the age of the server's data. Neither is
//! visible from outside, but both are bounded: the instant is not before the last poll that the server must have made,
//! and not after the answer was received. An answer is wrong if no instant within these bounds explains it:
//!
//! - a key was allowed that was valid at no instant within the bounds, or rejected although it was valid at all of
//!   them;
//! - a known key got 503 although the data cannot be too old, or another answer although it must be;
//! - an unknown key got 401 although the data must be stale, 503 although it cannot be, or was allowed;
//! - an answer from before a transaction, requested after an answer from after it: a torn or reverted snapshot.

use std::time::Duration;

use super::history::{At, By, History, Outage, Sort, Span, Transaction, Version};

/// One Check and its answer.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: &'static str,
    pub(super) sent: At,
    pub(super) received: At,
    pub(super) row: String,
}

impl Entry {
    /// The time that the caller waited.
    pub(super) fn took(&self) -> Duration {
        self.received.saturating_sub(self.sent)
    }
}

/// The maximum delay after a commit on a healthy server. A tenth of it is promised; the rest is for a loaded machine.
pub(super) const SLACK: Duration = Duration::from_secs(1);

/// The age from which a server's data is stale.
const STALE_AFTER: Duration = Duration::from_secs(1);

/// After a lost session, two seconds are promised; the rest is for a loaded machine.
pub(super) const RECOVERY: Duration = Duration::from_secs(3);

/// Answers that need no data.
const ALWAYS: [&str; 3] = ["401 missing", "401 malformed", "200 public"];

const UNKNOWN: &str = "401 unknown";
const UNAVAILABLE: &str = "503 unavailable";

/// Returns a description of every answer that cannot be explained.
pub(super) fn judge(history: &History, log: &[Entry]) -> Vec<String> {
    let unexplained = log.iter().filter_map(|entry| explain(history, entry).err());
    let torn = history.transactions.iter().filter_map(|change| goes_back(history, log, change));
    unexplained.chain(torn).collect()
}

/// Returns the time from the commit to the last answer from before it.
pub(super) fn lateness(history: &History, log: &[Entry], change: &Transaction) -> Duration {
    let &(key, version) = change.first().expect("a transaction changes something");
    let committed = history.lives[key][version].since.end;
    let before = log.iter().filter(|entry| side(history, entry, change) == Some(Side::Before));
    before.map(|entry| entry.received.saturating_sub(committed)).max().unwrap_or_default()
}

/// The possible age of the data behind an answer.
struct Age {
    least: Duration,
    most: Duration,
}

/// The bounds of an answer.
struct Bounds {
    /// The earliest possible state of the database.
    from: At,
    age: Age,
}

/// Returns the maximum delay on a healthy server, given the pauses of the machine at that time.
fn slack(history: &History, sent: At, received: At) -> Duration {
    let near = |stall: &&Span| stall.begin <= received && sent <= stall.end + SLACK;
    let stalls = history.stalls.iter().filter(near).map(|stall| stall.end.saturating_sub(stall.begin));
    SLACK + stalls.sum::<Duration>()
}

fn bounds(history: &History, sent: At, received: At) -> Bounds {
    let slack = slack(history, sent, received);
    let outage = history.outages.iter().find(|outage| covers(outage, sent, received));
    let (seen, age) = match outage {
        None => (sent.saturating_sub(slack), Age { least: Duration::ZERO, most: slack }),
        Some(outage) => {
            let seen = outage.begins.begin.min(sent).saturating_sub(slack);
            (seen, age_in(outage, sent, received, slack))
        }
    };
    Bounds { from: seen.max(sent.saturating_sub(history.max_staleness)), age }
}

fn covers(outage: &Outage, sent: At, received: At) -> bool {
    received >= outage.begins.begin && sent <= outage.ends.end.saturating_add(RECOVERY)
}

fn age_in(outage: &Outage, sent: At, received: At, slack: Duration) -> Age {
    let over = received >= outage.ends.begin;
    let most = received.saturating_sub(outage.begins.begin) + slack;
    match outage.sort {
        Sort::Unloaded if over => Age { least: Duration::ZERO, most: Duration::MAX },
        Sort::Unloaded => Age { least: Duration::MAX, most: Duration::MAX },
        Sort::Cut if !over => Age { least: sent.saturating_sub(outage.begins.end), most },
        Sort::Cut | Sort::Doubtful => Age { least: Duration::ZERO, most },
    }
}

/// Returns the earliest time at which the Check was read: a paused process reads nothing.
fn asked(history: &History, entry: &Entry) -> At {
    let still = |stop: &&Span| stop.begin <= entry.sent && entry.sent < stop.end;
    history.stops.iter().find(still).map_or(entry.sent, |stop| stop.end)
}

/// Returns the versions of a key that may explain an answer, by number.
fn possible<'a>(
    history: &'a History,
    entry: &'a Entry,
    from: At,
) -> impl Iterator<Item = (usize, &'a Version)> {
    let sent = asked(history, entry);
    let life = &history.lives[entry.key];
    life.iter().enumerate().filter(move |(number, version)| {
        let gone_at = life.get(number + 1).map(|next| match next.by {
            By::Commit => next.since.end >= from,
            By::Clock => next.since.end >= sent,
        });
        version.since.begin <= entry.received && gone_at.unwrap_or(true)
    })
}

fn explain(history: &History, entry: &Entry) -> Result<(), String> {
    if history.goodbye.is_some_and(|at| entry.sent >= at) && entry.row.starts_with("grpc") {
        return Ok(());
    }
    let sent = asked(history, entry);
    let Bounds { from, age } = bounds(history, sent, entry.received);
    let rows: Vec<&str> = possible(history, entry, from).map(|(_, version)| version.row).collect();
    let too_old = Told { may: age.most > history.max_staleness, must: age.least > history.max_staleness };
    let stale = Told { may: age.most > STALE_AFTER, must: age.least > STALE_AFTER };
    if allowed(&entry.row, &rows, &too_old, &stale) {
        return Ok(());
    }
    Err(format!(
        "`{}` for {}, sent {:?}, received {:?}: from {from:?} on it was {rows:?} (stale {stale:?}, too old {too_old:?})",
        entry.row, entry.key, entry.sent, entry.received
    ))
}

/// Whether a server may be, and must be, in a state.
#[derive(Debug)]
struct Told {
    may: bool,
    must: bool,
}

fn allowed(row: &str, rows: &[&str], too_old: &Told, stale: &Told) -> bool {
    match row {
        row if ALWAYS.contains(&row) || rows.iter().any(|row| ALWAYS.contains(row)) => rows.contains(&row),
        UNAVAILABLE => too_old.may || rows.contains(&UNAVAILABLE) || (stale.may && rows.contains(&UNKNOWN)),
        _ if too_old.must => false,
        UNKNOWN if stale.must => false,
        row => rows.contains(&row),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Before,
    After,
}

/// Returns on which side of a transaction an answer is, if that is known.
fn side(history: &History, entry: &Entry, change: &Transaction) -> Option<Side> {
    let (_, made) = change.iter().find(|(key, _)| *key == entry.key)?;
    let Bounds { from, .. } = bounds(history, asked(history, entry), entry.received);
    let fits = possible(history, entry, from).filter(|(_, version)| version.row == entry.row);
    let sides = fits.map(|(number, _)| if number < *made { Side::Before } else { Side::After });
    let sides: Vec<Side> = sides.collect();
    let first = *sides.first()?;
    sides.iter().all(|side| *side == first).then_some(first)
}

/// A snapshot that shows a transaction shows all of it, and so does every later one.
fn goes_back(history: &History, log: &[Entry], change: &Transaction) -> Option<String> {
    let of = |wanted: Side| log.iter().filter(move |entry| side(history, entry, change) == Some(wanted));
    let after = of(Side::After).min_by_key(|entry| entry.received)?;
    let before = of(Side::Before).max_by_key(|entry| asked(history, entry))?;
    (before.sent > after.received).then(|| format!("{change:?} shown by {after:?}, and not by {before:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_STALENESS: Duration = ms(5_000);

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn act(begin: u64, end: u64) -> Span {
        Span { begin: ms(begin), end: ms(end) }
    }

    /// Two keys that are revoked together after ten seconds, one that never changes, and an unknown one.
    fn history() -> History {
        let rows = [("a", "200 ok"), ("b", "200 ok"), ("steady", "200 ok"), ("nobody", UNKNOWN)];
        let mut history = History::of(MAX_STALENESS, &rows);
        history.commit(act(10_000, 10_010), &[("a", "401 revoked"), ("b", "401 revoked")]);
        history
    }

    fn entry(key: &'static str, sent: u64, received: u64, row: &str) -> Entry {
        Entry { key, sent: ms(sent), received: ms(received), row: row.to_owned() }
    }

    /// The answers of a healthy server: the revocation applies 40 ms after its commit.
    fn honest() -> Vec<Entry> {
        let answers = (0..2_000_u64).flat_map(|number| {
            let sent = number * 10;
            let fickle = if sent < 10_050 { "200 ok" } else { "401 revoked" };
            let rows = [("a", fickle), ("b", fickle), ("steady", "200 ok"), ("nobody", UNKNOWN)];
            rows.map(|(key, row)| entry(key, sent, sent + 2, row))
        });
        answers.collect()
    }

    /// Returns the findings about the healthy log after one answer was replaced.
    #[track_caller]
    fn caught(history: &History, key: &str, sent: u64, row: &str) {
        let mut log = honest();
        let entry = log.iter_mut().find(|entry| entry.key == key && entry.sent == ms(sent)).expect("sent");
        row.clone_into(&mut entry.row);
        assert!(!judge(history, &log).is_empty(), "`{row}` for {key} at {sent} ms passes");
    }

    fn passes(history: &History, entry: Entry) -> bool {
        judge(history, &[entry]).is_empty()
    }

    #[test]
    fn a_correct_log_passes() {
        assert_eq!(judge(&history(), &honest()), Vec::<String>::new());
        assert_eq!(lateness(&history(), &honest(), &history().transactions[0]), ms(32));
    }

    #[test]
    fn one_wrong_answer_of_a_healthy_server_is_detected() {
        let history = history();
        for (key, sent, row) in [
            ("a", 11_050, "200 ok"),
            ("a", 15_000, "200 ok"),
            ("a", 9_990, "401 revoked"),
            ("a", 5_000, UNAVAILABLE),
            ("a", 15_000, UNAVAILABLE),
            ("steady", 5_000, "401 revoked"),
            ("steady", 5_000, UNKNOWN),
            ("steady", 5_000, "403 tenant_inactive"),
            ("steady", 5_000, UNAVAILABLE),
            ("steady", 5_000, "grpc Unavailable"),
            ("nobody", 5_000, UNAVAILABLE),
            ("nobody", 5_000, "200 ok"),
        ] {
            caught(&history, key, sent, row);
        }
    }

    #[test]
    fn a_commit_may_take_effect_before_its_acknowledgement_and_until_the_slack_ends() {
        let history = history();
        assert!(passes(&history, entry("a", 9_998, 10_000, "401 revoked")));
        assert!(!passes(&history, entry("a", 9_997, 9_999, "401 revoked")));
        assert!(passes(&history, entry("a", 11_010, 11_011, "200 ok")));
        assert!(!passes(&history, entry("a", 11_011, 11_012, "200 ok")));
    }

    #[test]
    fn torn_and_reverted_snapshots_are_detected() {
        let change = |log: Vec<Entry>| judge(&history(), &log);
        let torn = vec![entry("a", 10_020, 10_022, "401 revoked"), entry("b", 10_023, 10_025, "200 ok")];
        assert_eq!(change(torn).len(), 1);
        let back = vec![entry("a", 10_020, 10_022, "401 revoked"), entry("a", 10_023, 10_025, "200 ok")];
        assert_eq!(change(back).len(), 1);
        let beside = vec![entry("a", 10_020, 10_022, "401 revoked"), entry("b", 10_021, 10_025, "200 ok")];
        assert_eq!(change(beside).len(), 0, "at the same time is no order");
    }

    /// The database is unreachable from 9.5 to 20 s, which includes the revocation.
    fn with_outage(sort: Sort) -> History {
        let mut history = history();
        history.outage(sort, act(9_500, 9_510));
        history.outage_ends(act(20_000, 20_010));
        history
    }

    #[test]
    fn a_disconnected_server_uses_its_data_up_to_the_limit() {
        let history = with_outage(Sort::Cut);
        for (key, sent, row, fine) in [
            ("a", 14_000, "200 ok", true),
            ("a", 14_000, UNAVAILABLE, true),
            ("a", 13_000, UNAVAILABLE, false),
            ("steady", 14_000, "401 revoked", false),
            ("steady", 14_600, "200 ok", false),
            ("steady", 14_600, UNAVAILABLE, true),
            ("nobody", 10_000, UNKNOWN, true),
            ("nobody", 10_600, UNKNOWN, false),
            ("nobody", 10_600, UNAVAILABLE, true),
            ("nobody", 10_600, "200 ok", false),
            ("steady", 23_000, "200 ok", true),
            ("steady", 23_000, UNAVAILABLE, true),
            ("steady", 23_020, UNAVAILABLE, false),
            ("nobody", 23_020, UNAVAILABLE, false),
            ("a", 23_020, "200 ok", false),
        ] {
            assert_eq!(
                passes(&history, entry(key, sent, sent + 2, row)),
                fine,
                "`{row}` for {key} at {sent} ms"
            );
        }
    }

    #[test]
    fn in_doubt_both_answers_are_accepted() {
        let history = with_outage(Sort::Doubtful);
        for row in [UNKNOWN, UNAVAILABLE] {
            assert!(passes(&history, entry("nobody", 12_000, 12_002, row)), "{row}");
        }
        assert!(passes(&history, entry("steady", 16_000, 16_002, "200 ok")));
        assert!(!passes(&history, entry("a", 15_020, 15_022, "200 ok")), "the bound holds in doubt, too");
    }

    #[test]
    fn without_a_load_only_answers_without_data_are_accepted() {
        let mut history = History::of(MAX_STALENESS, &[("steady", "200 ok"), ("nothing", "401 missing")]);
        history.outage(Sort::Unloaded, act(0, 0));
        history.outage_ends(act(5_000, 5_010));
        assert!(passes(&history, entry("steady", 1, 2, UNAVAILABLE)));
        assert!(!passes(&history, entry("steady", 1, 2, "200 ok")));
        assert!(passes(&history, entry("steady", 5_020, 5_022, "200 ok")));
        assert!(passes(&history, entry("nothing", 1, 2, "401 missing")));
        assert!(!passes(&history, entry("nothing", 1, 2, UNAVAILABLE)));
    }

    #[test]
    fn an_expiry_needs_no_poll() {
        let mut history = with_outage(Sort::Cut);
        history.change("steady", "401 expired", act(12_000, 12_050), By::Clock);
        assert!(passes(&history, entry("steady", 12_040, 12_042, "200 ok")));
        assert!(!passes(&history, entry("steady", 12_051, 12_053, "200 ok")));
        assert!(!passes(&history, entry("steady", 11_990, 11_992, "401 expired")));
    }

    #[test]
    fn a_check_to_a_paused_process_counts_from_its_continuation() {
        let mut history = history();
        history.max_staleness = ms(1_000);
        assert!(passes(&history, entry("a", 9_000, 14_010, "200 ok")));
        history.stops.push(act(8_000, 14_000));
        history.outage(Sort::Cut, act(7_990, 8_000));
        history.outage_ends(act(14_000, 14_001));
        assert!(
            !passes(&history, entry("a", 9_000, 14_010, "200 ok")),
            "there was no poll since the revocation"
        );
        assert!(passes(&history, entry("a", 9_000, 14_010, UNAVAILABLE)));
        assert!(passes(&history, entry("a", 9_000, 14_010, "401 revoked")));
    }

    #[test]
    fn a_pause_of_the_machine_extends_the_bounds() {
        let mut history = history();
        let (late, unknown) =
            (entry("a", 11_100, 11_102, "200 ok"), entry("nobody", 11_100, 11_102, UNAVAILABLE));
        assert!(!passes(&history, late.clone()) && !passes(&history, unknown.clone()));
        history.stalls.push(act(10_500, 11_000));
        assert!(passes(&history, late) && passes(&history, unknown));
        assert!(!passes(&history, entry("a", 11_600, 11_602, "200 ok")), "but not for longer");
        assert!(!passes(&history, entry("steady", 11_100, 11_102, UNAVAILABLE)));
    }

    #[test]
    fn a_stopping_server_need_not_answer_later_checks() {
        let mut history = history();
        history.goodbye = Some(ms(5_000));
        assert!(passes(&history, entry("steady", 5_000, 5_002, "grpc Unavailable")));
        assert!(!passes(&history, entry("steady", 4_999, 5_002, "grpc Unavailable")));
        assert!(!passes(&history, entry("steady", 5_000, 5_002, UNAVAILABLE)));
    }
}

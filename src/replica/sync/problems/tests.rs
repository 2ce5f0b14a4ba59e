//! Tests of what is logged about outages and damaged rules.

use uuid::Uuid;

use super::*;
use crate::replica::tests::logged;
use crate::route::RouteRow;
use crate::verify::memo::Peppers;

#[test]
fn the_loss_of_the_database_is_logged_once_for_each_cause() {
    let gone = |why: &str| StoreError::Unavailable(why.into());
    let other = |why: &str| StoreError::WrongDatabase(why.into());
    let mut lost = OutageLog::default();
    let _ = logged();
    let mut line = |loaded: bool, error: &StoreError| {
        lost.log(error, loaded, Duration::ZERO);
        logged().join("\n")
    };
    let never = "WARN: no database yet, trying again";
    let unusable = "ERROR: the database is not usable, known keys are served until that is fixed";
    let gone_now = "WARN: lost the database, known keys are served while it is gone";
    let panicked = "ERROR: a part of the server panicked and is restarted";
    assert_eq!(line(false, &gone("refused")), never);
    assert_eq!(line(false, &gone("refused")), "");
    assert_eq!(line(false, &gone("reset")), never, "another cause");
    assert_eq!(line(false, &other("a standby")), never);
    assert_eq!(line(false, &other("a standby")), "");
    assert_eq!(line(true, &gone("closed")), gone_now);
    assert_eq!(line(true, &gone("closed")), "");
    assert_eq!(line(true, &other("a standby")), "", "logged within the last minute");
    assert_eq!(line(true, &other("another")), unusable);
    assert_eq!(line(true, &gone(PANICKED)), panicked);
    assert_eq!(line(true, &gone(PANICKED)), panicked);
}

#[test]
fn causes_that_alternate_are_logged_once_a_minute_each_and_the_lasting_one_is_logged_last() {
    let mut lost = OutageLog::default();
    let second = Duration::from_secs;
    assert!(lost.is_news("refused", second(0)));
    assert!(lost.is_news("reset", second(1)));
    for at in 2..60 {
        assert!(!lost.is_news(if at % 2 == 0 { "refused" } else { "reset" }, second(at)));
    }
    assert!(lost.is_news("refused", second(60)));
    assert!(!lost.is_news("refused", second(600)), "it is the last line");
    let lines = (0..1_000).filter(|n| lost.is_news(&format!("cause {n}"), second(601))).count();
    assert_eq!(lines, OutageLog::LINES);
}

#[test]
fn a_damaged_rule_is_logged_with_each_load_and_each_of_its_changes() {
    let rule = |n: u128, path: &str, mode: &str| {
        let (id, host, method) = (RouteId(Uuid::from_u128(n)), "*".to_owned(), "*".to_owned());
        let (path, mode) = (path.to_owned(), mode.to_owned());
        SnapshotRow::Route(RouteRow { id, name: None, host, method, path, mode, scopes: None, shadow: false })
    };
    let _ = logged();
    let lines = |before: &Snapshot, next: &Snapshot, changes: &[Change]| {
        log_damaged_rules(before, next, &changed_rules(changes));
        logged().len()
    };
    let loaded = Snapshot::of(vec![rule(1, "/a", "off"), rule(2, "/b", "required")], &Peppers::default());
    assert_eq!(lines(&Snapshot::empty(), &loaded, &[]), 1, "a load");
    let change = |row: SnapshotRow| {
        (loaded.changed(vec![Change::Now(row.clone())], &Peppers::default()), [Change::Now(row)])
    };
    let (next, changes) = change(rule(3, "/c", "required"));
    assert_eq!(lines(&loaded, &next, &changes), 0, "of another rule");
    let (next, changes) = change(rule(1, "/a2", "off"));
    assert_eq!(lines(&loaded, &next, &changes), 1, "of the rule, although its damage is the same");
    let (next, changes) = change(rule(3, "/b", "required"));
    assert_eq!(lines(&loaded, &next, &changes), 2, "both have the same shape now");
}

//! Tests of what is logged about outages.

use super::*;
use crate::replica::tests::logged;

#[test]
fn the_loss_of_the_database_is_logged_once_for_each_cause() {
    let gone = |why: &str| StoreError::Unavailable(why.into());
    let other = |why: &str| StoreError::WrongDatabase(why.into());
    let mut lost = Lost::default();
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
    let mut lost = Lost::default();
    let second = Duration::from_secs;
    assert!(lost.is_news("refused", second(0)));
    assert!(lost.is_news("reset", second(1)));
    for at in 2..60 {
        assert!(!lost.is_news(if at % 2 == 0 { "refused" } else { "reset" }, second(at)));
    }
    assert!(lost.is_news("refused", second(60)));
    assert!(!lost.is_news("refused", second(600)), "it is the last line");
    let lines = (0..1_000).filter(|n| lost.is_news(&format!("cause {n}"), second(601))).count();
    assert_eq!(lines, Lost::LINES);
}

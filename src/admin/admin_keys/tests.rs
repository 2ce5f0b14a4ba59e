//! Tests of the authentication of management keys.

use std::cell::Cell;

use super::*;

fn key(revoked_at: Option<Timestamp>) -> AdminKey {
    AdminKey { revoked_at, ..Caller::of_user(0, Role::Owner).key }
}

#[test]
fn one_hash_is_computed_for_every_key_that_is_presented() {
    let now = Timestamp(7);
    let live = Some(("right".to_owned(), vec![key(None)]));
    let revoked = Some(("right".to_owned(), vec![key(Some(Timestamp(1)))]));
    let orphan = Some(("right".to_owned(), vec![key(None), key(Some(Timestamp(1)))]));
    for (found, presented, lets_in) in [
        (None, "right", false),
        (live.clone(), "wrong", false),
        (revoked.clone(), "wrong", false),
        (revoked, "right", false),
        (orphan, "right", false),
        (live, "right", true),
    ] {
        let computed = Cell::new(0);
        let matches = |hash: &str| {
            computed.set(computed.get() + 1);
            assert!(hash.len() == NO_HASH.len() || hash == "right");
            hash == presented
        };
        assert_eq!(proven(found, now, matches).is_some(), lets_in, "{presented}");
        assert_eq!(computed.get(), 1, "{presented}");
    }
}

//! Tests of the rows of keys.

use super::*;

const GOOD: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232";

#[test]
fn a_hash_with_another_version_cost_length_or_alphabet_is_invalid() {
    assert_eq!(GOOD.len(), 60);
    for good in [
        GOOD.to_owned(),
        GOOD.replace("2b", "2a"),
        GOOD.replace("$12$", "$04$"),
        GOOD.replace("$12$", "$14$"),
    ] {
        let text = SecretHash::parse(&good).unwrap().text();
        assert_eq!((text.as_str(), &text.as_bytes()[..]), (&*good, good.as_bytes()));
    }
    for bad in [
        GOOD.replace("2b", "2x"),
        GOOD.replace("2b", "2c"),
        GOOD.replace("2b", "2?"),
        GOOD.replace("$12$", "$03$"),
        GOOD.replace("$12$", "$15$"),
        GOOD.replace("$12$", "$31$"),
        GOOD.replace("$12$", "$+4$"),
        GOOD.replace("$12$", "$1é$"),
        GOOD.replace("01232", "0123!"),
        GOOD.replace("1232", "é23"),
        // Unused bits that no encoder sets.
        GOOD.replace("01232", "01234"),
        GOOD.replace("tuuABC", "tuvABC"),
        GOOD[..59].to_owned(),
        format!("{GOOD}0"),
        String::new(),
        "llmk_demo_secret123".to_owned(),
    ] {
        assert_eq!(SecretHash::parse(&bad), None, "{bad}");
    }
}

#[test]
fn a_key_record_takes_128_bytes() {
    assert_eq!((size_of::<Option<SecretHash>>(), size_of::<KeyRecord>()), (40, 128));
}

#[test]
fn a_memo_is_parsed_from_its_text_and_other_texts_are_not() {
    let memo = Memo { pepper: PepperId([0x1f, 0, 0xab, 9]), row: [7; 8], key: [200; 32] };
    let text = memo.to_string();
    assert_eq!(text.len(), 24 + 8 + 1 + 11 + 1 + 43);
    assert_eq!(Memo::parse(&text).map(|m| (m.pepper, m.row, m.key)), Some((memo.pepper, memo.row, memo.key)));
    for bad in [
        String::new(),
        text.replace("v=1", "v=2"),
        text.replace("1f00ab09", "1F00AB09"),
        text.replace("1f00ab09", "+f00ab09"),
        text.replace("1f00ab09", "1f00ab0"),
        text.replace("1f00ab09", "01f00ab09"),
        format!("{text}$"),
        format!("{text}A"),
        text[..text.len() - 1].to_owned(),
        text.replace("k=1f00ab09$", "k=1f00ab09"),
        text.replace('B', "!"),
    ] {
        assert!(bad == text || Memo::parse(&bad).is_none(), "{bad}");
    }
    let shown = format!("{memo:?}");
    assert!(shown.contains("1f") || shown.contains("31"), "expected the pepper: {shown}");
    assert!(!shown.contains("200"), "expected nothing but the pepper: {shown}");
}

#[test]
fn a_row_with_an_invalid_hash_or_prefix_is_damaged() {
    let row = |prefix: &str, hash: &str| {
        KeyRecord::new(
            KeyId(uuid::Uuid::nil()),
            TenantId(uuid::Uuid::nil()),
            prefix.into(),
            SecretHash::parse(hash),
        )
    };
    assert!(!row("llmk_a", GOOD).is_damaged());
    assert!(row("llmk_a", "").is_damaged());
    assert!(row("llmk_", GOOD).is_damaged());
}

#[test]
fn an_expiry_keeps_its_instant_and_never_has_none() {
    assert_eq!(ExpiresAt::from(Some(Timestamp(7))).at(), Some(Timestamp(7)));
    assert_eq!((ExpiresAt::from(None).at(), ExpiresAt::from(None)), (None, ExpiresAt::NEVER));
}

#[test]
fn states_that_apply_together_have_an_order() {
    let details = |expires_at, revoked_at| KeyDetails {
        id: KeyId(uuid::Uuid::nil()),
        prefix: "llmk_a".into(),
        name: None,
        tenant_id: TenantId(uuid::Uuid::nil()),
        created_at: Timestamp(0),
        expires_at,
        last_used_at: None,
        revoked_at,
        revocation_reason: None,
        replaced_by: None,
        memo: None,
        disabled_at: None,
        terms: KeyTerms::default(),
        unreadable: None,
    };
    let (then, now) = (Some(Timestamp(5)), Timestamp(5));
    for (expires_at, revoked_at, expected) in [
        (None, None, "active"),
        (Some(Timestamp(6)), None, "active"),
        (then, None, "expired"),
        (then, then, "revoked"),
        (None, then, "revoked"),
    ] {
        assert_eq!(details(expires_at, revoked_at).state(now).as_str(), expected);
    }
    let with = |change: fn(&mut KeyDetails)| {
        let mut key = details(None, None);
        change(&mut key);
        key.state(Timestamp(5)).as_str()
    };
    let at = |micros| Some(Timestamp(micros));
    assert_eq!(with(|key| key.terms.not_before = Some(Timestamp(6))), "not_yet_valid");
    assert_eq!(with(|key| key.terms.not_before = Some(Timestamp(5))), "active");
    assert_eq!(with(|key| key.disabled_at = Some(Timestamp(99))), "disabled");
    let mut all = details(at(4), at(4));
    (all.disabled_at, all.terms.not_before) = (at(1), at(6));
    for (expected, undo) in [
        ("revoked", (|key| key.revoked_at = None) as fn(&mut KeyDetails)),
        ("disabled", |key| key.disabled_at = None),
        ("expired", |key| key.expires_at = None),
        ("not_yet_valid", |key| key.terms.not_before = None),
    ] {
        assert_eq!(all.state(now).as_str(), expected);
        undo(&mut all);
    }
}

#[test]
fn every_state_is_parsed_from_its_name() {
    for state in KeyState::ALL {
        assert_eq!(KeyState::parse(state.as_str()), Ok(state));
    }
    let error = KeyState::parse("gone").unwrap_err().to_string();
    assert_eq!(error, "expected one of active, disabled, expired, not_yet_valid, revoked");
}

#[test]
fn debug_does_not_show_the_hash() {
    assert_eq!(format!("{:?}", SecretHash::parse(GOOD).unwrap()), "SecretHash($2b$12$…)");
}

#[test]
fn a_key_expires_at_the_instant_of_its_expiry() {
    assert!(has_expired(Some(Timestamp(5)), Timestamp(5)));
    assert!(!has_expired(Some(Timestamp(6)), Timestamp(5)));
    assert!(!has_expired(None, Timestamp(5)));
    assert!(has_expired(Some(Timestamp::MIN), Timestamp(5)));
}

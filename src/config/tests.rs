//! Tests of the options.

use super::*;

#[test]
fn usage_is_kept_for_a_day_or_more_or_not_counted() {
    let days = |n: u64| Ok(Some(Duration::from_hours(24 * n)));
    for (text, keep) in
        [("400d", days(400)), ("24h", days(1)), ("36500d", days(36_500)), ("0", Ok(None)), ("0d", Ok(None))]
    {
        assert_eq!(usage_retention(text), keep, "{text}");
    }
    for bad in ["23h", "36501d", "1", "", "off", "-1d"] {
        assert!(usage_retention(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_key_header_is_a_header_name_and_not_one_of_ours() {
    assert_eq!(key_header("X-API-Key", false), Ok("x-api-key".into()));
    assert_eq!(key_header("Authorization", false), Ok("authorization".into()));
    for (bad, bearer) in [
        ("", false),
        ("a b", false),
        (":path", false),
        ("X-LLMCore-Tenant-Id", false),
        ("Host", false),
        ("Content-Length", false),
        ("cookie", false),
        ("authorization", true),
    ] {
        assert!(key_header(bad, bearer).is_err(), "{bad}");
    }
}

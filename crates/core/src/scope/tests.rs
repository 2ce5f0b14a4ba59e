//! Tests of scopes and needs.

use proptest::prelude::*;

use super::*;

fn scopes(text: &str) -> Scopes {
    Scopes::parse(text).unwrap()
}

#[test]
fn granted_scopes_are_parsed_and_repeated_ones_skipped() {
    let many = (0..64).map(|n| format!("s{n}")).collect::<Vec<_>>().join(" ");
    for (text, shown) in [
        ("", ""),
        ("   ", ""),
        ("a", "a"),
        ("  b  a b ", "b a"),
        ("*", "*"),
        ("models.* m:* m/* a", "models.* m:* m/* a"),
        ("A-Z_0.:/", "A-Z_0.:/"),
        (&"x".repeat(64), &"x".repeat(64)),
        (&format!("{}.*", "x".repeat(62)), &format!("{}.*", "x".repeat(62))),
        (&format!("{many} s0 s63"), &many),
    ] {
        assert_eq!(scopes(text).as_str(), shown, "{text:?}");
        assert_eq!(scopes(shown).to_string(), shown);
    }
    assert_eq!(scopes("b a").iter().collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(scopes("").iter().count(), 0);
}

#[test]
fn an_invalid_scope_is_rejected_with_its_position_and_what_is_expected() {
    let many = (0..65).map(|n| format!("s{n:02}")).collect::<Vec<_>>().join(" ");
    for (text, at, expected) in [
        ("a b,c", 4, "letters, digits"),
        ("a\tb", 2, "letters, digits"),
        ("é", 1, "letters, digits"),
        ("a*", 2, "* only as the last part"),
        ("a *b", 3, "* only as the last part"),
        ("**", 1, "* only as the last part"),
        ("a.*.b", 3, "* only as the last part"),
        ("a-*", 3, "* only as the last part"),
        (&"x".repeat(65), 65, "at most 64 characters"),
        (&format!("{}.*", "x".repeat(63)), 65, "at most 64 characters"),
        (&many, 64 * 4 + 1, "at most 64 scopes"),
    ] {
        let error = Scopes::parse(text).unwrap_err();
        assert_eq!(error.position(), at, "{text}: {error}");
        assert!(error.to_string().contains(expected), "{text}: {error}");
    }
}

#[test]
fn parse_one_accepts_exactly_one_scope() {
    for good in ["a", "models.*"] {
        assert_eq!(Scopes::parse_one(good).as_deref(), Ok(good));
    }
    assert_eq!(Scopes::parse_one(" a a ").as_deref(), Ok("a"));
    for bad in ["", "a b", "é"] {
        assert!(Scopes::parse_one(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_star_grants_everything_longer_below_it_and_nothing_else() {
    for (granted, scope, expected) in [
        ("models.*", "models.read", true),
        ("models.*", "models.a.b", true),
        ("models.*", "models", false),
        ("models.*", "models.", false),
        ("models.*", "modelsX", false),
        ("models.*", "models:read", false),
        ("models:*", "models:r", true),
        ("a/*", "a/b", true),
        ("*", "a", true),
        ("a", "a", true),
        ("a", "ab", false),
        ("a b", "b", true),
        ("", "a", false),
        ("A", "a", false),
    ] {
        assert_eq!(scopes(granted).grants(scope), expected, "{granted} {scope}");
    }
}

#[test]
fn needs_are_parsed_and_repeated_scopes_and_terms_skipped() {
    for (text, shown) in [
        ("a", "a"),
        ("a b|c", "a b | c"),
        ("  a   b  |  c ", "a b | c"),
        ("a a | a", "a"),
        ("a|b|c|d", "a | b | c | d"),
        ("a|b|c|d|a", "a | b | c | d"),
    ] {
        let needs = Needs::parse(text).unwrap();
        assert_eq!(needs.to_string(), shown);
        assert_eq!(Needs::parse(shown), Ok(needs));
    }
    assert_eq!(Needs::parse("a b | c").unwrap().first_term(), "a b");
}

#[test]
fn invalid_needs_are_rejected_with_their_position_and_what_is_expected() {
    let long = (0..17).map(|n| format!("s{n:02}")).collect::<Vec<_>>().join(" ");
    for (text, at, expected) in [
        ("", 1, "a scope"),
        ("  ", 3, "a scope"),
        ("|", 1, "a scope"),
        ("a |", 4, "a scope"),
        ("a || b", 4, "a scope"),
        ("a | b.*", 7, "without *"),
        ("*", 1, "without *"),
        ("a & b", 3, "letters, digits"),
        ("(a b)", 1, "letters, digits"),
        ("a|b|c|d|e", 9, "at most 4 terms"),
        (&format!("x | {long}"), 5 + 16 * 4, "at most 16 scopes"),
    ] {
        let error = Needs::parse(text).unwrap_err();
        assert_eq!(error.position(), at, "{text}: {error}");
        assert!(error.to_string().contains(expected), "{text}: {error}");
    }
}

#[test]
fn borrowed_needs_have_the_limits_of_parsed_needs() {
    let list = |count: usize| (0..count).map(|n| format!("s{n}")).collect::<Vec<_>>().join(" ");
    for (text, expected) in [
        (list(16), true),
        (list(17), false),
        (format!("a | {}", list(17)), false),
        (format!("{} s0 s15", list(16)), true),
        ("a|b|c|d".to_owned(), true),
        ("a|b|c|d|e".to_owned(), false),
        ("a|a b|a c|a d|a e".to_owned(), false),
        ("a b|b|c|d| a  b a ".to_owned(), true),
    ] {
        assert_eq!(NeedsText::read(text.as_bytes()).is_some(), expected, "{text}");
        assert_eq!(Needs::parse(&text).is_ok(), expected, "{text}");
    }
}

#[test]
fn needs_are_met_by_one_whole_term() {
    let needs = Needs::parse("a b | c").unwrap();
    for (granted, expected) in
        [("a", false), ("a b", true), ("b a x", true), ("c", true), ("*", true), ("", false), ("d", false)]
    {
        assert_eq!(needs.are_met_by(&scopes(granted)), expected, "{granted}");
    }
}

#[test]
fn a_scope_without_a_number_is_never_granted() {
    let numbers = ScopeNumbers::of([&Needs::parse("a").unwrap()]);
    let other = numbers.needed(&Needs::parse("a b").unwrap());
    assert!(!other.are_met_by(&numbers.granted(&scopes("*"))));
    assert_eq!(numbers.iter().collect::<Vec<_>>(), ["a"]);
    assert!(!Needed::default().are_met_by(&Granted::default()));
}

fn a_scope() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[ab.:]{1,4}").unwrap()
}

fn a_grant() -> impl Strategy<Value = String> {
    proptest::string::string_regex("\\*|[ab]{0,2}[.:]\\*|[ab.:]{1,4}").unwrap()
}

proptest! {
    #[test]
    fn compiled_needs_agree_with_needs_as_text(
        needs in proptest::collection::vec(
            proptest::collection::vec(proptest::collection::vec(a_scope(), 1..4), 1..4), 1..40),
        granted in proptest::collection::vec(a_grant(), 0..5),
    ) {
        let text = |terms: &Vec<Vec<String>>| terms.iter().map(|t| t.join(" ")).collect::<Vec<_>>().join("|");
        let needs: Vec<_> = needs.iter().map(|terms| Needs::parse(&text(terms)).unwrap()).collect();
        let granted = scopes(&granted.join(" "));
        let numbers = ScopeNumbers::of(&needs);
        let bits = numbers.granted(&granted);
        for one in &needs {
            prop_assert_eq!(numbers.needed(one).are_met_by(&bits), one.are_met_by(&granted), "{}", one);
        }
    }

    #[test]
    fn borrowed_needs_agree_with_parsed_needs(text in "[ab*|  ]{0,40}", granted in "[ab ]{0,3}") {
        let (read, parsed) = (NeedsText::read(text.as_bytes()), Needs::parse(&text));
        prop_assert_eq!(read.is_some(), parsed.is_ok());
        if let (Some(read), Ok(parsed)) = (read, parsed) {
            let granted = scopes(&granted);
            prop_assert_eq!(read.are_met_by(&granted), parsed.are_met_by(&granted));
            let first = Needs::parse(read.first_term()).unwrap();
            prop_assert_eq!(first.first_term(), parsed.first_term());
        }
    }

    #[test]
    fn scopes_and_needs_are_parsed_from_their_texts(text in "[ab*.:| ]{0,20}") {
        if let Ok(read) = Scopes::parse(&text) {
            prop_assert_eq!(Scopes::parse(read.as_str()), Ok(read));
        }
        if let Ok(read) = Needs::parse(&text) {
            prop_assert_eq!(Needs::parse(&read.to_string()), Ok(read));
        }
    }
}

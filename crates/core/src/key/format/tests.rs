//! Tests of the format of keys.

use proptest::prelude::*;
use proptest::string::string_regex;
use rand::rngs::SysRng;

use super::*;

#[test]
fn a_key_is_found_anywhere_in_a_text() {
    let long = format!("llmk_demo_{}", "s".repeat(80));
    for holds in ["llmk_demo_secret123", "see llmk_demo_secret123, leaked", "llmk_llmk_demo_secret123", &long]
    {
        assert!(holds_key(holds), "{holds}");
    }
    for not in ["", "llmk_", "llmk_demo", "llmk_demo leaked", "llmk_demo_seven77", "llmk__secret123"] {
        assert!(!holds_key(not), "{not}");
    }
    assert!(!holds_key("llmk_demo, llmk_b") && holds_key("llmk_demo_eight888"));
}

#[test]
fn a_key_of_one_scheme_is_not_a_key_of_the_other() {
    let ours = issue_with(&mut SysRng, "Acme").unwrap();
    let management = issue_management_with(&mut SysRng, "Acme").unwrap();
    assert!(parse(ours.expose().as_bytes()).is_ok());
    assert_eq!(parse_management(ours.expose().as_bytes()).unwrap_err(), FormatError::ManagementScheme);
    assert_eq!(parse(management.expose().as_bytes()).unwrap_err(), FormatError::Scheme);
    let read = parse_management(management.expose().as_bytes()).unwrap();
    assert_eq!(read.prefix(), management.prefix());
    assert!(read.prefix().starts_with("llma_acme") && read.secret_bits() > 190.0);
    let (body, sum) = management.expose().split_at(management.expose().len() - CHECKSUM_CHARS);
    assert_eq!(sum.as_bytes(), checksum(body.as_bytes()));
    assert!(holds_key(ours.expose()) && holds_key(management.expose()));
    assert!(!holds_key(management.prefix()));
}

#[test]
fn the_first_underscore_after_the_scheme_splits() {
    let key = parse(b"llmk_demo_secret_1-23").unwrap();
    assert_eq!(key.prefix(), "llmk_demo");
    assert_eq!(key.expose(), b"llmk_demo_secret_1-23");
    assert_eq!(key.expose_secret(), b"secret_1-23");
}

#[test]
fn an_invalid_key_returns_the_rule_that_it_violates() {
    let longest = format!("llmk_p_{}", "s".repeat(57));
    assert!(parse(longest.as_bytes()).is_ok());
    let at_71 = format!("llmk_{}_{}", "p".repeat(48), "s".repeat(17));
    assert_eq!(at_71.len(), MAX_KEY_BYTES);
    assert!(parse(at_71.as_bytes()).is_ok());
    for (text, error) in [
        (format!("{at_71}s"), FormatError::TooLong),
        (format!("llmk_p_{}", "s".repeat(58)), FormatError::Secret),
        (format!("llmk_{}_12345678", "p".repeat(49)), FormatError::Prefix),
        (String::new(), FormatError::Scheme),
        ("LLMK_demo_secret123".into(), FormatError::Scheme),
        ("llmk-demo_secret123".into(), FormatError::Scheme),
        (" llmk_demo_secret123".into(), FormatError::Scheme),
        ("llmk_".into(), FormatError::Prefix),
        ("llmk_demo".into(), FormatError::Prefix),
        ("llmk__secret123".into(), FormatError::Prefix),
        ("llmk_de.mo_secret123".into(), FormatError::Prefix),
        ("llmk_demo_".into(), FormatError::Secret),
        ("llmk_demo_short_7".into(), FormatError::Secret),
        ("llmk_demo_secret123 ".into(), FormatError::Secret),
        ("llmk_demo_secret!23".into(), FormatError::Secret),
        ("llmk_demo_secret123,llmk_demo_secret123".into(), FormatError::Secret),
        ("llmk_demo_secr\u{435}t123".into(), FormatError::Secret),
        ("llmk_demo_secret\x00123".into(), FormatError::Secret),
    ] {
        assert_eq!(parse(text.as_bytes()).err(), Some(error), "{text:?}");
    }
}

#[test]
fn a_generated_key_has_the_name_random_digits_and_a_checksum() {
    let key = issue_with(&mut SysRng, "Acme Corp. GmbH & Söhne").unwrap();
    let text = key.expose();
    assert!(key.prefix().starts_with("llmk_acmecorpgmbh"), "{}", key.prefix());
    assert_eq!(key.prefix().len(), "llmk_acmecorpgmbh".len() + 8);
    assert_eq!(text.len(), key.prefix().len() + 1 + 38);
    let (body, sum) = text.split_at(text.len() - 6);
    assert_eq!(sum.as_bytes(), checksum(body.as_bytes()));
    assert_eq!(parse(text.as_bytes()).unwrap().prefix(), key.prefix());
}

/// A random number generator that returns bytes that count up.
struct Counting(u8);

impl TryRng for Counting {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        unreachable!("only bytes are requested")
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        unreachable!("only bytes are requested")
    }

    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), Self::Error> {
        for byte in to {
            (*byte, self.0) = (self.0, self.0.wrapping_add(1));
        }
        Ok(())
    }
}

#[test]
fn every_digit_is_as_likely_as_any_other() {
    let key = issue_with(&mut Counting(244), "").unwrap();
    // 244 to 247 end the last whole run of 62; 248 to 255 would make some digits likelier, and are rejected.
    assert_eq!(key.prefix(), "llmk_wxyz0123");
    // The next requested bytes are 52 to 115.
    assert_eq!(key.expose()["llmk_wxyz0123_".len()..][..32], *"qrstuvwxyz0123456789ABCDEFGHIJKL");
}

#[test]
fn secret_bits_depend_on_length_and_kinds_of_characters() {
    let bits = |secret: &str| secret_bits(&format!("llmk_x_{secret}"), "llmk_x_".len());
    let of = |characters: f64, kinds: f64| characters * kinds.log2();
    for (secret, expected) in [
        ("12345678", of(8.0, 10.0)),
        ("0123cdef", of(8.0, 16.0)),
        ("0123wxyz", of(8.0, 36.0)),
        ("ABCDEFGH", of(8.0, 26.0)),
        ("Abcdefg1", of(8.0, 62.0)),
        ("Abcdef-1", of(8.0, 64.0)),
        // Two distinct characters: from the ninth on they are less than a quarter, and the alphabet has size 2.
        ("abababab", of(8.0, 16.0)),
        ("ababababa", of(9.0, 2.0)),
    ] {
        assert!((bits(secret) - expected).abs() < 1e-9, "{secret}: {} not {expected}", bits(secret));
    }
    let sum = String::from_utf8(checksum(b"llmk_x_Abcdefg1").to_vec()).unwrap();
    assert!((bits(&format!("Abcdefg1{sum}")) - of(8.0, 62.0)).abs() < 1e-9, "a checksum is not random");
    let key = parse(b"llmk_x_Abcdefg1").unwrap();
    assert!((key.secret_bits() - of(8.0, 62.0)).abs() < 1e-9, "from the secret's first character on");
}

#[test]
fn a_stored_prefix_is_valid_if_a_key_can_have_it() {
    for good in ["llmk_a", "llmk_A-9", &format!("llmk_{}", "p".repeat(48))] {
        assert!(is_stored_prefix(good), "{good}");
    }
    for bad in ["", "llmk_", "LLMK_a", "sk-a", "llmk_a_b", "llmk_\u{fc}", &format!("llmk_{}", "p".repeat(49))]
    {
        assert!(!is_stored_prefix(bad), "{bad}");
    }
}

#[test]
fn a_name_without_usable_letters_yields_a_prefix_of_random_digits() {
    assert_eq!(issue_with(&mut SysRng, "日本").unwrap().prefix().len(), "llmk_".len() + 8);
}

#[test]
fn the_checksum_is_zero_padded_base62() {
    // The CRC32 of the empty text is 0; that of "123456789" is 0xCBF43926, the check value of the algorithm.
    assert_eq!(&checksum(b""), b"000000");
    let value = checksum(b"123456789")
        .iter()
        .fold(0_u64, |acc, d| acc * 62 + BASE62.iter().position(|b| b == d).unwrap() as u64);
    assert_eq!(value, 0xCBF4_3926);
}

#[test]
fn debug_shows_only_the_prefix() {
    let key = parse(b"llmk_demo_secret123").unwrap();
    for shown in [format!("{key:?}"), format!("{:?}", key.to_plain())] {
        assert!(shown.contains("llmk_demo") && !shown.contains("secret"), "{shown}");
    }
}

/// A slow model of the grammar: tries to split the text at every `_`. Returns the part before the split.
fn spelled_out(bytes: &[u8]) -> Option<&str> {
    const LETTERS_AND_DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= 71)?;
    let made_of =
        |part: &str, others: &str| part.chars().all(|c| LETTERS_AND_DIGITS.contains(c) || others.contains(c));
    let splits = text.match_indices('_').filter(|(at, _)| text.starts_with("llmk_") && *at >= 5);
    let mut keys = splits.filter_map(|(at, _)| {
        let (prefix, secret) = (&text[5..at], &text[at + 1..]);
        let lengths = (1..=48).contains(&prefix.len()) && (8..=57).contains(&secret.len());
        (lengths && made_of(prefix, "-") && made_of(secret, "-_")).then_some(&text[..at])
    });
    let only = keys.next();
    assert!(keys.next().is_none(), "no text can be split in two ways: {text}");
    only
}

/// Keys at and around every bound of the grammar, intact and with one byte changed, and texts that resemble keys.
fn nearly_keys() -> impl Strategy<Value = Vec<u8>> {
    let key = ("[A-Za-z0-9-]{0,50}", "[A-Za-z0-9_-]{5,60}").prop_map(|(p, s)| format!("llmk_{p}_{s}"));
    let short = ("[a-z0-9-]{1,3}", "[a-z_-]{7,9}").prop_map(|(p, s)| format!("llmk_{p}_{s}"));
    let full = (1_usize..=48).prop_flat_map(|p| {
        let s = 71 - "llmk__".len() - p;
        let (less, more) = (s - 1, s + 1);
        string_regex(&format!("llmk_[a-z]{{{p}}}_[A-Z]{{{less},{more}}}")).unwrap()
    });
    let family = "(llmk|LLMK|llm|llmk_|)[_-][a-z]{0,3}_?[a-z_]{6,10}";
    let text = prop_oneof![4 => key, 4 => short, 4 => full, 2 => family, 1 => "\\PC{0,90}"];
    (text, any::<prop::sample::Index>(), any::<u8>(), 0..4_u8).prop_map(|(text, at, byte, how)| {
        let mut bytes = text.into_bytes();
        let at = at.index(bytes.len() + 1);
        match how {
            0 => bytes.insert(at, byte),
            1 if at < bytes.len() => bytes.splice(at..=at, []).for_each(drop),
            2 if at < bytes.len() => bytes[at] = byte,
            _ => {}
        }
        bytes
    })
}

proptest! {
    #[test]
    fn every_valid_key_is_parsed(p in "[A-Za-z0-9-]{1,48}", s in "[A-Za-z0-9_-]{8,57}") {
        let text = format!("llmk_{p}_{s}");
        let parsed = parse(text.as_bytes());
        prop_assert_eq!(parsed.is_ok(), text.len() <= MAX_KEY_BYTES);
        if let Ok(key) = parsed {
            prop_assert_eq!(key.prefix(), format!("llmk_{p}"));
            prop_assert!(is_stored_prefix(key.prefix()));
        }
    }

    #[test]
    fn exactly_the_grammar_is_accepted(text in nearly_keys()) {
        let (ours, theirs) = (parse(&text), spelled_out(&text));
        prop_assert_eq!(ours.as_ref().ok().map(PresentedKey::prefix), theirs, "{}", text.escape_ascii());
        if let Ok(key) = ours {
            prop_assert_eq!(key.expose(), &text[..]);
        }
    }

    #[test]
    fn a_key_with_an_invalid_byte_anywhere_is_rejected(at in 0_usize..19, bad in any::<u8>()) {
        let mut text = b"llmk_demo_secret123".to_vec();
        prop_assume!(!is_secret_byte(bad));
        text[at] = bad;
        prop_assert!(parse(&text).is_err());
    }

    #[test]
    fn no_bytes_cause_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn generated_keys_are_valid_keys(name in "\\PC{0,40}") {
        let key = issue_with(&mut SysRng, &name).unwrap();
        prop_assert_eq!(parse(key.expose().as_bytes()).unwrap().prefix(), key.prefix());
    }
}

//! Parses and generates keys: their grammar and their checksum.
//!
//! ```text
//! llmk_ <prefix> _ <secret>      at most 71 bytes in all
//!       │          └ 8–57 of [A-Za-z0-9_-]
//!       └ 1–48 of [A-Za-z0-9-]: no `_`, so the first `_` after `llmk_` ends it
//! ```
//!
//! The prefix of a generated key is up to 12 of `[a-z0-9]` from the tenant's name and 8 random base62 digits. Its
//! secret is 32 random base62 digits (190 bits) and a CRC32 as 6 base62 digits. The checksum lets secret scanners
//! recognize real keys. It has no security purpose, and [`parse`] ignores it: keys that other programs issued have
//! none.
//!
//! Parsing does not allocate, and happens before any lookup, hash or log line.

use rand::TryRng;
use zeroize::Zeroizing;

use super::{PlainKey, PresentedKey};

/// How API keys start. NEVER CHANGE THIS: every API key ever issued starts with it.
pub const SCHEME: &str = "llmk_";

/// How management keys start. NEVER CHANGE THIS: every management key ever issued starts with it. Has the length of
/// [`SCHEME`].
pub const MANAGEMENT_SCHEME: &str = "llma_";

/// Both schemes, for code that searches text for secrets.
pub const SCHEMES: [&str; 2] = [SCHEME, MANAGEMENT_SCHEME];

/// The most bytes of a key. bcrypt reads 72 bytes, of which the last is a NUL that it appends itself, so the 72nd
/// byte of a key would not be checked.
///
/// Source: "Maximum password length" in the OWASP Password Storage Cheat Sheet.
pub const MAX_KEY_BYTES: usize = 71;

const PREFIX_BYTES: std::ops::RangeInclusive<usize> = 1..=48;
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 8..=57;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const NAME_CHARS: usize = 12;
const PREFIX_RANDOM: usize = 8;
const SECRET_RANDOM: usize = 32;
const CHECKSUM_CHARS: usize = 6;

/// Why bytes are not a valid key.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FormatError {
    /// It is longer than [`MAX_KEY_BYTES`].
    #[error("longer than 71 bytes")]
    TooLong,
    /// It does not start with `llmk_`.
    #[error("does not start with llmk_")]
    Scheme,
    /// It does not start with `llma_`.
    #[error("does not start with llma_")]
    ManagementScheme,
    /// There is no `_` after the prefix, or the prefix is invalid.
    #[error("has no prefix of 1 to 48 letters, digits or hyphens")]
    Prefix,
    /// The secret is invalid.
    #[error("has no secret of 8 to 57 letters, digits, underscores or hyphens")]
    Secret,
}

/// Parses an API key.
///
/// # Errors
///
/// Returns the first rule of the grammar that `bytes` violate.
///
/// # Security
///
/// The length is checked first, so no text longer than what bcrypt reads is ever hashed.
///
/// ```
/// use tenantgate_core::key::format::parse;
/// assert_eq!(parse(b"llmk_demo_secret123").unwrap().prefix(), "llmk_demo");
/// assert!(parse(b"llmk_demo").is_err());
/// ```
#[inline]
pub fn parse(bytes: &[u8]) -> Result<PresentedKey<'_>, FormatError> {
    parse_as(bytes, SCHEME, FormatError::Scheme)
}

/// Parses a management key. Its grammar is that of API keys, except for the scheme.
///
/// # Errors
///
/// As [`parse`]; for an API key it is [`FormatError::ManagementScheme`].
pub fn parse_management(bytes: &[u8]) -> Result<PresentedKey<'_>, FormatError> {
    parse_as(bytes, MANAGEMENT_SCHEME, FormatError::ManagementScheme)
}

#[inline]
fn parse_as<'b>(bytes: &'b [u8], scheme: &str, other: FormatError) -> Result<PresentedKey<'b>, FormatError> {
    if bytes.len() > MAX_KEY_BYTES {
        return Err(FormatError::TooLong);
    }
    let rest = bytes.strip_prefix(scheme.as_bytes()).ok_or(other)?;
    let end = rest.iter().position(|&b| b == b'_').ok_or(FormatError::Prefix)?;
    if !PREFIX_BYTES.contains(&end) || !rest[..end].iter().copied().all(is_prefix_byte) {
        return Err(FormatError::Prefix);
    }
    let secret = &rest[end + 1..];
    if !SECRET_BYTES.contains(&secret.len()) || !secret.iter().copied().all(is_secret_byte) {
        return Err(FormatError::Secret);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| FormatError::Secret)?;
    Ok(PresentedKey { text, split: scheme.len() + end })
}

/// Returns whether `text` is a valid `api_keys.key_prefix`: `llmk_` and a valid prefix.
#[must_use]
pub fn is_stored_prefix(text: &str) -> bool {
    text.strip_prefix(SCHEME)
        .is_some_and(|p| PREFIX_BYTES.contains(&p.len()) && p.bytes().all(is_prefix_byte))
}

/// Returns whether `text` contains a whole key of either scheme, also if more text follows it directly.
#[must_use]
pub fn holds_key(text: &str) -> bool {
    let starts = SCHEMES.iter().flat_map(|scheme| text.match_indices(scheme));
    starts.into_iter().any(|(at, scheme)| {
        let rest = &text.as_bytes()[at + scheme.len()..];
        let prefix = rest.iter().take_while(|&&b| is_prefix_byte(b)).count();
        let secret = rest.iter().skip(prefix + 1).take_while(|&&b| is_secret_byte(b)).count();
        prefix > 0 && rest.get(prefix) == Some(&b'_') && secret >= *SECRET_BYTES.start()
    })
}

fn is_prefix_byte(b: u8) -> bool {
    KINDS[usize::from(b)] == IN_PREFIX
}

fn is_secret_byte(b: u8) -> bool {
    KINDS[usize::from(b)] != 0
}

const IN_PREFIX: u8 = 1;
const IN_SECRET_ALONE: u8 = 2;

/// The parts of a key in which each byte is allowed. A table, because every byte of every key is looked up.
const KINDS: [u8; 256] = {
    let mut kinds = [0; 256];
    let mut byte = u8::MIN;
    while byte < 0x80 {
        kinds[byte as usize] = match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' => IN_PREFIX,
            b'_' => IN_SECRET_ALONE,
            _ => 0,
        };
        byte += 1;
    }
    kinds
};

/// Generates an API key for a tenant with this name.
///
/// # Errors
///
/// Returns the error of `rng`.
pub fn issue_with<R: TryRng>(rng: &mut R, tenant_name: &str) -> Result<PlainKey, R::Error> {
    issue_as(SCHEME, rng, tenant_name)
}

/// Generates a management key with this name.
///
/// # Errors
///
/// Returns the error of `rng`.
pub fn issue_management_with<R: TryRng>(rng: &mut R, name: &str) -> Result<PlainKey, R::Error> {
    issue_as(MANAGEMENT_SCHEME, rng, name)
}

fn issue_as<R: TryRng>(scheme: &str, rng: &mut R, name: &str) -> Result<PlainKey, R::Error> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_KEY_BYTES));
    text.push_str(scheme);
    text.extend(name_part(name));
    push_base62(rng, &mut text, PREFIX_RANDOM)?;
    let split = text.len();
    text.push('_');
    push_base62(rng, &mut text, SECRET_RANDOM)?;
    let sum = checksum(text.as_bytes());
    text.extend(sum.iter().copied().map(char::from));
    Ok(PlainKey { text, split })
}

fn name_part(name: &str) -> impl Iterator<Item = char> + '_ {
    name.chars().map(|c| c.to_ascii_lowercase()).filter(char::is_ascii_alphanumeric).take(NAME_CHARS)
}

/// Appends `count` random base62 digits. Rejecting bytes from 248 (4 × 62) on makes all digits equally likely.
fn push_base62<R: TryRng>(rng: &mut R, text: &mut String, count: usize) -> Result<(), R::Error> {
    let target = text.len() + count;
    let mut pool = Zeroizing::new([0_u8; 64]);
    while text.len() < target {
        rng.try_fill_bytes(pool.as_mut())?;
        let fair = pool.iter().copied().filter(|&b| b < 248);
        text.extend(fair.take(target - text.len()).map(|b| char::from(BASE62[usize::from(b % 62)])));
    }
    Ok(())
}

/// Returns the CRC32 (IEEE 802.3) of `bytes` as six base62 digits, most significant first, zero-padded.
#[must_use]
pub fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_CHARS] {
    let mut rest = crc32fast::hash(bytes);
    let mut digits = [b'0'; CHECKSUM_CHARS];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

/// Returns an upper bound for the entropy of the secret of `key`, in bits: its number of characters (without our
/// checksum) times the bits of each, given which kinds of characters occur. The secret starts at byte `from`.
///
/// It identifies secrets that are too short or too uniform. How random a secret really is cannot be measured.
#[must_use]
pub(super) fn secret_bits(key: &str, from: usize) -> f64 {
    let (body, sum) = key.split_at(key.len().saturating_sub(CHECKSUM_CHARS).max(from));
    let random = if sum.as_bytes() == checksum(body.as_bytes()) { &body[from..] } else { &key[from..] };
    let mut different: Vec<u8> = random.bytes().collect();
    different.sort_unstable();
    different.dedup();
    let count = |n: usize| f64::from(u8::try_from(n).unwrap_or(u8::MAX));
    // If each character occurs more than four times on average, count only the characters that occur.
    let few = different.len() * 4 < random.len();
    count(random.len()) * if few { count(different.len()) } else { alphabet(&different) }.log2()
}

/// Returns the size of the alphabet that `characters` seem to be chosen from: hexadecimal digits, or the sum of the
/// sizes of the kinds that occur.
fn alphabet(characters: &[u8]) -> f64 {
    let has = |kind: fn(&u8) -> bool| characters.iter().any(kind);
    let (digits, lower, upper) =
        (has(u8::is_ascii_digit), has(u8::is_ascii_lowercase), has(u8::is_ascii_uppercase));
    if lower && characters.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return 16.0;
    }
    let kinds = [(digits, 10.0), (lower, 26.0), (upper, 26.0), (has(u8::is_ascii_punctuation), 2.0)];
    kinds.iter().filter(|(here, _)| *here).map(|(_, many)| many).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::string::string_regex;
    use rand::rngs::SysRng;

    use super::*;

    #[test]
    fn a_key_is_found_anywhere_in_a_text() {
        let long = format!("llmk_demo_{}", "s".repeat(80));
        for holds in
            ["llmk_demo_secret123", "see llmk_demo_secret123, leaked", "llmk_llmk_demo_secret123", &long]
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
        for bad in
            ["", "llmk_", "LLMK_a", "sk-a", "llmk_a_b", "llmk_\u{fc}", &format!("llmk_{}", "p".repeat(49))]
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
        let made_of = |part: &str, others: &str| {
            part.chars().all(|c| LETTERS_AND_DIGITS.contains(c) || others.contains(c))
        };
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
}

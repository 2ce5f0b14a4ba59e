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
mod tests;

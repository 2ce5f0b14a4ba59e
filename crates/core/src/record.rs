//! The rows of `api_keys`.
//!
//! There are two views of a row: [`KeyRecord`] has what a decision needs, and is small because the snapshot holds
//! one for every key; [`KeyDetails`] has what people are shown.

use std::fmt;
use std::num::NonZeroU8;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD, URL_SAFE_NO_PAD};

use crate::clock::Timestamp;
use crate::invalid::InvalidValue;
use crate::key::KeyId;
use crate::key::format::is_stored_prefix;
use crate::key::prefix::Prefix;
use crate::labels::Labels;
use crate::profile::{ProfileRow, Unreadable};
use crate::tenant::TenantId;

/// The part of a row of `api_keys` that a decision needs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyRecord {
    /// `api_keys.id`.
    pub id: KeyId,
    /// `api_keys.tenant_id`.
    pub tenant_id: TenantId,
    /// `api_keys.key_prefix`.
    pub prefix: Prefix,
    /// `api_keys.hashed_key`; `None` if it or another column is invalid.
    pub hash: Option<SecretHash>,
    /// `api_keys.expires_at`.
    pub expires_at: ExpiresAt,
    /// `api_keys.not_before`; [`Timestamp::MIN`] for NULL.
    pub not_before: Timestamp,
    /// Whether `api_keys.revoked_at` is set.
    pub revoked: bool,
    /// Whether `api_keys.disabled_at` is set.
    pub disabled: bool,
}

impl KeyRecord {
    /// Creates the record of a key that is valid from the beginning and forever.
    #[must_use]
    pub fn new(id: KeyId, tenant_id: TenantId, prefix: Prefix, hash: Option<SecretHash>) -> Self {
        let (expires_at, not_before) = (ExpiresAt::NEVER, Timestamp::MIN);
        Self { id, tenant_id, prefix, hash, expires_at, not_before, revoked: false, disabled: false }
    }

    /// Returns whether the row is damaged: its hash is invalid, or its prefix is one that no key can have. Such a row
    /// never allows a request.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.hash.is_none() || !is_stored_prefix(&self.prefix)
    }
}

/// The expiry of a key, an instant or never, in 8 bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ExpiresAt(i64);

impl ExpiresAt {
    /// The key never expires; stands for NULL and `infinity`.
    pub const NEVER: Self = Self(i64::MAX);

    /// Returns the instant; `None` for never.
    #[must_use]
    pub fn at(self) -> Option<Timestamp> {
        (self != Self::NEVER).then_some(Timestamp(self.0))
    }
}

impl From<Option<Timestamp>> for ExpiresAt {
    fn from(at: Option<Timestamp>) -> Self {
        at.map_or(Self::NEVER, |at| Self(at.0))
    }
}

/// A bcrypt hash of an accepted version and cost, in 40 bytes: `$2a$`, `$2b$` or `$2y$`, cost 4 to 14.
///
/// `$2x$` marks hashes of a broken implementation. The cost is bounded because each step doubles the CPU time: at a
/// cost of 31, one row could occupy the server for days. Texts whose unused last bits are set are rejected, because
/// bcrypt never writes them.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct SecretHash {
    /// The index in [`LETTERS`] in the low three bits, the cost in the others.
    kind: NonZeroU8,
    bytes: [u8; 39],
}

/// The letters of the accepted versions of bcrypt, which are verified in the same way. Index 0 is a placeholder.
const LETTERS: [u8; 4] = *b"?aby";

/// The bytes of the salt. It is encoded apart from the digest, which follows it.
const SALT: usize = 16;
const SALT_TEXT: usize = 22;

/// bcrypt's own Base64. Rejects texts that no encoder writes.
const BCRYPT_BASE64: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::BCRYPT, NO_PAD);

impl SecretHash {
    /// Parses `api_keys.hashed_key`; `None` if it is invalid.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text: &[u8; 60] = text.as_bytes().try_into().ok()?;
        let [b'$', b'2', letter, b'$', c1, c2, b'$', rest @ ..] = text else { return None };
        let letter = LETTERS.iter().position(|known| known == letter).filter(|at| *at > 0)?;
        let cost = (c1.is_ascii_digit() && c2.is_ascii_digit()).then(|| (c1 - b'0') * 10 + (c2 - b'0'))?;
        let cost = Some(cost).filter(|cost| (4..=14).contains(cost))?;
        let mut bytes = [0; 39];
        let (salt, digest) = bytes.split_at_mut(SALT);
        for (from, to) in [(&rest[..SALT_TEXT], salt), (&rest[SALT_TEXT..], digest)] {
            let written = BCRYPT_BASE64.decode_slice_unchecked(from, to).ok()?;
            (written == to.len()).then_some(())?;
        }
        Some(Self { kind: NonZeroU8::new(u8::try_from(letter).ok()? | cost << 3)?, bytes })
    }

    /// Returns the cost: the binary logarithm of the number of rounds.
    #[must_use]
    pub fn cost(&self) -> u8 {
        self.kind.get() >> 3
    }

    /// Returns the hash as the database stores it.
    #[must_use]
    pub fn text(&self) -> HashText {
        let (letter, cost) = (LETTERS[usize::from(self.kind.get() & 7)], self.cost());
        let mut text = [b'$'; 60];
        [text[1], text[2], text[4], text[5]] = [b'2', letter, b'0' + cost / 10, b'0' + cost % 10];
        let (salt, digest) = self.bytes.split_at(SALT);
        // Cannot fail: 16 bytes encode to 22 characters, and 23 bytes to 31.
        let _ = BCRYPT_BASE64.encode_slice(salt, &mut text[7..29]);
        let _ = BCRYPT_BASE64.encode_slice(digest, &mut text[29..]);
        HashText(text)
    }
}

/// The text of a [`SecretHash`], as the database stores it.
#[derive(Clone, Copy)]
pub struct HashText([u8; 60]);

impl HashText {
    /// Returns it as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Returns it as ASCII.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 60] {
        &self.0
    }
}

/// Shows only version and cost, because hashes must not appear in logs.
impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretHash({}…)", &self.text().as_str()[..7])
    }
}

/// The id of a pepper. It is derived from the pepper itself, so that different peppers have different ids.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct PepperId(pub [u8; 4]);

impl fmt::Display for PepperId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl PepperId {
    /// Parses the text of [`fmt::Display`]: eight hexadecimal digits in lower case. `None` if `text` is invalid.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let plain = text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let number = plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()?;
        Some(Self(number.to_be_bytes()))
    }
}

/// A memo, `api_keys.key_memo`: the record that bcrypt accepted a key for this row. It is sealed with a pepper, and
/// valid only with that pepper and for that row.
///
/// ```text
/// $llmk-hmac-sha256$v=1,k=<pepper, 8 hex>$<row, 11 base64url>$<key, 43 base64url>
/// ```
#[derive(Clone, Copy)]
pub struct Memo {
    /// The id of the pepper.
    pub pepper: PepperId,
    /// The MAC of the row.
    pub row: [u8; 8],
    /// The MAC of the key.
    pub key: [u8; 32],
}

impl Memo {
    const SCHEME: &str = "$llmk-hmac-sha256$v=1,k=";

    /// Parses `api_keys.key_memo`; `None` if it is invalid, which callers treat like NULL.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix(Self::SCHEME)?.split('$');
        let (pepper, row, key) = (parts.next()?, parts.next()?, parts.next()?);
        let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        let memo = Self {
            pepper: PepperId::parse(pepper)?,
            row: bytes(row)?.try_into().ok()?,
            key: bytes(key)?.try_into().ok()?,
        };
        parts.next().is_none().then_some(memo)
    }
}

impl fmt::Display for Memo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (row, key) = (URL_SAFE_NO_PAD.encode(self.row), URL_SAFE_NO_PAD.encode(self.key));
        write!(f, "{}{}${row}${key}", Self::SCHEME, self.pepper)
    }
}

/// Shows only the id of the pepper, because memos must not appear in logs.
impl fmt::Debug for Memo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memo").field("pepper", &self.pepper).finish_non_exhaustive()
    }
}

/// A row of `api_keys` as it is shown to people: without hash and secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyDetails {
    /// `api_keys.id`.
    pub id: KeyId,
    /// `api_keys.key_prefix`.
    pub prefix: String,
    /// `api_keys.name`.
    pub name: Option<String>,
    /// `api_keys.tenant_id`.
    pub tenant_id: TenantId,
    /// `api_keys.created_at`.
    pub created_at: Timestamp,
    /// `api_keys.expires_at`; `None` for NULL and `infinity`.
    pub expires_at: Option<Timestamp>,
    /// `api_keys.last_used_at`.
    pub last_used_at: Option<Timestamp>,
    /// `api_keys.revoked_at`.
    pub revoked_at: Option<Timestamp>,
    /// `api_keys.revocation_reason`.
    pub revocation_reason: Option<String>,
    /// `api_keys.replaced_by`: the key that the latest rotation created.
    pub replaced_by: Option<KeyId>,
    /// The id of the pepper of `api_keys.key_memo`, if there is a memo.
    pub memo: Option<PepperId>,
    /// `api_keys.disabled_at`.
    pub disabled_at: Option<Timestamp>,
    /// The policy of the key.
    pub terms: KeyTerms,
    /// A column that cannot be read; then its field has a value with which the key is not active.
    pub unreadable: Option<Unreadable>,
}

/// The policy of a key, unparsed, and its labels. A rotation copies all of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeyTerms {
    /// `api_keys.not_before`.
    pub not_before: Option<Timestamp>,
    /// `api_keys.scopes`; `None` grants everything.
    pub scopes: Option<String>,
    /// `api_keys.networks`; `None` allows any address.
    pub networks: Option<String>,
    /// `api_keys.plan`.
    pub plan: Option<String>,
    /// `api_keys.labels`; empty if they are invalid.
    pub labels: Labels,
}

impl KeyTerms {
    /// Returns the columns that a verdict depends on, besides the start of validity.
    #[must_use]
    pub fn profile(&self) -> ProfileRow {
        let column = |text: &Option<String>| text.as_deref().map(Into::into);
        ProfileRow {
            scopes: column(&self.scopes),
            networks: column(&self.networks),
            plan: column(&self.plan),
            unreadable: None,
        }
    }
}

impl KeyDetails {
    /// Returns the state of the key at `now`.
    #[must_use]
    pub fn state(&self, now: Timestamp) -> KeyState {
        if self.revoked_at.is_some() {
            KeyState::Revoked
        } else if self.disabled_at.is_some() {
            KeyState::Disabled
        } else if has_expired(self.expires_at, now) {
            KeyState::Expired
        } else if self.terms.not_before.is_some_and(|at| now < at) {
            KeyState::NotYetValid
        } else {
            KeyState::Active
        }
    }
}

/// The state of a key, regardless of its tenant. If several apply, the first in the order of revoked, disabled,
/// expired, not yet valid.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyState {
    /// It may be used.
    Active,
    /// It is disabled until it is enabled again.
    Disabled,
    /// Its `expires_at` has passed.
    Expired,
    /// Its `not_before` lies in the future.
    NotYetValid,
    /// It was revoked.
    Revoked,
}

impl KeyState {
    /// Every state.
    pub const ALL: [Self; 5] =
        [Self::Active, Self::Disabled, Self::Expired, Self::NotYetValid, Self::Revoked];

    /// Returns the name that the command line uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Revoked => "revoked",
        }
    }

    /// Parses a name.
    ///
    /// # Errors
    ///
    /// Returns the list of names if `text` is none of them.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        let known = Self::ALL.into_iter().find(|state| state.as_str() == text);
        known.ok_or_else(|| format!("expected one of {}", Self::ALL.map(Self::as_str).join(", ")).into())
    }
}

/// Returns whether a key has expired at `now`. From the instant of `expires_at` on it has; `None` never expires.
#[must_use]
pub fn has_expired(expires_at: Option<Timestamp>, now: Timestamp) -> bool {
    expires_at.is_some_and(|at| at <= now)
}

#[cfg(test)]
mod tests {
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
        assert_eq!(
            Memo::parse(&text).map(|m| (m.pepper, m.row, m.key)),
            Some((memo.pepper, memo.row, memo.key))
        );
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
}

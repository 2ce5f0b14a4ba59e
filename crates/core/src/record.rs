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
mod tests;

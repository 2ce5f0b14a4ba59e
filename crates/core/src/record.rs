//! The row of a key: what is known of it without the key itself.
//!
//! Two views of a row of `api_keys`: [`KeyRecord`] is what judgement needs, kept
//! for every key in memory and therefore small; [`KeyDetails`] is what people
//! are shown.

use std::fmt;
use std::num::NonZeroU8;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD, URL_SAFE_NO_PAD};

use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::key::format::is_stored_prefix;
use crate::key::prefix::Prefix;
use crate::labels::Labels;
use crate::tenant::TenantId;

/// What judgement needs of a row of `api_keys`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyRecord {
    /// `api_keys.id`.
    pub id: KeyId,
    /// `api_keys.tenant_id`.
    pub tenant_id: TenantId,
    /// `api_keys.key_prefix`.
    pub prefix: Prefix,
    /// `api_keys.hashed_key`; nothing if that or another column is damaged.
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
    /// Whether no request can ever pass by it: its hash is damaged, or no key has such a prefix.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.hash.is_none() || !is_stored_prefix(&self.prefix)
    }
}

/// When a key expires: an instant, or never, in eight bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ExpiresAt(i64);

impl ExpiresAt {
    /// What NULL and `infinity` mean.
    pub const NEVER: Self = Self(i64::MAX);

    /// The instant, if there is one.
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

/// A bcrypt hash of the shape and cost we are ready to pay for: `$2a$`, `$2b$` or `$2y$`, cost 4 to 14.
///
/// `$2x$` marks the hashes of a broken implementation, and a cost of 31 is a week of CPU that one row
/// could ask for at every request. A text whose last bits are not zero is no hash that bcrypt could have made.
/// Forty bytes, because there is one for every key.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct SecretHash {
    /// The letter in the low three bits, the cost above.
    kind: NonZeroU8,
    bytes: [u8; 39],
}

/// The letters of the versions of bcrypt that are one and the same to us, by number.
const LETTERS: [u8; 4] = *b"?aby";

/// Salt and digest are spelled one after the other.
const SALT: usize = 16;
const SALT_TEXT: usize = 22;

/// bcrypt's own base64, refusing what no encoder writes.
const BCRYPT_BASE64: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::BCRYPT, NO_PAD);

impl SecretHash {
    /// Reads `api_keys.hashed_key`; nothing if the row is damaged.
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

    /// The cost of the hash: the binary logarithm of its rounds.
    #[must_use]
    pub fn cost(&self) -> u8 {
        self.kind.get() >> 3
    }

    /// The hash as the database has it.
    #[must_use]
    pub fn text(&self) -> HashText {
        let (letter, cost) = (LETTERS[usize::from(self.kind.get() & 7)], self.cost());
        let mut text = [b'$'; 60];
        [text[1], text[2], text[4], text[5]] = [b'2', letter, b'0' + cost / 10, b'0' + cost % 10];
        let (salt, digest) = self.bytes.split_at(SALT);
        // The room is what these lengths need.
        let _ = BCRYPT_BASE64.encode_slice(salt, &mut text[7..29]);
        let _ = BCRYPT_BASE64.encode_slice(digest, &mut text[29..]);
        HashText(text)
    }
}

/// What [`SecretHash::text`] spells.
#[derive(Clone, Copy)]
pub struct HashText([u8; 60]);

impl HashText {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// As bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 60] {
        &self.0
    }
}

/// A hash is no secret of the first order, but it has no business in a log either.
impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretHash({}…)", &self.text().as_str()[..7])
    }
}

/// The name of a pepper: made from the pepper itself, so that the same name never means two of them.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct PepperId(pub [u8; 4]);

impl fmt::Display for PepperId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl PepperId {
    /// Reads what [`fmt::Display`] writes: eight digits of hexadecimal.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let plain = text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let number = plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()?;
        Some(Self(number.to_be_bytes()))
    }
}

/// `api_keys.key_memo`: that bcrypt once said yes to a key of this row, under a pepper. Worth something only to
/// who has the pepper, and only beside the very row it was made for.
///
/// ```text
/// $llmk-hmac-sha256$v=1,k=<pepper, 8 hex>$<row, 11 base64url>$<key, 43 base64url>
/// ```
#[derive(Clone, Copy)]
pub struct Memo {
    /// Which pepper it was made with.
    pub pepper: PepperId,
    /// By which it is known whether it belongs to a row.
    pub row: [u8; 8],
    /// By which the key is known.
    pub key: [u8; 32],
}

impl Memo {
    const SCHEME: &str = "$llmk-hmac-sha256$v=1,k=";

    /// Reads `api_keys.key_memo`; nothing if it is none, which is as good as NULL.
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

/// Like a hash, it has no business in a log.
impl fmt::Debug for Memo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memo").field("pepper", &self.pepper).finish_non_exhaustive()
    }
}

/// A row of `api_keys` as people are shown it: never a hash, never a secret.
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
    /// `api_keys.expires_at`; nothing for NULL and `infinity`.
    pub expires_at: Option<Timestamp>,
    /// `api_keys.last_used_at`.
    pub last_used_at: Option<Timestamp>,
    /// `api_keys.revoked_at`.
    pub revoked_at: Option<Timestamp>,
    /// `api_keys.revocation_reason`.
    pub revocation_reason: Option<String>,
    /// `api_keys.replaced_by`: its latest successor.
    pub replaced_by: Option<KeyId>,
    /// The pepper of `api_keys.key_memo`, if it has one.
    pub memo: Option<PepperId>,
    /// `api_keys.disabled_at`.
    pub disabled_at: Option<Timestamp>,
    /// What it may do.
    pub terms: KeyTerms,
}

/// What a key may do, as the database has it. A rotation keeps all of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeyTerms {
    /// `api_keys.not_before`.
    pub not_before: Option<Timestamp>,
    /// `api_keys.scopes`; `None` grants everything.
    pub scopes: Option<String>,
    /// `api_keys.networks`; `None` means anywhere.
    pub networks: Option<String>,
    /// `api_keys.plan`.
    pub plan: Option<String>,
    /// `api_keys.labels`; none if they cannot be read.
    pub labels: Labels,
}

impl KeyDetails {
    /// The state of the key at `now`.
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

/// Whether a key may be used, its tenant aside.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyState {
    /// It may.
    Active,
    /// It is disabled, until it is enabled again.
    Disabled,
    /// Its time is over.
    Expired,
    /// Its time has not begun.
    NotYetValid,
    /// It was taken back.
    Revoked,
}

impl KeyState {
    /// Every state.
    pub const ALL: [Self; 5] =
        [Self::Active, Self::Disabled, Self::Expired, Self::NotYetValid, Self::Revoked];

    /// As the command line spells it.
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

    /// Reads a name.
    ///
    /// # Errors
    ///
    /// There is no such state.
    pub fn parse(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|state| state.as_str() == text);
        known.ok_or_else(|| format!("expected one of {}", Self::ALL.map(Self::as_str).join(", ")))
    }
}

/// The one rule of expiry: at the very instant of `expires_at` a key is expired.
#[must_use]
pub fn has_expired(expires_at: Option<Timestamp>, now: Timestamp) -> bool {
    expires_at.is_some_and(|at| at <= now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232";

    #[test]
    fn a_hash_of_another_kind_cost_length_or_alphabet_is_damaged() {
        assert_eq!(GOOD.len(), 60);
        for good in [
            GOOD.to_owned(),
            GOOD.replace("2b", "2a"),
            GOOD.replace("$12$", "$04$"),
            GOOD.replace("$12$", "$14$"),
        ] {
            assert_eq!(SecretHash::parse(&good).unwrap().text().as_str(), good);
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
            // Bits that no encoder sets.
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
    fn a_key_takes_little_room() {
        assert_eq!((size_of::<Option<SecretHash>>(), size_of::<KeyRecord>()), (40, 128));
    }

    #[test]
    fn a_memo_is_read_as_it_is_written_and_nothing_else_is() {
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
        assert!(shown.contains("1f") || shown.contains("31"), "its pepper: {shown}");
        assert!(!shown.contains("200"), "and nothing else: {shown}");
    }

    #[test]
    fn a_row_is_damaged_by_its_hash_or_its_prefix() {
        let row = |prefix: &str, hash: &str| KeyRecord {
            id: KeyId(uuid::Uuid::nil()),
            tenant_id: TenantId(uuid::Uuid::nil()),
            prefix: prefix.into(),
            hash: SecretHash::parse(hash),
            expires_at: ExpiresAt::NEVER,
            revoked: false,
            not_before: Timestamp::MIN,
            disabled: false,
        };
        assert!(!row("llmk_a", GOOD).is_damaged());
        assert!(row("llmk_a", "").is_damaged());
        assert!(row("llmk_", GOOD).is_damaged());
    }

    #[test]
    fn an_instant_is_kept_and_never_is_none() {
        assert_eq!(ExpiresAt::from(Some(Timestamp(7))).at(), Some(Timestamp(7)));
        assert_eq!((ExpiresAt::from(None).at(), ExpiresAt::from(None)), (None, ExpiresAt::NEVER));
    }

    #[test]
    fn a_key_is_revoked_before_it_is_expired() {
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
    fn debug_does_not_show_the_hash() {
        assert_eq!(format!("{:?}", SecretHash::parse(GOOD).unwrap()), "SecretHash($2b$12$…)");
    }

    #[test]
    fn expired_is_expired_at_the_very_instant() {
        assert!(has_expired(Some(Timestamp(5)), Timestamp(5)));
        assert!(!has_expired(Some(Timestamp(6)), Timestamp(5)));
        assert!(!has_expired(None, Timestamp(5)));
        assert!(has_expired(Some(Timestamp::MIN), Timestamp(5)));
    }
}

//! Seals, memos and tokens: three records of a successful proof, which save bcrypt.
//!
//! A [`Seal`] records that bcrypt accepted a key for a row: an HMAC-SHA-256 over the row and the whole presented key,
//! with a secret of the server. Checking it takes a quarter of a microsecond.
//!
//! ```text
//! seal = HMAC(k, "llmk-memo/v1\0" ‖ key id ‖ tenant id ‖ hashed_key ‖ length ‖ presented key)
//! row  = HMAC(k, "llmk-fp/v1\0"   ‖ key id ‖ tenant id ‖ hashed_key), the first 8 bytes
//! ```
//!
//! `k` is either random, which ends the seal with the process, or a [`Pepper`], which is kept outside of the
//! database. A seal with a pepper is written beside the row as its [`Memo`], and saves bcrypt after a restart.
//! Everything before the presented key has a fixed length, so different inputs cannot give the same bytes. If a row
//! gets another hash, tenant or id, its seals change, and an older memo is no longer valid.
//!
//! A seal takes four blocks of SHA-256. After the first check by a seal, the row stores a [`Token`], which takes one
//! block of BLAKE3 and is as fast on every processor:
//!
//! ```text
//! token = BLAKE3(t, secret), the first 16 bytes
//! ```
//!
//! `t` is random per process, and the key of BLAKE3's keyed mode (<https://github.com/BLAKE3-team/BLAKE3-specs>,
//! §2.2). A token stays in its row and never leaves the memory of the process. It need not depend on the row,
//! because no attacker can read a token or store one in another row.
//!
//! Without the pepper, a memo does not help an attacker. With the pepper, millions of guesses a second are possible,
//! so a secret of few bits gets no memo. Without a memo, or with the memo of a pepper that was removed, bcrypt
//! decides.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use hmac::{Hmac, Mac};
use rand::TryRng as _;
use rand::rngs::{SysError, SysRng};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::pepper::Pepper;
use crate::key::PresentedKey;
use crate::record::{KeyRecord, Memo, SecretHash};

const KEY_DOMAIN: &[u8] = b"llmk-memo/v1\0";
const ROW_DOMAIN: &[u8] = b"llmk-fp/v1\0";

/// The minimum entropy of a secret for a memo: the requirement of NIST SP 800-63B for secrets with a fast hash.
pub const LEAST_BITS: f64 = 112.0;

/// Whether keys need a memo.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum MemoPolicy {
    /// bcrypt decides about rows without a memo.
    #[default]
    Optional,
    /// Rows without a memo are rejected: write access to the database without the pepper cannot create a valid key.
    Required,
}

/// The peppers of the operator, none by default, and the policy. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Peppers {
    /// The first one writes memos, all are accepted.
    list: Arc<[Pepper]>,
    policy: MemoPolicy,
}

impl Peppers {
    /// Creates the list of peppers. The first one writes memos.
    #[must_use]
    pub fn new(list: Vec<Pepper>, policy: MemoPolicy) -> Self {
        Self { list: list.into(), policy }
    }

    /// Returns all peppers, first the one that writes memos.
    #[must_use]
    pub fn list(&self) -> &[Pepper] {
        &self.list
    }

    /// Returns whether keys need a memo.
    #[must_use]
    pub fn policy(&self) -> MemoPolicy {
        self.policy
    }

    /// Returns the seal in a memo; `None` if the memo belongs to another row or its pepper is unknown.
    #[must_use]
    pub fn read(&self, memo: &Memo, record: &KeyRecord) -> Option<Seal> {
        let hash = record.hash.as_ref()?;
        let at = self.list.iter().position(|pepper| pepper.id() == memo.pepper)?;
        let ours: bool = row_mac(&self.list[at], record, hash).ct_eq(&memo.row).into();
        let by = u8::try_from(at + 1).ok()?;
        ours.then_some(Seal { by, mac: memo.key })
    }

    /// Creates a memo for a proof of `presented`; `None` without a pepper or for a secret of few bits.
    #[must_use]
    pub fn memo(&self, record: &KeyRecord, presented: PresentedKey<'_>) -> Option<Memo> {
        let (hash, pepper) = (record.hash.as_ref()?, self.list.first()?);
        let key = || key_mac(pepper, record, hash, presented.expose());
        let strong = presented.secret_bits() >= LEAST_BITS;
        strong.then(|| Memo { pepper: pepper.id(), row: row_mac(pepper, record, hash), key: key() })
    }

    /// Returns the memo that a seal was read from; `None` if it was made by this process.
    #[must_use]
    pub fn memo_of(&self, record: &KeyRecord, seal: &Seal) -> Option<Memo> {
        let (hash, pepper) = (record.hash.as_ref()?, self.made(seal)?);
        Some(Memo { pepper: pepper.id(), row: row_mac(pepper, record, hash), key: seal.mac })
    }

    /// Returns whether a row with this seal needs no new memo: it has one of the first pepper, or there is no pepper.
    #[must_use]
    pub fn is_settled(&self, seal: Option<&Seal>) -> bool {
        self.list.is_empty() || seal.is_some_and(|seal| seal.by == 1)
    }

    fn made(&self, seal: &Seal) -> Option<&Pepper> {
        self.list.get(usize::from(seal.by).checked_sub(1)?)
    }
}

/// The secrets for seals and tokens. Cheap to clone.
#[derive(Clone)]
pub struct Keyring {
    /// The secret of this process.
    own: Pepper,
    /// The key for tokens.
    tokens: Arc<Zeroizing<[u8; blake3::KEY_LEN]>>,
    peppers: Peppers,
}

impl Keyring {
    /// Creates a keyring with these peppers and random secrets of its own.
    ///
    /// # Errors
    ///
    /// Fails if the operating system provides no randomness.
    pub fn new(peppers: Peppers) -> Result<Self, SysError> {
        let mut tokens = Zeroizing::new([0; blake3::KEY_LEN]);
        SysRng.try_fill_bytes(tokens.as_mut())?;
        Ok(Self { own: Pepper::random()?, tokens: Arc::new(tokens), peppers })
    }

    /// Returns the peppers of the operator.
    #[must_use]
    pub fn peppers(&self) -> &Peppers {
        &self.peppers
    }

    /// Creates the token of a key. It is valid until this process ends, in the row that the key was proven for.
    #[must_use]
    pub fn token(&self, presented: PresentedKey<'_>) -> Token {
        let hash = blake3::keyed_hash(&self.tokens, presented.expose_secret());
        Token(std::array::from_fn(|at| hash.as_bytes()[at]))
    }

    /// Creates the seal of `presented` for this row. It is valid until this process ends.
    #[must_use]
    pub fn seal(&self, record: &KeyRecord, hash: &SecretHash, presented: &[u8]) -> Seal {
        Seal { by: 0, mac: key_mac(&self.own, record, hash, presented) }
    }

    /// Returns whether `seal` is the seal of `presented` for this row. Compares in constant time.
    #[must_use]
    pub fn knows(&self, seal: &Seal, record: &KeyRecord, hash: &SecretHash, presented: &[u8]) -> bool {
        let pepper = if seal.by == 0 { Some(&self.own) } else { self.peppers.made(seal) };
        pepper.is_some_and(|pepper| key_mac(pepper, record, hash, presented).ct_eq(&seal.mac).into())
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("peppers", &self.peppers).finish_non_exhaustive()
    }
}

fn of_row(pepper: &Pepper, domain: &[u8], record: &KeyRecord, hash: &SecretHash) -> Hmac<Sha256> {
    let mut mac = pepper.mac(domain);
    mac.update(record.id.0.as_bytes());
    mac.update(record.tenant_id.0.as_bytes());
    mac.update(hash.text().as_bytes());
    mac
}

fn key_mac(pepper: &Pepper, record: &KeyRecord, hash: &SecretHash, presented: &[u8]) -> [u8; 32] {
    let mut mac = of_row(pepper, KEY_DOMAIN, record, hash);
    mac.update(&u16::try_from(presented.len()).unwrap_or(u16::MAX).to_be_bytes());
    mac.update(presented);
    mac.finalize().into_bytes().into()
}

fn row_mac(pepper: &Pepper, record: &KeyRecord, hash: &SecretHash) -> [u8; 8] {
    let mac = of_row(pepper, ROW_DOMAIN, record, hash).finalize().into_bytes();
    std::array::from_fn(|at| mac[at])
}

/// A recorded verdict of bcrypt.
#[derive(Clone, Copy)]
pub struct Seal {
    mac: [u8; 32],
    /// 0 for the secret of this process, otherwise the position of the pepper in the list, from 1.
    by: u8,
}

impl Seal {
    /// Compares two seals with the same secret in constant time.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.mac.ct_eq(&other.mac).into()
    }

    /// Returns the seal as the key of a map. Attackers cannot cause collisions, because they cannot compute seals.
    #[must_use]
    pub fn as_map_key(&self) -> [u8; 32] {
        self.mac
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seal").finish_non_exhaustive()
    }
}

/// A short hash that recognizes a proven key in its row.
#[derive(Clone, Copy)]
pub struct Token([u8; 16]);

/// The place for the token of a row, in as many bytes as a token has: there is one for every key in memory.
///
/// It is empty until [`TokenCell::set`]. All zeros mean empty, so a token whose second half is zero is never found;
/// then the seal decides.
#[derive(Debug, Default)]
pub struct TokenCell([AtomicU64; 2]);

impl TokenCell {
    /// Returns the token; `None` if it is not set.
    #[must_use]
    pub fn get(&self) -> Option<Token> {
        let [first, second] = &self.0;
        // The second half is stored last.
        let second = second.load(Acquire);
        let token = Token::of_halves([first.load(Relaxed), second]);
        (second != 0).then_some(token)
    }

    /// Stores the token. All callers have the same one: that of the only key that the seal of the row is for.
    pub fn set(&self, token: Token) {
        let [first, second] = token.halves();
        self.0[0].store(first, Relaxed);
        self.0[1].store(second, Release);
    }
}

impl Token {
    /// Compares two tokens in constant time.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    fn halves(self) -> [u64; 2] {
        let (halves, _) = self.0.as_chunks::<8>();
        std::array::from_fn(|at| u64::from_ne_bytes(halves[at]))
    }

    fn of_halves(halves: [u64; 2]) -> Self {
        let bytes = halves.map(u64::to_ne_bytes);
        Self(std::array::from_fn(|at| bytes[at / 8][at % 8]))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests;

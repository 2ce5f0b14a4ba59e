//! Did we already check exactly this?
//!
//! A [`Seal`] records that bcrypt said yes: HMAC-SHA-256 under a key that only we
//! have, over the row and the whole key that was presented. To know one again takes
//! a quarter of a microsecond.
//!
//! ```text
//! seal = HMAC(k, "llmk-memo/v1\0" ‖ key id ‖ tenant id ‖ hashed_key ‖ length ‖ presented key)
//! row  = HMAC(k, "llmk-fp/v1\0"   ‖ key id ‖ tenant id ‖ hashed_key), the first 8 bytes
//! ```
//!
//! `k` is random and this process's own: then a seal ends with the process. Or it is
//! a [`Pepper`], kept outside of the database: then it can be written beside the row as
//! its [`Memo`], and a restart costs no bcrypt. Everything before the presented key has
//! a fixed length, so no two inputs run together. A row that gets another hash, another
//! tenant or another id makes other seals, and a memo of before belongs to no row.
//!
//! A seal takes four blocks of SHA-256. Once a key was known by its seal, the row remembers a [`Token`] of it, which
//! takes one of BLAKE3, as fast on every processor:
//!
//! ```text
//! token = BLAKE3(t, secret), the first 16 bytes
//! ```
//!
//! `t` is random and this process's own, and the key of BLAKE3's keyed mode (<https://github.com/BLAKE3-team/BLAKE3-specs>,
//! §2.2). A token stays in the row it is of and never leaves the memory of the process, so it need not say whose it
//! is: nobody sees one, and nobody can put one anywhere.
//!
//! A memo adds nothing that can be attacked without the pepper. With the pepper it can be
//! guessed at millions of times a second, so a secret of few bits gets none. Without a
//! memo, or with one of a pepper that is gone, bcrypt is asked: it stays the authority.

use std::fmt;
use std::sync::Arc;

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

/// The least a secret must have for a memo: what NIST SP 800-63B asks of a secret that is hashed quickly.
pub const LEAST_BITS: f64 = 112.0;

/// Who may pass without a memo.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Policy {
    /// Whoever bcrypt lets pass.
    #[default]
    Optional,
    /// Nobody: who can write the database but has no pepper can make no key that works.
    Required,
}

/// The peppers of the operator, and what is asked of them. Cheap to clone; by default there are none.
#[derive(Clone, Debug, Default)]
pub struct Peppers {
    /// The first writes, all are understood.
    list: Arc<[Pepper]>,
    policy: Policy,
}

impl Peppers {
    /// These peppers, of which the first writes.
    #[must_use]
    pub fn new(list: Vec<Pepper>, policy: Policy) -> Self {
        Self { list: list.into(), policy }
    }

    /// All of them, the one that writes first.
    #[must_use]
    pub fn list(&self) -> &[Pepper] {
        &self.list
    }

    /// Who may pass without a memo.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// What a memo beside this row says; nothing if it belongs to another row or its pepper is not here.
    #[must_use]
    pub fn read(&self, memo: &Memo, record: &KeyRecord) -> Option<Seal> {
        let hash = record.hash.as_ref()?;
        let at = self.list.iter().position(|pepper| pepper.id() == memo.pepper)?;
        let ours: bool = row_mac(&self.list[at], record, hash).ct_eq(&memo.row).into();
        let by = u8::try_from(at + 1).ok()?;
        ours.then_some(Seal { by, mac: memo.key })
    }

    /// The memo that records a proof of `presented`; nothing without a pepper or with a secret of few bits.
    #[must_use]
    pub fn memo(&self, record: &KeyRecord, presented: PresentedKey<'_>) -> Option<Memo> {
        let (hash, pepper) = (record.hash.as_ref()?, self.list.first()?);
        let key = || key_mac(pepper, record, hash, presented.expose());
        let strong = presented.secret_bits() >= LEAST_BITS;
        strong.then(|| Memo { pepper: pepper.id(), row: row_mac(pepper, record, hash), key: key() })
    }

    /// The memo that a seal came from, if it came from one.
    #[must_use]
    pub fn memo_of(&self, record: &KeyRecord, seal: &Seal) -> Option<Memo> {
        let (hash, pepper) = (record.hash.as_ref()?, self.made(seal)?);
        Some(Memo { pepper: pepper.id(), row: row_mac(pepper, record, hash), key: seal.mac })
    }

    /// Whether there is no memo to write for a row with this seal: it has one by the pepper that writes, or
    /// there is none.
    #[must_use]
    pub fn is_settled(&self, seal: Option<&Seal>) -> bool {
        self.list.is_empty() || seal.is_some_and(|seal| seal.by == 1)
    }

    fn made(&self, seal: &Seal) -> Option<&Pepper> {
        self.list.get(usize::from(seal.by).checked_sub(1)?)
    }
}

/// Everything that seals are made and known with. Cheap to clone.
#[derive(Clone)]
pub struct Keyring {
    /// This process's own, which nobody else will ever have.
    own: Pepper,
    /// What tokens are made with.
    tokens: Arc<Zeroizing<[u8; blake3::KEY_LEN]>>,
    peppers: Peppers,
}

impl Keyring {
    /// A keyring with these peppers and one of its own.
    ///
    /// # Errors
    ///
    /// The operating system has no randomness to give.
    pub fn new(peppers: Peppers) -> Result<Self, SysError> {
        let mut tokens = Zeroizing::new([0; blake3::KEY_LEN]);
        SysRng.try_fill_bytes(tokens.as_mut())?;
        Ok(Self { own: Pepper::random()?, tokens: Arc::new(tokens), peppers })
    }

    /// Those of the operator.
    #[must_use]
    pub fn peppers(&self) -> &Peppers {
        &self.peppers
    }

    /// The token of a key, for the row that it was proven for, until this process ends.
    #[must_use]
    pub fn token(&self, presented: PresentedKey<'_>) -> Token {
        let hash = blake3::keyed_hash(&self.tokens, presented.expose_secret());
        Token(std::array::from_fn(|at| hash.as_bytes()[at]))
    }

    /// The seal of `presented` for this very row, until this process ends.
    #[must_use]
    pub fn seal(&self, record: &KeyRecord, hash: &SecretHash, presented: &[u8]) -> Seal {
        Seal { by: 0, mac: key_mac(&self.own, record, hash, presented) }
    }

    /// Whether `seal` is that of `presented` for this very row, in a time that does not tell where it differs.
    #[must_use]
    pub fn knows(&self, seal: &Seal, record: &KeyRecord, hash: &SecretHash, presented: &[u8]) -> bool {
        let maker = if seal.by == 0 { Some(&self.own) } else { self.peppers.made(seal) };
        maker.is_some_and(|maker| key_mac(maker, record, hash, presented).ct_eq(&seal.mac).into())
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

/// A verdict of bcrypt that can be known again.
#[derive(Clone, Copy)]
pub struct Seal {
    mac: [u8; 32],
    /// Which sealer of the keyring made it.
    by: u8,
}

impl Seal {
    /// Whether two seals of the same maker are the same, in a time that does not tell where they differ.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.mac.ct_eq(&other.mac).into()
    }

    /// The seal as a key of a map: what an attacker cannot compute, he cannot steer to collide.
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

/// By which a proven key is known at a glance, in the row it was proven for.
#[derive(Clone, Copy)]
pub struct Token([u8; 16]);

impl Token {
    /// Whether two tokens are the same, in a time that does not tell where they differ.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::clock::Timestamp;
    use crate::key::KeyId;
    use crate::key::format::parse;
    use crate::record::ExpiresAt;
    use crate::tenant::TenantId;

    const HASH: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232";
    const KEY: &[u8] = b"llmk_demo_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Pg";

    fn record(id: u128, tenant: u128, hash: &str) -> KeyRecord {
        let (id, tenant_id) = (KeyId(Uuid::from_u128(id)), TenantId(Uuid::from_u128(tenant)));
        let (prefix, hash) = ("llmk_demo".into(), SecretHash::parse(hash));
        KeyRecord {
            id,
            tenant_id,
            prefix,
            hash,
            expires_at: ExpiresAt::NEVER,
            revoked: false,
            not_before: Timestamp::MIN,
            disabled: false,
        }
    }

    fn keyring(peppers: &[&str]) -> Keyring {
        let peppers = peppers.iter().map(|text| Pepper::parse_all(text).unwrap().remove(0)).collect();
        Keyring::new(Peppers::new(peppers, Policy::Optional)).unwrap()
    }

    /// Two peppers as a file has them.
    const OLD: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    const NEW: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE";

    /// Whether the key is known by the memo that this row carries, as it is read from the database.
    fn remembers(keyring: &Keyring, memo: &Memo, row: &KeyRecord, key: &[u8]) -> bool {
        let memo = Memo::parse(&memo.to_string()).unwrap();
        let seal = keyring.peppers().read(&memo, row);
        seal.is_some_and(|seal| keyring.knows(&seal, row, &row.hash.unwrap(), key))
    }

    #[test]
    fn a_seal_is_void_for_another_process_id_tenant_hash_or_key() {
        let (ring, row) = (keyring(&[]), record(1, 2, HASH));
        let good = ring.seal(&row, &row.hash.unwrap(), KEY);
        let knows = |ring: &Keyring, row: &KeyRecord, key| ring.knows(&good, row, &row.hash.unwrap(), key);
        assert!(knows(&ring, &row, KEY));
        assert!(!knows(&keyring(&[]), &row, KEY));
        for other in [
            record(3, 2, HASH),
            record(1, 3, HASH),
            record(2, 1, HASH),
            record(1, 2, &HASH.replace("$12$", "$10$")),
        ] {
            assert!(!knows(&ring, &other, KEY));
        }
        for other in [&KEY[1..], &KEY[..KEY.len() - 1], b"llmk_demo_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Ph", b""] {
            assert!(!knows(&ring, &row, other));
        }
    }

    #[test]
    fn a_memo_outlives_the_process_and_is_void_for_another_pepper_id_tenant_hash_or_key() {
        let row = record(1, 2, HASH);
        let memo = keyring(&[OLD]).peppers().memo(&row, parse(KEY).unwrap()).unwrap();
        assert!(remembers(&keyring(&[OLD]), &memo, &row, KEY));
        assert!(remembers(&keyring(&[NEW, OLD]), &memo, &row, KEY));
        assert!(
            !remembers(&keyring(&[NEW]), &memo, &row, KEY) && !remembers(&keyring(&[]), &memo, &row, KEY)
        );
        let ring = keyring(&[OLD]);
        for other in [
            record(3, 2, HASH),
            record(1, 3, HASH),
            record(2, 1, HASH),
            record(1, 2, &HASH.replace("$12$", "$10$")),
        ] {
            assert!(ring.peppers().read(&memo, &other).is_none());
        }
        assert!(!remembers(&ring, &memo, &row, &KEY[..KEY.len() - 1]));
        assert!(ring.peppers().read(&memo, &KeyRecord { hash: None, ..row.clone() }).is_none());
        // The state of a key is no part of who holds it.
        assert!(remembers(&ring, &memo, &KeyRecord { revoked: true, ..row }, KEY));
    }

    #[test]
    fn the_first_pepper_writes_and_what_another_wrote_is_written_anew() {
        let (row, key) = (record(1, 2, HASH), parse(KEY).unwrap());
        let old = keyring(&[OLD]).peppers().memo(&row, key).unwrap();
        let both = keyring(&[NEW, OLD]);
        let seal = both.peppers().read(&old, &row).unwrap();
        assert!(!both.peppers().is_settled(Some(&seal)) && !both.peppers().is_settled(None));
        let new = both.peppers().memo(&row, key).unwrap();
        assert!(
            both.peppers().is_settled(both.peppers().read(&new, &row).as_ref()) && new.pepper != old.pepper
        );
        assert!(keyring(&[]).peppers().is_settled(None));
        assert_eq!(both.peppers().memo_of(&row, &seal).unwrap().to_string(), old.to_string());
        assert!(both.peppers().memo_of(&row, &both.seal(&row, &row.hash.unwrap(), KEY)).is_none());
        assert_eq!(
            both.peppers().list().iter().map(Pepper::id).collect::<Vec<_>>(),
            [new.pepper, old.pepper]
        );
    }

    #[test]
    fn a_seal_and_a_token_are_those_of_their_key_and_of_no_other() {
        let (ring, row) = (keyring(&[]), record(1, 2, HASH));
        let other: &[u8] = b"llmk_demo_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Ph";
        let seal = |key| ring.seal(&row, &row.hash.unwrap(), key);
        assert!(seal(KEY).is(&seal(KEY)) && !seal(KEY).is(&seal(other)));
        let token = |key| ring.token(parse(key).unwrap());
        assert!(token(KEY).is(&token(KEY)) && !token(KEY).is(&token(other)));
        assert!(!token(KEY).is(&keyring(&[]).token(parse(KEY).unwrap())), "of another process");
    }

    #[test]
    fn a_secret_of_few_bits_gets_no_memo() {
        let (ring, row) = (keyring(&[OLD]), record(1, 2, HASH));
        for (key, memo) in [
            ("llmk_demo_secret123", false),
            ("llmk_demo_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
            ("llmk_demo_1234567890123456789012345678901", false),
            ("llmk_demo_0123456789abcdef01234567", false),
            ("llmk_demo_0123456789abcdef0123456789ab", true),
            ("llmk_demo_Rd3kQz8WfT2mVx7LpB", false),
            ("llmk_demo_Rd3kQz8WfT2mVx7LpB5", true),
        ] {
            assert_eq!(ring.peppers().memo(&row, parse(key.as_bytes()).unwrap()).is_some(), memo, "{key}");
        }
        let issued = crate::key::format::issue_with(&mut SysRng, "Acme").unwrap();
        assert!(ring.peppers().memo(&row, issued.as_presented()).is_some());
        assert!(keyring(&[]).peppers().memo(&row, issued.as_presented()).is_none());
    }

    #[test]
    fn debug_shows_nothing() {
        let (ring, row) = (keyring(&[OLD]), record(1, 2, HASH));
        let seal = ring.seal(&row, &row.hash.unwrap(), KEY);
        let shown = format!("{ring:?} {seal:?} {:?}", ring.token(parse(KEY).unwrap()));
        assert!(shown.starts_with("Keyring { peppers: Peppers {") && !shown.contains("AAAA"), "{shown}");
        assert!(shown.ends_with(", .. } Seal { .. } Token { .. }"), "{shown}");
    }

    proptest! {
        #[test]
        fn one_flipped_bit_is_never_known(at in 0_usize..KEY.len(), bit in 0_u8..8) {
            let (ring, row) = (keyring(&[OLD]), record(1, 2, HASH));
            let (seal, memo) = (ring.seal(&row, &row.hash.unwrap(), KEY), ring.peppers().memo(&row, parse(KEY).unwrap()).unwrap());
            let mut other = KEY.to_vec();
            other[at] ^= 1 << bit;
            prop_assert!(!ring.knows(&seal, &row, &row.hash.unwrap(), &other));
            prop_assert!(!remembers(&ring, &memo, &row, &other));
        }

        #[test]
        fn a_memo_that_was_tampered_with_lets_nobody_pass(at in 0_usize..96, with in any::<u8>()) {
            let (ring, row) = (keyring(&[OLD]), record(1, 2, HASH));
            let text = ring.peppers().memo(&row, parse(KEY).unwrap()).unwrap().to_string();
            let mut other = text.clone().into_bytes();
            let at = at % other.len();
            other[at] = with;
            if let Some(other) = String::from_utf8(other).ok().filter(|other| *other != text)
                && let Some(memo) = Memo::parse(&other)
                && let Some(seal) = ring.peppers().read(&memo, &row)
            {
                prop_assert!(!ring.knows(&seal, &row, &row.hash.unwrap(), KEY));
            }
        }
    }
}

//! A key as the replica keeps it in memory.
//!
//! Its row, whether somebody has proven to hold it, and what is still to be written
//! down about it. A row that changes becomes a new [`Entry`], which takes the verdict
//! over only if key, tenant and hash are what the verdict was on.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

use super::profiles::FREE;
use super::table::Keyed;
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::record::{KeyRecord, Memo};
use crate::verify::memo::{Peppers, Policy};
use crate::verify::{Provable, Proven};

/// A key as the replica has it.
#[derive(Debug)]
pub struct Entry {
    record: KeyRecord,
    proven: Proven,
    /// When it was last used, in microseconds; 0 for not since it came here.
    used_at: AtomicI64,
    /// Whether somebody already promised to write that down.
    use_noted: AtomicBool,
    /// Whether nobody has seen to it yet that there is a memo by the pepper that writes.
    memo_due: AtomicBool,
    /// Whether the proof was told to the one who publishes it.
    witnessed: AtomicBool,
    /// Whether the row came with a memo that we understand.
    remembered: bool,
    /// The number of its profile in the snapshot that it is in.
    profile: u32,
}

impl Entry {
    /// A row that nobody has proven a key against.
    #[must_use]
    pub fn new(record: KeyRecord) -> Self {
        Self::remembering(record, None, &Peppers::default())
    }

    /// A row, and what its memo says of a proof.
    #[must_use]
    pub fn remembering(record: KeyRecord, memo: Option<&Memo>, peppers: &Peppers) -> Self {
        let seal = memo.and_then(|memo| peppers.read(memo, &record));
        let memo_due = !peppers.is_settled(seal.as_ref());
        Self {
            record,
            remembered: seal.is_some(),
            proven: seal.into(),
            used_at: AtomicI64::new(0),
            use_noted: AtomicBool::new(false),
            memo_due: AtomicBool::new(memo_due),
            witnessed: AtomicBool::new(false),
            profile: FREE,
        }
    }

    /// The same row with a profile.
    #[must_use]
    pub(super) fn with_profile(self, profile: u32) -> Self {
        Self { profile, ..self }
    }

    /// The number of its profile; see [`Snapshot::profile`](super::Snapshot::profile).
    #[must_use]
    pub fn profile(&self) -> u32 {
        self.profile
    }

    /// The row that takes the place of `before`.
    pub(super) fn heir(
        record: KeyRecord,
        memo: Option<&Memo>,
        before: Option<&Self>,
        peppers: &Peppers,
    ) -> Self {
        let entry = Self::remembering(record, memo, peppers);
        // Where nobody passes without a memo, taking the memo away takes the verdict away.
        if let Some(before) = before.filter(|_| peppers.policy() == Policy::Optional) {
            entry.inherit(before);
        }
        entry
    }

    /// Whether this is the entry of just this row: nothing about it changed.
    pub(super) fn is_of(&self, record: &KeyRecord, memo: Option<&Memo>, peppers: &Peppers) -> bool {
        let seal = memo.and_then(|memo| peppers.read(memo, record));
        let same_memo = match (seal, self.proven.seal()) {
            (Some(seal), Some(proven)) => self.remembered && seal.is(proven),
            (None, _) => !self.remembered,
            (Some(_), None) => false,
        };
        same_memo && self.record == *record
    }

    /// Whether a verdict says who holds the key.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.proven.seal().is_some()
    }

    /// The row.
    #[must_use]
    pub fn record(&self) -> &KeyRecord {
        &self.record
    }

    /// Whether the row came with a memo that we understand: proving it costs no bcrypt.
    #[must_use]
    pub fn is_remembered(&self) -> bool {
        self.remembered
    }

    /// The memo that the row came with, if we understand it.
    #[must_use]
    pub(super) fn memo(&self, peppers: &Peppers) -> Option<Memo> {
        peppers.memo_of(&self.record, self.proven.seal()?)
    }

    /// Whether the caller, who has just seen the key proven, is the one to see to it that a memo is written: the
    /// first.
    #[must_use]
    pub fn take_memo_due(&self) -> bool {
        self.memo_due.load(Relaxed) && self.memo_due.swap(false, Relaxed)
    }

    /// Whether the caller, who has just seen the key proven, is the first to be asked this.
    #[must_use]
    pub fn take_witness_due(&self) -> bool {
        !self.witnessed.load(Relaxed) && !self.witnessed.swap(true, Relaxed)
    }

    /// Takes note of a use. Returns whether the caller is the one who must see to it that it is written down:
    /// the first since [`Entry::forget_note`].
    #[must_use]
    pub fn note_use(&self, now: Timestamp) -> bool {
        // A busy key is written once a second, not once a request.
        if now.0 > self.used_at.load(Relaxed).saturating_add(1_000_000) {
            self.used_at.fetch_max(now.0, Relaxed);
        }
        !self.use_noted.load(Relaxed) && !self.use_noted.swap(true, Relaxed)
    }

    /// From now on the next use is somebody else's to write down.
    pub fn forget_note(&self) {
        self.use_noted.store(false, Relaxed);
    }

    /// The last use.
    #[must_use]
    pub fn last_use(&self) -> (KeyId, Timestamp) {
        (self.record.id, Timestamp(self.used_at.load(Relaxed)))
    }

    /// Takes over the verdict on `before`, if it is on the same key, tenant and hash. Returns whether it is.
    pub fn inherit(&self, before: &Self) -> bool {
        let (old, new) = (&before.record, &self.record);
        let same = (old.id, old.tenant_id, old.hash) == (new.id, new.tenant_id, new.hash);
        if let Some(seal) = before.proven.seal().filter(|_| same) {
            self.proven.note(*seal);
        }
        same
    }
}

impl Provable for Entry {
    fn record(&self) -> &KeyRecord {
        &self.record
    }

    fn proven(&self) -> &Proven {
        &self.proven
    }
}

impl Keyed for Entry {
    fn key(&self) -> &[u8] {
        self.record.prefix.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::key::format::parse;
    use crate::record::{ExpiresAt, SecretHash};
    use crate::tenant::TenantId;
    use crate::verify::memo::Keyring;
    use crate::verify::pepper::Pepper;

    const HASH: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232";
    const KEY: &[u8] = b"llmk_a_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Pg";

    fn record() -> KeyRecord {
        KeyRecord {
            id: KeyId(Uuid::from_u128(1)),
            tenant_id: TenantId(Uuid::from_u128(2)),
            prefix: "llmk_a".into(),
            hash: SecretHash::parse(HASH),
            expires_at: ExpiresAt::NEVER,
            revoked: false,
            not_before: Timestamp::MIN,
            disabled: false,
        }
    }

    fn peppers(policy: Policy) -> Peppers {
        Peppers::new(vec![Pepper::random().unwrap()], policy)
    }

    fn proven_after(change: impl FnOnce(&mut KeyRecord)) -> bool {
        let before = Entry::new(record());
        let keyring = Keyring::new(Peppers::default()).unwrap();
        let seal = keyring.seal(&record(), &SecretHash::parse(HASH).unwrap(), b"x");
        before.proven().note(seal);
        let mut next = record();
        change(&mut next);
        Entry::heir(next, None, Some(&before), keyring.peppers()).proven().seal().is_some()
    }

    #[test]
    fn a_key_takes_200_bytes() {
        // With the counts of its Arc and what malloc adds: 224. Eight bytes more would take 240.
        assert_eq!(size_of::<Entry>(), 200);
    }

    #[test]
    fn a_verdict_survives_a_change_of_state_and_no_change_of_key_tenant_or_hash() {
        assert!(proven_after(|_| ()));
        assert!(proven_after(|r| r.revoked = true));
        assert!(proven_after(|r| r.expires_at = Some(Timestamp(5)).into()));
        assert!(!proven_after(|r| r.id = KeyId(Uuid::from_u128(9))));
        assert!(!proven_after(|r| r.tenant_id = TenantId(Uuid::from_u128(9))));
        assert!(!proven_after(|r| r.hash = SecretHash::parse(&HASH.replace("$12$", "$10$"))));
        assert!(!proven_after(|r| r.hash = None));
    }

    #[test]
    fn a_row_with_its_memo_is_proven_and_one_with_the_memo_of_another_is_not() {
        let peppers = peppers(Policy::Optional);
        let memo = peppers.memo(&record(), parse(KEY).unwrap());
        let own = Entry::remembering(record(), memo.as_ref(), &peppers);
        assert!(own.is_remembered() && own.proven().seal().is_some() && !own.take_memo_due());
        let moved = KeyRecord { tenant_id: TenantId(Uuid::from_u128(9)), ..record() };
        let other = Entry::remembering(moved, memo.as_ref(), &peppers);
        assert!(!other.is_remembered() && other.proven().seal().is_none());
        assert!(other.take_memo_due() && !other.take_memo_due(), "one sees to it, once");
    }

    #[test]
    fn where_a_memo_is_required_taking_it_away_takes_the_verdict_away() {
        for (policy, proven) in [(Policy::Optional, true), (Policy::Required, false)] {
            let peppers = peppers(policy);
            let memo = peppers.memo(&record(), parse(KEY).unwrap());
            let before = Entry::remembering(record(), memo.as_ref(), &peppers);
            assert_eq!(
                Entry::heir(record(), None, Some(&before), &peppers).proven().seal().is_some(),
                proven
            );
        }
    }

    #[test]
    fn a_row_is_the_same_if_its_memo_is_too_or_neither_is_understood() {
        let (old, new) = (Pepper::random().unwrap(), Pepper::random().unwrap());
        let memo_by = |pepper: &Pepper| {
            let peppers = Peppers::new(vec![pepper.clone()], Policy::Optional);
            peppers.memo(&record(), parse(KEY).unwrap())
        };
        let (by_old, by_new, foreign) = (memo_by(&old), memo_by(&new), memo_by(&Pepper::random().unwrap()));
        let peppers = Peppers::new(vec![new, old], Policy::Optional);
        let plain = Entry::new(record());
        let remembering = Entry::remembering(record(), by_old.as_ref(), &peppers);
        // What was proven by a memo stays proven when the memo is gone.
        let forgotten = Entry::heir(record(), None, Some(&remembering), &peppers);
        assert!(forgotten.proven().seal().is_some());
        for (entry, same) in [
            (&plain, [true, true, false, false]),
            (&remembering, [false, false, true, false]),
            (&forgotten, [true, true, false, false]),
        ] {
            let memos = [None, foreign.as_ref(), by_old.as_ref(), by_new.as_ref()];
            assert_eq!(memos.map(|memo| entry.is_of(&record(), memo, &peppers)), same);
            let revoked = KeyRecord { revoked: true, ..record() };
            assert_eq!(memos.map(|memo| entry.is_of(&revoked, memo, &peppers)), [false; 4]);
        }
        let kept = |entry: &Entry| entry.memo(&peppers).map(|memo| memo.to_string());
        assert_eq!(kept(&remembering), by_old.map(|memo| memo.to_string()));
        assert_eq!(kept(&plain), None);
    }

    #[test]
    fn the_first_use_since_the_last_writing_is_for_the_caller_to_see_to() {
        let entry = Entry::new(record());
        assert!(entry.note_use(Timestamp(10_000_000)));
        assert!(!entry.note_use(Timestamp(12_000_000)));
        assert_eq!(entry.last_use().1, Timestamp(12_000_000));
        entry.forget_note();
        assert!(entry.note_use(Timestamp(11_000_000)));
        assert_eq!(entry.last_use().1, Timestamp(12_000_000));
        // A use within a second of the last is as good as that one.
        for (now, noted) in [(13_000_000, 12_000_000), (13_000_001, 13_000_001)] {
            assert!(!entry.note_use(Timestamp(now)));
            assert_eq!(entry.last_use().1, Timestamp(noted));
        }
    }
}

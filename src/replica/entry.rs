//! The entry of a key in the snapshot.
//!
//! It has the row of the key, the result of its first proof, and what must still be written to the database: its
//! last use and its memo. A row that changes becomes a new [`KeyEntry`]. It keeps the result of the proof only if the
//! id, the tenant and the hash of the key are unchanged.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

use super::profiles::FREE;
use super::table::Keyed;
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::record::{KeyRecord, Memo};
use crate::verify::memo::{MemoPolicy, Peppers};
use crate::verify::{Provable, Proven};

/// A key in the snapshot.
#[derive(Debug)]
pub struct KeyEntry {
    record: KeyRecord,
    proven: Proven,
    /// The last use of this entry, in microseconds since 1970; 0 if it was not used.
    used_at: AtomicI64,
    /// Whether the last use is already queued to be written.
    use_queued: AtomicBool,
    /// Whether a memo with the current pepper is missing and nothing is queued to write it.
    memo_due: AtomicBool,
    /// Whether the proof was passed to the publisher.
    publish_taken: AtomicBool,
    /// Whether the row has a valid memo with one of our peppers.
    remembered: bool,
    /// The number of its profile in the snapshot that it is in.
    profile: u32,
}

impl KeyEntry {
    /// Creates the entry of a row without memo.
    #[must_use]
    pub fn new(record: KeyRecord) -> Self {
        Self::remembering(record, None, &Peppers::default())
    }

    /// Creates the entry of a row. If its memo is valid, the key is proven with it.
    #[must_use]
    pub fn remembering(record: KeyRecord, memo: Option<&Memo>, peppers: &Peppers) -> Self {
        let seal = memo.and_then(|memo| peppers.read(memo, &record));
        let memo_due = !peppers.is_settled(seal.as_ref());
        Self {
            record,
            remembered: seal.is_some(),
            proven: seal.into(),
            used_at: AtomicI64::new(0),
            use_queued: AtomicBool::new(false),
            memo_due: AtomicBool::new(memo_due),
            publish_taken: AtomicBool::new(false),
            profile: FREE,
        }
    }

    /// Sets the number of the profile.
    #[must_use]
    pub(super) fn with_profile(self, profile: u32) -> Self {
        Self { profile, ..self }
    }

    /// Returns the number of its profile; see [`Snapshot::profile`](super::Snapshot::profile).
    #[must_use]
    pub fn profile(&self) -> u32 {
        self.profile
    }

    /// Creates the entry of a row that replaces `before`, and keeps the result of its proof if that is allowed.
    pub(super) fn replacing(
        record: KeyRecord,
        memo: Option<&Memo>,
        before: Option<&Self>,
        peppers: &Peppers,
    ) -> Self {
        let entry = Self::remembering(record, memo, peppers);
        // If memos are required, removing the memo from the row discards the result, too.
        if let Some(before) = before.filter(|_| peppers.policy() == MemoPolicy::Optional) {
            entry.inherit(before);
        }
        entry
    }

    /// Returns whether this entry was made from an equal row and memo.
    pub(super) fn is_of(&self, record: &KeyRecord, memo: Option<&Memo>, peppers: &Peppers) -> bool {
        let seal = memo.and_then(|memo| peppers.read(memo, record));
        let same_memo = match (seal, self.proven.seal()) {
            (Some(seal), Some(proven)) => self.remembered && seal.is(proven),
            (None, _) => !self.remembered,
            (Some(_), None) => false,
        };
        same_memo && self.record == *record
    }

    /// Returns whether the key is proven.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.proven.seal().is_some()
    }

    /// Returns the row.
    #[must_use]
    pub fn record(&self) -> &KeyRecord {
        &self.record
    }

    /// Returns whether the row has a valid memo with one of our peppers, so that its first proof needs no bcrypt.
    #[must_use]
    pub fn is_remembered(&self) -> bool {
        self.remembered
    }

    /// Returns the memo of the row; `None` if there is no valid one.
    #[must_use]
    pub(super) fn memo(&self, peppers: &Peppers) -> Option<Memo> {
        peppers.memo_of(&self.record, self.proven.seal()?)
    }

    /// Returns whether the caller must queue a memo. Called after the key was proven; true at most once.
    #[must_use]
    pub fn take_memo_due(&self) -> bool {
        self.memo_due.load(Relaxed) && self.memo_due.swap(false, Relaxed)
    }

    /// Returns whether the caller must pass the proof to the publisher. Called after the key was proven; true at most
    /// once.
    #[must_use]
    pub fn take_publish_due(&self) -> bool {
        !self.publish_taken.load(Relaxed) && !self.publish_taken.swap(true, Relaxed)
    }

    /// Records a use. Returns whether the caller must queue it to be written: true for the first use since
    /// [`KeyEntry::dequeue_use`].
    #[must_use]
    pub fn record_use(&self, now: Timestamp) -> bool {
        // At most once a second, so that the requests of a busy key do not contend for this cache line.
        if now.0 > self.used_at.load(Relaxed).saturating_add(1_000_000) {
            self.used_at.fetch_max(now.0, Relaxed);
        }
        !self.use_queued.load(Relaxed) && !self.use_queued.swap(true, Relaxed)
    }

    /// Makes the next [`KeyEntry::record_use`] return true again.
    pub fn dequeue_use(&self) {
        self.use_queued.store(false, Relaxed);
    }

    /// Returns the id of the key and its last recorded use.
    #[must_use]
    pub fn last_use(&self) -> (KeyId, Timestamp) {
        (self.record.id, Timestamp(self.used_at.load(Relaxed)))
    }

    /// Copies the result of the proof of `before` if id, tenant and hash are equal. Returns whether they are.
    pub fn inherit(&self, before: &Self) -> bool {
        let (old, new) = (&before.record, &self.record);
        let same = (old.id, old.tenant_id, old.hash) == (new.id, new.tenant_id, new.hash);
        if let Some(seal) = before.proven.seal().filter(|_| same) {
            self.proven.note(*seal);
        }
        same
    }
}

impl Provable for KeyEntry {
    fn record(&self) -> &KeyRecord {
        &self.record
    }

    fn proven(&self) -> &Proven {
        &self.proven
    }
}

impl Keyed for KeyEntry {
    fn key(&self) -> &[u8] {
        self.record.prefix.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::key::format::parse;
    use crate::record::SecretHash;
    use crate::tenant::TenantId;
    use crate::verify::memo::Keyring;
    use crate::verify::pepper::Pepper;

    const HASH: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232";
    const KEY: &[u8] = b"llmk_a_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Pg";

    fn record() -> KeyRecord {
        KeyRecord::new(
            KeyId(Uuid::from_u128(1)),
            TenantId(Uuid::from_u128(2)),
            "llmk_a".into(),
            SecretHash::parse(HASH),
        )
    }

    fn peppers(policy: MemoPolicy) -> Peppers {
        Peppers::new(vec![Pepper::random().unwrap()], policy)
    }

    fn proven_after(change: impl FnOnce(&mut KeyRecord)) -> bool {
        let before = KeyEntry::new(record());
        let keyring = Keyring::new(Peppers::default()).unwrap();
        let seal = keyring.seal(&record(), &SecretHash::parse(HASH).unwrap(), b"x");
        before.proven().note(seal);
        let mut next = record();
        change(&mut next);
        KeyEntry::replacing(next, None, Some(&before), keyring.peppers()).proven().seal().is_some()
    }

    #[test]
    fn a_key_takes_200_bytes() {
        // 224 with the counters of its `Arc` and malloc's overhead. Eight bytes more would take 240.
        assert_eq!(size_of::<KeyEntry>(), 200);
    }

    #[test]
    fn a_proof_survives_a_change_of_state_but_not_of_id_tenant_or_hash() {
        assert!(proven_after(|_| ()));
        assert!(proven_after(|r| r.revoked = true));
        assert!(proven_after(|r| r.expires_at = Some(Timestamp(5)).into()));
        assert!(!proven_after(|r| r.id = KeyId(Uuid::from_u128(9))));
        assert!(!proven_after(|r| r.tenant_id = TenantId(Uuid::from_u128(9))));
        assert!(!proven_after(|r| r.hash = SecretHash::parse(&HASH.replace("$12$", "$10$"))));
        assert!(!proven_after(|r| r.hash = None));
    }

    #[test]
    fn a_row_is_proven_by_its_own_memo_but_not_by_that_of_another_row() {
        let peppers = peppers(MemoPolicy::Optional);
        let memo = peppers.memo(&record(), parse(KEY).unwrap());
        let own = KeyEntry::remembering(record(), memo.as_ref(), &peppers);
        assert!(own.is_remembered() && own.proven().seal().is_some() && !own.take_memo_due());
        let moved = KeyRecord { tenant_id: TenantId(Uuid::from_u128(9)), ..record() };
        let other = KeyEntry::remembering(moved, memo.as_ref(), &peppers);
        assert!(!other.is_remembered() && other.proven().seal().is_none());
        assert!(other.take_memo_due() && !other.take_memo_due(), "exactly one caller queues the memo");
    }

    #[test]
    fn if_memos_are_required_removing_the_memo_removes_the_proof() {
        for (policy, proven) in [(MemoPolicy::Optional, true), (MemoPolicy::Required, false)] {
            let peppers = peppers(policy);
            let memo = peppers.memo(&record(), parse(KEY).unwrap());
            let before = KeyEntry::remembering(record(), memo.as_ref(), &peppers);
            assert_eq!(
                KeyEntry::replacing(record(), None, Some(&before), &peppers).proven().seal().is_some(),
                proven
            );
        }
    }

    #[test]
    fn an_entry_is_unchanged_if_row_and_valid_memo_are() {
        let (old, new) = (Pepper::random().unwrap(), Pepper::random().unwrap());
        let memo_by = |pepper: &Pepper| {
            let peppers = Peppers::new(vec![pepper.clone()], MemoPolicy::Optional);
            peppers.memo(&record(), parse(KEY).unwrap())
        };
        let (by_old, by_new, foreign) = (memo_by(&old), memo_by(&new), memo_by(&Pepper::random().unwrap()));
        let peppers = Peppers::new(vec![new, old], MemoPolicy::Optional);
        let plain = KeyEntry::new(record());
        let remembering = KeyEntry::remembering(record(), by_old.as_ref(), &peppers);
        // A key that was proven by a memo stays proven when the memo is removed.
        let forgotten = KeyEntry::replacing(record(), None, Some(&remembering), &peppers);
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
        let kept = |entry: &KeyEntry| entry.memo(&peppers).map(|memo| memo.to_string());
        assert_eq!(kept(&remembering), by_old.map(|memo| memo.to_string()));
        assert_eq!(kept(&plain), None);
    }

    #[test]
    fn only_the_first_use_since_dequeue_use_must_be_queued() {
        let entry = KeyEntry::new(record());
        assert!(entry.record_use(Timestamp(10_000_000)));
        assert!(!entry.record_use(Timestamp(12_000_000)));
        assert_eq!(entry.last_use().1, Timestamp(12_000_000));
        entry.dequeue_use();
        assert!(entry.record_use(Timestamp(11_000_000)));
        assert_eq!(entry.last_use().1, Timestamp(12_000_000));
        // A use within a second of the recorded one is not recorded.
        for (now, noted) in [(13_000_000, 12_000_000), (13_000_001, 13_000_001)] {
            assert!(!entry.record_use(Timestamp(now)));
            assert_eq!(entry.last_use().1, Timestamp(noted));
        }
    }
}

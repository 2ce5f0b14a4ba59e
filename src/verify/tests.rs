//! Tests of the verification of keys.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use uuid::Uuid;

use super::*;
use crate::key::KeyId;
use crate::key::format::parse;
use crate::record::SecretHash;
use crate::tenant::TenantId;
use crate::verify::memo::Peppers;

fn verifier(options: VerifyOptions) -> Verifier {
    Verifier::start(options, Keyring::new(Peppers::default()).unwrap()).unwrap()
}

pub(super) const KEY: &[u8] = b"llmk_demo_secret123";
const WRONG: &[u8] = b"llmk_demo_secret124";

pub(super) struct TestKey(KeyRecord, Proven);

impl Provable for TestKey {
    fn record(&self) -> &KeyRecord {
        &self.0
    }
    fn proven(&self) -> &Proven {
        &self.1
    }
}

pub(super) fn row(cost: u32) -> Arc<TestKey> {
    let text = bcrypt::hash(&parse(KEY).unwrap().to_plain(), cost).unwrap();
    let (id, tenant_id) = (KeyId(Uuid::new_v4()), TenantId(Uuid::nil()));
    let hash = SecretHash::parse(&text);
    let record = KeyRecord::new(id, tenant_id, "llmk_demo".into(), hash);
    Arc::new(TestKey(record, Proven::default()))
}

fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_mins(1)
}

async fn prove(verifier: &Verifier, row: &Arc<TestKey>, key: &[u8]) -> Proof {
    verifier.prove(Arc::<TestKey>::clone(row), parse(key).unwrap(), ClientNetwork::default(), soon()).await
}

fn runs(verifier: &Verifier) -> u64 {
    verifier.stats().verdicts.iter().map(Counter::value).sum()
}

#[tokio::test]
async fn a_proven_key_and_later_guesses_need_no_bcrypt() {
    let (verifier, row) = (verifier(VerifyOptions::default()), row(4));
    assert_eq!(verifier.recall(&*row, parse(KEY).unwrap()), Proof::Pending);
    assert_eq!(prove(&verifier, &row, KEY).await, Proof::Right);
    for time in ["by the seal", "by the token", "by the token"] {
        assert_eq!(verifier.recall(&*row, parse(KEY).unwrap()), Proof::Right, "{time}");
        assert_eq!(verifier.recall(&*row, parse(WRONG).unwrap()), Proof::Wrong, "{time}");
    }
    assert_eq!(runs(&verifier), 1);
}

#[tokio::test]
async fn a_row_with_a_seal_needs_no_bcrypt() {
    let (verifier, row) = (verifier(VerifyOptions::default()), row(4));
    let seal = verifier.keyring().seal(&row.0, &row.0.hash.unwrap(), KEY);
    let row = Arc::new(TestKey(row.0.clone(), Proven::from(Some(seal))));
    assert_eq!(prove(&verifier, &row, WRONG).await, Proof::Wrong);
    assert_eq!(prove(&verifier, &row, KEY).await, Proof::Right);
    assert_eq!(runs(&verifier), 0);
    assert!(Proven::from(None).seal().is_none());
}

#[tokio::test]
async fn a_wrong_attempt_is_remembered_and_does_not_block_the_right_key() {
    let (verifier, row) = (verifier(VerifyOptions::default()), row(4));
    assert_eq!(prove(&verifier, &row, WRONG).await, Proof::Wrong);
    assert_eq!(prove(&verifier, &row, WRONG).await, Proof::Wrong);
    assert_eq!(runs(&verifier), 1);
    assert_eq!(prove(&verifier, &row, KEY).await, Proof::Right);
}

#[tokio::test]
async fn any_number_of_callers_wait_for_one_proof() {
    let (verifier, row) = (verifier(VerifyOptions::default()), row(6));
    let callers: Vec<_> = (0..500)
        .map(|_| {
            let (verifier, row) = (verifier.clone(), Arc::clone(&row));
            tokio::spawn(async move { prove(&verifier, &row, KEY).await })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), Proof::Right);
    }
    assert_eq!(runs(&verifier), 1);
}

#[tokio::test]
async fn a_proof_continues_after_its_caller_has_left() {
    let (verifier, row) = (verifier(VerifyOptions::default()), row(8));
    let now = tokio::time::Instant::now();
    let first =
        verifier.prove(Arc::<TestKey>::clone(&row), parse(KEY).unwrap(), ClientNetwork::default(), now).await;
    assert_eq!(first, Proof::Impossible(Fault::DeadlineTooShort));
    assert_eq!(prove(&verifier, &row, KEY).await, Proof::Right);
    assert_eq!(runs(&verifier), 1);
}

#[tokio::test]
async fn a_full_queue_is_an_overload_and_never_a_rejection() {
    let options = VerifyOptions { threads: 1, queue: 1, queue_per_key: 1, wrong_attempts: 10 };
    let (verifier, row) = (verifier(options), row(8));
    let guesses: Vec<_> = (0..20)
        .map(|n| {
            let (verifier, row) = (verifier.clone(), Arc::clone(&row));
            let guess = format!("llmk_demo_guess{n:05}");
            tokio::spawn(async move { prove(&verifier, &row, guess.as_bytes()).await })
        })
        .collect();
    let mut shed = 0;
    for guess in guesses {
        match guess.await.unwrap() {
            Proof::Wrong => {}
            Proof::Impossible(Fault::Overloaded) => shed += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(shed > 0);
    assert_eq!(verifier.stats().shed.value(), shed);
    assert_eq!(prove(&verifier, &row, KEY).await, Proof::Right);
}

/// One client floods the queue with guesses at known keys; `before`: it has guessed at each of them once. Returns the
/// proofs of the attempts of `victim` at other keys meanwhile: of the first ones, or of the second ones.
async fn proofs_under_a_flood(
    guesser: ClientNetwork,
    victim: ClientNetwork,
    (known, before): (usize, bool),
    attempts: usize,
) -> Vec<Proof> {
    let options = VerifyOptions { threads: 1, queue: 8, queue_per_key: 2, wrong_attempts: 1_000_000 };
    let verifier = verifier(options);
    let template = row(4);
    let guessed_at: Vec<_> = (0..known)
        .map(|_| {
            let id = KeyId(Uuid::new_v4());
            Arc::new(TestKey(KeyRecord { id, ..template.0.clone() }, Proven::default()))
        })
        .collect();
    let guess = move |verifier: Verifier, row: Arc<TestKey>, n: usize| async move {
        let key = format!("llmk_demo_guess{n:08}");
        verifier.prove(row, parse(key.as_bytes()).unwrap(), guesser, soon()).await
    };
    for (n, row) in guessed_at.iter().enumerate().filter(|_| before) {
        assert_eq!(guess(verifier.clone(), Arc::clone(row), n).await, Proof::Wrong);
    }
    // Dropping the set ends the flood.
    let _flood: JoinSet<()> = (0..32)
        .map(|task| {
            let (verifier, guessed_at) = (verifier.clone(), guessed_at.clone());
            async move {
                for n in (100 + task..).step_by(32) {
                    guess(verifier.clone(), Arc::clone(&guessed_at[n % known]), n).await;
                }
            }
        })
        .collect();
    while verifier.stats().shed.value() < 100 {
        tokio::task::yield_now().await;
    }
    let mut proofs = Vec::new();
    for _ in 0..20 {
        let (right, mut proof) = (row(4), Proof::Pending);
        for _ in 0..attempts {
            let right = Arc::<TestKey>::clone(&right);
            proof = verifier.prove(right, parse(KEY).unwrap(), victim, soon()).await;
        }
        proofs.push(proof);
    }
    proofs
}

#[tokio::test]
async fn a_client_that_guesses_keeps_out_only_itself() {
    let [guesser, victim] = [1, 2].map(|n| ClientNetwork::from(Some([192, 0, 2, n].into())));
    assert_eq!(proofs_under_a_flood(guesser, victim, (20, true), 1).await, [Proof::Right; 20]);
}

#[tokio::test]
async fn guesses_keep_out_only_the_keys_they_are_at_if_clients_cannot_be_told_apart() {
    let nobody = ClientNetwork::default();
    assert_eq!(proofs_under_a_flood(nobody, nobody, (20, true), 1).await, [Proof::Right; 20]);
}

#[tokio::test]
async fn first_guesses_at_many_keys_do_not_keep_out_who_comes_again_with_the_same_secret() {
    let nobody = ClientNetwork::default();
    assert_eq!(proofs_under_a_flood(nobody, nobody, (100_000, false), 2).await, [Proof::Right; 20]);
}

#[tokio::test]
async fn a_row_without_a_required_memo_is_rejected_without_bcrypt() {
    let keyring = Keyring::new(Peppers::new(Vec::new(), MemoPolicy::Required)).unwrap();
    let (verifier, row) = (Verifier::start(VerifyOptions::default(), keyring).unwrap(), row(4));
    assert_eq!(verifier.recall(&*row, parse(KEY).unwrap()), Proof::Wrong);
    assert_eq!(prove(&verifier, &row, KEY).await, Proof::Wrong);
    assert_eq!(runs(&verifier), 0);
}

#[tokio::test]
async fn a_damaged_hash_is_neither_right_nor_wrong() {
    let (verifier, whole) = (verifier(VerifyOptions::default()), row(4));
    let row = Arc::new(TestKey(KeyRecord { hash: None, ..whole.0.clone() }, Proven::default()));
    let damaged = Proof::Impossible(Fault::DamagedRow);
    assert_eq!(verifier.recall(&*row, parse(KEY).unwrap()), damaged);
    assert_eq!(prove(&verifier, &row, KEY).await, damaged);
}

#[tokio::test]
async fn the_threads_end_with_the_last_clone() {
    let verifier = verifier(VerifyOptions::default());
    let pool = Arc::downgrade(&verifier.pool);
    let clone = verifier.clone();
    drop(verifier);
    assert_eq!(prove(&clone, &row(4), KEY).await, Proof::Right);
    drop(clone);
    let start = Instant::now();
    while pool.upgrade().is_some() {
        assert!(start.elapsed() < Duration::from_secs(30), "a thread still waits for work");
        std::thread::yield_now();
    }
}

/// A row that panics once, when a thread of bcrypt stores its verdict.
struct Cursed(TestKey, AtomicBool);

impl Provable for Cursed {
    fn record(&self) -> &KeyRecord {
        self.0.record()
    }
    fn proven(&self) -> &Proven {
        let of_bcrypt = std::thread::current().name().is_some_and(|name| name.starts_with("bcrypt"));
        assert!(!of_bcrypt || self.1.swap(true, Relaxed), "cursed");
        self.0.proven()
    }
}

#[tokio::test]
async fn a_panic_of_a_thread_accepts_no_key_and_the_retry_is_proven() {
    let options = VerifyOptions { threads: 1, ..VerifyOptions::default() };
    let (verifier, row) = (verifier(options), row(4));
    let row = Arc::new(Cursed(Arc::into_inner(row).unwrap(), AtomicBool::new(false)));
    let prove =
        || verifier.prove(Arc::<Cursed>::clone(&row), parse(KEY).unwrap(), ClientNetwork::default(), soon());
    assert_eq!(prove().await, Proof::Impossible(Fault::Overloaded));
    assert!(row.0.proven().seal().is_none());
    assert_eq!(prove().await, Proof::Right);
    assert_eq!(verifier.stats().panics.value(), 1);
}

//! Reads a key as a server would have it, verifies its secret, and collects the cases to explain.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Case, Explanation, Presenter, Question};
use crate::clock::{Clock, Timestamp};
use crate::decision::Proof;
use crate::key::PresentedKey;
use crate::profile::ProfileRow;
use crate::record::{KeyDetails, KeyRecord, Memo};
use crate::replica::{KeyEntry, Snapshot};
use crate::request::Credential;
use crate::store::inspect::Inspect;
use crate::store::{self, StoreError};
use crate::tenant::Tenant;
use crate::verify::memo::{Keyring, Peppers};
use crate::verify::{self, ClientNetwork, Provable as _, Verifier};

/// The time limit of one proof: longer than bcrypt of cost 14 takes on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// Explains answers.
pub struct Explainer {
    store: Arc<dyn Inspect>,
    clock: Arc<dyn Clock>,
    peppers: Peppers,
}

/// A key with its tenant in the database.
struct Subject {
    /// `None` if the row is too damaged to show.
    details: Option<KeyDetails>,
    record: KeyRecord,
    memo: Option<Memo>,
    profile: ProfileRow,
    tenant: Option<Tenant>,
}

impl Subject {
    /// Returns the rows as a replica loads them.
    fn rows(&self) -> Vec<store::SnapshotRow> {
        let key = store::SnapshotRow::Key(self.record.clone(), self.memo, self.profile.clone());
        self.tenant.iter().cloned().map(store::SnapshotRow::Tenant).chain([key]).collect()
    }
}

impl Explainer {
    /// Creates an explainer for this store.
    #[must_use]
    pub fn new(store: Arc<dyn Inspect>, clock: Arc<dyn Clock>, peppers: Peppers) -> Self {
        Self { store, clock, peppers }
    }

    /// Explains the answer to a request.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn explain<'a>(&self, question: Question<'a>) -> Result<Explanation<'a>, StoreError> {
        // The later of the two clocks, as in a server.
        let now = self.store.time().await?.unwrap_or_default().max(self.clock.now());
        let judged_at = question.at.unwrap_or(now);
        let mut explanation = Explanation {
            judged_at,
            key: None,
            tenant: None,
            address: question.address,
            cases: Vec::new(),
            notes: Vec::new(),
        };
        let plans = self.store.plans().await?.into_iter().map(store::SnapshotRow::Plan);
        let rules = self.store.routes().await?.into_iter().map(store::SnapshotRow::Route);
        let rows: Vec<_> = plans.chain(rules).collect();
        let case = |presenter, proof, subject: Option<&Subject>| {
            let rows = rows.iter().cloned().chain(subject.into_iter().flat_map(Subject::rows)).collect();
            let snapshot = Arc::new(Snapshot::of(rows, &self.peppers));
            Case { presenter, question, snapshot, proof, now: judged_at }
        };
        let Credential::Presented(presented) = question.request.credential else {
            explanation.cases.push(case(Presenter::Nobody, Proof::Pending, None));
            return Ok(explanation);
        };
        let mut subject = self.subject(presented.prefix()).await?;
        explanation.key = subject.as_ref().and_then(|subject| subject.details.clone());
        explanation.tenant = subject.as_ref().and_then(|subject| subject.tenant.clone());
        if let Some(at) = question.at {
            subject = subject.and_then(|subject| as_of(at, now, subject, &mut explanation.notes));
        }
        match subject {
            None => {
                let by = if question.stand_in { Presenter::Anybody } else { Presenter::Holder };
                explanation.cases.push(case(by, Proof::Pending, None));
            }
            Some(subject) => {
                let proofs = self.proofs(&subject, presented, question.stand_in, &mut explanation.notes);
                for (presenter, proof) in proofs.await? {
                    explanation.cases.push(case(presenter, proof, Some(&subject)));
                }
            }
        }
        Ok(explanation)
    }

    async fn subject(&self, prefix: &str) -> Result<Option<Subject>, StoreError> {
        let Some((record, memo, profile)) = self.store.key_row(prefix).await? else { return Ok(None) };
        let details = readable(self.store.find_key(prefix).await)?.flatten();
        let id = record.tenant_id;
        let tenants = readable(self.store.find_tenants(&id.0.to_string()).await)?.unwrap_or_default();
        let tenant = tenants.into_iter().find(|tenant| tenant.id == id);
        Ok(Some(Subject { details, record, memo, profile, tenant }))
    }

    /// Returns the ways to present the key, and the result of each proof.
    async fn proofs(
        &self,
        subject: &Subject,
        presented: PresentedKey<'_>,
        stand_in: bool,
        notes: &mut Vec<String>,
    ) -> Result<Vec<(Presenter, Proof)>, StoreError> {
        let (record, memo) = (subject.record.clone(), subject.memo.as_ref());
        let entry = Arc::new(KeyEntry::remembering(record, memo, &self.peppers));
        let verifier = self.verifier()?;
        let recalled = verifier.recall(&*entry, presented);
        if recalled == Proof::Wrong && entry.proven().seal().is_none() {
            let why = "no secret passes: memos are required, and the row has no memo of one of these peppers";
            notes.push(why.into());
            return Ok(vec![(Presenter::Anybody, Proof::Wrong)]);
        }
        Ok(match (recalled, stand_in) {
            (Proof::Impossible(_), _) => vec![(Presenter::Anybody, recalled)],
            (_, true) => {
                vec![(Presenter::RightSecret, Proof::Right), (Presenter::WrongSecret, Proof::Wrong)]
            }
            (Proof::Pending, false) => {
                let deadline = Instant::now() + PATIENCE;
                notes.push("bcrypt verified the key, as for the first request after a start".into());
                vec![(
                    Presenter::Holder,
                    verifier.prove(entry, presented, ClientNetwork::default(), deadline).await,
                )]
            }
            (known, false) => {
                notes.push("the memo of the row verified the key, without bcrypt".into());
                vec![(Presenter::Holder, known)]
            }
        })
    }

    fn verifier(&self) -> Result<Verifier, StoreError> {
        let no = |why: &dyn std::fmt::Display| StoreError::Unavailable(format!("cannot verify a key: {why}"));
        let keyring = Keyring::new(self.peppers.clone()).map_err(|e| no(&e))?;
        let options = verify::VerifyOptions { threads: 1, ..verify::VerifyOptions::default() };
        Verifier::start(options, keyring).map_err(|e| no(&e))
    }
}

/// Turns an inconsistent row into `None`, because the rest can still be explained.
fn readable<T>(read: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(StoreError::Inconsistent { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns a key as it was at another time, as far as its row contains that: creation and revocation. `None` if it did
/// not exist yet.
fn as_of(at: Timestamp, now: Timestamp, mut subject: Subject, notes: &mut Vec<String>) -> Option<Subject> {
    if at < now {
        notes.push(
            "old values of a row are not stored: secret, expiry, tenant, what the key may do, plans and rules are those \
             of now; creation, revocation, disabling and time those of then"
                .into(),
        );
    }
    let Some(details) = &subject.details else { return Some(subject) };
    if details.created_at > at {
        notes.push(format!("the key was created at {}, after that time", details.created_at));
        return None;
    }
    subject.record.revoked = details.revoked_at.is_some_and(|revoked_at| revoked_at <= at);
    subject.record.disabled = details.disabled_at.is_some_and(|disabled_at| disabled_at <= at);
    Some(subject)
}

//! Why does a request get the answer it gets?
//!
//! Gathers the facts about one key as a server would have them, has them judged by
//! the one that judges requests ([`decide`]), in the mode of the server and the
//! tenant, and walks the table beside it ([`rows`]). The secret is proven by the very machine that `serve` proves it with;
//! where only a prefix is known, both cases are told: who presents the right
//! secret, and who presents a wrong one.
//!
//! ```text
//! prefix ─► row, memo, tenant ─► as of --at ─► recall / prove ─► decide ─► in_mode
//!                                                           └──► rows::walk
//! ```
//!
//! Nothing here knows SQL, HTTP or how an answer is shown, and nothing is changed:
//! a proof made here is not written down.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::{Clock, Timestamp};
use crate::decision::rows::{self, Row, Step};
use crate::decision::{Access, Decision, Entrance, Facts, Fault, Found, Freshness, Proof, decide};
use crate::key::PresentedKey;
use crate::record::{KeyDetails, KeyRecord, Memo};
use crate::replica::Entry;
use crate::request::{AccessRequest, Credential, Waived};
use crate::store::StoreError;
use crate::store::inspect::Inspect;
use crate::tenant::{Mode, Tenant};
use crate::verify::memo::{Keyring, Peppers};
use crate::verify::{self, Provable as _, Verifier};

/// bcrypt at cost 14 on a busy machine, and then some.
const PATIENCE: Duration = Duration::from_mins(1);

/// What is to be explained.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The request.
    pub request: AccessRequest<'a>,
    /// Whether only the prefix of its key is known, and the secret stands in for any.
    pub stand_in: bool,
    /// As of when to judge; nothing: now.
    pub at: Option<Timestamp>,
    /// How true the replica is taken to be that judges.
    pub freshness: Freshness,
    /// The mode of the server.
    pub mode: Mode,
}

/// Who presents the key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Presenter {
    /// Nobody: there is none.
    Nobody,
    /// Anybody: the secret makes no difference.
    Anybody,
    /// Who holds the key that was given.
    Holder,
    /// Whoever has the right secret.
    RightSecret,
    /// Whoever has another one.
    WrongSecret,
}

impl Presenter {
    /// In words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nobody => "no key",
            Self::Anybody => "any secret",
            Self::Holder => "this key",
            Self::RightSecret => "the right secret",
            Self::WrongSecret => "a wrong secret",
        }
    }
}

/// What a request that presents the key so is judged by.
#[derive(Clone, Debug)]
pub struct Case<'a> {
    /// Who presents it.
    pub presenter: Presenter,
    request: AccessRequest<'a>,
    freshness: Freshness,
    mode: Mode,
    key: Option<KeyRecord>,
    tenant: Option<Tenant>,
    proof: Proof,
    now: Timestamp,
}

impl Case<'_> {
    fn facts(&self) -> Facts<'_> {
        let tenant = self.tenant.as_ref();
        Facts {
            entrance: if self.request.waived == Waived::No { Entrance::Required } else { Entrance::Public },
            credential: self.request.credential,
            freshness: self.freshness,
            found: self.key.as_ref().map(|key| Found {
                key,
                tenant,
                proof: self.proof,
                access: Access::FREE,
            }),
            now: self.now,
        }
    }

    /// The judgement, and what becomes of it in the mode of the server and the tenant.
    pub fn decision(&self) -> Decision<'_> {
        // Nothing is left to be proven here.
        decide(&self.facts()).unwrap_or(Decision::Unable(Fault::Overloaded, None)).in_mode(self.mode)
    }

    /// Every row of the table, and what became of it.
    #[must_use]
    pub fn rows(&self) -> [(Row, Step); Row::ALL.len()] {
        rows::walk(&self.facts())
    }
}

/// What is known of a key, and what follows from it.
#[derive(Debug)]
pub struct Explanation<'a> {
    /// As of when it was judged.
    pub judged_at: Timestamp,
    /// The key as it is now.
    pub key: Option<KeyDetails>,
    /// Its tenant as it is now.
    pub tenant: Option<Tenant>,
    /// The cases there are.
    pub cases: Vec<Case<'a>>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

impl Explanation<'_> {
    /// What a row was decided by, as the database has it.
    #[must_use]
    pub fn because(&self, row: Row, step: Step) -> Option<String> {
        let key = self.key.as_ref().filter(|_| step != Step::NotReached)?;
        match row {
            Row::Revoked => Some(match (key.revoked_at, &key.revocation_reason) {
                (None, _) => "revoked_at is NULL".into(),
                (Some(at), None) => format!("revoked_at {at}"),
                (Some(at), Some(why)) => format!("revoked_at {at}, {why:?}"),
            }),
            Row::Expired => Some(match key.expires_at {
                None => "it never expires".into(),
                Some(at) => format!("expires_at {at}"),
            }),
            Row::TenantInactive => Some(format!("status {}", self.tenant.as_ref()?.status)),
            Row::TenantDamaged => Some(format!("schema {:?}", self.tenant.as_ref()?.schema)),
            _ => None,
        }
    }
}

/// Explains answers.
pub struct Explainer {
    store: Arc<dyn Inspect>,
    clock: Arc<dyn Clock>,
    peppers: Peppers,
}

/// A key as the database has it.
struct Subject {
    /// Nothing where the row cannot even be shown.
    details: Option<KeyDetails>,
    record: KeyRecord,
    memo: Option<Memo>,
    tenant: Option<Tenant>,
}

impl Explainer {
    /// One that looks into this store.
    #[must_use]
    pub fn new(store: Arc<dyn Inspect>, clock: Arc<dyn Clock>, peppers: Peppers) -> Self {
        Self { store, clock, peppers }
    }

    /// Explains the answer to a request.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
    pub async fn explain<'a>(&self, question: Question<'a>) -> Result<Explanation<'a>, StoreError> {
        // As a server does: the later one of the two clocks.
        let now = self.store.time().await?.unwrap_or_default().max(self.clock.now());
        let judged_at = question.at.unwrap_or(now);
        let mut explanation =
            Explanation { judged_at, key: None, tenant: None, cases: Vec::new(), notes: Vec::new() };
        let Credential::Presented(presented) = question.request.credential else {
            explanation.cases.push(case(&question, judged_at, Presenter::Nobody, Proof::Pending, None));
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
                let who = if question.stand_in { Presenter::Anybody } else { Presenter::Holder };
                explanation.cases.push(case(&question, judged_at, who, Proof::Pending, None));
            }
            Some(subject) => {
                let proofs = self.proofs(&subject, presented, question.stand_in, &mut explanation.notes);
                for (presenter, proof) in proofs.await? {
                    explanation.cases.push(case(&question, judged_at, presenter, proof, Some(&subject)));
                }
            }
        }
        Ok(explanation)
    }

    async fn subject(&self, prefix: &str) -> Result<Option<Subject>, StoreError> {
        let Some((record, memo)) = self.store.key_record(prefix).await? else { return Ok(None) };
        let details = readable(self.store.find_key(prefix).await)?.flatten();
        let id = record.tenant_id;
        let tenants = readable(self.store.find_tenants(&id.0.to_string()).await)?.unwrap_or_default();
        let tenant = tenants.into_iter().find(|tenant| tenant.id == id);
        Ok(Some(Subject { details, record, memo, tenant }))
    }

    /// Who can present the key, and what proving it comes to.
    async fn proofs(
        &self,
        subject: &Subject,
        presented: PresentedKey<'_>,
        stand_in: bool,
        notes: &mut Vec<String>,
    ) -> Result<Vec<(Presenter, Proof)>, StoreError> {
        let (record, memo) = (subject.record.clone(), subject.memo.as_ref());
        let entry = Arc::new(Entry::remembering(record, memo, &self.peppers));
        let verifier = self.verifier()?;
        let recalled = verifier.recall(&*entry, presented);
        if recalled == Proof::Wrong && entry.proven().seal().is_none() {
            let why = "no secret passes: --memo is required, and the row has no memo by one of these peppers";
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
                notes.push("bcrypt was asked, as the first request after a start asks it".into());
                vec![(Presenter::Holder, verifier.prove(entry, presented, deadline).await)]
            }
            (known, false) => {
                notes.push("the memo beside the row told, without bcrypt".into());
                vec![(Presenter::Holder, known)]
            }
        })
    }

    fn verifier(&self) -> Result<Verifier, StoreError> {
        let no = |why: &dyn std::fmt::Display| StoreError::Unavailable(format!("cannot prove a key: {why}"));
        let keyring = Keyring::new(self.peppers.clone()).map_err(|e| no(&e))?;
        let options = verify::Options { threads: 1, ..verify::Options::default() };
        Verifier::start(options, keyring).map_err(|e| no(&e))
    }
}

fn case<'a>(
    question: &Question<'a>,
    now: Timestamp,
    presenter: Presenter,
    proof: Proof,
    subject: Option<&Subject>,
) -> Case<'a> {
    Case {
        presenter,
        request: question.request,
        freshness: question.freshness,
        mode: question.mode,
        key: subject.map(|subject| subject.record.clone()),
        tenant: subject.and_then(|subject| subject.tenant.clone()),
        proof,
        now,
    }
}

/// A row that makes no sense is one that cannot be shown, not the end.
fn readable<T>(read: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(StoreError::Inconsistent { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A key as it was at another instant, as far as its row can tell: when it was made, and when it was taken back.
/// Nothing if it was not there yet.
fn as_of(at: Timestamp, now: Timestamp, mut subject: Subject, notes: &mut Vec<String>) -> Option<Subject> {
    if at < now {
        notes.push(
            "the past of a row is not kept: secret, expiry and tenant are judged as they are now, \
             creation, revocation and time as of then"
                .into(),
        );
    }
    let Some(details) = &subject.details else { return Some(subject) };
    if details.created_at > at {
        notes.push(format!("the key was made at {}, after that", details.created_at));
        return None;
    }
    subject.record.revoked = details.revoked_at.is_some_and(|revoked_at| revoked_at <= at);
    Some(subject)
}

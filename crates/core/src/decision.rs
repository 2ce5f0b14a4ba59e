//! May this pass?
//!
//! The table of the contract, as one pure function: [`decide`] is given what is
//! known ([`Facts`]) and answers with the first row that holds. It reads no
//! clock, asks nobody, and knows neither HTTP nor Envoy.
//!
//! ```text
//! 1 public path ──────────────────────────────► Allow(Public)
//! 2 no key, 3 malformed ──────────────────────► Deny
//! 6 never loaded, too old ────────────────────► Unable
//! 4 unknown prefix (6 if stale: may be new) ──► Deny / Unable
//!   ······· possession must be proven from here on ·······
//! 4 wrong secret, revoked, expired ───────────► Deny
//! 5 tenant not active ────────────────────────► Deny
//! 6 damaged row ──────────────────────────────► Unable
//! 7 otherwise ────────────────────────────────► Allow(Tenant)
//! ```
//!
//! The precise reason of a denial is for operators; what the client is told is
//! settled elsewhere, and is less.
//!
//! What becomes of it ([`Decision::in_mode`]) is another matter: in shadow mode what was to be
//! refused passes as nobody.

pub mod rows;

use crate::clock::Timestamp;
use crate::record::{KeyRecord, has_expired};
use crate::request::Credential;
use crate::tenant::{Mode, Tenant, TenantStatus};

/// How true the replica is to the database.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Freshness {
    /// A good look at the database within the last second.
    Fresh,
    /// Never had a good look.
    NeverLoaded,
    /// No good look for a while, but within the bound the operator set.
    Stale,
    /// No good look for longer than that.
    TooOld,
}

/// What became of proving that the caller holds the key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Proof {
    /// Not tried yet.
    Pending,
    /// Could not be finished.
    Impossible(Fault),
    /// The secret is right.
    Right,
    /// The secret is wrong.
    Wrong,
}

/// The key that a request names, as the replica has it.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The row of `api_keys`.
    pub key: &'a KeyRecord,
    /// Its row of `tenants`; nothing if that is missing, which the schema forbids.
    pub tenant: Option<&'a Tenant>,
    /// Whether the caller holds the key.
    pub proof: Proof,
}

/// All that a decision rests on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Whether the request needs no key.
    pub public: bool,
    /// The key it carries.
    pub credential: Credential<'a>,
    /// How true the replica is.
    pub freshness: Freshness,
    /// The key that the replica has under the presented prefix.
    pub found: Option<Found<'a>>,
    /// The latest that any clock says it is.
    pub now: Timestamp,
}

/// Who holds the key: known once possession is proven, and not before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Identity<'a> {
    /// The row of `api_keys`.
    pub key: &'a KeyRecord,
    /// The row of `tenants`.
    pub tenant: Option<&'a Tenant>,
}

/// The answer. Its three kinds never share a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Decision<'a> {
    /// The request may pass.
    Allow(Grant<'a>),
    /// It may not, and it is the caller's fault.
    Deny(Denial<'a>),
    /// We cannot say, and it is not.
    Unable(Fault, Option<Identity<'a>>),
}

impl Decision<'_> {
    /// What becomes of it on a server in this mode. The mode of a tenant comes before the server's, once it is
    /// proven that the caller is one of its own: before that anybody could claim to be.
    pub fn in_mode(self, server: Mode) -> Self {
        let objection = match self {
            // What was asked is not even known: nothing could be taken off it.
            Self::Allow(_) | Self::Unable(Fault::Internal, _) => return self,
            Self::Deny(denial) => Objection::Denied(denial),
            Self::Unable(fault, identity) => Objection::Unable(fault, identity),
        };
        let tenant = objection.identity().and_then(|identity| identity.tenant);
        match tenant.and_then(|tenant| tenant.mode).unwrap_or(server) {
            Mode::Enforce => self,
            Mode::Shadow => Self::Allow(Grant::Shadow(objection)),
        }
    }
}

/// Why a request would not have passed if it were not for shadow mode.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Objection<'a> {
    /// It would have been denied.
    Denied(Denial<'a>),
    /// We could not have said.
    Unable(Fault, Option<Identity<'a>>),
}

impl<'a> Objection<'a> {
    /// As metadata, metrics and the report spell it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Denied(denial) => denial.reason.as_str(),
            Self::Unable(..) => "unavailable",
        }
    }

    /// Who holds the key, if that was proven. For operators: an upstream is told of nobody.
    #[must_use]
    pub fn identity(&self) -> Option<Identity<'a>> {
        match self {
            Self::Denied(denial) => denial.identity,
            Self::Unable(_, identity) => *identity,
        }
    }
}

/// As whom a request passes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Grant<'a> {
    /// As nobody.
    Public,
    /// As nobody, though it was to be refused.
    Shadow(Objection<'a>),
    /// As this key of this tenant.
    Tenant(&'a KeyRecord, &'a Tenant),
}

/// A refusal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Denial<'a> {
    /// Why.
    pub reason: Reason,
    /// Of whom, if possession was proven.
    pub identity: Option<Identity<'a>>,
}

/// Why a request is refused: for metadata, log and metrics.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// The key is right and its time is over. Blame: its owner.
    Expired,
    /// What was presented is no key, or more than one. Blame: the client.
    Malformed,
    /// The prefix is known, the secret is wrong. Blame: the client.
    Mismatch,
    /// There is no key. Blame: the client.
    Missing,
    /// The key is right and was taken back. Blame: its owner.
    Revoked,
    /// The key is right, its tenant is not served. Blame: the tenant.
    TenantInactive,
    /// No key has this prefix. Blame: the client.
    Unknown,
}

impl Reason {
    /// Every reason, for whoever has to list them.
    pub const ALL: [Self; 7] = [
        Self::Expired,
        Self::Malformed,
        Self::Mismatch,
        Self::Missing,
        Self::Revoked,
        Self::TenantInactive,
        Self::Unknown,
    ];

    /// As metadata, logs and metrics spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Malformed => "malformed",
            Self::Mismatch => "mismatch",
            Self::Missing => "missing",
            Self::Revoked => "revoked",
            Self::TenantInactive => "tenant_inactive",
            Self::Unknown => "unknown",
        }
    }
}

/// Why we cannot say. The client sees the same 503 for all of them; the operator sees this.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// The row of the key or of its tenant makes no sense. The operator mends the row.
    DamagedRow,
    /// Proving possession takes longer than the caller waits. A retry finds it done.
    DeadlineTooShort,
    /// Something went wrong that nobody thought of. A bug of ours; the log has more.
    Internal,
    /// Nothing was loaded since the start. The operator looks at the database.
    NeverLoaded,
    /// More first proofs are asked for than there is CPU. A retry may find room.
    Overloaded,
    /// The request is larger than the server reads. The operator raises the limit, or Envoy sends less.
    TooLarge,
    /// The last good look at the database is older than the operator allows.
    TooOld,
    /// No key has this prefix, but the replica is stale and the key may be new.
    UnknownWhileStale,
}

impl Fault {
    /// Every fault, for whoever has to list them.
    pub const ALL: [Self; 8] = [
        Self::DamagedRow,
        Self::DeadlineTooShort,
        Self::Internal,
        Self::NeverLoaded,
        Self::Overloaded,
        Self::TooLarge,
        Self::TooOld,
        Self::UnknownWhileStale,
    ];

    /// Whether a client can cause it by what it sends: a first proof that takes too long, a request that is too large.
    /// Such a request must never pass because of it, whatever the operator chose for outages.
    #[must_use]
    pub fn is_caused_by_clients(self) -> bool {
        match self {
            Self::DeadlineTooShort | Self::Internal | Self::Overloaded | Self::TooLarge => true,
            Self::DamagedRow | Self::NeverLoaded | Self::TooOld | Self::UnknownWhileStale => false,
        }
    }

    /// As logs and metrics spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DamagedRow => "damaged_row",
            Self::DeadlineTooShort => "deadline_too_short",
            Self::Internal => "internal",
            Self::NeverLoaded => "never_loaded",
            Self::Overloaded => "overloaded",
            Self::TooLarge => "too_large",
            Self::TooOld => "too_old",
            Self::UnknownWhileStale => "unknown_while_stale",
        }
    }
}

/// Answers with the first row of the table that holds; with nothing when possession must be proven first.
#[must_use]
pub fn decide<'a>(facts: &Facts<'a>) -> Option<Decision<'a>> {
    if facts.public {
        return Some(Decision::Allow(Grant::Public));
    }
    match facts.credential {
        Credential::Missing => return Some(deny(Reason::Missing)),
        Credential::Malformed => return Some(deny(Reason::Malformed)),
        Credential::Presented(_) => {}
    }
    match (facts.freshness, facts.found) {
        (Freshness::NeverLoaded, _) => Some(unable(Fault::NeverLoaded)),
        (Freshness::TooOld, _) => Some(unable(Fault::TooOld)),
        (Freshness::Stale, None) => Some(unable(Fault::UnknownWhileStale)),
        (Freshness::Fresh, None) => Some(deny(Reason::Unknown)),
        (_, Some(found)) => match found.proof {
            Proof::Pending => None,
            Proof::Impossible(fault) => Some(unable(fault)),
            Proof::Wrong => Some(deny(Reason::Mismatch)),
            Proof::Right => Some(of_holder(found.key, found.tenant, facts.now)),
        },
    }
}

/// The rows that need possession.
fn of_holder<'a>(key: &'a KeyRecord, tenant: Option<&'a Tenant>, now: Timestamp) -> Decision<'a> {
    let identity = Some(Identity { key, tenant });
    if key.revoked {
        return Decision::Deny(Denial { reason: Reason::Revoked, identity });
    }
    if has_expired(key.expires_at.at(), now) {
        return Decision::Deny(Denial { reason: Reason::Expired, identity });
    }
    match tenant {
        None => Decision::Unable(Fault::DamagedRow, identity),
        Some(tenant) if tenant.status != TenantStatus::Active => {
            Decision::Deny(Denial { reason: Reason::TenantInactive, identity })
        }
        Some(tenant) if !tenant.is_sound() => Decision::Unable(Fault::DamagedRow, identity),
        Some(tenant) => Decision::Allow(Grant::Tenant(key, tenant)),
    }
}

fn deny<'a>(reason: Reason) -> Decision<'a> {
    Decision::Deny(Denial { reason, identity: None })
}

fn unable<'a>(fault: Fault) -> Decision<'a> {
    Decision::Unable(fault, None)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::key::KeyId;
    use crate::key::format::parse;
    use crate::record::ExpiresAt;
    use crate::tenant::TenantId;

    pub(super) const NOW: Timestamp = Timestamp(1_000);

    pub(super) fn key() -> KeyRecord {
        let (id, tenant_id) = (KeyId(Uuid::nil()), TenantId(Uuid::nil()));
        KeyRecord {
            id,
            tenant_id,
            prefix: "llmk_demo".into(),
            hash: None,
            expires_at: ExpiresAt::NEVER,
            revoked: false,
            not_before: Timestamp::MIN,
            disabled: false,
        }
    }

    pub(super) fn tenant(status: &str) -> Tenant {
        Tenant {
            id: TenantId(Uuid::nil()),
            name: "Demo".into(),
            schema: "tenant_demo".into(),
            status: TenantStatus::parse(status),
            mode: None,
            created_at: NOW,
            plan: None,
        }
    }

    pub(super) fn facts(found: Option<Found<'_>>) -> Facts<'_> {
        let credential = Credential::Presented(parse(b"llmk_demo_secret123").unwrap());
        Facts { public: false, credential, freshness: Freshness::Fresh, found, now: NOW }
    }

    /// What a decision says, in a word.
    pub(super) fn word(decision: Option<Decision<'_>>) -> String {
        match decision {
            None => "prove".into(),
            Some(Decision::Allow(Grant::Public)) => "public".into(),
            Some(Decision::Allow(Grant::Shadow(objection))) => format!("shadow {}", objection.as_str()),
            Some(Decision::Allow(Grant::Tenant(..))) => "ok".into(),
            Some(Decision::Deny(Denial { reason, identity })) => {
                format!("{}{}", reason.as_str(), if identity.is_some() { " proven" } else { "" })
            }
            Some(Decision::Unable(fault, _)) => format!("unable {}", fault.as_str()),
        }
    }

    #[test]
    fn public_missing_and_malformed_come_before_any_state() {
        for freshness in [Freshness::NeverLoaded, Freshness::TooOld, Freshness::Stale, Freshness::Fresh] {
            for (public, credential, expected) in [
                (true, Credential::Missing, "public"),
                (true, Credential::Malformed, "public"),
                (false, Credential::Missing, "missing"),
                (false, Credential::Malformed, "malformed"),
            ] {
                let facts = Facts { public, credential, freshness, ..facts(None) };
                assert_eq!(word(decide(&facts)), expected, "{freshness:?}");
            }
        }
    }

    #[test]
    fn the_age_of_the_replica_decides_about_unknown_and_known_keys() {
        let (key, tenant) = (key(), tenant("active"));
        for (freshness, unknown, known) in [
            (Freshness::NeverLoaded, "unable never_loaded", "unable never_loaded"),
            (Freshness::TooOld, "unable too_old", "unable too_old"),
            (Freshness::Stale, "unable unknown_while_stale", "ok"),
            (Freshness::Fresh, "unknown", "ok"),
        ] {
            let found = Found { key: &key, tenant: Some(&tenant), proof: Proof::Right };
            assert_eq!(word(decide(&Facts { freshness, ..facts(None) })), unknown);
            assert_eq!(word(decide(&Facts { freshness, ..facts(Some(found)) })), known);
        }
    }

    #[test]
    fn nothing_is_said_about_a_key_before_possession_is_proven() {
        let key = KeyRecord { revoked: true, expires_at: Some(NOW).into(), ..key() };
        let tenant = tenant("suspended");
        for (proof, expected) in [
            (Proof::Pending, "prove"),
            (Proof::Wrong, "mismatch"),
            (Proof::Impossible(Fault::Overloaded), "unable overloaded"),
            (Proof::Right, "revoked proven"),
        ] {
            let found = Found { key: &key, tenant: Some(&tenant), proof };
            assert_eq!(word(decide(&facts(Some(found)))), expected);
        }
    }

    #[test]
    fn the_first_row_that_holds_answers_a_proven_holder() {
        let bad_schema = |status| Tenant { schema: "x\"; drop".into(), ..tenant(status) };
        for (revoked, expires_at, tenant, expected) in [
            (true, Some(NOW), Some(tenant("suspended")), "revoked proven"),
            (false, Some(NOW), Some(tenant("suspended")), "expired proven"),
            (false, Some(Timestamp(1_001)), Some(tenant("suspended")), "tenant_inactive proven"),
            (false, None, Some(tenant("pending_provisioning")), "tenant_inactive proven"),
            (false, None, Some(tenant("deleted")), "tenant_inactive proven"),
            (false, None, Some(tenant("frozen")), "tenant_inactive proven"),
            (false, None, Some(bad_schema("suspended")), "tenant_inactive proven"),
            (false, None, Some(bad_schema("active")), "unable damaged_row"),
            (false, None, None, "unable damaged_row"),
            (false, Some(Timestamp(1_001)), Some(tenant("active")), "ok"),
            (false, None, Some(tenant("active")), "ok"),
        ] {
            let key = KeyRecord { expires_at: expires_at.into(), revoked, ..key() };
            let found = Found { key: &key, tenant: tenant.as_ref(), proof: Proof::Right };
            assert_eq!(word(decide(&facts(Some(found)))), expected);
        }
    }

    #[test]
    fn in_shadow_mode_what_was_to_be_refused_passes_as_nobody_and_the_rest_stays() {
        let (key, active) = (key(), tenant("active"));
        let right = Found { key: &key, tenant: Some(&active), proof: Proof::Right };
        for (facts, enforced, shadowed) in [
            (Facts { public: true, ..facts(None) }, "public", "public"),
            (facts(Some(right)), "ok", "ok"),
            (Facts { credential: Credential::Missing, ..facts(None) }, "missing", "shadow missing"),
            (Facts { credential: Credential::Malformed, ..facts(None) }, "malformed", "shadow malformed"),
            (facts(None), "unknown", "shadow unknown"),
            (facts(Some(Found { proof: Proof::Wrong, ..right })), "mismatch", "shadow mismatch"),
            (
                Facts { freshness: Freshness::NeverLoaded, ..facts(None) },
                "unable never_loaded",
                "shadow unavailable",
            ),
        ] {
            let decision = decide(&facts).unwrap();
            assert_eq!(word(Some(decision.in_mode(Mode::Enforce))), enforced);
            assert_eq!(word(Some(decision.in_mode(Mode::Shadow))), shadowed);
        }
    }

    #[test]
    fn a_tenants_own_mode_counts_for_its_proven_holders_alone() {
        let key = KeyRecord { revoked: true, ..key() };
        for (own, server, proof, expected) in [
            (None, Mode::Enforce, Proof::Right, "revoked proven"),
            (None, Mode::Shadow, Proof::Right, "shadow revoked"),
            (Some(Mode::Shadow), Mode::Enforce, Proof::Right, "shadow revoked"),
            (Some(Mode::Enforce), Mode::Shadow, Proof::Right, "revoked proven"),
            (Some(Mode::Shadow), Mode::Enforce, Proof::Wrong, "mismatch"),
            (Some(Mode::Enforce), Mode::Shadow, Proof::Wrong, "shadow mismatch"),
            (Some(Mode::Shadow), Mode::Enforce, Proof::Impossible(Fault::Overloaded), "unable overloaded"),
        ] {
            let tenant = Tenant { mode: own, ..tenant("active") };
            let found = Found { key: &key, tenant: Some(&tenant), proof };
            let decision = decide(&facts(Some(found))).unwrap();
            assert_eq!(word(Some(decision.in_mode(server))), expected, "{own:?} {server:?} {proof:?}");
        }
    }
}

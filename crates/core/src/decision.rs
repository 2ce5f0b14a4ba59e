//! The decision on a request.
//!
//! The table of the contract is in [`rows`]: an ordered list of rows, of which the first that holds is the answer.
//! [`decide`] is given what is known ([`Facts`]) and walks it. It reads no clock, asks nobody, and knows neither HTTP nor
//! Envoy.
//!
//! ```text
//!   ambiguous path ───────────────────────────► Deny
//!   Envoy's words on the route are bad ───────► Unable
//! 1 public ───────────────────────────────────► Allow(Public)
//! 1 optional, and no key ─────────────────────► Allow(Anonymous)
//! 2 no key, 3 malformed ──────────────────────► Deny
//! 6 never loaded, too old ────────────────────► Unable
//! 4 unknown prefix (6 if stale: may be new) ──► Deny / Unable
//!   ······· possession must be proven from here on ·······
//! 4 wrong secret, revoked, disabled, expired, not yet valid ► Deny
//! 5 tenant not active ────────────────────────► Deny
//! 6 damaged row ──────────────────────────────► Unable
//! 5 address, rule, scopes ────────────────────► Deny (6 Unable if the rule is damaged)
//! 7 otherwise ────────────────────────────────► Allow(Tenant)
//! ```
//!
//! The precise reason of a denial is for operators; what the client is told is
//! settled elsewhere, and is less.
//!
//! What becomes of it ([`Decision::in_mode`]) is another matter: in shadow mode what was to be
//! refused passes as nobody.

pub mod rows;

use self::rows::Row;
use crate::clock::Timestamp;
use crate::record::KeyRecord;
use crate::request::Credential;
use crate::tenant::{Mode, Tenant};

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
    /// What the key may do of what is asked.
    pub access: Access<'a>,
}

/// What rules, networks and plans say of a request by a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Access<'a> {
    /// Whether scopes, networks and plan of the key can be read, and its plan exists.
    pub sound: bool,
    /// Whether the key may be used from the client's address.
    pub from_here: bool,
    /// What the rules say.
    pub rule: RuleFact,
    /// What is needed and not granted.
    pub lacking: Option<Lacking<'a>>,
}

impl Access<'_> {
    /// That of a key without scopes and networks where no rule is in force.
    pub const FREE: Self = Self { sound: true, from_here: true, rule: RuleFact::Fine, lacking: None };
}

/// What the rules say of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RuleFact {
    /// One matches, or none has to.
    Fine,
    /// None matches, and one has to.
    None,
    /// The row that wins makes no sense.
    Damaged,
}

/// Needs that are not granted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lacking<'a> {
    /// Their first term, for the client.
    pub term: &'a str,
    /// Whether the request passes all the same, and is written down.
    pub shadow: bool,
}

/// Whether a request needs a key, before anything is known of the key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Entrance {
    /// Its path could be read in two ways.
    Ambiguous,
    /// What Envoy says of its route cannot be read.
    BadContext,
    /// It needs none.
    Public,
    /// It may come without one.
    Optional,
    /// It needs one.
    Required,
}

/// All that a decision rests on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Whether the request needs a key.
    pub entrance: Entrance,
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

impl<'a> Decision<'a> {
    /// Who holds the key, if that was proven.
    #[must_use]
    pub fn identity(&self) -> Option<Identity<'a>> {
        match self {
            Self::Allow(grant) => match grant.objection() {
                Some(objection) => objection.identity(),
                None => grant.identity().map(|(key, tenant)| Identity { key, tenant: Some(tenant) }),
            },
            Self::Deny(denial) => denial.identity,
            Self::Unable(_, identity) => *identity,
        }
    }

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
    /// As nobody, because it came without a key where none is needed.
    Anonymous,
    /// As nobody, though it was to be refused.
    Shadow(Objection<'a>),
    /// As this key of this tenant.
    Tenant(&'a KeyRecord, &'a Tenant),
    /// As this key of this tenant, though a rule in shadow mode was to refuse it.
    Spared(&'a KeyRecord, &'a Tenant, Denial<'a>),
}

impl<'a> Grant<'a> {
    /// How a request that passes as a tenant is spelled.
    pub const OK: &'static str = "ok";

    /// Whom the upstream is told of.
    #[must_use]
    pub fn identity(&self) -> Option<(&'a KeyRecord, &'a Tenant)> {
        match self {
            Self::Tenant(key, tenant) | Self::Spared(key, tenant, _) => Some((key, tenant)),
            Self::Public | Self::Anonymous | Self::Shadow(_) => None,
        }
    }

    /// Why it would have been refused, if it would.
    #[must_use]
    pub fn objection(&self) -> Option<Objection<'a>> {
        match self {
            Self::Shadow(objection) => Some(*objection),
            Self::Spared(_, _, denial) => Some(Objection::Denied(*denial)),
            Self::Public | Self::Anonymous | Self::Tenant(..) => None,
        }
    }

    /// As metadata, logs and metrics spell it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Anonymous => "anonymous",
            Self::Shadow(_) => "shadow",
            Self::Tenant(..) | Self::Spared(..) => Self::OK,
        }
    }
}

/// A refusal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Denial<'a> {
    /// Why.
    pub reason: Reason,
    /// Of whom, if possession was proven.
    pub identity: Option<Identity<'a>>,
    /// The first term of the needs that were not met, if that is why.
    pub needs: Option<&'a str>,
}

/// Why a request is refused: for metadata, log and metrics.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// The key is right and was switched off. Blame: its owner.
    Disabled,
    /// The key is right and its time is over. Blame: its owner.
    Expired,
    /// What was presented is no key, or more than one. Blame: the client.
    Malformed,
    /// The prefix is known, the secret is wrong. Blame: the client.
    Mismatch,
    /// There is no key. Blame: the client.
    Missing,
    /// The key is right and may not be used from the client's address. Blame: the client.
    Network,
    /// The key is right and its time has not begun. Blame: its owner.
    NotYetValid,
    /// Envoy and the upstream could read the path in two ways. Blame: the client.
    PathAmbiguous,
    /// The key is right and was taken back. Blame: its owner.
    Revoked,
    /// The key is right and no rule is for the request. Blame: the client, or the operator.
    Route,
    /// The key is right and is not granted what the route needs. Blame: its owner.
    Scope,
    /// The key is right, its tenant is not served. Blame: the tenant.
    TenantInactive,
    /// No key has this prefix. Blame: the client.
    Unknown,
}

impl Reason {
    /// Every reason, for whoever has to list them.
    pub const ALL: [Self; 13] = [
        Self::Disabled,
        Self::Expired,
        Self::Malformed,
        Self::Mismatch,
        Self::Missing,
        Self::Network,
        Self::NotYetValid,
        Self::PathAmbiguous,
        Self::Revoked,
        Self::Route,
        Self::Scope,
        Self::TenantInactive,
        Self::Unknown,
    ];

    /// As metadata, logs and metrics spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Expired => "expired",
            Self::Malformed => "malformed",
            Self::Mismatch => "mismatch",
            Self::Missing => "missing",
            Self::Network => "network",
            Self::NotYetValid => "not_yet_valid",
            Self::PathAmbiguous => "path_ambiguous",
            Self::Revoked => "revoked",
            Self::Route => "route",
            Self::Scope => "scope",
            Self::TenantInactive => "tenant_inactive",
            Self::Unknown => "unknown",
        }
    }
}

/// Why we cannot say. The client sees the same 503 for all of them; the operator sees this.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// What Envoy's configuration says of the route makes no sense. The operator corrects it there.
    BadRouteContext,
    /// The row of the rule that wins makes no sense. The operator corrects the row.
    DamagedRoute,
    /// The row of the key, of its tenant or of its plan makes no sense. The operator mends the row.
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
    pub const ALL: [Self; 10] = [
        Self::BadRouteContext,
        Self::DamagedRoute,
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
            Self::BadRouteContext
            | Self::DamagedRoute
            | Self::DamagedRow
            | Self::NeverLoaded
            | Self::TooOld
            | Self::UnknownWhileStale => false,
        }
    }

    /// As logs and metrics spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRouteContext => "bad_route_context",
            Self::DamagedRoute => "damaged_route",
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

/// Answers with the first row of the table that holds; `None` when possession must be proven first.
#[must_use]
pub fn decide<'a>(facts: &Facts<'a>) -> Option<Decision<'a>> {
    for row in Row::ALL {
        if row.holds(facts)? {
            return Some(row.answer(facts));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::key::KeyId;
    use crate::key::format::parse;
    use crate::record::ExpiresAt;
    use crate::tenant::{TenantId, TenantStatus};

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
        Facts { entrance: Entrance::Required, credential, freshness: Freshness::Fresh, found, now: NOW }
    }

    /// What a decision says, in a word.
    pub(super) fn word(decision: Option<Decision<'_>>) -> String {
        match decision {
            None => "prove".into(),
            Some(Decision::Allow(Grant::Public)) => "public".into(),
            Some(Decision::Allow(Grant::Shadow(objection))) => format!("shadow {}", objection.as_str()),
            Some(Decision::Allow(Grant::Anonymous)) => "anonymous".into(),
            Some(Decision::Allow(Grant::Tenant(..))) => "ok".into(),
            Some(Decision::Allow(Grant::Spared(_, _, denial))) => {
                format!("spared {}", denial.reason.as_str())
            }
            Some(Decision::Deny(Denial { reason, identity, .. })) => {
                format!("{}{}", reason.as_str(), if identity.is_some() { " proven" } else { "" })
            }
            Some(Decision::Unable(fault, _)) => format!("unable {}", fault.as_str()),
        }
    }

    #[test]
    fn public_missing_and_malformed_come_before_any_state() {
        for freshness in [Freshness::NeverLoaded, Freshness::TooOld, Freshness::Stale, Freshness::Fresh] {
            for (entrance, credential, expected) in [
                (Entrance::Ambiguous, Credential::Missing, "path_ambiguous"),
                (Entrance::BadContext, Credential::Malformed, "unable bad_route_context"),
                (Entrance::Public, Credential::Missing, "public"),
                (Entrance::Public, Credential::Malformed, "public"),
                (Entrance::Required, Credential::Missing, "missing"),
                (Entrance::Required, Credential::Malformed, "malformed"),
                (Entrance::Optional, Credential::Malformed, "malformed"),
            ] {
                let facts = Facts { entrance, credential, freshness, ..facts(None) };
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
            let found = Found { key: &key, tenant: Some(&tenant), proof: Proof::Right, access: Access::FREE };
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
            let found = Found { key: &key, tenant: Some(&tenant), proof, access: Access::FREE };
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
            let found =
                Found { key: &key, tenant: tenant.as_ref(), proof: Proof::Right, access: Access::FREE };
            assert_eq!(word(decide(&facts(Some(found)))), expected);
        }
    }

    #[test]
    fn in_shadow_mode_what_was_to_be_refused_passes_as_nobody_and_the_rest_stays() {
        let (key, active) = (key(), tenant("active"));
        let right = Found { key: &key, tenant: Some(&active), proof: Proof::Right, access: Access::FREE };
        for (facts, enforced, shadowed) in [
            (Facts { entrance: Entrance::Public, ..facts(None) }, "public", "public"),
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
            let found = Found { key: &key, tenant: Some(&tenant), proof, access: Access::FREE };
            let decision = decide(&facts(Some(found))).unwrap();
            assert_eq!(word(Some(decision.in_mode(server))), expected, "{own:?} {server:?} {proof:?}");
        }
    }

    #[test]
    fn a_request_without_a_key_passes_where_one_is_optional_as_long_as_the_rules_are_known() {
        for (freshness, expected) in [
            (Freshness::Fresh, "anonymous"),
            (Freshness::Stale, "anonymous"),
            (Freshness::TooOld, "unable too_old"),
            (Freshness::NeverLoaded, "missing"),
        ] {
            let facts = Facts {
                entrance: Entrance::Optional,
                credential: Credential::Missing,
                freshness,
                ..facts(None)
            };
            assert_eq!(word(decide(&facts)), expected, "{freshness:?}");
        }
        assert_eq!(word(decide(&Facts { entrance: Entrance::Optional, ..facts(None) })), "unknown");
    }

    #[test]
    fn the_states_of_a_key_have_their_order() {
        let tenant = tenant("suspended");
        for (revoked, disabled, expires_at, not_before, expected) in [
            (true, true, Some(NOW), Timestamp(1_001), "revoked proven"),
            (false, true, Some(NOW), Timestamp(1_001), "disabled proven"),
            (false, false, Some(NOW), Timestamp(1_001), "expired proven"),
            (false, false, None, Timestamp(1_001), "not_yet_valid proven"),
            (false, false, None, NOW, "tenant_inactive proven"),
        ] {
            let key = KeyRecord { revoked, disabled, expires_at: expires_at.into(), not_before, ..key() };
            let found = Found { key: &key, tenant: Some(&tenant), proof: Proof::Right, access: Access::FREE };
            assert_eq!(word(decide(&facts(Some(found)))), expected);
        }
    }

    #[test]
    fn what_a_key_may_do_is_judged_after_its_tenant_in_order() {
        let (key, active, suspended) = (key(), tenant("active"), tenant("suspended"));
        let worst = Access {
            sound: false,
            from_here: false,
            rule: RuleFact::None,
            lacking: Some(Lacking { term: "a b", shadow: false }),
        };
        let spared = Access { lacking: Some(Lacking { term: "a", shadow: true }), ..Access::FREE };
        for (tenant, access, expected) in [
            (&suspended, worst, "tenant_inactive proven"),
            (&active, worst, "unable damaged_row"),
            (&active, Access { sound: true, ..worst }, "network proven"),
            (&active, Access { sound: true, from_here: true, ..worst }, "route proven"),
            (&active, Access { rule: RuleFact::Damaged, sound: true, ..worst }, "network proven"),
            (
                &active,
                Access { rule: RuleFact::Damaged, sound: true, from_here: true, ..worst },
                "unable damaged_route",
            ),
            (&active, Access { lacking: worst.lacking, ..Access::FREE }, "scope proven"),
            (&active, spared, "spared scope"),
            (&active, Access::FREE, "ok"),
        ] {
            let found = Found { key: &key, tenant: Some(tenant), proof: Proof::Right, access };
            let decision = decide(&facts(Some(found)));
            assert_eq!(word(decision), expected);
            if let Some(Decision::Deny(denial)) = decision {
                let needs = (denial.reason == Reason::Scope).then_some("a b");
                assert_eq!(denial.needs, needs);
            }
            let wrong = Found { proof: Proof::Wrong, ..found };
            assert_eq!(word(decide(&facts(Some(wrong)))), "mismatch");
        }
    }

    #[test]
    fn a_request_that_a_rule_spares_passes_as_its_tenant_in_every_mode() {
        let (key, tenant) = (key(), tenant("active"));
        let access = Access { lacking: Some(Lacking { term: "a", shadow: true }), ..Access::FREE };
        let found = Found { key: &key, tenant: Some(&tenant), proof: Proof::Right, access };
        for mode in Mode::ALL {
            let Some(Decision::Allow(grant)) = decide(&facts(Some(found))).map(|d| d.in_mode(mode)) else {
                panic!()
            };
            assert_eq!((grant.as_str(), grant.identity()), ("ok", Some((&key, &tenant))));
            assert_eq!(grant.objection().map(|objection| objection.as_str()), Some("scope"));
        }
        assert_eq!((Grant::Anonymous.as_str(), Grant::Anonymous.identity()), ("anonymous", None));
        assert_eq!(Grant::Public.objection(), None);
    }
}

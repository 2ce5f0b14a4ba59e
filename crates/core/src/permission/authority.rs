//! The authority of management keys: what a key may do now, and what it may give to another key.

use uuid::Uuid;

use super::{Permission, Permissions, Reach, Role};
use crate::clock::Timestamp;
use crate::record::has_expired;
use crate::tenant::TenantId;

/// The id of a management key: `tenantgate_admin_key.id`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct AdminKeyId(pub Uuid);

/// The permissions of a management key, its tenants, and its expiry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Authority {
    /// Its permissions.
    pub permissions: Permissions,
    /// The tenants that it may see.
    pub reach: Reach,
    /// When it ends; `None` means never.
    pub expires_at: Option<Timestamp>,
}

impl Authority {
    /// Returns all permissions for all tenants without expiry: the authority of operators who can write to the
    /// database directly.
    #[must_use]
    pub fn whole() -> Self {
        Self { permissions: Role::Owner.permissions(), reach: Reach::All, expires_at: None }
    }

    /// Returns what both have: the permissions and tenants of both, until the first one ends.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let expires_at = match (self.expires_at, other.expires_at) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let permissions = self.permissions.and(other.permissions);
        Self { permissions, reach: self.reach.and(&other.reach), expires_at }
    }
}

/// A row of `tenantgate_admin_key`, without its hash.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AdminKey {
    /// Its id.
    pub id: AdminKeyId,
    /// `llma_<prefix>`.
    pub prefix: String,
    /// Its name; unique.
    pub name: String,
    /// The authority that it was created with.
    pub given: Authority,
    /// Its creator: the management key that created it. `None` if an operator with access to the database did.
    pub created_by: Option<AdminKeyId>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last used.
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// Why a management key is not valid.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// It is revoked.
    Revoked,
    /// It has expired.
    Expired,
    /// Its creator, or a creator further up the chain, is revoked, has expired or does not exist any more.
    WithItsCreator,
}

impl Ended {
    /// Returns its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::WithItsCreator => "ended_with_maker",
        }
    }
}

/// Returns what a management key may do at `now`: what it was created with, limited to what all its creators have.
///
/// `chain` is the key, its creator, that key's creator and so on.
///
/// # Errors
///
/// Returns why the key is not valid at `now`.
pub fn authority<'k>(
    chain: impl IntoIterator<Item = &'k AdminKey>,
    now: Timestamp,
) -> Result<Authority, Ended> {
    let mut links = chain.into_iter();
    let Some(own) = links.next() else { return Err(Ended::WithItsCreator) };
    if own.revoked_at.is_some() {
        return Err(Ended::Revoked);
    }
    if has_expired(own.given.expires_at, now) {
        return Err(Ended::Expired);
    }
    let (mut authority, mut creator) = (own.given.clone(), own.created_by);
    for link in links {
        let over = link.revoked_at.is_some() || has_expired(link.given.expires_at, now);
        if over || creator != Some(link.id) {
            return Err(Ended::WithItsCreator);
        }
        authority = authority.and(&link.given);
        creator = link.created_by;
    }
    // The chain is incomplete: the last creator does not exist.
    if creator.is_some() { Err(Ended::WithItsCreator) } else { Ok(authority) }
}

/// Returns what all of these keys were created with.
#[must_use]
pub fn limit<'k>(creators: impl IntoIterator<Item = &'k AdminKey>) -> Authority {
    creators.into_iter().fold(Authority::whole(), |limit, creator| limit.and(&creator.given))
}

/// The rows that a management request concerns.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum About {
    /// Rows without a tenant, or a list that shows only rows of visible tenants.
    Shared,
    /// A tenant that does not exist yet.
    NewTenant,
    /// This tenant, or a row that belongs to it.
    Tenant(TenantId),
}

/// Whether a management request is allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Permitted {
    /// It is allowed.
    Yes,
    /// The key lacks this permission.
    Lacks(Permission),
    /// The key has the permission, but only keys that see all tenants may do this.
    OnlyForAllTenants(Permission),
    /// The row belongs to a tenant that the key does not see, so the response is the same as for a missing row.
    NotThere,
}

/// Decides whether a key with this authority may make a request that needs `permission` and concerns `about`.
///
/// | has the permission | sees | request concerns | verdict |
/// |---|---|---|---|
/// | no | | | [`Permitted::Lacks`] |
/// | yes | all tenants | | [`Permitted::Yes`] |
/// | yes | some tenants | a change of plans or routes, or a new tenant | [`Permitted::OnlyForAllTenants`] |
/// | yes | some tenants | a tenant that it does not see | [`Permitted::NotThere`] |
/// | yes | some tenants | something else | [`Permitted::Yes`] |
#[must_use]
pub fn may(authority: &Authority, permission: Permission, about: About) -> Permitted {
    if !authority.permissions.has(permission) {
        return Permitted::Lacks(permission);
    }
    if authority.reach == Reach::All {
        return Permitted::Yes;
    }
    match about {
        _ if permission.is_for_all_tenants() => Permitted::OnlyForAllTenants(permission),
        About::NewTenant => Permitted::OnlyForAllTenants(permission),
        About::Tenant(tenant) if !authority.reach.has(tenant) => Permitted::NotThere,
        About::Tenant(_) | About::Shared => Permitted::Yes,
    }
}

/// A part of a requested authority that its creator may not delegate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Excess {
    /// Permissions that the creator lacks.
    Permissions(Permissions),
    /// Tenants that the creator does not see.
    Tenants,
    /// An expiry later than the creator's, which is given.
    Expiry(Timestamp),
}

/// Returns the parts of `wish` that a key with the authority `creator` may not delegate; empty if it may delegate all.
///
/// These are permissions and tenants that it does not have, and an expiry later than its own.
#[must_use]
pub fn delegate(creator: &Authority, wish: &Authority) -> Vec<Excess> {
    let permissions = wish.permissions.without(creator.permissions);
    let outlives = |end: &Timestamp| wish.expires_at.is_none_or(|at| at > *end);
    [
        (!permissions.is_empty()).then_some(Excess::Permissions(permissions)),
        (!creator.reach.covers(&wish.reach)).then_some(Excess::Tenants),
        creator.expires_at.filter(outlives).map(Excess::Expiry),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Returns whether a key with the authority `ours` may see, change or revoke a key with the authority `theirs`: only
/// if the permissions and tenants of `theirs` are among its own. Expiry does not matter.
#[must_use]
pub fn may_touch(ours: &Authority, theirs: &Authority) -> bool {
    theirs.permissions.without(ours.permissions).is_empty() && ours.reach.covers(&theirs.reach)
}

//! Decides what a management key may do, and what it may delegate.
//!
//! A management key has permissions, and may see all tenants or some. [`may`] decides whether it may do something, and
//! [`delegate`] which authority it may give to another key. A key ends when its creator (the management key that created
//! it) ends, and never may do more than its creator currently may: [`authority`] follows the chain of creators.
//!
//! Depends on: `tenant`, `record` and the timestamps of `clock`. It does no I/O, and knows neither HTTP nor the
//! command line.

use std::collections::BTreeSet;
use std::fmt;

use uuid::Uuid;

use crate::clock::Timestamp;
use crate::invalid::InvalidValue;
use crate::record::has_expired;
use crate::tenant::TenantId;

/// Something that a management key may do.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Permission {
    /// See tenants.
    TenantsRead,
    /// Create, change, suspend, activate and delete tenants.
    TenantsWrite,
    /// See keys.
    KeysRead,
    /// Create, change, disable and enable keys, and rotate one with a grace period.
    KeysWrite,
    /// Revoke keys, and rotate one without a grace period.
    KeysRevoke,
    /// See and test rules of routes.
    RoutesRead,
    /// Change rules of routes.
    RoutesWrite,
    /// See plans.
    PlansRead,
    /// Change plans.
    PlansWrite,
    /// See usage.
    UsageRead,
    /// See the audit log.
    AuditRead,
    /// See management keys.
    AdminKeysRead,
    /// Create, change and revoke management keys.
    AdminKeysWrite,
}

impl Permission {
    /// Every permission, in the order in which they are listed.
    pub const ALL: [Self; 13] = [
        Self::TenantsRead,
        Self::TenantsWrite,
        Self::KeysRead,
        Self::KeysWrite,
        Self::KeysRevoke,
        Self::RoutesRead,
        Self::RoutesWrite,
        Self::PlansRead,
        Self::PlansWrite,
        Self::UsageRead,
        Self::AuditRead,
        Self::AdminKeysRead,
        Self::AdminKeysWrite,
    ];

    /// Returns its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TenantsRead => "tenants:read",
            Self::TenantsWrite => "tenants:write",
            Self::KeysRead => "keys:read",
            Self::KeysWrite => "keys:write",
            Self::KeysRevoke => "keys:revoke",
            Self::RoutesRead => "routes:read",
            Self::RoutesWrite => "routes:write",
            Self::PlansRead => "plans:read",
            Self::PlansWrite => "plans:write",
            Self::UsageRead => "usage:read",
            Self::AuditRead => "audit:read",
            Self::AdminKeysRead => "admin_keys:read",
            Self::AdminKeysWrite => "admin_keys:write",
        }
    }

    /// Parses a name.
    ///
    /// # Errors
    ///
    /// Returns the list of permissions if `text` is none of them.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        let found = Self::ALL.into_iter().find(|permission| permission.as_str() == text);
        found.ok_or_else(|| {
            format!("{text:?} is not a permission: choose from {}", Self::ALL.map(Self::as_str).join(", "))
                .into()
        })
    }

    /// Returns whether it requires a key that sees all tenants, because it changes what all tenants share.
    fn is_for_all_tenants(self) -> bool {
        matches!(self, Self::RoutesWrite | Self::PlansWrite)
    }

    fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// A set of permissions.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub struct Permissions(u16);

impl Permissions {
    /// Returns the set of these permissions.
    #[must_use]
    pub fn of(list: &[Permission]) -> Self {
        Self(list.iter().fold(0, |bits, permission| bits | permission.bit()))
    }

    /// Parses names that are separated by white space.
    ///
    /// # Errors
    ///
    /// Returns the first name that is not a permission.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        let list: Result<Vec<_>, _> = text.split_ascii_whitespace().map(Permission::parse).collect();
        Ok(Self::of(&list?))
    }

    /// Returns whether the set contains `permission`.
    #[must_use]
    pub fn has(self, permission: Permission) -> bool {
        self.0 & permission.bit() != 0
    }

    /// Returns whether the set is empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the permissions that are in both sets.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns the permissions that `other` lacks.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Returns the permissions, in the order of [`Permission::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL.into_iter().filter(move |permission| self.has(*permission))
    }
}

/// The names, separated by spaces.
impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Permission::as_str).collect();
        f.write_str(&names.join(" "))
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// A name for a set of permissions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// All permissions.
    Owner,
    /// All permissions except those for management keys.
    Operator,
    /// All `:read` permissions except the one for management keys.
    Viewer,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Owner, Self::Operator, Self::Viewer];

    /// Returns its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Operator => "operator",
            Self::Viewer => "viewer",
        }
    }

    /// Parses a name.
    ///
    /// # Errors
    ///
    /// Returns the list of roles if `text` is none of them.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is not a role: choose owner, operator or viewer").into())
    }

    /// Returns the permissions of the role.
    #[must_use]
    pub fn permissions(self) -> Permissions {
        let about_keys_of_ours = Permissions::of(&[Permission::AdminKeysRead, Permission::AdminKeysWrite]);
        let all = Permissions::of(&Permission::ALL);
        match self {
            Self::Owner => all,
            Self::Operator => all.without(about_keys_of_ours),
            Self::Viewer => {
                let reads = |permission: &Permission| permission.as_str().ends_with(":read");
                let reading: Vec<_> = Permission::ALL.into_iter().filter(reads).collect();
                Permissions::of(&reading).without(about_keys_of_ours)
            }
        }
    }
}

/// The tenants that a management key may see.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reach {
    /// All tenants, including those created later.
    All,
    /// Only these tenants.
    Some(BTreeSet<TenantId>),
}

impl Reach {
    /// Returns whether `tenant` is one of them.
    #[must_use]
    pub fn has(&self, tenant: TenantId) -> bool {
        match self {
            Self::All => true,
            Self::Some(tenants) => tenants.contains(&tenant),
        }
    }

    /// Returns whether all tenants of `other` are among them.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, _) => true,
            (Self::Some(_), Self::All) => false,
            (Self::Some(ours), Self::Some(theirs)) => theirs.is_subset(ours),
        }
    }

    /// Returns the tenants that are in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::All, reach) | (reach, Self::All) => reach.clone(),
            (Self::Some(ours), Self::Some(theirs)) => {
                Self::Some(ours.intersection(theirs).copied().collect())
            }
        }
    }
}

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

/// Returns the parts of `wish` that a key with the authority `creator` may not delegate: permissions and tenants that
/// it does not have, and an expiry later than its own. Empty if it may delegate all of it.
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

#[cfg(test)]
mod tests;

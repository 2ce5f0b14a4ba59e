//! What a management key may do, and what it may delegate.
//!
//! A management key has permissions, and may see some tenants or all. [`may`] is the one function that judges what it may
//! do, and [`delegate`] what it may give away. A key ends with its maker, and never has more than its maker has now:
//! [`authority`] follows the chain of makers.
//!
//! Depends on: tenants and the clock's type. It reads no database, and knows neither HTTP nor the command line.

use std::collections::BTreeSet;
use std::fmt;

use uuid::Uuid;

use crate::clock::Timestamp;
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
    /// Every permission, in the order in which texts have them.
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

    /// The name.
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

    /// Reads a name.
    ///
    /// # Errors
    ///
    /// There is no such permission; the text lists all.
    pub fn parse(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|permission| permission.as_str() == text);
        found.ok_or_else(|| {
            format!("{text:?} is not a permission: choose from {}", Self::ALL.map(Self::as_str).join(", "))
        })
    }

    /// Whether only a key of all tenants may do it: it changes what every tenant shares.
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
    /// Those of a list.
    #[must_use]
    pub fn of(list: &[Permission]) -> Self {
        Self(list.iter().fold(0, |bits, permission| bits | permission.bit()))
    }

    /// Reads names that are separated by blanks.
    ///
    /// # Errors
    ///
    /// One of them is not a permission.
    pub fn parse(text: &str) -> Result<Self, String> {
        let list: Result<Vec<_>, _> = text.split_ascii_whitespace().map(Permission::parse).collect();
        Ok(Self::of(&list?))
    }

    /// Whether this one is among them.
    #[must_use]
    pub fn has(self, permission: Permission) -> bool {
        self.0 & permission.bit() != 0
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those that both sets have.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those that `other` lacks.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Each of them, in the order of [`Permission::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL.into_iter().filter(move |permission| self.has(*permission))
    }
}

/// The names, separated by blanks.
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
    /// All but those about management keys.
    Operator,
    /// Everything that reads, but not management keys.
    Viewer,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Owner, Self::Operator, Self::Viewer];

    /// The name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Operator => "operator",
            Self::Viewer => "viewer",
        }
    }

    /// Reads a name.
    ///
    /// # Errors
    ///
    /// There is no such role.
    pub fn parse(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is not a role: choose owner, operator or viewer"))
    }

    /// What it is a name for.
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
    /// All of them, also those that come later.
    All,
    /// These.
    Some(BTreeSet<TenantId>),
}

impl Reach {
    /// Whether this tenant is among them.
    #[must_use]
    pub fn has(&self, tenant: TenantId) -> bool {
        match self {
            Self::All => true,
            Self::Some(tenants) => tenants.contains(&tenant),
        }
    }

    /// Whether all of `other` are among them.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, _) => true,
            (Self::Some(_), Self::All) => false,
            (Self::Some(ours), Self::Some(theirs)) => theirs.is_subset(ours),
        }
    }

    /// Those that both have.
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

/// The identity of a management key: `tenantgate_admin_key.id`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct AdminKeyId(pub Uuid);

/// What somebody may do, where, and until when.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Authority {
    /// What.
    pub permissions: Permissions,
    /// To which tenants.
    pub reach: Reach,
    /// Until when; `None`: for ever.
    pub expires_at: Option<Timestamp>,
}

impl Authority {
    /// All permissions for all tenants for ever: of whoever may write the database.
    #[must_use]
    pub fn whole() -> Self {
        Self { permissions: Role::Owner.permissions(), reach: Reach::All, expires_at: None }
    }

    fn and(&self, other: &Self) -> Self {
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
    /// Its identity.
    pub id: AdminKeyId,
    /// `llma_<prefix>`.
    pub prefix: String,
    /// What people call it; unique.
    pub name: String,
    /// What it was given.
    pub given: Authority,
    /// The management key that made it; `None`: whoever may write the database.
    pub created_by: Option<AdminKeyId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last used.
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// Why a management key opens nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// It is revoked.
    Revoked,
    /// It has expired.
    Expired,
    /// The key that made it, or one further up, is revoked, has expired or is gone.
    WithItsMaker,
}

impl Ended {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::WithItsMaker => "ended_with_maker",
        }
    }
}

/// What a management key may do at `now`: what it was given, as far as its makers still have it.
///
/// `chain` is the key, its maker, the maker of that one and so on.
///
/// # Errors
///
/// Why it has ended.
pub fn authority<'k>(
    chain: impl IntoIterator<Item = &'k AdminKey>,
    now: Timestamp,
) -> Result<Authority, Ended> {
    let mut links = chain.into_iter();
    let Some(own) = links.next() else { return Err(Ended::WithItsMaker) };
    if own.revoked_at.is_some() {
        return Err(Ended::Revoked);
    }
    if has_expired(own.given.expires_at, now) {
        return Err(Ended::Expired);
    }
    let (mut authority, mut maker) = (own.given.clone(), own.created_by);
    for link in links {
        let over = link.revoked_at.is_some() || has_expired(link.given.expires_at, now);
        if over || maker != Some(link.id) {
            return Err(Ended::WithItsMaker);
        }
        authority = authority.and(&link.given);
        maker = link.created_by;
    }
    // A maker that is not there cannot vouch for anything.
    if maker.is_some() { Err(Ended::WithItsMaker) } else { Ok(authority) }
}

/// What a request is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum About {
    /// Rows that have no tenant, or of which only those of visible tenants are shown.
    Shared,
    /// A tenant that does not exist yet.
    NewTenant,
    /// This tenant, or something of it.
    Tenant(TenantId),
}

/// What is said to a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It may.
    Yes,
    /// It lacks this permission.
    Lacks(Permission),
    /// It has the permission, but only a key of all tenants may do this.
    OnlyForAllTenants(Permission),
    /// To this key there is no such row.
    NotThere,
}

/// Whether somebody with this authority may do something.
///
/// | has the permission | sees | about | |
/// |---|---|---|---|
/// | no | | | [`Verdict::Lacks`] |
/// | yes | all tenants | | [`Verdict::Yes`] |
/// | yes | some tenants | a change of plans or routes, or a new tenant | [`Verdict::OnlyForAllTenants`] |
/// | yes | some tenants | one that it does not see | [`Verdict::NotThere`] |
/// | yes | some tenants | something else | [`Verdict::Yes`] |
#[must_use]
pub fn may(authority: &Authority, permission: Permission, about: About) -> Verdict {
    if !authority.permissions.has(permission) {
        return Verdict::Lacks(permission);
    }
    if authority.reach == Reach::All {
        return Verdict::Yes;
    }
    match about {
        _ if permission.is_for_all_tenants() => Verdict::OnlyForAllTenants(permission),
        About::NewTenant => Verdict::OnlyForAllTenants(permission),
        About::Tenant(tenant) if !authority.reach.has(tenant) => Verdict::NotThere,
        About::Tenant(_) | About::Shared => Verdict::Yes,
    }
}

/// What of a wish nobody with this authority may give away.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Excess {
    /// Permissions that it has not.
    Permissions(Permissions),
    /// Tenants that it does not see.
    Tenants,
    /// A life that is longer than its own.
    Expiry(Timestamp),
}

/// What is too much of `wish` for one who has `maker`: a key gives away nothing that it has not, and nothing that
/// outlives it. Empty if it may.
#[must_use]
pub fn delegate(maker: &Authority, wish: &Authority) -> Vec<Excess> {
    let permissions = wish.permissions.without(maker.permissions);
    let outlives = |end: &Timestamp| wish.expires_at.is_none_or(|at| at > *end);
    [
        (!permissions.is_empty()).then_some(Excess::Permissions(permissions)),
        (!maker.reach.covers(&wish.reach)).then_some(Excess::Tenants),
        maker.expires_at.filter(outlives).map(Excess::Expiry),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Whether one who has `ours` may see, change or revoke a key that has `theirs`: it has no more, whenever it ends.
#[must_use]
pub fn may_touch(ours: &Authority, theirs: &Authority) -> bool {
    theirs.permissions.without(ours.permissions).is_empty() && ours.reach.covers(&theirs.reach)
}

#[cfg(test)]
mod tests;

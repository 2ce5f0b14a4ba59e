//! Decides what a management key may do, and what it may delegate.
//!
//! A management key has permissions, and may see all tenants or some. [`may`] decides whether it may do something, and
//! [`delegate`] which authority it may give to another key. A key ends when its creator (the management key that
//! created it) ends, and never may do more than its creator currently may: [`authority()`] follows the chain of creators.
//!
//! Depends on: `tenant`, `record` and the timestamps of `clock`. It does no I/O, and knows neither HTTP nor the
//! command line.

mod authority;

use std::collections::BTreeSet;
use std::fmt;

pub use self::authority::{
    About, AdminKey, AdminKeyId, Authority, Ended, Excess, Permitted, authority, delegate, limit, may,
    may_touch,
};
use crate::invalid::InvalidValue;
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

#[cfg(test)]
mod tests;

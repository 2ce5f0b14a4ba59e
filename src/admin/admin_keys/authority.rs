//! The requested authority of a management key, and what its creator may not grant.

use super::super::{AdminError, Setting};
use crate::clock::Timestamp;
use crate::permission::{Authority, Excess, Permissions, Reach, delegate};

/// The requested authority of a key. Values that are not given stay unchanged.
pub(super) struct Wish {
    pub(super) permissions: Option<Permissions>,
    pub(super) reach: Option<Reach>,
    pub(super) expires_at: Setting<Timestamp>,
}

impl Wish {
    pub(super) fn applied(&self, given: &Authority) -> Authority {
        let mut expires_at = given.expires_at;
        self.expires_at.change(&mut expires_at, |at| *at);
        Authority {
            permissions: self.permissions.unwrap_or(given.permissions),
            reach: self.reach.clone().unwrap_or_else(|| given.reach.clone()),
            expires_at,
        }
    }

    /// Returns which of the changed values `creator` may not grant. Unchanged values were granted by another key.
    pub(super) fn excess(&self, creator: &Authority, given: &Authority) -> Vec<Excess> {
        let said = |excess: &Excess| match excess {
            Excess::Permissions(_) => self.permissions.is_some(),
            Excess::Tenants => self.reach.is_some(),
            Excess::Expiry(_) => self.expires_at != Setting::Keep,
        };
        delegate(creator, &self.applied(given)).into_iter().filter(said).collect()
    }
}

/// Rejects an authority that exceeds that of the creator.
pub(super) fn refuse_excess(excess: &[Excess]) -> Result<(), AdminError> {
    if excess.is_empty() { Ok(()) } else { Err(AdminError::Excess(shown(excess))) }
}

/// Describes what the creator may not grant.
pub(super) fn shown(excess: &[Excess]) -> String {
    excess.iter().map(too_much).collect::<Vec<_>>().join("; ")
}

fn too_much(excess: &Excess) -> String {
    match excess {
        Excess::Permissions(permissions) => {
            format!("your own key lacks {permissions}: a key can grant only permissions that it has")
        }
        Excess::Tenants => {
            "your own key cannot access all of these tenants: name only tenants that it can access".into()
        }
        Excess::Expiry(at) => format!("your own key expires at {at}: choose an expiry that is not later"),
    }
}

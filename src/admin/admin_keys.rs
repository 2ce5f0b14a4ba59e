//! Manages management keys, which give access to management over HTTP.
//!
//! A management key is created by another one, or by the command line, which has access to the database.
//! [`crate::permission`] decides what a key may grant, see and revoke. For its caller, a management key that has more
//! than the caller does not exist.

mod authority;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;

use self::authority::{Wish, refuse_excess, shown};
use super::key_changes::{Expiry, check_key_name};
use super::{Admin, AdminError, Setting, missing, refused, unfit};
use crate::audit::Action;
use crate::clock::Timestamp;
use crate::key::format::{self, holds_key};
use crate::key::{PlainKey, PresentedKey};
use crate::permission::{
    AdminKey, AdminKeyId, Authority, Ended, Excess, Permissions, Reach, Role, authority, delegate, limit,
    may_touch,
};
use crate::random;
use crate::store::{ChangeError, NewAdminKey, StoreError};
use crate::verify::management;

/// The author of changes of management keys.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Creator {
    /// The management key; `None` for users with access to the database.
    pub id: Option<AdminKeyId>,
    /// Its current permissions.
    pub authority: Authority,
}

impl Creator {
    /// Returns the creator of the command line, which may do everything because it has access to the database.
    #[must_use]
    pub fn database() -> Self {
        Self { id: None, authority: Authority::whole() }
    }
}

/// A management key to create. Fields that are `None` are taken from its creator.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AdminKeyWish {
    /// Its name; unique.
    pub name: String,
    /// Its permissions.
    pub permissions: Option<Permissions>,
    /// The tenants that it sees, by id, schema or name.
    pub tenants: Option<Vec<String>>,
    /// When it expires.
    pub expiry: Expiry,
}

/// Changes of a management key. Fields that are `None` stay unchanged.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AdminKeyUpdate {
    /// Its name; unique.
    pub name: Option<String>,
    /// Its permissions.
    pub permissions: Option<Permissions>,
    /// The tenants that it sees, by id or schema; all if unset.
    pub tenants: Setting<Vec<String>>,
    /// When it expires.
    pub expiry: Expiry,
}

/// A management key that was just created. It cannot be shown again.
#[derive(Debug)]
pub struct IssuedAdminKey {
    /// The row in the database.
    pub details: AdminKey,
    /// The key itself.
    pub key: PlainKey,
}

/// A management key with its status.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ListedAdminKey {
    /// The key.
    pub key: AdminKey,
    /// What all its creators have: the key may do no more than this.
    pub limit: Authority,
    /// Why it is no longer valid; `None` if it is.
    pub ended: Option<Ended>,
}

impl ListedAdminKey {
    /// Returns what the key may do while it is valid.
    #[must_use]
    pub fn authority(&self) -> Authority {
        self.key.given.and(&self.limit)
    }
}

/// The client that presented a valid management key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Caller {
    /// The row of the key.
    pub key: AdminKey,
    /// Its current permissions.
    pub creator: Creator,
}

impl Caller {
    /// Creates a caller for a trusted user of this machine, who needs no management key. Changes name it `uid N`.
    #[must_use]
    pub fn of_user(uid: u32, role: Role) -> Self {
        let authority = Authority { permissions: role.permissions(), ..Authority::whole() };
        let key = AdminKey {
            id: AdminKeyId(Uuid::nil()),
            prefix: String::new(),
            name: format!("uid {uid}"),
            given: authority.clone(),
            created_by: None,
            created_at: Timestamp::default(),
            last_used_at: None,
            revoked_at: None,
        };
        Self { key, creator: Creator { id: None, authority } }
    }
}

/// The precision of `last_used_at`, to avoid a write for each request.
const LAST_USED_WITHIN: Duration = Duration::from_mins(1);

impl Admin {
    /// Returns the caller that presents a key; `None` if the key is unknown, wrong or no longer valid.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn authenticate(&self, presented: PresentedKey<'_>) -> Result<Option<Caller>, AdminError> {
        let (found, now) = (self.store.admin_key_chain(presented.prefix()).await?, self.now());
        let Some((key, authority)) = proven(found, now, |hash| management::matches(presented, hash)) else {
            return Ok(None);
        };
        if key.last_used_at.is_none_or(|at| at < now.before(LAST_USED_WITHIN)) {
            self.store.touch_admin_key(key.id, now).await?;
        }
        let creator = Creator { id: Some(key.id), authority };
        Ok(Some(Caller { key, creator }))
    }

    /// Creates a management key.
    ///
    /// # Errors
    ///
    /// The name is taken, a tenant does not exist, the expiry is in the past, or the creator has less than the key
    /// would have.
    pub async fn create_admin_key(
        &self,
        creator: &Creator,
        wish: &AdminKeyWish,
    ) -> Result<IssuedAdminKey, AdminError> {
        check_key_name(Some(&wish.name))?;
        let now = self.now();
        let given = self.wished(creator, wish).await?;
        refuse_excess(&delegate(&creator.authority, &given))?;
        let no_randomness = |e| AdminError::Refused(format!("no randomness: {e}"));
        let key = format::issue_management_with(&mut self.randomness(), &wish.name).map_err(no_randomness)?;
        let new = NewAdminKey {
            hash: management::hash(key.as_presented()),
            key: AdminKey {
                id: AdminKeyId(random::new_id()),
                prefix: key.prefix().to_owned(),
                name: wish.name.clone(),
                given,
                created_by: creator.id,
                created_at: now,
                last_used_at: None,
                revoked_at: None,
            },
        };
        match self.store.insert_admin_key(&new).await {
            Err(StoreError::Conflict(_)) => refused(taken(&wish.name)),
            other => Ok(IssuedAdminKey { details: other?, key }),
        }
    }

    async fn wished(&self, creator: &Creator, wish: &AdminKeyWish) -> Result<Authority, AdminError> {
        let permissions = not_empty(wish.permissions.unwrap_or(creator.authority.permissions))?;
        let reach = match &wish.tenants {
            None => creator.authority.reach.clone(),
            Some(references) => self.reach(references).await?,
        };
        let mut expires_at = creator.authority.expires_at;
        wish.expiry.instant(self.now())?.change(&mut expires_at, |at| *at);
        Ok(Authority { permissions, reach, expires_at })
    }

    /// Returns the tenants of a list of references.
    async fn reach(&self, references: &[String]) -> Result<Reach, AdminError> {
        if references.is_empty() {
            return Err(AdminError::BadRequest("a list of tenants must name at least one".into()));
        }
        let mut tenants = BTreeSet::new();
        for reference in references {
            match self.tenant(reference).await {
                Ok(tenant) => tenants.insert(tenant.id),
                Err(AdminError::Missing(_)) if self.creator.authority.reach != Reach::All => {
                    // Does not reveal whether a tenant exists that the caller may not see.
                    return Err(AdminError::Excess(shown(&[Excess::Tenants])));
                }
                Err(AdminError::Missing(_)) => {
                    return Err(unfit("tenants", format!("there is no tenant {reference:?}")));
                }
                Err(other) => return Err(other),
            };
        }
        Ok(Reach::Some(tenants))
    }

    /// Returns the management keys that have no more than `creator`, oldest first.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn admin_keys(&self, creator: &Creator) -> Result<Vec<ListedAdminKey>, AdminError> {
        let (keys, now) = (self.store.admin_keys().await?, self.now());
        let by_id: BTreeMap<_, _> = keys.iter().map(|key| (key.id, key)).collect();
        let listed = keys.iter().map(|key| {
            let chain = chain(&by_id, key);
            let ended = authority(chain.iter().copied(), now).err();
            ListedAdminKey { key: key.clone(), limit: limit(chain.into_iter().skip(1)), ended }
        });
        Ok(listed.filter(|listed| may_touch(&creator.authority, &listed.authority())).collect())
    }

    /// Changes a management key.
    ///
    /// # Errors
    ///
    /// The key does not exist, has more than `creator`, or is revoked; the creator, or the creator of the key, has less
    /// than the key would have; or the name is taken.
    pub async fn update_admin_key(
        &self,
        creator: &Creator,
        reference: &str,
        update: &AdminKeyUpdate,
    ) -> Result<ListedAdminKey, AdminError> {
        check_key_name(update.name.as_deref())?;
        let found = self.admin_key(creator, reference).await?;
        let wish = Wish {
            permissions: update.permissions.map(not_empty).transpose()?,
            reach: match &update.tenants {
                Setting::Keep => None,
                Setting::Unset => Some(Reach::All),
                Setting::Set(references) => Some(self.reach(references).await?),
            },
            expires_at: update.expiry.instant(self.now())?,
        };
        let limit = &found.limit;
        refuse_excess(&wish.excess(&creator.authority, &found.authority()))?;
        if !wish.excess(limit, &found.key.given).is_empty() {
            return refused(format!(
                "the key that made {} has less than this, and limits it: change that one first",
                found.key.prefix
            ));
        }
        let change = |key: &mut AdminKey| {
            // Checked again in the transaction, because another session may have changed the key.
            self.judge_admin_key(key, limit)?;
            if key.revoked_at.is_some() {
                return Err(ChangeError::Refused(format!("management key {} is revoked", key.prefix)));
            }
            let excess = wish.excess(&creator.authority, &key.given.and(limit));
            if !excess.is_empty() {
                return Err(ChangeError::Refused(shown(&excess)));
            }
            key.given = wish.applied(&key.given);
            key.name = update.name.clone().unwrap_or_else(|| std::mem::take(&mut key.name));
            Ok(())
        };
        let id = found.key.id;
        let name = update.name.as_deref().unwrap_or(&found.key.name);
        let changed = self.store.change_admin_key(id, Action::AdminKeyUpdate, &change).await;
        match changed {
            // The key can conflict with another one only in its name.
            Err(StoreError::Conflict(_))
                if update.name.is_some() && self.is_admin_key_name(id, name).await? =>
            {
                refused(taken(name))
            }
            other => {
                other?.ok_or_else(|| no_admin_key(reference))?;
                self.admin_key(creator, &id.0.to_string()).await
            }
        }
    }

    /// Returns the status of a management key that was just changed, without its creators: if one of them is no longer
    /// valid, that is not considered.
    #[must_use]
    pub fn listed(&self, key: &AdminKey) -> ListedAdminKey {
        let own = AdminKey { created_by: None, ..key.clone() };
        let ended = authority([&own], self.now()).err();
        ListedAdminKey { key: key.clone(), limit: Authority::whole(), ended }
    }

    /// Returns whether another management key has this name.
    async fn is_admin_key_name(&self, id: AdminKeyId, name: &str) -> Result<bool, AdminError> {
        Ok(self.store.admin_keys().await?.iter().any(|key| key.id != id && key.name == name))
    }

    /// Returns the management key with this id, prefix or name.
    ///
    /// # Errors
    ///
    /// The key does not exist, or has more than `creator`.
    pub async fn admin_key(&self, creator: &Creator, reference: &str) -> Result<ListedAdminKey, AdminError> {
        if holds_key(reference) {
            return missing(
                "this is a whole key: give its prefix (up to the second _), its id or its name, and keep the secret to yourself",
            );
        }
        let id = Uuid::parse_str(reference).ok().map(AdminKeyId);
        let named = |key: &AdminKey| Some(key.id) == id || key.prefix == reference || key.name == reference;
        let found = self.admin_keys(creator).await?.into_iter().find(|listed| named(&listed.key));
        found.ok_or_else(|| no_admin_key(reference))
    }

    /// Revokes a management key and all that it created. Idempotent.
    ///
    /// # Errors
    ///
    /// The key does not exist, or has more than `creator`.
    pub async fn revoke_admin_key(
        &self,
        creator: &Creator,
        reference: &str,
    ) -> Result<ListedAdminKey, AdminError> {
        let (found, now) = (self.admin_key(creator, reference).await?, self.now());
        let change = |key: &mut AdminKey| {
            self.judge_admin_key(key, &found.limit)?;
            key.revoked_at = key.revoked_at.or(Some(now));
            Ok(())
        };
        let key = self.store.change_admin_key(found.key.id, Action::AdminKeyRevoke, &change).await?;
        let key = key.ok_or_else(|| no_admin_key(reference))?;
        Ok(ListedAdminKey { key, limit: found.limit, ended: Some(Ended::Revoked) })
    }
}

/// A hash that no key has.
const NO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Returns the presented key and its permissions; `None` if it is wrong or has ended. One hash is computed and compared
/// in every case, so that the time of the answer reveals neither whether the prefix exists nor whether its key has
/// ended.
fn proven(
    found: Option<(String, Vec<AdminKey>)>,
    now: Timestamp,
    matches: impl FnOnce(&str) -> bool,
) -> Option<(AdminKey, Authority)> {
    let (hash, chain) = found.unwrap_or_else(|| (NO_HASH.into(), Vec::new()));
    let right = matches(&hash);
    let live = authority(&chain, now).ok();
    let key = chain.into_iter().next();
    if right { key.zip(live) } else { None }
}

fn not_empty(permissions: Permissions) -> Result<Permissions, AdminError> {
    if permissions.is_empty() {
        return Err(AdminError::BadRequest("a management key needs at least one permission".into()));
    }
    Ok(permissions)
}

fn no_admin_key(reference: &str) -> AdminError {
    AdminError::Missing(format!(
        "there is no management key {reference:?}: `tenantgate admin-key list` shows all"
    ))
}

fn taken(name: &str) -> String {
    format!("there is, or was, a management key {name:?}: choose another name")
}

/// Returns a key, its creator, the creator of its creator and so on. A circle, which only SQL can create, ends the
/// chain once it is as long as there are keys.
fn chain<'k>(by_id: &BTreeMap<AdminKeyId, &'k AdminKey>, key: &'k AdminKey) -> Vec<&'k AdminKey> {
    let mut chain = vec![key];
    let mut creator = key.created_by;
    while let Some(next) = creator.and_then(|id| by_id.get(&id)) {
        if chain.len() > by_id.len() {
            break;
        }
        chain.push(next);
        creator = next.created_by;
    }
    chain
}

#[cfg(test)]
mod tests;

//! Manages management keys: who may manage tenants and keys over HTTP.
//!
//! A key is made by another one, or by whoever may write the database. What it may give away, see and take back is judged
//! by [`crate::permission`]. A key that its maker may not see is to him as if it were not there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::SysRng;
use uuid::Uuid;

use super::key_changes::Expiry;
use super::keys::check_key_name;
use super::{Admin, AdminError, refused};
use crate::clock::Timestamp;
use crate::key::format::{self, holds_key};
use crate::key::{PlainKey, PresentedKey};
use crate::permission::{
    AdminKey, AdminKeyId, Authority, Ended, Excess, Permissions, Reach, Role, authority, delegate, may_touch,
};
use crate::store::{NewAdminKey, StoreError};
use crate::verify::management;

/// Who makes, sees and revokes management keys.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Maker {
    /// The management key; `None`: whoever may write the database.
    pub id: Option<AdminKeyId>,
    /// What it may do now.
    pub authority: Authority,
}

impl Maker {
    /// Whoever may write the database.
    #[must_use]
    pub fn database() -> Self {
        Self { id: None, authority: Authority::whole() }
    }
}

/// A management key as somebody wants it. What is not said is as its maker has it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AdminKeyWish {
    /// Its name; unique.
    pub name: String,
    /// What it may do.
    pub permissions: Option<Permissions>,
    /// The tenants that it sees, by id, schema or name.
    pub tenants: Option<Vec<String>>,
    /// When it expires.
    pub expiry: Expiry,
}

/// A management key that was just made: the only time it can be seen.
#[derive(Debug)]
pub struct IssuedAdminKey {
    /// What the database knows of it.
    pub details: AdminKey,
    /// The key itself.
    pub key: PlainKey,
}

/// A management key of a list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ListedAdminKey {
    /// The key.
    pub key: AdminKey,
    /// Why it opens nothing; `None`: it is live.
    pub ended: Option<Ended>,
}

/// Who presented a live management key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Caller {
    /// The key as it was made.
    pub key: AdminKey,
    /// What it may do now.
    pub maker: Maker,
}

impl Caller {
    /// A user of this machine that needs no key: named in changes by the number, and bound to no management key.
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
        Self { key, maker: Maker { id: None, authority } }
    }
}

/// How old `last_used_at` may be: it is for people, and a write for each request would cost more than it says.
const LAST_USED_WITHIN: Duration = Duration::from_mins(1);

impl Admin {
    /// Who presents a key; `None` if it is unknown, wrong or over, of which nothing more is said.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
    pub async fn authenticate(&self, presented: PresentedKey<'_>) -> Result<Option<Caller>, AdminError> {
        let Some((hash, chain)) = self.store.admin_key_chain(presented.prefix()).await? else {
            return Ok(None);
        };
        let now = self.now();
        let (true, Some(key), Ok(authority)) =
            (management::matches(presented, &hash), chain.first(), authority(&chain, now))
        else {
            return Ok(None);
        };
        if key.last_used_at.is_none_or(|at| at < now.before(LAST_USED_WITHIN)) {
            self.store.touch_admin_key(key.id, now).await?;
        }
        Ok(Some(Caller { key: key.clone(), maker: Maker { id: Some(key.id), authority } }))
    }

    /// Makes a management key.
    ///
    /// # Errors
    ///
    /// The name is taken; there is no such tenant; the expiry is in the past; the maker has less than the key would have.
    pub async fn create_admin_key(
        &self,
        maker: &Maker,
        wish: &AdminKeyWish,
    ) -> Result<IssuedAdminKey, AdminError> {
        check_key_name(Some(&wish.name))?;
        let now = self.now();
        let given = self.wished(maker, wish).await?;
        let excess: Vec<_> = delegate(&maker.authority, &given).into_iter().map(too_much).collect();
        if !excess.is_empty() {
            return refused(excess.join("; "));
        }
        let no_randomness = |e| AdminError::Refused(format!("no randomness: {e}"));
        let key = format::issue_management_with(&mut SysRng, &wish.name).map_err(no_randomness)?;
        let new = NewAdminKey {
            hash: management::hash(key.as_presented()),
            key: AdminKey {
                id: AdminKeyId(Uuid::new_v4()),
                prefix: key.prefix().to_owned(),
                name: wish.name.clone(),
                given,
                created_by: maker.id,
                created_at: now,
                last_used_at: None,
                revoked_at: None,
            },
        };
        match self.store.insert_admin_key(&new).await {
            Err(StoreError::Conflict(_)) => {
                refused(format!("there is, or was, a management key {:?}: choose another name", wish.name))
            }
            other => Ok(IssuedAdminKey { details: other?, key }),
        }
    }

    async fn wished(&self, maker: &Maker, wish: &AdminKeyWish) -> Result<Authority, AdminError> {
        let permissions = wish.permissions.unwrap_or(maker.authority.permissions);
        if permissions.is_empty() {
            return Err(AdminError::BadRequest("a management key needs at least one permission".into()));
        }
        let reach = match &wish.tenants {
            None => maker.authority.reach.clone(),
            Some(references) if references.is_empty() => {
                return Err(AdminError::BadRequest("a list of tenants names at least one".into()));
            }
            Some(references) => {
                let mut tenants = BTreeSet::new();
                for reference in references {
                    tenants.insert(self.tenant(reference).await?.id);
                }
                Reach::Some(tenants)
            }
        };
        let mut expires_at = maker.authority.expires_at;
        wish.expiry.instant(self.now())?.change(&mut expires_at, |at| *at);
        Ok(Authority { permissions, reach, expires_at })
    }

    /// The management keys that have no more than `maker`, oldest first.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
    pub async fn admin_keys(&self, maker: &Maker) -> Result<Vec<ListedAdminKey>, AdminError> {
        let (keys, now) = (self.store.admin_keys().await?, self.now());
        let by_id: BTreeMap<_, _> = keys.iter().map(|key| (key.id, key)).collect();
        let listed = keys.iter().filter(|key| may_touch(&maker.authority, &key.given)).map(|key| {
            let ended = authority(chain(&by_id, key), now).err();
            ListedAdminKey { key: key.clone(), ended }
        });
        Ok(listed.collect())
    }

    /// Revokes a management key; those that it made end with it. Doing so again changes nothing.
    ///
    /// # Errors
    ///
    /// There is no such key, or it has more than `maker`.
    pub async fn revoke_admin_key(
        &self,
        maker: &Maker,
        reference: &str,
    ) -> Result<ListedAdminKey, AdminError> {
        if holds_key(reference) {
            return refused(
                "that is a whole key: name it by its prefix (up to the second _), its id or its name, and keep the rest to yourself",
            );
        }
        let id = Uuid::parse_str(reference).ok().map(AdminKeyId);
        let named = |key: &AdminKey| Some(key.id) == id || key.prefix == reference || key.name == reference;
        let missing = || {
            let text =
                format!("there is no management key {reference:?}: `tenantgate admin-key list` shows all");
            AdminError::Refused(text)
        };
        let found = self.admin_keys(maker).await?.into_iter().find(|listed| named(&listed.key));
        let id = found.ok_or_else(missing)?.key.id;
        let key = self.store.revoke_admin_key(id, self.now()).await?.ok_or_else(missing)?;
        Ok(ListedAdminKey { key, ended: Some(Ended::Revoked) })
    }
}

/// A key, its maker, the maker of that one and so on; in a circle, which only SQL can make, until it closes.
fn chain<'k>(by_id: &BTreeMap<AdminKeyId, &'k AdminKey>, key: &'k AdminKey) -> Vec<&'k AdminKey> {
    let mut chain = vec![key];
    let mut maker = key.created_by;
    while let Some(next) = maker.and_then(|id| by_id.get(&id)) {
        if chain.len() > by_id.len() {
            break;
        }
        chain.push(next);
        maker = next.created_by;
    }
    chain
}

fn too_much(excess: Excess) -> String {
    match excess {
        Excess::Permissions(permissions) => {
            format!("your own key lacks {permissions}: a key gives away nothing that it has not")
        }
        Excess::Tenants => "your own key does not see all of these tenants: name some that it sees".into(),
        Excess::Expiry(at) => format!("your own key expires at {at}: choose an expiry that is not later"),
    }
}

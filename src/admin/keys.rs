//! How are keys managed?
//!
//! A key is made, shown once, replaced and taken back. What the database gets of it
//! is a hash.

use std::time::Duration;

use rand::rngs::SysRng;
use uuid::Uuid;

use super::{Admin, AdminError, refused};
use crate::audit::Action;
use crate::clock::Timestamp;
use crate::key::format::{self, holds_key};
use crate::key::{KeyId, PlainKey};
use crate::record::{ExpiresAt, KeyDetails, KeyRecord, KeyState, Memo, SecretHash, has_expired};
use crate::store::{NewKey, StoreError};
use crate::tenant::{Tenant, TenantId, TenantStatus, is_tenant_name};
use crate::verify::bcrypt;

/// A key that was just made: the only time it can be seen.
#[derive(Debug)]
pub struct Issued {
    /// What the database knows of it.
    pub details: KeyDetails,
    /// The key itself.
    pub key: PlainKey,
}

/// When a new key expires.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Expiry {
    /// At this instant.
    At(Timestamp),
    /// This long after it was made.
    In(Duration),
    /// Not said: never, or as its predecessor.
    #[default]
    Unsaid,
}

impl Expiry {
    fn instant(self, now: Timestamp) -> Result<Option<Timestamp>, AdminError> {
        let at = match self {
            Self::At(at) => at,
            Self::In(span) => now.after(span),
            Self::Unsaid => return Ok(None),
        };
        if has_expired(Some(at), now) {
            refused(format!("{at} is in the past: choose a later expiry"))
        } else {
            Ok(Some(at))
        }
    }
}

impl Admin {
    /// Makes a key for a tenant.
    ///
    /// # Errors
    ///
    /// As [`Admin::tenant`]; the tenant is deleted; the expiry is in the past.
    pub async fn create_key(
        &self,
        tenant: &str,
        name: Option<String>,
        expiry: Expiry,
    ) -> Result<Issued, AdminError> {
        check_key_name(name.as_deref())?;
        let tenant = self.living_tenant(tenant).await?;
        let now = self.now();
        let (new, key) = self.new_key(&tenant, name, now, expiry.instant(now)?).await?;
        Ok(Issued { details: self.store.insert_key(&new, Action::KeyCreate).await?, key })
    }

    async fn new_key(
        &self,
        tenant: &Tenant,
        name: Option<String>,
        created_at: Timestamp,
        expires_at: Option<Timestamp>,
    ) -> Result<(NewKey, PlainKey), AdminError> {
        let no_randomness = |e| AdminError::Refused(format!("no randomness: {e}"));
        let key = format::issue_with(&mut SysRng, &tenant.name).map_err(no_randomness)?;
        let (id, prefix) = (KeyId(Uuid::new_v4()), key.prefix().to_owned());
        let hash = hashed(key.as_presented().to_plain()).await?;
        let memo = self.memo(id, tenant.id, &hash, &key);
        Ok((NewKey { id, prefix, hash, tenant_id: tenant.id, name, created_at, expires_at, memo }, key))
    }

    /// The memo that a key is issued with: we made the hash from it, so bcrypt need not be asked.
    pub(super) fn memo(&self, id: KeyId, tenant_id: TenantId, hash: &str, key: &PlainKey) -> Option<Memo> {
        let (prefix, hash) = (key.prefix().into(), SecretHash::parse(hash));
        let record = KeyRecord {
            id,
            tenant_id,
            prefix,
            hash,
            expires_at: ExpiresAt::NEVER,
            revoked: false,
            not_before: Timestamp::MIN,
            disabled: false,
        };
        self.peppers.memo(&record, key.as_presented())
    }

    async fn living_tenant(&self, reference: &str) -> Result<Tenant, AdminError> {
        let tenant = self.tenant(reference).await?;
        if tenant.status == TenantStatus::Deleted {
            return refused(format!("tenant {} is deleted and gets no new keys", tenant.id.0));
        }
        Ok(tenant)
    }

    /// All keys, or those of one tenant, oldest first.
    ///
    /// # Errors
    ///
    /// As [`Admin::tenant`].
    pub async fn keys(&self, tenant: Option<&str>) -> Result<Vec<KeyDetails>, AdminError> {
        let id = match tenant {
            Some(reference) => Some(self.tenant(reference).await?.id),
            None => None,
        };
        Ok(self.store.keys(id).await?)
    }

    /// The key whose id or prefix is `reference`.
    ///
    /// # Errors
    ///
    /// There is none.
    pub async fn key(&self, reference: &str) -> Result<KeyDetails, AdminError> {
        match self.store.find_key(reference).await? {
            Some(key) => Ok(key),
            None if format::parse(reference.as_bytes()).is_ok() => refused(
                "that is a whole key: name it by its prefix (up to the second _) or its id, and keep the rest to yourself",
            ),
            None => refused(format!(
                "there is no key {reference:?} in {}: `tenantgate key list` shows all",
                self.store.address()
            )),
        }
    }

    /// Takes a key back. Doing so again changes nothing.
    ///
    /// # Errors
    ///
    /// As [`Admin::key`].
    pub async fn revoke_key(&self, reference: &str, reason: Option<&str>) -> Result<KeyDetails, AdminError> {
        if reason.is_some_and(holds_key) {
            // What is in the audit log cannot be taken out again.
            return Err(AdminError::BadRequest("a reason must not hold a key: name it by its prefix".into()));
        }
        let key = self.key(reference).await?;
        let revoked = self.store.revoke_key(key.id, self.now(), reason).await?;
        revoked.ok_or_else(|| AdminError::Refused(format!("key {} is gone", key.id.0)))
    }

    /// Makes a successor to a key, which expires after `grace` unless it would sooner.
    ///
    /// # Errors
    ///
    /// As [`Admin::key`]; the key is revoked or expired; its tenant is deleted.
    pub async fn rotate_key(
        &self,
        reference: &str,
        grace: Duration,
        expiry: Expiry,
    ) -> Result<(KeyDetails, Issued), AdminError> {
        let old = self.key(reference).await?;
        let now = self.now();
        match old.state(now) {
            KeyState::Active => {}
            over => {
                let why = over.as_str();
                return refused(format!(
                    "key {} is {why}: make a new one with `tenantgate key create`",
                    old.prefix
                ));
            }
        }
        let tenant = self.living_tenant(&old.tenant_id.0.to_string()).await?;
        let as_before = self.lifetime(&old).await?.map(|span| now.after(span));
        let expires_at = expiry.instant(now)?.or(as_before);
        let (new, key) = self.new_key(&tenant, old.name.clone(), now, expires_at).await?;
        match self.store.replace_key(old.id, now.after(grace), &new).await {
            Err(StoreError::Conflict(successor)) if successor != new.prefix => refused(format!(
                "key {} has a live successor, {successor}: rotate or revoke that one",
                old.prefix
            )),
            Err(error) => Err(error.into()),
            Ok(Some((old, details))) => Ok((old, Issued { details, key })),
            Ok(None) => refused(format!("key {} was revoked in the meantime", old.prefix)),
        }
    }

    /// How long a key was issued for; nothing: for ever. A rotation shortens the life of the key it replaces,
    /// and its successor got the length it had before.
    async fn lifetime(&self, key: &KeyDetails) -> Result<Option<Duration>, AdminError> {
        let mut issued = key.clone();
        while let Some(id) = issued.replaced_by {
            match self.store.find_key(&id.0.to_string()).await? {
                Some(successor) => issued = successor,
                None => break,
            }
        }
        Ok(issued.expires_at.map(|at| at.since(issued.created_at)))
    }
}

/// bcrypt takes a quarter of a second, which no worker of the runtime has to spare.
pub(super) async fn hashed(key: PlainKey) -> Result<String, AdminError> {
    tokio::task::spawn_blocking(move || bcrypt::hash(&key, bcrypt::DEFAULT_COST))
        .await
        .map_err(|e| AdminError::Refused(format!("hashing was interrupted: {e}")))?
        .map_err(|e| AdminError::Refused(e.to_string()))
}

pub(super) fn check_key_name(name: Option<&str>) -> Result<(), AdminError> {
    match name {
        Some(name) if !is_tenant_name(name) => Err(AdminError::BadRequest(
            "a key's name has 1 to 255 characters and no control characters".into(),
        )),
        Some(name) if holds_key(name) => {
            Err(AdminError::BadRequest("a key's name must not hold a key".into()))
        }
        _ => Ok(()),
    }
}

//! Creates and rotates keys.
//!
//! A key is shown once; the database gets only its hash.

use std::time::Duration;

use super::key_changes::{Expiry, KeyUpdate, check_key_name, check_span};
use super::tenants::may_name;
use super::{Admin, AdminError, missing, refused, unfit, version};
use crate::audit::Action;
use crate::clock::Timestamp;
use crate::key::format;
use crate::key::{KeyId, PlainKey};
use crate::random;
use crate::record::{KeyDetails, KeyRecord, KeyState, KeyTerms, Memo, SecretHash};
use crate::store::{NewKey, Rotated, Rotation, StoreError};
use crate::tenant::{Tenant, TenantId, TenantStatus};
use crate::verify::bcrypt;

/// A key that was just created. It cannot be shown again.
#[derive(Debug)]
pub struct Issued {
    /// The row in the database.
    pub details: KeyDetails,
    /// The key itself.
    pub key: PlainKey,
}

impl Admin {
    /// Creates a key for a tenant.
    ///
    /// # Errors
    ///
    /// As [`Admin::tenant`]; the tenant is deleted; the expiry is in the past or before the key becomes valid; or the
    /// plan does not exist.
    pub async fn create_key(&self, tenant: &str, asked: &KeyUpdate) -> Result<Issued, AdminError> {
        let (tenant, life) = self.wished_key(tenant, asked).await?;
        let (new, key) = self.new_key(&tenant, life).await?;
        Ok(Issued { details: self.store.insert_key(&new, Action::KeyCreate).await?, key })
    }

    /// Creates a key whose secret the client chose, of which only the hash is known here.
    ///
    /// # Errors
    ///
    /// As [`Admin::create_key`]; or the prefix or the hash is invalid or taken.
    pub async fn adopt_key(
        &self,
        tenant: &str,
        asked: &KeyUpdate,
        prefix: &str,
        hash: &str,
    ) -> Result<KeyDetails, AdminError> {
        if !format::is_stored_prefix(prefix) {
            let why = "key_prefix is not valid: expected llmk_ and 1 to 48 of A-Z, a-z, 0-9 and -";
            return Err(AdminError::BadRequest(why.into()));
        }
        if SecretHash::parse(hash).is_none() {
            let why =
                "hashed_key is not valid: expected a bcrypt hash ($2a$, $2b$, $2y$) of a cost from 4 to 14";
            return Err(AdminError::BadRequest(why.into()));
        }
        let (tenant, life) = self.wished_key(tenant, asked).await?;
        let new = life.key(&tenant, prefix.to_owned(), hash.to_owned());
        match self.store.insert_key(&new, Action::KeyCreate).await {
            Err(StoreError::Conflict(_)) => {
                refused(format!("there is, or was, a key with the prefix {prefix} or with this hash"))
            }
            other => Ok(other?),
        }
    }

    /// Validates a request for a key. Returns its tenant and the other fields of the key.
    async fn wished_key(&self, tenant: &str, asked: &KeyUpdate) -> Result<(Tenant, Life), AdminError> {
        let name = asked.name.value().cloned();
        check_key_name(name.as_deref())?;
        let tenant = self.living_tenant(tenant).await?;
        let created_at = self.now();
        let expires_at = asked.expiry.instant(created_at)?.value().copied();
        let mut terms = KeyTerms::default();
        asked.change_terms(&mut terms).map_err(|why| AdminError::BadRequest(why.into()))?;
        check_span(&terms, expires_at).map_err(|why| unfit("not_before", why))?;
        self.check_plan(terms.plan.as_deref()).await?;
        Ok((tenant, Life { name, created_at, expires_at, terms }))
    }

    async fn new_key(&self, tenant: &Tenant, life: Life) -> Result<(NewKey, PlainKey), AdminError> {
        let no_randomness = |e| AdminError::Refused(format!("no randomness: {e}"));
        let key = format::issue_with(&mut self.randomness(), &tenant.name).map_err(no_randomness)?;
        let hash = hashed(key.as_presented().to_plain()).await?;
        let new = life.key(tenant, key.prefix().to_owned(), hash);
        let memo = self.memo(new.id, tenant.id, &new.hash, &key);
        Ok((NewKey { memo, ..new }, key))
    }

    /// Returns the memo of a new key. The hash was just made from the key, so bcrypt need not verify it.
    pub(super) fn memo(&self, id: KeyId, tenant_id: TenantId, hash: &str, key: &PlainKey) -> Option<Memo> {
        let (prefix, hash) = (key.prefix().into(), SecretHash::parse(hash));
        let record = KeyRecord::new(id, tenant_id, prefix, hash);
        self.peppers.memo(&record, key.as_presented())
    }

    async fn living_tenant(&self, reference: &str) -> Result<Tenant, AdminError> {
        let tenant = self.tenant(reference).await?;
        if tenant.status == TenantStatus::Deleted {
            return refused(format!("tenant {} is deleted and gets no new keys", tenant.id.0));
        }
        Ok(tenant)
    }

    /// Returns the key whose id or prefix is `reference`.
    ///
    /// # Errors
    ///
    /// There is no such key, or the caller does not see it.
    pub async fn key(&self, reference: &str) -> Result<KeyDetails, AdminError> {
        let found = if may_name(reference) { self.store.find_key(reference).await? } else { None };
        match found.filter(|key| self.sees(key.tenant_id)) {
            Some(key) => Ok(key),
            None if format::parse(reference.as_bytes()).is_ok() => missing(
                "this is a whole key: give its prefix (up to the second _) or its id, and keep the secret to yourself",
            ),
            None => missing(format!(
                "there is no key {reference:?} in {}: `tenantgate key list` shows all",
                self.store.address()
            )),
        }
    }

    /// Creates a successor of a key. The old key then expires after `grace`, unless it expires sooner.
    ///
    /// # Errors
    ///
    /// As [`Admin::key`]; the key is not active, has a live successor, or is changed meanwhile; or its tenant is
    /// deleted.
    pub async fn rotate_key(
        &self,
        reference: &str,
        grace: Duration,
        expiry: Expiry,
    ) -> Result<(KeyDetails, Issued), AdminError> {
        let old = self.key(reference).await?;
        let now = self.now();
        self.judge_key(&old).map_err(StoreError::from)?;
        match old.state(now) {
            KeyState::Active => {}
            KeyState::Disabled => {
                return refused(format!("key {} is disabled: enable it, or create a new one", old.prefix));
            }
            KeyState::NotYetValid => {
                return refused(format!(
                    "key {} is not yet valid: change the start with `tenantgate key update --not-before`, or make a new one \
                     with `tenantgate key create`",
                    old.prefix
                ));
            }
            over @ (KeyState::Expired | KeyState::Revoked) => {
                let why = over.as_str();
                return refused(format!("key {} is {why}: create a new one", old.prefix));
            }
        }
        let tenant = self.living_tenant(&old.tenant_id.0.to_string()).await?;
        let as_before = self.lifetime(&old).await?.map(|span| now.after(span));
        let mut expires_at = as_before;
        expiry.instant(now)?.change(&mut expires_at, |at| *at);
        check_span(&old.terms, expires_at).map_err(|why| unfit("expires_at", why))?;
        let life = Life { name: old.name.clone(), created_at: now, expires_at, terms: old.terms.clone() };
        let (new, key) = self.new_key(&tenant, life).await?;
        // The successor was made from the key as it was read, and hashing takes a quarter of a second.
        let read = version::of_key(&old);
        let rotation = Rotation {
            expires_at: now.after(grace),
            successor: &new,
            check: &|key| self.judge_key(key),
            unchanged: &|key| version::of_key(key) == read,
        };
        match self.store.rotate_key(old.id, &rotation).await? {
            Rotated::Done { old, new } => Ok((*old, Issued { details: *new, key })),
            Rotated::Revoked => refused(format!("key {} was revoked in the meantime", old.prefix)),
            Rotated::Succeeded(successor) => refused(format!(
                "key {} has a live successor, {successor}: rotate or revoke that one",
                old.prefix
            )),
            Rotated::Changed => {
                refused(format!("key {} was changed in the meantime: rotate it again", old.prefix))
            }
        }
    }

    /// Returns the lifetime with which a key was issued; `None` if it is unlimited. A rotation shortens the life of the
    /// key that it replaces, but its successor keeps the original lifetime.
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

/// The fields of a new key, apart from its secret.
struct Life {
    name: Option<String>,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
    terms: KeyTerms,
}

impl Life {
    /// Builds the row of the key, without a memo.
    fn key(self, tenant: &Tenant, prefix: String, hash: String) -> NewKey {
        let Self { name, created_at, expires_at, terms } = self;
        let (id, tenant_id) = (KeyId(random::new_id()), tenant.id);
        NewKey { id, prefix, hash, tenant_id, name, created_at, expires_at, memo: None, terms }
    }
}

/// Hashes a key on a blocking thread, because bcrypt takes a quarter of a second.
pub(super) async fn hashed(key: PlainKey) -> Result<String, AdminError> {
    tokio::task::spawn_blocking(move || bcrypt::hash(&key, bcrypt::DEFAULT_COST))
        .await
        .map_err(|e| AdminError::Refused(format!("hashing was interrupted: {e}")))?
        .map_err(|e| AdminError::Refused(e.to_string()))
}

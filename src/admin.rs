//! How are tenants and keys managed?
//!
//! The use cases behind the command line. Each is one sentence of a person who
//! runs the place: create this tenant, take back that key. A new key leaves here
//! once, in [`Issued`]; what the database gets is its hash. Nothing here knows
//! SQL, or how a result is printed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::clock::{Clock, Timestamp};
use crate::key::format::{self, SCHEME};
use crate::key::{KeyId, PlainKey};
use crate::record::{ExpiresAt, KeyDetails, KeyRecord, KeyState, Memo, SecretHash, has_expired};
use crate::store::{Laggard, NewKey, NewTenant, Store, StoreError};
use crate::tenant::{Tenant, TenantId, TenantStatus, default_schema_name, is_schema_name, is_tenant_name};
use crate::verify::bcrypt;
use crate::verify::memo::Peppers;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// What was asked for makes no sense, whatever is in the database.
    #[error("{0}")]
    BadRequest(String),
    /// It makes sense and is not allowed, or what it is about does not exist.
    #[error("{0}")]
    Refused(String),
    /// The database did not do its part.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn refused<T>(why: impl Into<String>) -> Result<T, AdminError> {
    Err(AdminError::Refused(why.into()))
}

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

/// The demonstration tenant.
pub const DEMO_TENANT: TenantId = TenantId(Uuid::from_u128(0x550e_8400_e29b_41d4_a716_4466_5544_0000));
/// The demonstration key.
pub const DEMO_KEY: KeyId = KeyId(Uuid::from_u128(0x660e_8400_e29b_41d4_a716_4466_5544_0001));
/// Known to everybody who can read this: never in a migration, and never beside other tenants unasked.
const DEMO_KEY_TEXT: &str = "llmk_demo_secret123";

/// Manages a store.
pub struct Admin {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    peppers: Peppers,
}

impl Admin {
    /// The management of this store. New keys get a memo by the first of the peppers.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, peppers: Peppers) -> Self {
        Self { store, clock, peppers }
    }

    /// The wall clock that this management goes by.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Makes sure the tables are as new as we need them; an embedded database is brought up to date.
    ///
    /// # Errors
    ///
    /// [`StoreError::OldSchema`], or the database cannot be asked.
    pub async fn prepare(&self) -> Result<(), StoreError> {
        let version = self.store.schema_version().await?;
        if version.check().is_err() && self.store.embedded() {
            self.store.migrate().await?;
            return Ok(());
        }
        version.check()
    }

    /// Brings the tables up to date; returns what was applied and where they are now.
    ///
    /// # Errors
    ///
    /// The database cannot be asked, or refuses a migration.
    pub async fn migrate(&self) -> Result<(Vec<i64>, i64), StoreError> {
        let applied = self.store.migrate().await?;
        Ok((applied, self.store.schema_version().await?.current))
    }

    /// Makes the roles of least privilege; returns their names.
    ///
    /// # Errors
    ///
    /// The database has none, or whoever asks may not make them.
    pub async fn create_roles(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.store.create_roles(prefix).await
    }

    /// Adds a tenant and makes its schema stand.
    ///
    /// # Errors
    ///
    /// A name or schema outside its grammar, or a schema that is taken.
    pub async fn create_tenant(
        &self,
        name: &str,
        schema: Option<&str>,
        status: TenantStatus,
    ) -> Result<Tenant, AdminError> {
        if !is_tenant_name(name) {
            return Err(AdminError::BadRequest(
                "a tenant's name has 1 to 255 characters and no control characters".into(),
            ));
        }
        let schema = schema.map_or_else(|| default_schema_name(name), str::to_owned);
        if !is_schema_name(&schema) {
            return Err(AdminError::BadRequest(format!(
                "{schema:?} is no schema name: use a lower-case letter or _, then up to 62 of a-z, 0-9 and _, \
                 and none of Postgres' own (pg_*, public, information_schema)"
            )));
        }
        self.provision(NewTenant { id: None, name: name.into(), schema, status }).await
    }

    /// A tenant is pending until its schema stands.
    async fn provision(&self, tenant: NewTenant) -> Result<Tenant, AdminError> {
        let wanted = tenant.status.clone();
        let without_schema = !self.store.has_schemas() || wanted == TenantStatus::PendingProvisioning;
        let first = if without_schema { wanted.clone() } else { TenantStatus::PendingProvisioning };
        let schema = tenant.schema.clone();
        let added = match self.store.insert_tenant(&NewTenant { status: first, ..tenant }).await {
            Err(StoreError::Conflict(_)) => {
                return refused(format!(
                    "the schema {schema:?} belongs to another tenant: choose one with --schema"
                ));
            }
            other => other?,
        };
        if without_schema {
            return Ok(added);
        }
        if let Err(error) = self.store.create_schema(&schema).await {
            return refused(format!(
                "tenant {} is pending_provisioning because its schema {schema:?} could not be made ({error}): \
                 mend that, then run `tenantgate tenant activate {}`",
                added.id.0, added.id.0
            ));
        }
        self.set_status(&added, &wanted).await
    }

    async fn set_status(&self, tenant: &Tenant, status: &TenantStatus) -> Result<Tenant, AdminError> {
        let changed = self.store.set_tenant_status(tenant.id, status).await?;
        changed.ok_or_else(|| AdminError::Refused(format!("tenant {} is gone", tenant.id.0)))
    }

    /// All tenants, oldest first.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
    pub async fn tenants(&self) -> Result<Vec<Tenant>, AdminError> {
        Ok(self.store.tenants().await?)
    }

    /// The tenant whose id, schema or exact name is `reference`.
    ///
    /// # Errors
    ///
    /// There is none, or more than one.
    pub async fn tenant(&self, reference: &str) -> Result<Tenant, AdminError> {
        let mut found = self.store.find_tenants(reference).await?;
        if let Some(at) = found.iter().position(|t| t.id.0.to_string().eq_ignore_ascii_case(reference)) {
            return Ok(found.swap_remove(at));
        }
        match found.len() {
            0 => refused(format!("there is no tenant {reference:?}: `tenantgate tenant list` shows all")),
            1 => Ok(found.swap_remove(0)),
            _ => {
                let ids: Vec<_> = found.iter().map(|t| t.id.0.to_string()).collect();
                refused(format!(
                    "{reference:?} means more than one tenant, name one by its id: {}",
                    ids.join(", ")
                ))
            }
        }
    }

    /// Stops serving a tenant.
    ///
    /// # Errors
    ///
    /// As [`Admin::tenant`].
    pub async fn suspend_tenant(&self, reference: &str) -> Result<Tenant, AdminError> {
        self.set_status(&self.tenant(reference).await?, &TenantStatus::Suspended).await
    }

    /// Serves a tenant (again); its schema is made to stand first.
    ///
    /// # Errors
    ///
    /// As [`Admin::tenant`], or its schema cannot be made.
    pub async fn activate_tenant(&self, reference: &str) -> Result<Tenant, AdminError> {
        let tenant = self.tenant(reference).await?;
        self.store.create_schema(&tenant.schema).await?;
        self.set_status(&tenant, &TenantStatus::Active).await
    }

    /// Marks a tenant as deleted; its rows stay.
    ///
    /// # Errors
    ///
    /// As [`Admin::tenant`].
    pub async fn delete_tenant(&self, reference: &str) -> Result<Tenant, AdminError> {
        self.set_status(&self.tenant(reference).await?, &TenantStatus::Deleted).await
    }

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
        Ok(Issued { details: self.store.insert_key(&new).await?, key })
    }

    async fn new_key(
        &self,
        tenant: &Tenant,
        name: Option<String>,
        created_at: Timestamp,
        expires_at: Option<Timestamp>,
    ) -> Result<(NewKey, PlainKey), AdminError> {
        let no_randomness = |e| AdminError::Refused(format!("no randomness: {e}"));
        let key = format::issue(&tenant.name).map_err(no_randomness)?;
        let (id, prefix) = (KeyId(Uuid::new_v4()), key.prefix().to_owned());
        let hash = hashed(key.as_presented().to_plain()).await?;
        let memo = self.memo(id, tenant.id, &hash, &key);
        Ok((NewKey { id, prefix, hash, tenant_id: tenant.id, name, created_at, expires_at, memo }, key))
    }

    /// The memo that a key is issued with: we made the hash from it, so bcrypt need not be asked.
    fn memo(&self, id: KeyId, tenant_id: TenantId, hash: &str, key: &PlainKey) -> Option<Memo> {
        let (prefix, hash) = (key.prefix().into(), SecretHash::parse(hash));
        let record = KeyRecord { id, tenant_id, prefix, hash, expires_at: ExpiresAt::NEVER, revoked: false };
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
            None => refused(format!("there is no key {reference:?}: `tenantgate key list` shows all")),
        }
    }

    /// Takes a key back. Doing so again changes nothing.
    ///
    /// # Errors
    ///
    /// As [`Admin::key`].
    pub async fn revoke_key(&self, reference: &str, reason: Option<&str>) -> Result<KeyDetails, AdminError> {
        let key = self.key(reference).await?;
        let revoked = self.store.revoke_key(key.id, self.now(), reason).await?;
        revoked.ok_or_else(|| AdminError::Refused(format!("key {} is gone", key.id.0)))
    }

    /// Waits until every server knows of everything that is committed now.
    ///
    /// # Errors
    ///
    /// Some may still serve what was before when `limit` is over; says which.
    pub async fn wait_for_servers(&self, limit: Duration) -> Result<(), AdminError> {
        let mark = self.store.mark().await?;
        let deadline = Instant::now() + limit;
        loop {
            let laggards = self.store.laggards(&mark).await?;
            if laggards.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return refused(still_behind(&laggards, limit));
            }
            sleep(LOOK_AGAIN).await;
        }
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
        match self.store.replace_key(old.id, now.after(grace), &new).await? {
            Some((old, details)) => Ok((old, Issued { details, key })),
            None => refused(format!("key {} was revoked in the meantime", old.prefix)),
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

    /// Makes sure the demonstration tenant and its key are there.
    ///
    /// # Errors
    ///
    /// The database holds other tenants and `force` is not given.
    pub async fn seed_demo(&self, force: bool) -> Result<(Tenant, Issued), AdminError> {
        let tenants = self.store.tenants().await?;
        if !force && tenants.iter().any(|t| t.id != DEMO_TENANT) {
            return refused(
                "this database holds other tenants, and everybody knows the demo key: use --force if you mean it",
            );
        }
        let tenant = match tenants.into_iter().find(|t| t.id == DEMO_TENANT) {
            Some(tenant) => tenant,
            None => self.provision(demo_tenant()).await?,
        };
        let key = demo_key()?;
        let details = match self.store.find_key(&DEMO_KEY.0.to_string()).await? {
            Some(details) => details,
            None => self.store.insert_key(&demo_row(&tenant, &key, self.now()).await?).await?,
        };
        Ok((tenant, Issued { details, key }))
    }
}

/// How often to ask how far the servers are.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

fn still_behind(laggards: &[Laggard], limit: Duration) -> String {
    let names: Vec<_> = laggards.iter().map(|l| format!("{} (last seen {})", l.name, l.seen_at)).collect();
    format!("done, but after {limit:?} these servers may still go by what was before: {}", names.join(", "))
}

fn demo_tenant() -> NewTenant {
    NewTenant {
        id: Some(DEMO_TENANT),
        name: "Demo Tenant".into(),
        schema: "tenant_demo".into(),
        status: TenantStatus::Active,
    }
}

fn demo_key() -> Result<PlainKey, AdminError> {
    let key = format::parse(DEMO_KEY_TEXT.as_bytes()).map_err(|e| AdminError::Refused(e.to_string()))?;
    Ok(key.to_plain())
}

async fn demo_row(tenant: &Tenant, key: &PlainKey, now: Timestamp) -> Result<NewKey, AdminError> {
    Ok(NewKey {
        id: DEMO_KEY,
        prefix: key.prefix().to_owned(),
        hash: hashed(demo_key()?).await?,
        tenant_id: tenant.id,
        name: Some("Demo key".into()),
        created_at: now,
        expires_at: None,
        // Everybody knows it, and its secret is too short for one.
        memo: None,
    })
}

/// bcrypt takes a quarter of a second, which no worker of the runtime has to spare.
async fn hashed(key: PlainKey) -> Result<String, AdminError> {
    tokio::task::spawn_blocking(move || bcrypt::hash(&key, bcrypt::DEFAULT_COST))
        .await
        .map_err(|e| AdminError::Refused(format!("hashing was interrupted: {e}")))?
        .map_err(|e| AdminError::Refused(e.to_string()))
}

fn check_key_name(name: Option<&str>) -> Result<(), AdminError> {
    match name {
        Some(name) if !is_tenant_name(name) => Err(AdminError::BadRequest(
            "a key's name has 1 to 255 characters and no control characters".into(),
        )),
        Some(name) if name.contains(SCHEME) && format::parse(name.as_bytes()).is_ok() => {
            Err(AdminError::BadRequest("a key's name must not be a key".into()))
        }
        _ => Ok(()),
    }
}

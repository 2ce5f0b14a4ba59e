//! The caller of an [`Admin`], and the versions of rows that it may change.
//!
//! The command line acts as the owner of the database. Over HTTP, an [`Admin`] acts for a management key: rows outside
//! its reach do not exist for it. That is checked when a row is read, and again in the transaction that changes it.

use std::net::IpAddr;
use std::sync::Arc;

use uuid::Uuid;

use super::{Admin, AdminError, Caller, Creator, version};
use crate::audit::{Actor, Author};
use crate::permission::{AdminKey, Authority, authority, may_touch};
use crate::plan::PlanRow;
use crate::record::KeyDetails;
use crate::route::RouteRow;
use crate::store::{AuthorKey, ChangeContext, ChangeError, Claim, Claimed, Receipt, StoreError};
use crate::tenant::{Tenant, TenantId};
use crate::verify::derived::{Derivation, Randomness};

/// The HTTP request that makes a change.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ChangeOrigin {
    /// Its id.
    pub request_id: Option<String>,
    /// The address of its client; `None` for Unix sockets.
    pub address: Option<IpAddr>,
}

/// The versions of a row that may be changed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum ExpectedVersion {
    /// Any.
    #[default]
    Any,
    /// One of these; see [`super::version`].
    OneOf(Vec<String>),
}

impl ExpectedVersion {
    fn judge(&self, version: impl FnOnce() -> String) -> Result<(), ChangeError> {
        match self {
            Self::Any => Ok(()),
            Self::OneOf(versions) if versions.contains(&version()) => Ok(()),
            Self::OneOf(_) => Err(ChangeError::Stale),
        }
    }
}

impl Admin {
    /// Returns a copy that acts for a management key or a trusted user.
    #[must_use]
    pub fn on_behalf(&self, caller: &Caller, origin: &ChangeOrigin) -> Self {
        let author = Author {
            actor: actor(&caller.key),
            request_id: origin.request_id.clone(),
            address: origin.address.map(|address| address.to_canonical().to_string()),
        };
        let creator = caller.creator.clone();
        let context = ChangeContext { author: author.clone(), key: self.author_key(&creator), receipt: None };
        Self { store: self.store.with_context(context), author, creator, ..self.clone() }
    }

    /// Returns a copy that changes a row only if it has one of these versions.
    #[must_use]
    pub fn expecting(self, expected: ExpectedVersion) -> Self {
        Self { expected, ..self }
    }

    /// Returns a copy that reports each change before it is committed, and stores the response to a request.
    #[must_use]
    pub fn reporting(self, receipt: Receipt) -> Self {
        let key = self.author_key(&self.creator);
        let context = ChangeContext { author: self.author.clone(), key, receipt: Some(receipt) };
        Self { store: self.store.with_context(context), ..self }
    }

    /// Returns the management key of a creator. Its changes are refused once its authority is another one than that by
    /// which they were judged: the body of a request can arrive a minute after its head.
    fn author_key(&self, creator: &Creator) -> Option<AuthorKey> {
        let (id, judged_by, clock) = (creator.id?, creator.authority.clone(), Arc::clone(&self.clock));
        let check = move |chain: &[AdminKey]| match authority(chain, clock.now()) {
            Ok(now) if now == judged_by => Ok(()),
            Ok(_) => Err(StoreError::KeyChanged),
            Err(_) => Err(StoreError::KeyEnded),
        };
        Some(AuthorKey { id, check: Arc::new(check) })
    }

    /// Returns a copy whose next key is derived instead of random, so that it can be shown again.
    #[must_use]
    pub fn deriving(self, derivation: Option<Derivation>) -> Self {
        Self { derivation, ..self }
    }

    /// Claims an Idempotency-Key: see [`Claimed`].
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn claim(&self, claim: &Claim) -> Result<Claimed, AdminError> {
        Ok(self.store.claim(claim).await?)
    }

    /// Removes the claim of a request that failed.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn give_up_claim(&self, attempt: Uuid) -> Result<(), AdminError> {
        Ok(self.store.give_up_claim(attempt).await?)
    }

    /// Returns the source of randomness for new keys.
    pub(super) fn randomness(&self) -> Randomness {
        Randomness::from(self.derivation.clone())
    }

    /// Returns whether the caller sees this tenant.
    pub(super) fn sees(&self, tenant: TenantId) -> bool {
        self.creator.authority.reach.has(tenant)
    }

    pub(super) fn judge_tenant(&self, tenant: &Tenant) -> Result<(), ChangeError> {
        if !self.sees(tenant.id) {
            return Err(ChangeError::Missing);
        }
        self.expected.judge(|| version::of_tenant(tenant))
    }

    pub(super) fn judge_key(&self, key: &KeyDetails) -> Result<(), ChangeError> {
        if !self.sees(key.tenant_id) {
            return Err(ChangeError::Missing);
        }
        self.expected.judge(|| version::of_key(key))
    }

    pub(super) fn judge_plan(&self, plan: &PlanRow) -> Result<(), ChangeError> {
        self.expected.judge(|| version::of_plan(plan))
    }

    pub(super) fn judge_route(&self, route: &RouteRow) -> Result<(), ChangeError> {
        self.expected.judge(|| version::of_route(route))
    }

    pub(super) fn judge_routes(&self, routes: &[RouteRow]) -> Result<(), ChangeError> {
        self.expected.judge(|| version::of_routes(routes))
    }

    /// `limit` is what all creators of the key have.
    pub(super) fn judge_admin_key(&self, key: &AdminKey, limit: &Authority) -> Result<(), ChangeError> {
        if !may_touch(&self.creator.authority, &key.given.and(limit)) {
            return Err(ChangeError::Missing);
        }
        self.expected.judge(|| version::of_admin_key(key))
    }
}

/// Returns the name and prefix of a management key, or the name of a trusted user. A long name is cut.
fn actor(key: &AdminKey) -> Actor {
    const NAME_CHARS: usize = 190;
    let name: String = key.name.chars().take(NAME_CHARS).collect();
    let prefix = if key.prefix.is_empty() { String::new() } else { format!(" ({})", key.prefix) };
    Actor::new(&(name + &prefix)).unwrap_or_default()
}

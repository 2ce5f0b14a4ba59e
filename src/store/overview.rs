//! The trait of what the page shows at a glance.

use std::collections::BTreeSet;

use async_trait::async_trait;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::tenant::TenantId;

/// Keys that need attention.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct KeyCounts {
    /// Keys that work now.
    pub live: u64,
    /// Those of them that expire soon.
    pub expiring: u64,
    /// Those of them that were not used for long.
    pub unused: u64,
}

/// The instants between which keys are counted.
#[derive(Clone, Copy, Debug)]
pub struct CountedAt {
    /// Now.
    pub now: Timestamp,
    /// What expires before this expires soon.
    pub expires_before: Timestamp,
    /// What was not used since this is unused; a key that was never used, if it was made before this.
    pub unused_since: Timestamp,
}

/// A server and how far it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReplicaState {
    /// Host and process.
    pub name: String,
    /// When it last announced itself.
    pub seen_at: Timestamp,
    /// From then on it serves nobody unless it polls again.
    pub serves_until: Timestamp,
    /// When the oldest change was made that it has not applied; `None` if it has applied all.
    pub behind_since: Option<Timestamp>,
}

/// Requests of one day and reason.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DayCount {
    /// As in `2026-01-31` (UTC).
    pub day: String,
    /// What became of them.
    pub reason: String,
    /// How many.
    pub requests: u64,
}

/// Which requests are counted by day and reason.
#[derive(Clone, Copy, Debug)]
pub enum CountsOf<'c> {
    /// Those with this key.
    Key(KeyId),
    /// Those with a key of one of these tenants.
    Tenants(&'c BTreeSet<TenantId>),
    /// All, also those without a proven key.
    All,
}

/// A refusal that a server has written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredRefusal {
    /// When it was decided.
    pub at: Timestamp,
    /// Why, as logs spell it.
    pub reason: String,
    /// The key that was proven; the nil UUID without one.
    pub key: KeyId,
}

/// What the page shows at a glance.
#[async_trait]
pub trait Overview: Store {
    /// Counts the keys of these tenants; `None`: of all.
    async fn key_counts(
        &self,
        tenants: Option<&BTreeSet<TenantId>>,
        at: CountedAt,
    ) -> Result<KeyCounts, StoreError>;

    /// The servers that announced themselves, by name.
    async fn servers(&self) -> Result<Vec<ReplicaState>, StoreError>;

    /// The refusal with this decision id.
    async fn refusal(&self, decision_id: Uuid) -> Result<Option<StoredRefusal>, StoreError>;

    /// Requests on these days (UTC, as in `2026-01-31`) by day and reason. Of a key it reads only rows of that key.
    async fn counts(&self, of: CountsOf<'_>, days: &[String]) -> Result<Vec<DayCount>, StoreError>;
}

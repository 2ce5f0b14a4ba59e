//! Changes: on whose behalf they are made, what is checked of a row in the transaction, and what is kept of a request.

use std::sync::Arc;

use uuid::Uuid;

use super::{RoutesChange, StoreError};
use crate::audit::Author;
use crate::clock::Timestamp;
use crate::permission::{AdminKey, AdminKeyId};
use crate::plan::PlanRow;
use crate::record::KeyDetails;
use crate::route::RouteRow;
use crate::tenant::Tenant;

/// On whose behalf a store changes rows. The default is the program itself.
#[derive(Clone, Default)]
pub struct Behalf {
    /// Who makes the changes.
    pub author: Author,
    /// The management key that makes them: none is made once it or one of its makers is revoked.
    pub key: Option<AdminKeyId>,
    /// What is kept of the request that makes the change, if it may be sent again.
    pub receipt: Option<Receipt>,
}

impl Behalf {
    /// Changes of this author, of which no answer is kept.
    #[must_use]
    pub fn of(author: Author) -> Self {
        Self { author, key: None, receipt: None }
    }
}

/// The answer to a request, which is made in the transaction that makes the change. With an Idempotency-Key it is kept
/// there: either both are in the database, or neither.
#[derive(Clone)]
pub struct Receipt {
    /// The attempt that claimed the key: see [`super::Management::claim`]. `None` without a key.
    pub attempt: Option<Uuid>,
    /// What is kept, as JSON without a secret; `None` if this transaction is not the last one of the request.
    pub answer: Arc<dyn Fn(Changed<'_>) -> Option<String> + Send + Sync>,
}

/// What a transaction has changed.
#[derive(Clone, Copy, Debug)]
pub enum Changed<'a> {
    /// This tenant was created or changed.
    Tenant(&'a Tenant),
    /// This key was created or changed.
    Key(&'a KeyDetails),
    /// These keys were changed.
    Keys(&'a [KeyDetails]),
    /// The first key was replaced by the second one.
    Rotated(&'a KeyDetails, &'a KeyDetails),
    /// This plan was created, changed or deleted.
    Plan(&'a PlanRow),
    /// The table of routes was changed.
    Routes(&'a RoutesChange),
    /// This management key was created or changed.
    AdminKey(&'a AdminKey),
}

/// A request that may be sent again, under a key that its client has chosen.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The management key of the client.
    pub admin_key: AdminKeyId,
    /// The path of the request.
    pub path: String,
    /// The Idempotency-Key.
    pub key: String,
    /// The SHA-256 of the body, in hexadecimal.
    pub body_hash: String,
    /// The id of this attempt.
    pub attempt: Uuid,
    /// The id of the pepper that secrets of this attempt are derived from.
    pub pepper: Option<String>,
    /// When the attempt starts.
    pub at: Timestamp,
    /// An attempt that has started before this instant and has no answer counts as dead.
    pub dead_before: Timestamp,
    /// An attempt that has started before this instant is forgotten.
    pub forgotten_before: Timestamp,
}

/// What becomes of a [`Claim`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Claimed {
    /// The request is the first one: it must be done.
    First,
    /// The first one is still running.
    Running,
    /// The first one had another body.
    OtherBody,
    /// The first one was done.
    Done {
        /// Its attempt.
        attempt: Uuid,
        /// The id of the pepper that its secrets were derived from.
        pepper: Option<String>,
        /// What was kept of its answer.
        answer: String,
    },
}

/// Why a change is not made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Stop {
    /// To the author there is no such row.
    Missing,
    /// The row is not as its author expects it.
    Stale,
    /// Another reason, for people.
    Refused(String),
}

impl From<String> for Stop {
    fn from(why: String) -> Self {
        Self::Refused(why)
    }
}

impl From<Stop> for StoreError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Missing => Self::Missing,
            Stop::Stale => Self::Stale,
            Stop::Refused(why) => Self::Conflict(why),
        }
    }
}

/// Judges a row while other sessions cannot change it.
pub type Check<'c, T> = &'c (dyn Fn(&T) -> Result<(), Stop> + Sync);

/// Changes a row while other sessions cannot change it. Every such error becomes one of [`StoreError`].
pub(super) type Make<'c, T> = &'c (dyn Fn(&mut T) -> Result<(), Stop> + Sync);

/// A change of a key.
pub type KeyChange<'c> = Make<'c, KeyDetails>;

/// A change of a tenant.
pub type TenantChange<'c> = Make<'c, Tenant>;

/// A change of a plan.
pub type PlanChange<'c> = Make<'c, PlanRow>;

/// A change of a management key.
pub type AdminKeyChange<'c> = Make<'c, AdminKey>;

/// What is to be changed of the table of routes as it is.
pub type RoutesPlan<'c> = &'c (dyn Fn(&[RouteRow]) -> Result<RoutesChange, Stop> + Sync);

//! The context of changes: their author, the checks of a row inside the transaction, and the stored response to a
//! request.

use std::sync::Arc;

use uuid::Uuid;

use super::{RoutesChange, StoreError};
use crate::audit::Author;
use crate::clock::Timestamp;
use crate::invalid::InvalidValue;
use crate::permission::{AdminKey, AdminKeyId};
use crate::plan::PlanRow;
use crate::record::KeyDetails;
use crate::route::RouteRow;
use crate::tenant::Tenant;

/// The author of changes, and the request that they belong to. The default author is the program itself.
#[derive(Clone, Default)]
pub struct ChangeContext {
    /// The author.
    pub author: Author,
    /// The management key of the author; `None` without one.
    pub key: Option<AuthorKey>,
    /// The stored response of an idempotent request; `None` without an Idempotency-Key.
    pub receipt: Option<Receipt>,
}

impl ChangeContext {
    /// Changes by this author, whose responses are not stored.
    #[must_use]
    pub fn of(author: Author) -> Self {
        Self { author, key: None, receipt: None }
    }
}

/// Checks a management key, its creator, that key's creator and so on.
pub type ChainCheck = dyn Fn(&[AdminKey]) -> Result<(), StoreError> + Send + Sync;

/// The management key that makes changes.
#[derive(Clone)]
pub struct AuthorKey {
    /// Its id.
    pub id: AdminKeyId,
    /// Called inside the transaction of each change with the key, its creator, that key's creator and so on, which
    /// cannot change until the transaction ends: whether the key may still make the change.
    pub check: Arc<ChainCheck>,
}

/// Renders the response to a request inside the transaction of the change.
///
/// If the request has an Idempotency-Key, the same transaction stores the response, so that the database has both the
/// change and the response, or neither.
#[derive(Clone)]
pub struct Receipt {
    /// The attempt that claimed the Idempotency-Key: see [`super::Management::claim`]. `None` if the request has none.
    pub attempt: Option<Uuid>,
    /// Returns the response as JSON without a secret; `None` if this transaction is not the last one of the request.
    pub answer: Arc<dyn Fn(Changed<'_>) -> Option<String> + Send + Sync>,
}

/// The changed objects of a transaction.
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

/// A request with an Idempotency-Key, which may be sent again.
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
    /// An attempt that started before this instant and has no response counts as dead.
    pub dead_before: Timestamp,
    /// An attempt that started before this instant is deleted.
    pub forgotten_before: Timestamp,
}

/// The result of a [`Claim`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Claimed {
    /// This request is the first one, and must be performed.
    First,
    /// The first request is still running.
    Running,
    /// The first request had another body.
    OtherBody,
    /// The first request was performed.
    Done {
        /// Its attempt.
        attempt: Uuid,
        /// The id of the pepper that its secrets were derived from.
        pepper: Option<String>,
        /// Its stored response.
        answer: String,
    },
}

/// Why a change is not performed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ChangeError {
    /// The row does not exist, or the author may not see it.
    Missing,
    /// The row is not in the version that the author expects.
    Stale,
    /// Another reason, for display.
    Refused(String),
}

impl From<InvalidValue> for ChangeError {
    fn from(error: InvalidValue) -> Self {
        Self::Refused(error.into())
    }
}

impl From<String> for ChangeError {
    fn from(why: String) -> Self {
        Self::Refused(why)
    }
}

impl From<ChangeError> for StoreError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Missing => Self::Missing,
            ChangeError::Stale => Self::Stale,
            ChangeError::Refused(why) => Self::Conflict(why),
        }
    }
}

/// Checks a row while other sessions cannot change it.
pub type Check<'c, T> = &'c (dyn Fn(&T) -> Result<(), ChangeError> + Sync);

/// Changes a row while other sessions cannot change it. The caller gets a [`ChangeError`] as the matching
/// [`StoreError`].
pub(super) type ChangeFn<'c, T> = &'c (dyn Fn(&mut T) -> Result<(), ChangeError> + Sync);

/// A change of a key.
pub type KeyChange<'c> = ChangeFn<'c, KeyDetails>;

/// A change of a tenant.
pub type TenantChange<'c> = ChangeFn<'c, Tenant>;

/// A change of a plan.
pub type PlanChange<'c> = ChangeFn<'c, PlanRow>;

/// A change of a management key.
pub type AdminKeyChange<'c> = ChangeFn<'c, AdminKey>;

/// Computes a change of the table of routes from the current table.
pub type RoutesPlan<'c> = &'c (dyn Fn(&[RouteRow]) -> Result<RoutesChange, ChangeError> + Sync);

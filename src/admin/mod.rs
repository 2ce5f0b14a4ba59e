//! The management path: tenants, keys, plans, rules and management keys.
//!
//! Contains the use cases behind the command line and management over HTTP, one method of [`Admin`] each. A new key
//! leaves this module once, in [`Issued`]; the database gets only its hash.
//!
//! Depends on: no SQL, no output format.

mod acting;
mod admin_keys;
mod audit;
pub mod bulk;
mod demo;
mod key_changes;
mod keys;
mod overview;
mod plans;
mod reading;
mod report;
mod route_test;
mod routes;
mod sessions;
mod tenants;
mod usage;
pub mod version;
pub(crate) mod view;
mod waiting;

use std::sync::Arc;

pub use self::acting::{ChangeOrigin, ExpectedVersion};
pub use self::admin_keys::{AdminKeyUpdate, AdminKeyWish, Caller, Creator, IssuedAdminKey, ListedAdminKey};
pub use self::audit::Verified;
pub use self::demo::{DEMO_KEY, DEMO_TENANT};
pub use self::key_changes::{Expiry, KeyUpdate, ToRevoke};
pub use self::keys::Issued;
pub use self::overview::{LONG, RefusedRequest, SOON};
pub use self::plans::LimitUpdate;
pub use self::report::{Criteria, KeyFinding};
pub use self::route_test::{RouteVerdict, TestedRequest};
pub use self::routes::{ChangedRoute, RouteDifference, RouteUpdate, RouteView};
pub use self::sessions::{Browser, IDLE, LINK_WITHIN, LONGEST, LoginLink, SignedIn, is_on};
pub use self::waiting::Applied;
use crate::audit::Author;
use crate::clock::{Clock, Timestamp};
use crate::store::{Adoption, Management, Migrated, StoreError};
use crate::verify::derived::Derivation;
use crate::verify::memo::Peppers;

/// Why a use case failed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The request is invalid, independently of the content of the database.
    #[error("{0}")]
    BadRequest(String),
    /// The object does not exist, or the caller has no access to it.
    #[error("{0}")]
    Missing(String),
    /// The request is valid, but the state of the object does not allow it.
    #[error("{0}")]
    Refused(String),
    /// The caller would grant more than it has.
    #[error("{0}")]
    Excess(String),
    /// A value is well-formed but not acceptable: it is in the past, or names something that does not exist.
    #[error("{why}")]
    Unfit {
        /// The field name of the value in JSON.
        part: &'static str,
        /// The reason why it is invalid.
        why: String,
    },
    /// The object does not have a version that the caller expects.
    #[error("it was changed in the meantime: read it again")]
    Stale,
    /// The caller's management key was revoked or expired in the meantime.
    #[error("your management key was revoked or expired in the meantime")]
    Ended,
    /// The database did not do its part.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for AdminError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Missing => Self::Missing("it no longer exists".into()),
            StoreError::Stale => Self::Stale,
            StoreError::KeyEnded => Self::Ended,
            StoreError::KeyChanged => {
                Self::Refused("your management key was changed in the meantime: repeat the request".into())
            }
            StoreError::Disallowed(why) => Self::Refused(why),
            other => Self::Store(other),
        }
    }
}

/// A change of a value that can be unset.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Setting<T> {
    /// The value stays unchanged.
    #[default]
    Keep,
    /// The value is removed.
    Unset,
    /// The value becomes this.
    Set(T),
}

impl<T> Setting<T> {
    /// Combines an optional value with the flag that unsets it.
    pub fn said(value: Option<T>, unset: bool) -> Self {
        match value {
            Some(value) => Self::Set(value),
            None if unset => Self::Unset,
            None => Self::Keep,
        }
    }

    /// Returns the new value; `None` if there is none.
    pub fn value(&self) -> Option<&T> {
        if let Self::Set(value) = self { Some(value) } else { None }
    }

    /// Applies the change to `value`. `hold` converts the new value.
    fn change<U>(&self, value: &mut Option<U>, hold: impl FnOnce(&T) -> U) {
        match self {
            Self::Keep => {}
            Self::Unset => *value = None,
            Self::Set(new) => *value = Some(hold(new)),
        }
    }
}

fn refused<T>(why: impl Into<String>) -> Result<T, AdminError> {
    Err(AdminError::Refused(why.into()))
}

fn missing<T>(what: impl Into<String>) -> Result<T, AdminError> {
    Err(AdminError::Missing(what.into()))
}

fn unfit(part: &'static str, why: impl Into<String>) -> AdminError {
    AdminError::Unfit { part, why: why.into() }
}

/// Manages a store. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    store: Arc<dyn Management>,
    clock: Arc<dyn Clock>,
    peppers: Peppers,
    /// The author of changes; only used for an [`Admin`] that acts for a management key.
    author: Author,
    /// The permissions of the caller; unlimited for the command line.
    creator: Creator,
    /// The versions of a row that may be changed.
    expected: ExpectedVersion,
    /// The source of the next key; `None` for a random key.
    derivation: Option<Derivation>,
}

impl Admin {
    /// Creates the management of a store. New keys get a memo by the first of the peppers.
    #[must_use]
    pub fn new(store: Arc<dyn Management>, clock: Arc<dyn Clock>, peppers: Peppers) -> Self {
        let (author, creator) = (Author::default(), Creator::database());
        Self { store, clock, peppers, author, creator, expected: ExpectedVersion::Any, derivation: None }
    }

    /// Returns the peppers. The first one derives keys that can be shown again.
    #[must_use]
    pub fn peppers(&self) -> &Peppers {
        &self.peppers
    }

    /// Returns the current time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Checks that the schema is new enough. Migrates an embedded database (SQLite) if it is not.
    ///
    /// # Errors
    ///
    /// [`StoreError::OldSchema`], or the database is not available.
    pub async fn prepare(&self) -> Result<(), StoreError> {
        let version = self.store.version().await?;
        if version.check().is_err() && self.store.embedded() {
            self.store.migrate().await?;
            return Ok(());
        }
        version.check()
    }

    /// Checks that the database responds and its schema is new enough.
    ///
    /// # Errors
    ///
    /// [`StoreError::OldSchema`], or the database is not available.
    pub async fn ready(&self) -> Result<(), StoreError> {
        self.store.version().await?.check()
    }

    /// Migrates the schema. Returns what was done, and the version of the schema afterwards.
    ///
    /// # Errors
    ///
    /// The database is not available, a migration failed, or existing tables cannot be adopted.
    pub async fn migrate(&self, adoption: &Adoption) -> Result<(Migrated, i64), StoreError> {
        // Read first: after the commit nothing may fail, because the changes are made.
        let before = self.store.version().await?.current;
        let migrated = self.store.adopt(adoption).await?;
        let current = migrated.applied.last().copied().unwrap_or(before);
        Ok((migrated, current))
    }

    /// Creates the roles of least privilege, whose names begin with `prefix`. Returns their names.
    ///
    /// # Errors
    ///
    /// The database has no roles (SQLite), or the user of the connection may not create them.
    pub async fn create_roles(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.store.create_roles(prefix).await
    }
}

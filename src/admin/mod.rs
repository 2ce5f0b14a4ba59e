//! The management path: tenants, keys, plans, rules and management keys.
//!
//! The use cases behind the command line. Each is one sentence of a person who
//! runs the place: create this tenant, take back that key. A new key leaves here
//! once, in [`Issued`]; what the database gets is its hash. Nothing here knows
//! SQL, or how a result is printed.

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

pub use self::acting::{Expected, Origin};
pub use self::admin_keys::{AdminKeyUpdate, AdminKeyWish, Caller, IssuedAdminKey, ListedAdminKey, Maker};
pub use self::audit::Verified;
pub use self::demo::{DEMO_KEY, DEMO_TENANT};
pub use self::key_changes::{Expiry, KeyUpdate, ToRevoke};
pub use self::keys::Issued;
pub use self::overview::{LONG, Refused, SOON};
pub use self::plans::LimitUpdate;
pub use self::report::{Criteria, Finding};
pub use self::route_test::{RouteVerdict, TestedRequest};
pub use self::routes::{ChangedRoute, RouteDifference, RouteUpdate, RouteView};
pub use self::sessions::{Browser, IDLE, LINK_WITHIN, LONGEST, LoginLink, SignedIn, is_on};
pub use self::waiting::Applied;
use crate::audit::Author;
use crate::clock::{Clock, Timestamp};
use crate::store::{Adoption, Management, Migrated, StoreError};
use crate::verify::derived::Derivation;
use crate::verify::memo::Peppers;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// What was asked for makes no sense, whatever is in the database.
    #[error("{0}")]
    BadRequest(String),
    /// What it is about does not exist, or the caller does not see it.
    #[error("{0}")]
    Missing(String),
    /// It makes sense, and the state of what it is about does not allow it.
    #[error("{0}")]
    Refused(String),
    /// The caller would give away more than it has.
    #[error("{0}")]
    Excess(String),
    /// A value has the right form and makes no sense: it is in the past, or names something that does not exist.
    #[error("{why}")]
    Unfit {
        /// The name of the value, as objects have it.
        part: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// What it is about is not in a version that the caller expects.
    #[error("it was changed in the meantime: read it again")]
    Stale,
    /// The caller's management key was revoked in the meantime.
    #[error("your management key was revoked in the meantime")]
    Ended,
    /// The database did not do its part.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for AdminError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Missing => Self::Missing("it is gone".into()),
            StoreError::Stale => Self::Stale,
            StoreError::KeyEnded => Self::Ended,
            other => Self::Store(other),
        }
    }
}

/// What is said of a value that can be unset.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Setting<T> {
    /// Nothing: it remains as it is.
    #[default]
    Keep,
    /// It is unset.
    Unset,
    /// It is this.
    Set(T),
}

impl<T> Setting<T> {
    /// What a value and the flag that unsets it say together.
    pub fn said(value: Option<T>, unset: bool) -> Self {
        match value {
            Some(value) => Self::Set(value),
            None if unset => Self::Unset,
            None => Self::Keep,
        }
    }

    /// The new value, if one is said.
    pub fn value(&self) -> Option<&T> {
        if let Self::Set(value) = self { Some(value) } else { None }
    }

    /// Changes what `value` holds, after turning the new one into what is held.
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
    /// Who makes the changes; only used for an [`Admin`] that acts for a management key.
    author: Author,
    /// What the caller may do. Commands may do everything.
    maker: Maker,
    /// Which versions of a row may be changed.
    expected: Expected,
    /// What the next key is derived from.
    derivation: Option<Derivation>,
}

impl Admin {
    /// The management of this store. New keys get a memo by the first of the peppers.
    #[must_use]
    pub fn new(store: Arc<dyn Management>, clock: Arc<dyn Clock>, peppers: Peppers) -> Self {
        let (author, maker) = (Author::default(), Maker::database());
        Self { store, clock, peppers, author, maker, expected: Expected::Any, derivation: None }
    }

    /// The peppers, of which the first one derives keys that can be shown again.
    #[must_use]
    pub fn peppers(&self) -> &Peppers {
        &self.peppers
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
        let version = self.store.version().await?;
        if version.check().is_err() && self.store.embedded() {
            self.store.migrate().await?;
            return Ok(());
        }
        version.check()
    }

    /// Whether the database answers and its tables are as new as we need them.
    ///
    /// # Errors
    ///
    /// [`StoreError::OldSchema`], or the database cannot be asked.
    pub async fn ready(&self) -> Result<(), StoreError> {
        self.store.version().await?.check()
    }

    /// Brings the tables up to date; returns what was done and the version they have now.
    ///
    /// # Errors
    ///
    /// The database cannot be asked, or refuses a migration; its tables cannot be adopted.
    pub async fn migrate(&self, adoption: &Adoption) -> Result<(Migrated, i64), StoreError> {
        let migrated = self.store.adopt(adoption).await?;
        Ok((migrated, self.store.version().await?.current))
    }

    /// Makes the roles of least privilege; returns their names.
    ///
    /// # Errors
    ///
    /// The database has none, or whoever asks may not make them.
    pub async fn create_roles(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.store.create_roles(prefix).await
    }
}

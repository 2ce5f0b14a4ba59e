//! The trait for databases that `explain` and `doctor` can examine.
//!
//! It adds to [`Management`]: a single row as a replica reads it, the clock of the database, and a diagnosis.

use async_trait::async_trait;

use super::StoreError;
use super::management::Management;
use crate::clock::{Clock, Timestamp};
use crate::diagnostics::Finding;
use crate::profile::ProfileRow;
use crate::record::{KeyRecord, Memo};

/// A row of `api_keys` as a replica reads it, with its memo and its profile.
pub type KeyWithProfile = (KeyRecord, Option<Memo>, ProfileRow);

/// The process whose database privileges are examined.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// `tenantgate serve`.
    Serve,
    /// `tenantgate manage`, and the commands that change tenants and keys.
    Manage,
}

/// A database that can be examined.
#[async_trait]
pub trait Inspect: Management {
    /// Returns the row of `api_keys` with this prefix, as a replica reads it.
    async fn key_row(&self, prefix: &str) -> Result<Option<KeyWithProfile>, StoreError>;

    /// Returns the time of the database; `None` if it has no clock.
    async fn time(&self) -> Result<Option<Timestamp>, StoreError>;

    /// Returns whether another database writes the tenants and keys of this one, so that rows are corrected there.
    async fn is_subscriber(&self) -> Result<bool, StoreError>;

    /// Examines everything that `serve` relies on, and the privileges that a process for this purpose needs. Changes
    /// nothing. If a fault prevents further checks, returns the findings up to it.
    async fn examine(&self, clock: &dyn Clock, purpose: Purpose) -> Result<Vec<Finding>, StoreError>;
}

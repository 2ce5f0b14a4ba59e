//! The trait of databases that `explain` and `doctor` can examine.
//!
//! Beside [`Management`], for the commands that explain and examine: a single row as
//! a replica would have it, the database's own time, and what is wrong with it.

use async_trait::async_trait;

use super::StoreError;
use super::management::Management;
use crate::clock::{Clock, Timestamp};
use crate::diagnostics::Finding;
use crate::profile::ProfileRow;
use crate::record::{KeyRecord, Memo};

/// A row of `api_keys` as a replica gets it, with its memo.
pub type KeyRow = (KeyRecord, Option<Memo>, ProfileRow);

/// The process whose database role is examined.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// `tenantgate serve`.
    Serve,
    /// `tenantgate manage`, and the commands that change tenants and keys.
    Manage,
}

/// A database that can be looked into.
#[async_trait]
pub trait Inspect: Management {
    /// The row of `api_keys` of this prefix as a replica gets it: its memo and its profile, too.
    async fn key_row(&self, prefix: &str) -> Result<Option<KeyRow>, StoreError>;

    /// What time the database says it is; nothing if it has no clock of its own.
    async fn time(&self) -> Result<Option<Timestamp>, StoreError>;

    /// Examines everything that `serve` relies on, and the rights that a process for this purpose needs. Changes nothing.
    /// Stops early where the rest could not be examined: with what is bad, then.
    async fn examine(&self, clock: &dyn Clock, purpose: Purpose) -> Result<Vec<Finding>, StoreError>;
}

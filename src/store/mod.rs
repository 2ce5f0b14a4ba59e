//! The traits that a database implements.
//!
//! The replica opens a [`Session`] on a [`Store`]: it loads all rows once, then polls for changes. The management path
//! reads and changes rows through [`Management`]. Nothing here mentions SQL, a pool or a transaction: another database
//! needs one module and no change below.

mod address_error;
mod adoption;
mod change_context;
mod columns;
mod errors;
pub mod inspect;
mod lists;
pub mod management;
mod migrations;
pub mod overview;
pub mod postgres;
mod schema_spec;
pub mod sessions;
mod source;
mod sql;
pub mod sqlite;
mod written;

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

pub use self::address_error::AddressError;
pub use self::adoption::Adoption;
pub use self::change_context::{
    AdminKeyChange, AuthorKey, ChainCheck, ChangeContext, ChangeError, Changed, Check, Claim, Claimed,
    KeyChange, PlanChange, Receipt, RoutesPlan, TenantChange,
};
pub(crate) use self::columns::{KEY_COLUMNS, TENANT_COLUMNS};
pub use self::lists::{
    AuditFilter, KeyFilter, KeyPage, KeyPlace, StoredKey, TenantFilter, TenantPage, TenantPlace, UsageBy,
    UsageFilter, UsagePart, UsageRow,
};
pub use self::management::{
    Announced, ImportedKey, Laggard, Management, Migrated, NewAdminKey, NewKey, NewTenant, PlanUses, Rotated,
    Rotation, RoutesChange,
};
pub use self::overview::{CountedAt, CountsOf, DayCount, KeyCounts, Overview, ReplicaState, StoredRefusal};
pub use self::sessions::{AdminSession, AdminSessions, Ending, SessionId};
pub use self::source::UrlSource;
use self::written::day_of;
pub use self::written::{Announcement, NewMemo, Refusal, Shadowed, ShadowedKind, Touched, Used};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::plan::PlanRow;
use crate::profile::ProfileRow;
use crate::record::{KeyRecord, Memo};
use crate::route::{RouteId, RouteRow};
use crate::tenant::{Tenant, TenantId};

/// Why a request to the database failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The row conflicts with an existing one, or the change was rejected with this reason.
    #[error("{0}")]
    Conflict(String),
    /// The database rejected the role or its password.
    #[error("{0}")]
    Credentials(String),
    /// tenantgate itself refuses the request; the database was not asked, or only about its state. The text says what to do.
    #[error("{0}")]
    Disallowed(String),
    /// The tables are in another schema than the configured one.
    #[error(
        "tenants and api_keys are in the schema {found:?}, not in {wanted:?}: add --database-schema {found} \
         (TENANTGATE_DATABASE_SCHEMA)"
    )]
    Elsewhere {
        /// The schema of the tables.
        found: String,
        /// The configured schema.
        wanted: String,
    },
    /// A row has an invalid value.
    #[error("invalid row {row} of {table}: {why}")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// The id of the row, as the database stores it.
        row: String,
        /// The reason.
        why: String,
    },
    /// The management key that makes a change was revoked or expired in the meantime.
    #[error("the management key was revoked or expired in the meantime")]
    KeyEnded,
    /// The authority of the management key that makes a change was changed in the meantime.
    #[error("the management key was changed in the meantime: repeat the request")]
    KeyChanged,
    /// Another session held a lock for too long.
    #[error("gave up waiting for a lock: {0}")]
    Locked(String),
    /// The row does not exist, or the author of the change may not see it.
    #[error("there is no such row")]
    Missing,
    /// The tables are older than this program.
    #[error(
        "the database schema is at version {current}, tenantgate needs {needed}: run `tenantgate migrate`"
    )]
    OldSchema {
        /// The version of the tables; 0 if there are none.
        current: i64,
        /// The version that this program needs.
        needed: i64,
    },
    /// The database rejected the request; a retry would fail again.
    #[error("the database rejected the request: {0}")]
    Refused(String),
    /// Existing tables cannot be adopted. One text for each fault.
    #[error("the tables cannot be adopted: {}", .0.join("; "))]
    Shape(Vec<String>),
    /// The row is not in the version that the author of the change expects.
    #[error("the row was changed in the meantime: read it again")]
    Stale,
    /// The database is unavailable. A retry may succeed.
    #[error("{0}")]
    Unavailable(String),
    /// The database cannot be used: it is a standby, a different database, or behind a transaction pooler. The text
    /// says which.
    #[error("{0}")]
    WrongDatabase(String),
}

/// The version of the database schema.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SchemaVersion {
    /// The newest applied migration; 0 if there is none.
    pub current: i64,
    /// The newest migration of this program.
    pub needed: i64,
}

impl SchemaVersion {
    /// Checks that the tables are new enough.
    ///
    /// # Errors
    ///
    /// [`StoreError::OldSchema`] if they are not.
    pub fn check(self) -> Result<(), StoreError> {
        let Self { current, needed } = self;
        if current < needed { Err(StoreError::OldSchema { current, needed }) } else { Ok(()) }
    }
}

/// A database of tenants and keys, as a server needs it. People need more: [`Management`].
///
/// Every method fails with [`StoreError::Unavailable`] if the database is unavailable. "Not found" is `None` or an
/// empty list, never an error.
#[async_trait]
pub trait Store: Send + Sync {
    /// Returns the kind of the database for display: `postgres` or `sqlite`.
    fn kind(&self) -> &'static str;

    /// Returns the address of the database without user and password, for display and to tell databases apart.
    fn address(&self) -> String;

    /// Returns whether the program may migrate the tables without being asked, as in an embedded database.
    fn embedded(&self) -> bool;

    /// Opens a session for a replica. [`StoreError::OldSchema`] if the tables need a migration.
    ///
    /// An outage ends only after this and a load, so it opens as few connections as it can: on a machine without free
    /// CPU, each connection and each statement may take 50 ms.
    async fn session(&self) -> Result<Box<dyn Session>, StoreError>;

    /// Applies the missing migrations in one transaction and writes them to the audit log. Returns their versions.
    async fn migrate(&self) -> Result<Vec<i64>, StoreError>;

    /// Deletes rows of the change log that are older than `keep`, and returns their number. A replica that has not
    /// polled for that long loads everything again.
    async fn prune_changes(&self, keep: Duration) -> Result<u64, StoreError>;

    /// Records up to which change a server has applied the change log.
    async fn announce(&self, announcement: &Announcement<'_>) -> Result<(), StoreError>;

    /// Removes the record of a server that has stopped.
    async fn retract(&self, id: Uuid) -> Result<(), StoreError>;

    /// Moves `last_used_at` of these keys forward, never back. On Postgres, never past the clock of the database.
    /// Skips rows that another session keeps locked.
    async fn touch_keys(&self, used: &[(KeyId, Timestamp)]) -> Result<Touched, StoreError>;

    /// Writes memos into their rows, unless the hash in the row has changed.
    async fn write_memos(&self, memos: &[NewMemo]) -> Result<(), StoreError>;

    /// Adds entries to the shadow report, and deletes entries older than 30 days.
    async fn write_shadowed(&self, requests: &[Shadowed]) -> Result<(), StoreError>;

    /// Adds rejections, and deletes those that are older than 3 days.
    async fn write_refusals(&self, refusals: &[Refusal]) -> Result<(), StoreError>;

    /// Adds counts to those of the same day, key and reason: all of them, or none if it fails.
    async fn add_usage(&self, used: &[Used]) -> Result<(), StoreError>;

    /// Deletes the counts of days that ended longer than `keep` ago.
    async fn prune_usage(&self, keep: Duration) -> Result<(), StoreError>;
}

/// A row as a replica reads it.
#[derive(Clone, Debug)]
pub enum SnapshotRow {
    /// Of `api_keys`, with its memo if it has one, and its profile, which keys can share.
    Key(KeyRecord, Option<Memo>, ProfileRow),
    /// Of `tenants`.
    Tenant(Tenant),
    /// Of `tenantgate_plan`.
    Plan(PlanRow),
    /// Of `tenantgate_route`.
    Route(RouteRow),
}

impl SnapshotRow {
    /// Returns the plan that the row names: of a key, or of a tenant.
    #[must_use]
    pub fn plan(&self) -> Option<&str> {
        match self {
            Self::Key(_, _, profile) => profile.plan.as_deref(),
            Self::Tenant(tenant) => tenant.plan.as_deref(),
            Self::Plan(_) | Self::Route(_) => None,
        }
    }

    /// Returns why the row is damaged, so that it cannot be used for any request. `None` if it is not.
    #[must_use]
    pub fn damage(&self) -> Option<String> {
        match self {
            Self::Key(key, ..) if key.is_damaged() => Some("hashed_key or key_prefix is not valid".into()),
            Self::Key(_, _, profile) => profile.compile().err().map(|error| error.to_string()),
            Self::Tenant(tenant) => tenant.damage().map(Into::into),
            Self::Plan(plan) => plan.compile().err().map(|error| error.to_string()),
            Self::Route(route) => route.compile().err().map(|error| error.to_string()),
        }
    }
}

/// The data that all rows of one load or poll share.
#[derive(Clone, Debug, Default)]
pub struct SyncPoint {
    /// The clock of the database; `None` if it has none.
    pub now: Option<Timestamp>,
    /// The id of the database. A failover, a restored dump and a logical replica keep it.
    pub identity: String,
    /// The cluster or file of the database. Empty if unknown.
    pub place: String,
    /// Which tables these are, in the notation of the database: a restore within the database makes others. Empty if
    /// unknown.
    pub tables: String,
    /// The position in the change log, in the notation of the database; see [`Store::announce`].
    pub position: String,
    /// The newest row of the change log, in the notation of the database; see [`Session::has`].
    pub newest_change: Option<String>,
}

/// A change of one row: its current content, or its identity if it was deleted.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly every change is a row with its current content")]
pub enum Change {
    /// The current content of a row.
    Now(SnapshotRow),
    /// The key with this prefix was deleted.
    NoKey(Box<str>),
    /// This tenant was deleted.
    NoTenant(TenantId),
    /// The plan with this name was deleted.
    NoPlan(Box<str>),
    /// This rule was deleted.
    NoRoute(RouteId),
    /// No change, but a mark that a command waits for; see [`Management::mark`].
    Mark,
}

impl Change {
    /// Returns whether it is a mark.
    #[must_use]
    pub fn is_mark(&self) -> bool {
        matches!(self, Self::Mark)
    }

    /// Returns the current content of the row; `None` if it was deleted, and for a mark.
    #[must_use]
    pub fn row(&self) -> Option<&SnapshotRow> {
        if let Self::Now(row) = self { Some(row) } else { None }
    }
}

/// The changes since the last load or poll.
#[derive(Debug)]
pub enum Changes {
    /// The changes are not known: the replica must load everything again.
    Everything,
    /// These rows, all from the same instant.
    Rows(Vec<Change>, SyncPoint),
}

/// A connection to the database that one replica uses alone.
///
/// After any error it must be dropped; open another one.
#[async_trait]
pub trait Session: Send {
    /// Reads all rows as of one instant, and passes them to `sink` one by one.
    async fn load(&mut self, sink: &mut (dyn FnMut(SnapshotRow) + Send)) -> Result<SyncPoint, StoreError>;

    /// Waits for a hint that something changed. Hints may be late, superfluous or missing.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any time. A hint that is lost delays the next poll to its regular time.
    async fn hint(&mut self) -> Result<(), StoreError>;

    /// Returns the changes since the last load or poll of this session.
    async fn changes(&mut self) -> Result<Changes, StoreError>;

    /// Returns whether the database still has the newest change that an earlier load or poll saw
    /// ([`SyncPoint::newest_change`]). If not, the database was set back: by a failover to a standby that was behind,
    /// or by a restored backup.
    async fn has(&mut self, known: &SyncPoint) -> Result<bool, StoreError>;
}

/// The default time that a command waits for a lock.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// The default timeout for connecting to the database.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

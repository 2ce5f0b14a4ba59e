//! The traits that a database implements.
//!
//! The replica asks a [`Store`] for a [`Session`]: one load of everything, then polls of what changed. The management
//! path asks a [`Management`] for rows and changes them. Nothing here mentions SQL, a pool or a transaction: another
//! database needs a module of its own and no change below.

mod behalf;
mod errors;
mod expected;
pub mod inspect;
pub mod management;
mod migrations;
pub mod overview;
pub mod postgres;
pub mod sessions;
mod source;
mod sql;
pub mod sqlite;

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

pub use self::behalf::{
    AdminKeyChange, Behalf, Changed, Check, Claim, Claimed, KeyChange, PlanChange, Receipt, RoutesPlan, Stop,
    TenantChange,
};
pub use self::management::{Adoption, Migrated};
pub use self::management::{
    Announced, AuditFilter, ImportedKey, KeyFilter, KeyPage, KeyPlace, Laggard, Management, NewAdminKey,
    NewKey, NewTenant, PlanUses, RoutesChange, StoredKey, TenantFilter, TenantPage, TenantPlace, UsageBy,
    UsageFilter, UsagePart, UsageRow,
};
pub use self::overview::{CountedAt, CountsOf, DayCount, KeyCounts, Overview, ReplicaState, StoredRefusal};
pub use self::sessions::{AdminSession, AdminSessions, Ending, SessionId};
pub use self::source::UrlSource;
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::plan::PlanRow;
use crate::profile::ProfileRow;
use crate::record::{KeyRecord, Memo, SecretHash};
use crate::route::{RouteId, RouteRow};
use crate::tenant::{Tenant, TenantId};

/// Why a database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A row that was to be added exists.
    #[error("{0}")]
    Conflict(String),
    /// The database refuses the role or its password.
    #[error("{0}")]
    Credentials(String),
    /// The tables are in another schema than the one that was named.
    #[error(
        "tenants and api_keys are in the schema {found:?}, not in {wanted:?}: add --database-schema {found} \
         (TENANTGATE_DATABASE_SCHEMA)"
    )]
    Elsewhere {
        /// Where they are.
        found: String,
        /// Where they were to be.
        wanted: String,
    },
    /// A row makes no sense.
    #[error("the row {row} of {table} makes no sense: {why}")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// The row's identity as the database shows it.
        row: String,
        /// What is wrong with it.
        why: String,
    },
    /// The management key that makes a change was revoked in the meantime.
    #[error("the management key was revoked in the meantime")]
    KeyEnded,
    /// Another session held a lock for too long.
    #[error("gave up waiting for a lock: {0}")]
    Locked(String),
    /// To the author of a change there is no such row.
    #[error("there is no such row")]
    Missing,
    /// The tables are older than this program.
    #[error(
        "the database schema is at version {current}, tenantgate needs {needed}: run `tenantgate migrate`"
    )]
    OldSchema {
        /// The version of the tables; 0 without any.
        current: i64,
        /// The version this program was made for.
        needed: i64,
    },
    /// The database answers, and refuses; it will refuse again.
    #[error("the database refuses: {0}")]
    Refused(String),
    /// Tables that exist cannot be adopted; one line for each fault.
    #[error("the tables cannot be adopted: {}", .0.join("; "))]
    Shape(Vec<String>),
    /// A row is not as the author of a change expects it.
    #[error("the row was changed in the meantime: read it again")]
    Stale,
    /// The database cannot be asked. Trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// The database is not the one we want: a standby, another one, behind a transaction pooler. Says which.
    #[error("{0}")]
    WrongDatabase(String),
}

/// How far the tables are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SchemaVersion {
    /// The newest migration that was applied; 0 for none.
    pub current: i64,
    /// The newest migration there is.
    pub needed: i64,
}

impl SchemaVersion {
    /// Nothing, if the tables are new enough.
    ///
    /// # Errors
    ///
    /// [`StoreError::OldSchema`].
    pub fn check(self) -> Result<(), StoreError> {
        let Self { current, needed } = self;
        if current < needed { Err(StoreError::OldSchema { current, needed }) } else { Ok(()) }
    }
}

/// A memo for a row that is there already.
#[derive(Clone, Debug)]
pub struct NewMemo {
    /// The key's identity.
    pub id: KeyId,
    /// The hash that the memo was made beside: beside another it would be worth nothing.
    pub hash: SecretHash,
    /// The memo.
    pub memo: Memo,
}

/// What requests have in common that passed in shadow mode and were to be refused.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ShadowedKind {
    /// Why they would have been refused.
    pub reason: String,
    /// The client's network.
    pub network: String,
    /// The program it says it is.
    pub user_agent: String,
    /// The method.
    pub method: String,
    /// The path, without what is particular to one request.
    pub path: String,
    /// The prefix of a key that was proven; else empty.
    pub key_prefix: String,
}

/// Requests that passed in shadow mode and were to be refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shadowed {
    /// What they have in common.
    pub kind: ShadowedKind,
    /// How many.
    pub requests: u64,
    /// When the first one came.
    pub first_seen: Timestamp,
    /// When the last one came.
    pub last_seen: Timestamp,
}

/// Requests that a server has counted, to be added to those that the database has.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Used {
    /// The number of the day (UTC): see [`Timestamp::day`].
    pub day: i64,
    /// The key that was proven; the nil UUID without one.
    pub key: KeyId,
    /// What became of them, as metadata spells it.
    pub reason: &'static str,
    /// How many.
    pub requests: u64,
}

/// The day of this number, as both databases write it: `2026-01-31`.
fn day_of(number: i64) -> String {
    let mut text = Timestamp(number.saturating_mul(86_400_000_000)).to_string();
    text.truncate("2026-01-31".len());
    text
}

/// A request that was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The id that the client got.
    pub decision_id: Uuid,
    /// When it was decided.
    pub at: Timestamp,
    /// Why, as logs spell it.
    pub reason: &'static str,
    /// The key that was proven; the nil UUID without one.
    pub key: KeyId,
}

/// A database of tenants and keys, as a server needs it. People need more: [`Management`].
///
/// Every method fails with [`StoreError::Unavailable`] when the database cannot be asked; "not found" is
/// `None` or an empty list, never an error.
#[async_trait]
pub trait Store: Send + Sync {
    /// What kind of database this is, for people: `postgres`, `sqlite`.
    fn kind(&self) -> &'static str;

    /// Which database this is, for people and to tell it from another: without user and password.
    fn address(&self) -> String;

    /// Whether bringing the tables up to date is nobody's decision but ours, as in an embedded database.
    fn embedded(&self) -> bool;

    /// Opens a session for a replica.
    async fn session(&self) -> Result<Box<dyn Session>, StoreError>;

    /// How far the tables are.
    async fn schema_version(&self) -> Result<SchemaVersion, StoreError>;

    /// Applies what is missing, all or nothing; returns the versions that were. The audit log has it.
    async fn migrate(&self) -> Result<Vec<i64>, StoreError>;

    /// Forgets changes older than `keep`. A replica that has not looked for so long loads everything again.
    /// Returns how many.
    async fn prune_changes(&self, keep: Duration) -> Result<u64, StoreError>;

    /// Writes down how far a server has looked.
    async fn announce(&self, announcement: &Announcement<'_>) -> Result<(), StoreError>;

    /// Forgets a server that stopped in order.
    async fn retract(&self, id: Uuid) -> Result<(), StoreError>;

    /// Moves `last_used_at` of the keys forward, never back, and never past the database's own clock. Returns
    /// which of them were never used before, on any server.
    async fn touch_keys(&self, used: &[(KeyId, Timestamp)]) -> Result<Vec<KeyId>, StoreError>;

    /// Puts memos beside their rows, where key and hash are still what they were made beside.
    async fn write_memos(&self, memos: &[NewMemo]) -> Result<(), StoreError>;

    /// Adds to the shadow report, and takes out of it what is older than 30 days.
    async fn write_shadowed(&self, requests: &[Shadowed]) -> Result<(), StoreError>;

    /// Adds refusals, and forgets those that are older than 3 days.
    async fn write_refusals(&self, refusals: &[Refusal]) -> Result<(), StoreError>;

    /// Adds counts to those of the same day, key and reason: all of them, or none if it fails.
    async fn add_usage(&self, used: &[Used]) -> Result<(), StoreError>;

    /// Removes counts of days that ended longer than `keep` ago.
    async fn prune_usage(&self, keep: Duration) -> Result<(), StoreError>;
}

/// A server that holds the keys in memory.
#[derive(Clone, Debug)]
pub struct Announcement<'a> {
    /// Its identity, for the life of the process.
    pub id: Uuid,
    /// Host and process, for people.
    pub name: &'a str,
    /// How far it has looked: [`Look::position`].
    pub position: &'a str,
    /// How long from now it lets keys pass without looking again.
    pub serves_for: Duration,
}

/// A row, as a replica wants it.
#[derive(Clone, Debug)]
pub enum Row {
    /// Of `api_keys`, with its memo if it has one, and what it shares with other keys.
    Key(KeyRecord, Option<Memo>, ProfileRow),
    /// Of `tenants`.
    Tenant(Tenant),
    /// Of `tenantgate_plan`.
    Plan(PlanRow),
    /// Of `tenantgate_route`.
    Route(RouteRow),
}

impl Row {
    /// Whether it can serve no request.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        match self {
            Self::Key(key, _, profile) => key.is_damaged() || profile.compile().is_err(),
            Self::Tenant(tenant) => !tenant.is_sound(),
            Self::Plan(plan) => plan.compile().is_err(),
            Self::Route(route) => route.compile().is_err(),
        }
    }
}

/// What is said of all the rows of a look at the database.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// The database's own clock.
    pub now: Option<Timestamp>,
    /// The id of the database: the same after a failover, in a restored dump and on a logical replica.
    pub identity: String,
    /// Where it is: another cluster or file is another place. Empty if unknown.
    pub place: String,
    /// What was visible to this look, in words of the database's own; see [`Store::announce`].
    pub position: String,
    /// The newest change in the log, in words of the database's own; see [`Session::has`].
    pub newest_change: Option<String>,
}

/// A change of one row: the row as it is now, or what is gone.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly every change is a row as it is now")]
pub enum Change {
    /// The row as it is now.
    Now(Row),
    /// There is no key of this prefix any more.
    NoKey(Box<str>),
    /// There is no such tenant any more.
    NoTenant(TenantId),
    /// There is no plan of this name any more.
    NoPlan(Box<str>),
    /// There is no such rule any more.
    NoRoute(RouteId),
    /// No change, but a mark by which a command asks how far the replicas are; see [`Management::mark`].
    Mark,
}

impl Change {
    /// Whether it is a mark.
    #[must_use]
    pub fn is_mark(&self) -> bool {
        matches!(self, Self::Mark)
    }

    /// The row as it is now, if it is.
    #[must_use]
    pub fn row(&self) -> Option<&Row> {
        if let Self::Now(row) = self { Some(row) } else { None }
    }
}

/// What changed between two looks.
#[derive(Debug)]
pub enum Changes {
    /// It cannot be told: look at everything again.
    Everything,
    /// These rows, all as of the same instant.
    Rows(Vec<Change>, Look),
}

/// A replica's own connection to the database.
///
/// Any error ends it: drop it and open another.
#[async_trait]
pub trait Session: Send {
    /// Looks at everything, as of one instant, and gives it to `sink` row by row.
    async fn load(&mut self, sink: &mut (dyn FnMut(Row) + Send)) -> Result<Look, StoreError>;

    /// Waits for a hint that something changed. May come late, too often or never; an error means the
    /// session is lost.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; a hint is then lost, which costs nothing but time.
    async fn hint(&mut self) -> Result<(), StoreError>;

    /// What changed since the last look of this session.
    async fn changes(&mut self) -> Result<Changes, StoreError>;

    /// Whether the database still has the newest change that an earlier look saw ([`Look::newest_change`]). One that
    /// has not went back: a failover to a standby that was behind, or a restored backup.
    async fn has(&mut self, known: &Look) -> Result<bool, StoreError>;
}

/// How long a command waits for a lock, unless told otherwise.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long connecting may take before the database counts as gone.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

//! The session of a replica with SQLite.
//!
//! It only reads. `PRAGMA data_version` tells whether another connection has written, and the change log tells what.
//!
//! A connection stays on the files that it has opened. If another program deletes or replaces one of them, the
//! connection misses all changes, so each poll compares the files. The connection is opened for reading alone: one that
//! can write would copy its deleted WAL over newer pages of the database when it closes.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use async_trait::async_trait;
use serde::Deserialize;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};
use tokio_stream::StreamExt as _;
use tracing::warn;
use uuid::Uuid;

use super::files::Files;
use super::{INFINITY_TEXT, LINKED, applied};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::profile::{ProfileRow, Unreadable};
use crate::record::{KeyRecord, Memo, SecretHash};
use crate::route::RouteId;
use crate::store::inspect::KeyWithProfile;
use crate::store::sql::{self, FileIds, TENANT, tenant_of};
use crate::store::{Change, Changes, LOCK_TIMEOUT, Session, SnapshotRow, StoreError, SyncPoint};
use crate::tenant::TenantId;

/// A connection that only reads.
pub(super) struct SqliteSession {
    connection: SqliteConnection,
    /// The newest id of the change log that has been read.
    cursor: i64,
    /// The value of `PRAGMA data_version` before the last poll.
    data_version: i64,
    files: Files,
    /// The opened files.
    ids: FileIds,
    /// The length of the file. Only `VACUUM` makes it shorter.
    length: u64,
    /// The value of `PRAGMA schema_version`, which changes with each table and trigger.
    schema_version: i64,
    identity: String,
}

#[async_trait]
impl Session for SqliteSession {
    async fn load(&mut self, sink: &mut (dyn FnMut(SnapshotRow) + Send)) -> Result<SyncPoint, StoreError> {
        self.has_the_same_files()?;
        self.data_version = self.read_data_version().await?;
        let mut transaction = self.connection.begin().await?;
        let identity =
            sqlx::query("SELECT id FROM tenantgate_identity").fetch_optional(&mut *transaction).await?;
        let Some(identity) = identity else {
            let why = "the database has no identity (tenantgate_identity is empty): run `tenantgate migrate`";
            return Err(StoreError::WrongDatabase(why.into()));
        };
        self.identity = identity.try_get(0)?;
        self.schema_version =
            sqlx::query("PRAGMA schema_version").fetch_one(&mut *transaction).await?.try_get(0)?;
        let newest = sqlx::query(NEWEST_CHANGE).fetch_one(&mut *transaction).await?.try_get(0)?;
        let sql = format!("SELECT {TENANT} FROM tenants");
        for row in sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&mut *transaction).await? {
            match tenant_of(&sql::SqlRow::Sqlite(row)) {
                Ok(tenant) => sink(SnapshotRow::Tenant(tenant)),
                Err(StoreError::Inconsistent { row, why, .. }) => {
                    warn!(row, why, "damaged row of tenants, its keys get 503 until it is fixed");
                }
                Err(error) => return Err(error),
            }
        }
        let mut rows = sqlx::query(PAGES).fetch(&mut *transaction);
        while let Some(row) = rows.next().await {
            let page = text(&row?)?;
            let page: Vec<RawKey> = serde_json::from_str(page.as_deref().unwrap_or("[]"))
                .map_err(|error| StoreError::Refused(format!("rows of api_keys cannot be read: {error}")))?;
            for raw in page {
                let (record, memo, profile) = raw.record();
                sink(SnapshotRow::Key(record, memo, profile));
            }
        }
        drop(rows);
        let link = &mut sql::Link::Sqlite(&mut transaction);
        sql::plans::all(link).await?.into_iter().for_each(|plan| sink(SnapshotRow::Plan(plan)));
        sql::routes::all(link).await?.into_iter().for_each(|route| sink(SnapshotRow::Route(route)));
        transaction.commit().await?;
        self.cursor = newest;
        Ok(self.sync_point())
    }

    /// SQLite sends no hints. The session polls often enough without.
    async fn hint(&mut self) -> Result<(), StoreError> {
        std::future::pending().await
    }

    async fn has(&mut self, known: &SyncPoint) -> Result<bool, StoreError> {
        let newest: i64 = sqlx::query(NEWEST_CHANGE).fetch_one(&mut self.connection).await?.try_get(0)?;
        let change = known.newest_change.as_deref().unwrap_or_default();
        Ok(change.parse::<i64>().is_ok_and(|change| change <= newest))
    }

    async fn changes(&mut self) -> Result<Changes, StoreError> {
        self.has_the_same_files()?;
        let version = self.read_data_version().await?;
        if version == self.data_version {
            return Ok(Changes::Rows(Vec::new(), self.sync_point()));
        }
        let mut transaction = self.connection.begin().await?;
        let newest: i64 = sqlx::query(NEWEST_CHANGE).fetch_one(&mut *transaction).await?.try_get(0)?;
        let missing: bool =
            sqlx::query(PRUNED).bind(self.cursor).fetch_one(&mut *transaction).await?.try_get(0)?;
        let schema_version: i64 =
            sqlx::query("PRAGMA schema_version").fetch_one(&mut *transaction).await?.try_get(0)?;
        let identity: Option<String> = sqlx::query("SELECT (SELECT id FROM tenantgate_identity)")
            .fetch_one(&mut *transaction)
            .await?
            .try_get(0)?;
        // A load rejects another identity. A trigger may have been missing for a time.
        let same = identity.as_ref() == Some(&self.identity) && schema_version == self.schema_version;
        if newest < self.cursor || missing || !same {
            return Ok(Changes::Everything);
        }
        let mut changes = Vec::new();
        let sql =
            "SELECT DISTINCT key_prefix, tenant_id, plan, route_id FROM tenantgate_change WHERE id > ?1";
        for row in sqlx::query(sql).bind(self.cursor).fetch_all(&mut *transaction).await? {
            if !names_a_row(&row) {
                return Ok(Changes::Everything);
            }
            changes.extend(change_of(&mut transaction, &row).await?);
        }
        transaction.commit().await?;
        (self.cursor, self.data_version) = (newest, version);
        Ok(Changes::Rows(changes, self.sync_point()))
    }
}

/// Selects all keys, a thousand in each row of the result. The driver passes each row of a result between threads: a
/// million rows would take longer than reading the file.
const PAGES: &str = "WITH RECURSIVE page (first) AS (
        SELECT min(rowid) FROM api_keys
        UNION ALL SELECT (SELECT min(rowid) FROM api_keys WHERE rowid >= first + 1000) FROM page WHERE first IS NOT NULL)
    SELECT (SELECT json_group_array(json_array(CAST(id AS TEXT), CAST(tenant_id AS TEXT), CAST(key_prefix AS TEXT),
                CAST(hashed_key AS TEXT), CAST(expires_at AS TEXT), revoked_at IS NOT NULL, CAST(key_memo AS TEXT),
                CAST(not_before AS TEXT), disabled_at IS NOT NULL, CAST(scopes AS TEXT), CAST(networks AS TEXT), CAST(plan AS TEXT)))
            FROM api_keys WHERE rowid >= first AND rowid < first + 1000)
    FROM page WHERE first IS NOT NULL";

/// Selects one key, in the same form.
const ONE: &str = "SELECT json_array(CAST(id AS TEXT), CAST(tenant_id AS TEXT), CAST(key_prefix AS TEXT),
    CAST(hashed_key AS TEXT), CAST(expires_at AS TEXT), revoked_at IS NOT NULL, CAST(key_memo AS TEXT),
    CAST(not_before AS TEXT), disabled_at IS NOT NULL, CAST(scopes AS TEXT), CAST(networks AS TEXT), CAST(plan AS TEXT))
    FROM api_keys WHERE key_prefix = ?1";

/// Selects the newest id of the change log, even if its row was pruned.
const NEWEST_CHANGE: &str =
    "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'tenantgate_change'), 0)";

/// Selects whether rows after the cursor are missing from the log.
const PRUNED: &str = "SELECT coalesce((SELECT min(id) FROM tenantgate_change WHERE id > ?1), ?1 + 1) > ?1 + 1
    OR (SELECT count(*) FROM tenantgate_change WHERE id > ?1)
       < coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'tenantgate_change'), 0) - ?1";

impl SqliteSession {
    /// Opens the file.
    pub(super) async fn open(file: &Path) -> Result<Self, StoreError> {
        let files = Files::of(file);
        files.wait_until_none_is_deleted_but_open().await?;
        let meta = std::fs::metadata(file).map_err(|_| gone(file))?;
        if meta.nlink() > 1 {
            warn!("{} has {LINKED}", file.display());
        }
        let options = SqliteConnectOptions::new().filename(file).read_only(true).busy_timeout(LOCK_TIMEOUT);
        let mut connection = options.connect().await?;
        // The first statement that reads opens the WAL.
        applied(&mut connection).await?;
        let ids = files.ids();
        if ids[0] != Some((meta.dev(), meta.ino())) {
            return Err(StoreError::Unavailable(format!("{} was replaced by another file", file.display())));
        }
        Ok(Self {
            connection,
            cursor: 0,
            data_version: -1,
            files,
            ids,
            length: meta.len(),
            schema_version: 0,
            identity: String::new(),
        })
    }

    /// Checks that no file was deleted, replaced or truncated.
    fn has_the_same_files(&mut self) -> Result<(), StoreError> {
        let file = self.files.database.display();
        let unavailable = |why: String| Err(StoreError::Unavailable(why));
        let (before, now) = (self.ids, self.files.ids());
        let Ok(meta) = std::fs::metadata(&self.files.database) else {
            return Err(gone(&self.files.database));
        };
        if now[0] != before[0] {
            return unavailable(format!("{file} was replaced by another file"));
        }
        for (part, path) in [(1, &self.files.wal), (2, &self.files.index)] {
            if now[part] != before[part] {
                let file = path.display();
                return unavailable(format!(
                    "{file} was deleted or replaced while serve used it, opening the database again"
                ));
            }
        }
        if meta.len() < self.length {
            return unavailable(format!("{file} became shorter, opening it again"));
        }
        self.length = meta.len();
        Ok(())
    }

    fn sync_point(&self) -> SyncPoint {
        SyncPoint {
            position: self.cursor.to_string(),
            newest_change: Some(self.cursor.to_string()),
            identity: self.identity.clone(),
            place: self.ids[0].map(|(device, inode)| format!("{device}:{inode}")).unwrap_or_default(),
            ..SyncPoint::default()
        }
    }

    async fn read_data_version(&mut self) -> Result<i64, StoreError> {
        Ok(sqlx::query("PRAGMA data_version").fetch_one(&mut self.connection).await?.try_get(0)?)
    }
}

fn gone(file: &Path) -> StoreError {
    StoreError::Unavailable(format!("{} is gone", file.display()))
}

/// Reads a result of [`PAGES`] or [`ONE`]. A value that is not UTF-8 gets replacement characters, which are valid in no
/// column that a verdict depends on, so that it damages its own row only.
fn text(row: &SqliteRow) -> Result<Option<String>, StoreError> {
    Ok(sql::sqlite_text(row, 0)?)
}

/// Returns whether a row of the change log names a row by a text that a query finds again: not by a BLOB, which equals
/// no text, nor by an id that is not a UUID.
fn names_a_row(logged: &SqliteRow) -> bool {
    let column = |name| logged.try_get::<Option<&str>, _>(name);
    let id = |name| column(name).is_ok_and(|id| id.is_none_or(|id| Uuid::parse_str(id).is_ok()));
    column("key_prefix").is_ok() && column("plan").is_ok() && id("tenant_id") && id("route_id")
}

async fn change_of(
    connection: &mut SqliteConnection,
    logged: &SqliteRow,
) -> Result<Option<Change>, StoreError> {
    if let Some(prefix) = logged.try_get::<Option<String>, _>("key_prefix")? {
        // A mark is a row with an empty prefix, which no key has.
        if prefix.is_empty() {
            return Ok(Some(Change::Mark));
        }
        let row = one_key(connection, &prefix).await?;
        let row = row.map(|raw| {
            let (record, memo, profile) = raw.record();
            SnapshotRow::Key(record, memo, profile)
        });
        return Ok(Some(row.map_or(Change::NoKey(prefix.into()), Change::Now)));
    }
    if let Some(name) = logged.try_get::<Option<String>, _>("plan")? {
        let plan = sql::plans::find(&mut sql::Link::Sqlite(connection), &name).await?;
        return Ok(Some(
            plan.map_or(Change::NoPlan(name.into()), |plan| Change::Now(SnapshotRow::Plan(plan))),
        ));
    }
    if let Some(id) = logged.try_get::<Option<String>, _>("route_id")? {
        let Ok(id) = Uuid::parse_str(&id).map(RouteId) else { return Ok(None) };
        let route = sql::routes::find(&mut sql::Link::Sqlite(connection), id).await?;
        return Ok(Some(route.map_or(Change::NoRoute(id), |route| Change::Now(SnapshotRow::Route(route)))));
    }
    let Some(id) = logged.try_get::<Option<String>, _>("tenant_id")? else { return Ok(None) };
    let Ok(tenant_id) = Uuid::parse_str(&id).map(TenantId) else { return Ok(None) };
    let sql = format!("SELECT {TENANT} FROM tenants WHERE id = ?1");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(&id).fetch_optional(connection).await?;
    let tenant = row.map(|row| tenant_of(&sql::SqlRow::Sqlite(row))).transpose()?;
    Ok(Some(tenant.map_or(Change::NoTenant(tenant_id), |tenant| Change::Now(SnapshotRow::Tenant(tenant)))))
}

/// Reads one key in the same way as a load.
pub(super) async fn key_row(
    connection: &mut SqliteConnection,
    prefix: &str,
) -> Result<Option<KeyWithProfile>, StoreError> {
    Ok(one_key(connection, prefix).await?.map(RawKey::record))
}

async fn one_key(connection: &mut SqliteConnection, prefix: &str) -> Result<Option<RawKey>, StoreError> {
    let Some(row) = sqlx::query(ONE).bind(prefix).fetch_optional(connection).await? else { return Ok(None) };
    let raw = serde_json::from_str(text(&row)?.as_deref().unwrap_or_default())
        .map_err(|error| StoreError::Refused(format!("a row of api_keys cannot be read: {error}")))?;
    Ok(Some(raw))
}

/// A key in the JSON of [`PAGES`] and [`ONE`]: id, tenant, prefix, hash, expiry, whether revoked, memo, start of
/// validity, whether disabled, scopes, networks, plan.
#[derive(Deserialize)]
struct RawKey(
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    u8,
    Option<String>,
    Option<String>,
    u8,
    Option<Box<str>>,
    Option<Box<str>>,
    Option<Box<str>>,
);

impl RawKey {
    /// Converts the row. An instant or UUID that cannot be read makes its profile damaged.
    fn record(self) -> (KeyRecord, Option<Memo>, ProfileRow) {
        let Self(
            id,
            tenant_id,
            prefix,
            hash,
            expires_at,
            revoked,
            memo,
            begins,
            disabled,
            scopes,
            networks,
            plan,
        ) = self;
        let uuid = |text: Option<String>| text.and_then(|text| Uuid::parse_str(&text).ok());
        let (id, tenant_id) = (uuid(id), uuid(tenant_id));
        let is_bad = |text: &Option<String>| text.as_deref().is_some_and(|text| !is_instant(text));
        let unreadable = [
            (Unreadable::Id, id.is_none()),
            (Unreadable::TenantId, tenant_id.is_none()),
            (Unreadable::ExpiresAt, is_bad(&expires_at)),
            (Unreadable::NotBefore, is_bad(&begins)),
        ];
        let unreadable = unreadable.into_iter().find_map(|(column, bad)| bad.then_some(column));
        // The damage of the row decides, after the proof, and not an instant that was never written.
        let (expires_at, begins) =
            (expires_at.filter(|text| is_instant(text)), begins.filter(|text| is_instant(text)));
        let begins = begins.map(|text| match text.as_str() {
            INFINITY_TEXT => Timestamp(i64::MAX),
            text => Timestamp::parse(text).unwrap_or(Timestamp::MIN),
        });
        let expires_at = expires_at.filter(|text| text != INFINITY_TEXT);
        let record = KeyRecord {
            id: KeyId(id.unwrap_or_default()),
            tenant_id: TenantId(tenant_id.unwrap_or_default()),
            prefix: prefix.unwrap_or_default().as_str().into(),
            hash: SecretHash::parse(hash.as_deref().unwrap_or_default()),
            expires_at: expires_at.map(|text| Timestamp::parse(&text).unwrap_or(Timestamp::MIN)).into(),
            revoked: revoked != 0,
            not_before: begins.unwrap_or(Timestamp::MIN),
            disabled: disabled != 0,
        };
        (record, memo.as_deref().and_then(Memo::parse), ProfileRow { scopes, networks, plan, unreadable })
    }
}

fn is_instant(text: &str) -> bool {
    text == INFINITY_TEXT || Timestamp::parse(text).is_some()
}

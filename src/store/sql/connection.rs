//! A connection and a query type that work with both databases.

use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::query::Query as SqlxQuery;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection as _, Postgres, Sqlite};

use super::instant::Micros;
use super::row::SqlRow;
use super::value::{Conditions, SqlValue};
use super::{Dialect, POSTGRES, SQLITE};
use crate::store::StoreError;

/// A connection to either database.
pub(in crate::store) struct Connection {
    driver: Driver,
    in_transaction: bool,
    files: Option<FileIds>,
}

/// Device and inode of a SQLite file, its WAL and the index of the WAL; `None` for one that does not exist.
pub(in crate::store) type FileIds = [Option<(u64, u64)>; 3];

enum Driver {
    Postgres(Box<PgConnection>),
    Sqlite(Box<SqliteConnection>),
}

impl From<PgConnection> for Connection {
    fn from(connection: PgConnection) -> Self {
        Self { driver: Driver::Postgres(Box::new(connection)), in_transaction: false, files: None }
    }
}

impl From<SqliteConnection> for Connection {
    fn from(connection: SqliteConnection) -> Self {
        Self { driver: Driver::Sqlite(Box::new(connection)), in_transaction: false, files: None }
    }
}

impl Connection {
    /// Borrows the connection for queries.
    pub(in crate::store) fn link(&mut self) -> Link<'_> {
        match &mut self.driver {
            Driver::Postgres(connection) => Link::Postgres(connection),
            Driver::Sqlite(connection) => Link::Sqlite(connection),
        }
    }

    /// Sets the SQLite files that the connection has opened.
    pub(in crate::store) fn reading(self, files: FileIds) -> Self {
        Self { files: Some(files), ..self }
    }

    /// The SQLite files; `None` on Postgres.
    pub(in crate::store) fn files(&self) -> Option<FileIds> {
        self.files
    }

    /// Returns whether the database responds.
    pub(in crate::store) async fn answers(&mut self) -> bool {
        match &mut self.driver {
            Driver::Postgres(connection) => connection.ping().await.is_ok(),
            Driver::Sqlite(connection) => connection.ping().await.is_ok(),
        }
    }

    /// Closes the connection. One to SQLite has closed its files afterwards.
    pub(super) async fn close(self) {
        if let Driver::Sqlite(connection) = self.driver {
            let _ = connection.close().await;
        }
    }

    pub(super) fn is_in_transaction(&self) -> bool {
        self.in_transaction
    }

    pub(super) async fn begin(&mut self) -> Result<(), StoreError> {
        let begin = self.link().dialect().begin;
        self.in_transaction = true;
        self.link().run(begin).await
    }

    /// Commits the transaction. A connection on which this failed is not used again.
    pub(super) async fn commit(&mut self) -> Result<(), StoreError> {
        self.link().run("COMMIT").await?;
        self.in_transaction = false;
        Ok(())
    }
}

/// A borrowed connection to either database.
pub(in crate::store) enum Link<'c> {
    /// To Postgres.
    Postgres(&'c mut PgConnection),
    /// To SQLite.
    Sqlite(&'c mut SqliteConnection),
}

impl Link<'_> {
    /// Returns the connection if it is one to Postgres.
    pub(in crate::store) fn postgres(&mut self) -> Result<&mut PgConnection, StoreError> {
        match self {
            Self::Postgres(connection) => Ok(connection),
            Self::Sqlite(_) => {
                Err(StoreError::Refused("expected a connection to Postgres, not to SQLite".into()))
            }
        }
    }

    /// Returns the connection if it is one to SQLite.
    pub(in crate::store) fn sqlite(&mut self) -> Result<&mut SqliteConnection, StoreError> {
        match self {
            Self::Sqlite(connection) => Ok(connection),
            Self::Postgres(_) => {
                Err(StoreError::Refused("expected a connection to SQLite, not to Postgres".into()))
            }
        }
    }

    pub(super) fn dialect(&self) -> &'static Dialect {
        match self {
            Self::Postgres(_) => &POSTGRES,
            Self::Sqlite(_) => &SQLITE,
        }
    }

    /// Runs a statement that has no parameters and returns no rows.
    pub(super) async fn run(&mut self, sql: &'static str) -> Result<(), StoreError> {
        match self {
            Self::Postgres(connection) => sqlx::raw_sql(sql).execute(&mut **connection).await.map(drop)?,
            Self::Sqlite(connection) => sqlx::raw_sql(sql).execute(&mut **connection).await.map(drop)?,
        }
        Ok(())
    }

    /// Adds rows to a table in one statement. Every row has a value for each of the columns.
    pub(super) async fn insert<const N: usize>(
        &mut self,
        table: &str,
        columns: [&str; N],
        rows: Vec<[SqlValue; N]>,
    ) -> Result<(), StoreError> {
        let into = format!("INSERT INTO {table} ({}) SELECT", columns.join(", "));
        let numbers = 0..N;
        match self {
            Self::Postgres(_) => {
                let arrays: Vec<_> = numbers.map(|column| SqlValue::column(&rows, column)).collect();
                let all = arrays
                    .iter()
                    .enumerate()
                    .map(|(at, array)| format!("${}::{}", at + 1, array.array_type()));
                let sql = format!("{into} * FROM unnest({})", all.collect::<Vec<_>>().join(", "));
                Query { sql, values: arrays }.execute(self).await
            }
            Self::Sqlite(_) => {
                let all: Vec<_> = numbers.map(|column| format!("value ->> {column}")).collect();
                let rows: Vec<Vec<_>> =
                    rows.into_iter().map(|row| row.into_iter().map(SqlValue::text).collect()).collect();
                let json = serde_json::to_string(&rows).unwrap_or_default();
                query(format!("{into} {} FROM json_each($1)", all.join(", "))).bind(json).execute(self).await
            }
        }
    }
}

/// A statement and its parameters.
pub(in crate::store) struct Query {
    sql: String,
    values: Vec<SqlValue>,
}

/// Starts a query from its SQL.
pub(in crate::store) fn query(sql: impl Into<String>) -> Query {
    Query { sql: sql.into(), values: Vec::new() }
}

impl Query {
    /// Adds the next parameter.
    pub(in crate::store) fn bind(mut self, value: impl Into<SqlValue>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Adds the parameters of conditions.
    pub(in crate::store) fn bind_all(mut self, wanted: Conditions) -> Self {
        self.values.extend(wanted.values);
        self
    }

    /// Returns all rows.
    pub(in crate::store) async fn fetch_all(self, link: &mut Link<'_>) -> Result<Vec<SqlRow>, StoreError> {
        Ok(match link {
            Link::Postgres(connection) => self
                .postgres()
                .fetch_all(&mut **connection)
                .await?
                .into_iter()
                .map(SqlRow::Postgres)
                .collect(),
            Link::Sqlite(connection) => {
                self.sqlite().fetch_all(&mut **connection).await?.into_iter().map(SqlRow::Sqlite).collect()
            }
        })
    }

    /// Returns the first row, if there is one.
    pub(in crate::store) async fn fetch_optional(
        self,
        link: &mut Link<'_>,
    ) -> Result<Option<SqlRow>, StoreError> {
        Ok(match link {
            Link::Postgres(connection) => {
                self.postgres().fetch_optional(&mut **connection).await?.map(SqlRow::Postgres)
            }
            Link::Sqlite(connection) => {
                self.sqlite().fetch_optional(&mut **connection).await?.map(SqlRow::Sqlite)
            }
        })
    }

    /// Returns the first row. An error if there is none.
    pub(in crate::store) async fn fetch_one(self, link: &mut Link<'_>) -> Result<SqlRow, StoreError> {
        self.fetch_optional(link).await?.ok_or_else(|| sqlx::Error::RowNotFound.into())
    }

    /// Runs the statement and ignores its rows.
    pub(in crate::store) async fn execute(self, link: &mut Link<'_>) -> Result<(), StoreError> {
        match link {
            Link::Postgres(connection) => self.postgres().execute(&mut **connection).await.map(drop)?,
            Link::Sqlite(connection) => self.sqlite().execute(&mut **connection).await.map(drop)?,
        }
        Ok(())
    }

    fn postgres(self) -> SqlxQuery<'static, Postgres, PgArguments> {
        let query = sqlx::query(AssertSqlSafe(self.sql));
        self.values.into_iter().fold(query, |query, value| match value {
            SqlValue::Id(id) => query.bind(id),
            SqlValue::Ids(ids) => query.bind(ids),
            SqlValue::Instant(at) => query.bind(at.map(Micros)),
            SqlValue::Instants(all) => {
                query.bind(all.into_iter().map(|at| at.map(Micros)).collect::<Vec<_>>())
            }
            SqlValue::Number(number) => query.bind(number),
            SqlValue::Text(text) | SqlValue::Json(text) => query.bind(text),
            SqlValue::Texts(texts) | SqlValue::Jsons(texts) => query.bind(texts),
            SqlValue::Flag(flag) => query.bind(flag),
            SqlValue::Flags(flags) => query.bind(flags),
        })
    }

    fn sqlite(self) -> SqlxQuery<'static, Sqlite, SqliteArguments> {
        let query = sqlx::query(AssertSqlSafe(self.sql));
        self.values.into_iter().fold(query, |query, value| match value {
            SqlValue::Number(number) => query.bind(number),
            SqlValue::Flag(flag) => query.bind(flag),
            other => query.bind(other.text()),
        })
    }
}

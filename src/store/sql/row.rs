//! The rows of query results, with the same accessors for both databases.

use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{Decode, Postgres, Row as _, Sqlite, Type};
use uuid::Uuid;

use super::instant::{INFINITY, Micros};
use crate::clock::Timestamp;
use crate::store::StoreError;

/// A row of either database.
pub(in crate::store) enum Row {
    /// A row of Postgres.
    Postgres(PgRow),
    /// A row of SQLite.
    Sqlite(SqliteRow),
}

impl Row {
    /// Returns a value of a type that both databases have.
    pub(in crate::store) fn get<T>(&self, column: &str) -> Result<T, StoreError>
    where
        T: for<'r> Decode<'r, Postgres> + Type<Postgres> + for<'r> Decode<'r, Sqlite> + Type<Sqlite>,
    {
        Ok(match self {
            Self::Postgres(row) => row.try_get(column)?,
            Self::Sqlite(row) => row.try_get(column)?,
        })
    }

    /// Returns a UUID. [`StoreError::Inconsistent`] names `table` if the value is not a UUID.
    pub(in crate::store) fn id(&self, column: &str, table: &'static str) -> Result<Uuid, StoreError> {
        let text: String = match self {
            Self::Postgres(row) => return Ok(row.try_get(column)?),
            Self::Sqlite(row) => row.try_get(column)?,
        };
        let why = format!("invalid {column}: expected a UUID");
        Uuid::parse_str(&text).map_err(|_| StoreError::Inconsistent { table, row: text, why })
    }

    /// Returns a UUID; `None` for NULL and for an invalid UUID.
    pub(in crate::store) fn maybe_id(&self, column: &str) -> Result<Option<Uuid>, StoreError> {
        Ok(match self {
            Self::Postgres(row) => row.try_get(column)?,
            Self::Sqlite(row) => {
                row.try_get::<Option<&str>, _>(column)?.and_then(|id| Uuid::parse_str(id).ok())
            }
        })
    }

    /// Returns an instant. An invalid one counts as the beginning of time, so that a row with an invalid expiry is
    /// expired and does not prevent other rows from being read.
    pub(in crate::store) fn instant(&self, column: &str) -> Result<Option<Timestamp>, StoreError> {
        let read = |text: &str| match text {
            "infinity" => INFINITY,
            text => Timestamp::parse(text).unwrap_or(Timestamp::MIN),
        };
        Ok(match self {
            Self::Postgres(row) => row.try_get::<Option<Micros>, _>(column)?.map(|at| at.0),
            Self::Sqlite(row) => row.try_get::<Option<&str>, _>(column)?.map(read),
        })
    }

    /// Returns an expiry; `None` for NULL and `infinity`, which both mean never.
    pub(in crate::store) fn expiry(&self, column: &str) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.instant(column)?.filter(|at| *at != INFINITY))
    }
}

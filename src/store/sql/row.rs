//! Rows that queries return.

use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{Decode, Postgres, Row as _, Sqlite, Type};
use uuid::Uuid;

use super::instant::Micros;
use crate::clock::Timestamp;
use crate::store::StoreError;

/// A row of either database.
pub(in crate::store) enum Row {
    /// Of Postgres.
    Postgres(PgRow),
    /// Of SQLite.
    Sqlite(SqliteRow),
}

/// What both databases call an instant that does not come.
const INFINITY: Timestamp = Timestamp(i64::MAX);

impl Row {
    /// A value that both databases have.
    pub(in crate::store) fn get<T>(&self, column: &str) -> Result<T, StoreError>
    where
        T: for<'r> Decode<'r, Postgres> + Type<Postgres> + for<'r> Decode<'r, Sqlite> + Type<Sqlite>,
    {
        Ok(match self {
            Self::Postgres(row) => row.try_get(column)?,
            Self::Sqlite(row) => row.try_get(column)?,
        })
    }

    /// A UUID of a row of `table`.
    pub(in crate::store) fn id(&self, column: &str, table: &'static str) -> Result<Uuid, StoreError> {
        let text: String = match self {
            Self::Postgres(row) => return Ok(row.try_get(column)?),
            Self::Sqlite(row) => row.try_get(column)?,
        };
        let why = format!("{column} is no UUID");
        Uuid::parse_str(&text).map_err(|_| StoreError::Inconsistent { table, row: text, why })
    }

    /// A UUID; `None` for NULL and for what is not a UUID.
    pub(in crate::store) fn maybe_id(&self, column: &str) -> Result<Option<Uuid>, StoreError> {
        Ok(match self {
            Self::Postgres(row) => row.try_get(column)?,
            Self::Sqlite(row) => {
                row.try_get::<Option<&str>, _>(column)?.and_then(|id| Uuid::parse_str(id).ok())
            }
        })
    }

    /// An instant. What cannot be read is the beginning of time, so that a row with such an expiry is expired and
    /// the others are shown all the same.
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

    /// An instant at which something ends: NULL and `infinity` both mean never.
    pub(in crate::store) fn expiry(&self, column: &str) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.instant(column)?.filter(|at| *at != INFINITY))
    }
}

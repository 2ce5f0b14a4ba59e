//! The rows of query results, with the same accessors for both databases.

use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{ColumnIndex, Decode, Postgres, Row as _, Type};
use uuid::Uuid;

use super::instant::{INFINITY, Micros};
use crate::clock::Timestamp;
use crate::store::StoreError;

/// A row of either database.
pub(in crate::store) enum SqlRow {
    /// A row of Postgres.
    Postgres(PgRow),
    /// A row of SQLite.
    Sqlite(SqliteRow),
}

/// A type that both databases have.
pub(in crate::store) trait Cell: for<'r> Decode<'r, Postgres> + Type<Postgres> {
    /// Reads the value from a row of SQLite.
    fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Self, sqlx::Error>;
}

impl Cell for Option<String> {
    fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Self, sqlx::Error> {
        sqlite_text(row, column)
    }
}

impl Cell for String {
    fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Self, sqlx::Error> {
        let null = || sqlx::Error::ColumnDecode {
            index: column.to_owned(),
            source: Box::new(sqlx::error::UnexpectedNullError),
        };
        sqlite_text(row, column)?.ok_or_else(null)
    }
}

/// Implements [`Cell`] for types that SQLite does not confuse with others.
macro_rules! cells {
    ($($kind:ty),*) => {
        $(impl Cell for $kind {
            fn of_sqlite(row: &SqliteRow, column: &str) -> Result<Self, sqlx::Error> {
                row.try_get(column)
            }
        })*
    };
}

cells!(bool, i64, Option<i64>);

/// Reads a text from a row of SQLite; `None` for NULL. Any column of SQLite may have a BLOB. It is read as the text that
/// it contains, and what is not UTF-8 in it as replacement characters, so that it does not prevent other rows from being
/// read.
pub(in crate::store) fn sqlite_text(
    row: &SqliteRow,
    column: impl ColumnIndex<SqliteRow>,
) -> Result<Option<String>, sqlx::Error> {
    let bytes = row.try_get_unchecked::<Option<Vec<u8>>, _>(column)?;
    let text = |bytes| {
        String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    };
    Ok(bytes.map(text))
}

impl SqlRow {
    /// Returns a value of a type that both databases have.
    pub(in crate::store) fn get<T: Cell>(&self, column: &str) -> Result<T, StoreError> {
        Ok(match self {
            Self::Postgres(row) => row.try_get(column)?,
            Self::Sqlite(row) => T::of_sqlite(row, column)?,
        })
    }

    /// Returns a UUID. [`StoreError::Inconsistent`] names `table` if the value is not a UUID.
    pub(in crate::store) fn id(&self, column: &str, table: &'static str) -> Result<Uuid, StoreError> {
        let text: String = match self {
            Self::Postgres(row) => return Ok(row.try_get(column)?),
            Self::Sqlite(row) => String::of_sqlite(row, column)?,
        };
        let why = format!("invalid {column}: expected a UUID");
        Uuid::parse_str(&text).map_err(|_| StoreError::Inconsistent { table, row: text, why })
    }

    /// Returns a UUID; `None` for NULL and for an invalid UUID.
    pub(in crate::store) fn maybe_id(&self, column: &str) -> Result<Option<Uuid>, StoreError> {
        Ok(match self {
            Self::Postgres(row) => row.try_get(column)?,
            Self::Sqlite(row) => sqlite_text(row, column)?.and_then(|id| Uuid::parse_str(&id).ok()),
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
            Self::Sqlite(row) => sqlite_text(row, column)?.as_deref().map(read),
        })
    }

    /// Returns whether an instant is set but cannot be read.
    pub(in crate::store) fn has_unreadable_instant(&self, column: &str) -> Result<bool, StoreError> {
        let unreadable = |text: String| text != "infinity" && Timestamp::parse(&text).is_none();
        Ok(match self {
            Self::Postgres(_) => false,
            Self::Sqlite(row) => sqlite_text(row, column)?.is_some_and(unreadable),
        })
    }

    /// Returns an expiry; `None` for NULL and `infinity`, which both mean never.
    pub(in crate::store) fn expiry(&self, column: &str) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.instant(column)?.filter(|at| *at != INFINITY))
    }
}

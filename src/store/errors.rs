//! Classifies the errors of both databases.
//!
//! Some are temporary (the database is down or busy), others permanent (it rejects the request). The text is one line
//! and never contains the address, which contains the password.

use std::fmt;

use sqlx::error::DatabaseError;
use sqlx::migrate::MigrateError;

use super::{CONNECT_TIMEOUT, StoreError};

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let error = match error {
            // An error of this program that was passed through the driver.
            sqlx::Error::Configuration(inner) => match inner.downcast::<Self>() {
                Ok(ours) => return *ours,
                Err(other) => sqlx::Error::Configuration(other),
            },
            other => other,
        };
        match error.as_database_error() {
            // The driver's text contains a character of the password.
            None if error.to_string().contains("saslprep password") => Self::Credentials(
                "the password contains a character that SCRAM does not allow (RFC 4013), give the role another one"
                    .into(),
            ),
            None if is_unreadable(&error) => {
                Self::Refused(format!("a column has an unexpected type: {}", first_line(&error)))
            }
            None => Self::Unavailable(unanswered(&error)),
            Some(said) if said.code().is_some_and(|code| code.starts_with("28")) => {
                Self::Credentials(first_line(&said.message()))
            }
            Some(said) if is_locked(said) => Self::Locked(first_line(&said.message())),
            Some(said) if said.is_unique_violation() => Self::Conflict(first_line(&said.message())),
            Some(said) if is_of_a_pooler(said) => Self::pooler(),
            Some(said) if passes(said) => Self::Unavailable(first_line(&said.message())),
            Some(said) => Self::Refused(first_line(&said.message())),
        }
    }
}

impl From<MigrateError> for StoreError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) => error.into(),
            MigrateError::ExecuteMigration(error, version) => match error.into() {
                // These do not depend on the migration, and have exit codes of their own.
                passing @ (Self::Unavailable(_)
                | Self::Locked(_)
                | Self::Credentials(_)
                | Self::WrongDatabase(_)) => passing,
                other => Self::Refused(format!("migration {version}: {other}")),
            },
            other => Self::Refused(first_line(&other)),
        }
    }
}

impl StoreError {
    /// Returns the error for a connection that changes backends.
    pub(super) fn pooler() -> Self {
        Self::WrongDatabase(POOLER.into())
    }

    /// Returns whether it is [`Self::pooler`].
    pub(super) fn is_pooler(&self) -> bool {
        matches!(self, Self::WrongDatabase(why) if why == POOLER)
    }
}

const POOLER: &str = "the connection moved to another backend: connect to the database itself, or to a pooler in session \
                      mode, not to a pooler in transaction mode";

/// Returns whether a column has another type than expected. A retry would fail again.
fn is_unreadable(error: &sqlx::Error) -> bool {
    use sqlx::Error::{ColumnDecode, ColumnIndexOutOfBounds, ColumnNotFound, Decode, TypeNotFound};
    matches!(
        error,
        ColumnDecode { .. }
            | ColumnIndexOutOfBounds { .. }
            | ColumnNotFound(_)
            | Decode(_)
            | TypeNotFound { .. }
    )
}

/// Returns whether another session holds a lock: in Postgres, or on the SQLite file.
fn is_locked(error: &dyn DatabaseError) -> bool {
    let code = error.code().unwrap_or_default();
    code == "55P03" || (code.len() < 5 && code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6)))
}

/// Returns whether a prepared statement exists twice, or not at all. Occurs only behind a transaction pooler.
fn is_of_a_pooler(error: &dyn DatabaseError) -> bool {
    matches!(error.code().as_deref(), Some("42P05" | "26000"))
}

/// Returns whether a later retry may succeed.
fn passes(error: &dyn DatabaseError) -> bool {
    /// Classes of SQLSTATE: connection, wrong state, database, rollback, resources, operator, system,
    /// busy. <https://www.postgresql.org/docs/current/errcodes-appendix.html>
    const SQLSTATE: [&str; 8] = ["08", "25", "3D", "40", "53", "55", "57", "58"];
    /// Busy, locked, read-only, I/O, corrupt, full, cannot open, not a database. <https://sqlite.org/rescode.html>
    const SQLITE: [u32; 8] = [5, 6, 8, 10, 11, 13, 14, 26];
    let code = error.code().unwrap_or_default();
    match code.parse::<u32>() {
        Ok(code_of_sqlite) if code.len() < 5 => SQLITE.contains(&(code_of_sqlite & 0xff)),
        _ => code.get(..2).is_some_and(|class| SQLSTATE.contains(&class)),
    }
}

fn unanswered(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::PoolTimedOut => format!("no connection within {CONNECT_TIMEOUT:?}"),
        sqlx::Error::Io(error) => first_line(error),
        other => first_line(other),
    }
}

fn first_line(text: &impl fmt::Display) -> String {
    text.to_string().lines().next().unwrap_or_default().to_owned()
}

//! What does it mean that the database said no?
//!
//! Sorts the errors of both databases into those that pass (the database is not
//! there, or busy) and those that stay (it refuses). The text is one line and never
//! holds the address, which holds the password.

use std::fmt;

use sqlx::error::DatabaseError;
use sqlx::migrate::MigrateError;

use super::{CONNECT_TIMEOUT, StoreError};

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error.as_database_error() {
            None => Self::Unavailable(unanswered(&error)),
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
                Self::Unavailable(why) => Self::Unavailable(why),
                other => Self::Refused(format!("migration {version}: {other}")),
            },
            other => Self::Refused(first_line(&other)),
        }
    }
}

impl StoreError {
    /// A connection that changes backends.
    pub(super) fn pooler() -> Self {
        Self::Impostor(
            "the connection moved to another backend: connect to the database itself, not to a pooler".into(),
        )
    }
}

/// Prepared statements that are there twice, or not at all: whoever has a backend to himself never sees that.
fn is_of_a_pooler(error: &dyn DatabaseError) -> bool {
    matches!(error.code().as_deref(), Some("42P05" | "26000"))
}

/// Whether trying again later may help.
fn passes(error: &dyn DatabaseError) -> bool {
    /// Classes of SQLSTATE: connection, authentication, database, rollback, resources, operator, system, busy,
    /// wrong state. <https://www.postgresql.org/docs/current/errcodes-appendix.html>
    const SQLSTATE: [&str; 9] = ["08", "25", "28", "3D", "40", "53", "55", "57", "58"];
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

//! Why a command does not complete, with its exit code.

use crate::admin::{AdminError, Issued};
use crate::config::Mistakes;
use crate::server::ServeError;
use crate::store::StoreError;

/// Why a command does not complete: its exit code, and the lines to print.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: u8,
    pub(super) lines: Vec<String>,
    /// Whether another session holds a lock. Then [`super::run`] adds the name of that session, if the database tells it.
    pub(super) locked: bool,
}

impl Failure {
    pub(super) fn refused(why: impl std::fmt::Display) -> Self {
        Self { code: 1, lines: vec![why.to_string()], locked: false }
    }

    pub(super) fn usage(why: impl std::fmt::Display) -> Self {
        Self { code: 2, lines: vec![why.to_string()], locked: false }
    }

    pub(super) fn unavailable(why: impl std::fmt::Display) -> Self {
        Self { code: 3, lines: vec![why.to_string()], locked: false }
    }

    /// The reader closed the pipe, which is not an error.
    pub(super) fn closed() -> Self {
        Self { code: 0, lines: Vec::new(), locked: false }
    }

    /// The result was printed, and it is negative: denied, not ready, or a bad finding.
    pub(super) fn denied() -> Self {
        Self { code: 1, lines: Vec::new(), locked: false }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(why) => Self::unavailable(format!("the database is unavailable: {why}")),
            StoreError::WrongDatabase(why) => Self::unavailable(why),
            StoreError::Credentials(why) => {
                Self::unavailable(format!("the database refuses the role or its password: {why}"))
            }
            StoreError::Locked(_) => Self {
                locked: true,
                ..Self::unavailable("gave up waiting for a lock that another session holds (--lock-timeout)")
            },
            StoreError::Shape(lines) => Self { code: 1, lines, locked: false },
            other => Self::refused(other),
        }
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::BadRequest(why) => Self::usage(why),
            AdminError::Missing(why)
            | AdminError::Refused(why)
            | AdminError::Excess(why)
            | AdminError::Unfit { why, .. } => Self::refused(why),
            AdminError::Stale => Self::refused(StoreError::Stale),
            AdminError::Ended => Self::refused(StoreError::KeyEnded),
            AdminError::Store(error) => error.into(),
        }
    }
}

impl From<Mistakes> for Failure {
    fn from(mistakes: Mistakes) -> Self {
        Self { code: 2, lines: mistakes.0.iter().map(ToString::to_string).collect(), locked: false }
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::Listen { .. } => Self::unavailable(error),
            ServeError::Start(_) => Self::refused(error),
            ServeError::Store(error) => error.into(),
        }
    }
}

/// If printing failed, tells the operator to revoke the lost key.
pub(super) fn unseen(mut failure: Failure, issued: &Issued) -> Failure {
    for line in &mut failure.lines {
        line.push_str("; the new key was not shown and is lost: run `tenantgate key revoke ");
        line.push_str(&issued.details.prefix);
        line.push('`');
    }
    failure
}

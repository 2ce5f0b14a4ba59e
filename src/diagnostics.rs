//! Findings: what a check examined, how severe the result is, and what to do.
//!
//! The adapters that know a thing (a database, Envoy) create findings about it. This module knows neither what is
//! checked nor how findings are shown.

/// The severity of a finding.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Level {
    /// Everything is in order.
    Ok,
    /// It works, but should be reviewed.
    Warn,
    /// It does not work, or is not safe.
    Bad,
}

impl Level {
    /// Returns the word in text and JSON output.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// The stable name of the check, such as `database.version`.
    pub check: &'static str,
    /// The severity.
    pub level: Level,
    /// The observation: a sentence without a full stop.
    pub what: String,
    /// The remedy; `None` if none is needed.
    pub remedy: Option<String>,
}

impl Finding {
    /// Creates a finding that needs no action.
    #[must_use]
    pub fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, what: what.into(), remedy: None }
    }

    /// Creates a finding that should be reviewed.
    #[must_use]
    pub fn warn(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, level: Level::Warn, what: what.into(), remedy: Some(remedy.into()) }
    }

    /// Creates a finding that must be corrected.
    #[must_use]
    pub fn bad(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, level: Level::Bad, what: what.into(), remedy: Some(remedy.into()) }
    }
}

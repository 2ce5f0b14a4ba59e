//! What was found when something was looked at?
//!
//! The words of an examination: what was looked at, how it is, and what to do.
//! Whoever speaks the foreign words of a thing (a database, Envoy) makes the
//! findings about it; nothing here knows who that is or how they are shown.

/// How good or bad it is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, and should be thought over.
    Warn,
    /// It does not work, or is not safe.
    Bad,
}

impl Level {
    /// As people and programs read it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// What was found of one thing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// What was looked at, `database.version`: the same word every time.
    pub check: &'static str,
    /// How it is.
    pub level: Level,
    /// What was seen, in a sentence without an end.
    pub what: String,
    /// What to do about it; nothing where nothing is to be done.
    pub remedy: Option<String>,
}

impl Finding {
    /// As it should be.
    #[must_use]
    pub fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, what: what.into(), remedy: None }
    }

    /// It works, and should be thought over.
    #[must_use]
    pub fn warn(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, level: Level::Warn, what: what.into(), remedy: Some(remedy.into()) }
    }

    /// It does not work, or is not safe.
    #[must_use]
    pub fn bad(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, level: Level::Bad, what: what.into(), remedy: Some(remedy.into()) }
    }
}

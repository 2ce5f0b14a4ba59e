//! The error for a database URL that cannot be used.
//!
//! No message contains the URL, because it contains the password.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

/// Why a database URL cannot be used. The message says what to write instead.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The file with the URL cannot be read.
    #[error("{} cannot be read: {error}", path.display())]
    UnreadableFile {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The file with the URL does not have exactly one line.
    #[error("{} {fault}: expected a database URL", path.display())]
    InvalidFile {
        /// The file.
        path: PathBuf,
        /// What it has instead.
        fault: &'static str,
    },
    /// The text does not have the form of a URL.
    #[error("invalid database URL: {0}")]
    Form(Cow<'static, str>),
    /// The user or the password contains a character that must be percent-encoded.
    #[error("the password (or user) contains a raw {raw:?}: percent-encode it, as {encoded}")]
    RawCharacter {
        /// The character.
        raw: char,
        /// Its percent-encoded form.
        encoded: &'static str,
    },
    /// A part has an invalid percent-encoding.
    #[error("{0} is not valid: write % as %25")]
    Encoding(String),
    /// A part is invalid.
    #[error("invalid {part}: {advice}")]
    Invalid {
        /// The part, such as a parameter.
        part: String,
        /// What is expected, or what to do instead.
        advice: Cow<'static, str>,
    },
    /// The URL uses a form that other clients accept and tenantgate does not, or contradicts another option.
    #[error("{0}")]
    Rejected(Cow<'static, str>),
    /// A variable of libpq has a value that would be rejected as a parameter.
    #[error("the variable {name}: {error}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// Why its value is rejected.
        error: Box<Self>,
    },
    /// A file that a parameter names cannot be read.
    #[error("{parameter} {file}: {error}")]
    ParameterFile {
        /// The parameter.
        parameter: &'static str,
        /// The file that it names.
        file: String,
        /// The error of the operating system.
        error: io::Error,
    },
}

impl AddressError {
    /// Creates the error for an invalid part.
    pub(super) fn invalid(part: impl Into<String>, advice: impl Into<Cow<'static, str>>) -> Self {
        Self::Invalid { part: part.into(), advice: advice.into() }
    }

    /// Creates the error for a form that is rejected. `message` says what to write instead.
    pub(crate) fn rejected(message: impl Into<Cow<'static, str>>) -> Self {
        Self::Rejected(message.into())
    }
}

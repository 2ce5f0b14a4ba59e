//! The errors for text that cannot be parsed.
//!
//! The message of [`Invalid`] is one sentence with three parts: what was parsed, the position of the first error, and
//! what is expected there. [`InvalidValue`] is for short values, in which a position does not help.

use std::borrow::Cow;
use std::fmt;

/// A parse error: what was parsed, the position of the first error, and what is expected there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Invalid {
    what: &'static str,
    at: usize,
    expected: Cow<'static, str>,
}

impl Invalid {
    /// Creates an error at `offset`, in bytes from 0. `what` names what was parsed, such as `"scope"`.
    #[must_use]
    pub fn new(what: &'static str, offset: usize, expected: impl Into<Cow<'static, str>>) -> Self {
        Self { what, at: offset + 1, expected: expected.into() }
    }

    /// Moves the position `offset` bytes to the right: for a part that was parsed out of a longer text.
    #[must_use]
    pub fn moved(mut self, offset: usize) -> Self {
        self.at += offset;
        self
    }

    /// Returns the position of the error, in bytes from 1.
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid {} at position {}: expected {}", self.what, self.at, self.expected)
    }
}

impl std::error::Error for Invalid {}

/// Why a row is damaged: one of its parts is invalid.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Damage<P> {
    /// The invalid part of the row, such as a column.
    pub part: P,
    /// Why it is invalid.
    pub error: Invalid,
}

impl<P> fmt::Display for Damage<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<P: fmt::Debug> std::error::Error for Damage<P> {}

/// An error for a value that is rejected as a whole. Its message is one sentence for the person who wrote the value:
/// why it is invalid, or what is expected instead.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InvalidValue(Cow<'static, str>);

impl fmt::Display for InvalidValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidValue {}

impl From<&'static str> for InvalidValue {
    fn from(message: &'static str) -> Self {
        Self(message.into())
    }
}

impl From<String> for InvalidValue {
    fn from(message: String) -> Self {
        Self(message.into())
    }
}

impl From<Invalid> for InvalidValue {
    fn from(error: Invalid) -> Self {
        error.to_string().into()
    }
}

impl From<InvalidValue> for String {
    fn from(error: InvalidValue) -> Self {
        error.0.into_owned()
    }
}

/// Splits `text` at spaces. Returns the words, each with its offset in bytes; skips empty ones.
pub(crate) fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let start = text.as_ptr().addr();
    text.split(' ').filter(|word| !word.is_empty()).map(move |word| (word.as_ptr().addr() - start, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_counts_the_position_from_1() {
        let error = Invalid::new("scope", 4, "a letter");
        assert_eq!(error.to_string(), "invalid scope at position 5: expected a letter");
        assert_eq!(error.moved(3).position(), 8);
    }

    #[test]
    fn words_are_returned_with_their_offsets() {
        assert_eq!(words("  a bc   d ").collect::<Vec<_>>(), [(2, "a"), (4, "bc"), (9, "d")]);
        assert_eq!(words("   ").count(), 0);
    }
}

//! Why a text that a person wrote cannot be read.
//!
//! One sentence with three parts: what the text was to be, where the first fault stands, and what is expected there.

use std::borrow::Cow;
use std::fmt;

/// A text that cannot be read, with the position of its first fault.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Invalid {
    what: &'static str,
    at: usize,
    expected: Cow<'static, str>,
}

impl Invalid {
    /// A fault at this offset, which is counted in bytes from 0.
    #[must_use]
    pub fn new(what: &'static str, offset: usize, expected: impl Into<Cow<'static, str>>) -> Self {
        Self { what, at: offset + 1, expected: expected.into() }
    }

    /// The same fault in a text that has `offset` bytes more in front.
    #[must_use]
    pub fn moved(mut self, offset: usize) -> Self {
        self.at += offset;
        self
    }

    /// The position of the fault, counted from 1 in bytes.
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

/// The words between the blanks of a text, each with its offset.
pub(crate) fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let start = text.as_ptr().addr();
    text.split(' ').filter(|word| !word.is_empty()).map(move |word| (word.as_ptr().addr() - start, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_sentence_with_a_position_that_people_count() {
        let error = Invalid::new("scope", 4, "a letter");
        assert_eq!(error.to_string(), "invalid scope at position 5: expected a letter");
        assert_eq!(error.moved(3).position(), 8);
    }

    #[test]
    fn words_have_their_offsets() {
        assert_eq!(words("  a bc   d ").collect::<Vec<_>>(), [(2, "a"), (4, "bc"), (9, "d")]);
        assert_eq!(words("   ").count(), 0);
    }
}

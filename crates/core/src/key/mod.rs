//! API keys: their id, and their text as a client presents it.
//!
//! ```text
//! llmk_acmecorp7Gk2mQ9x_4fN…32…kTz0Ab3dE
//! └──────── prefix ────┘ └──── secret ───┘
//!   public, may be logged    shown once, never stored
//! ```
//!
//! Presented, plain and hashed keys are different types, so that plain text cannot reach SQL or a log by mistake:
//! neither [`PresentedKey`] nor [`PlainKey`] implements `Display` or `Serialize`, and their `Debug` shows only the
//! prefix.
//!
//! These types say that a text has the grammar of a key, not that the key exists or is valid.

pub mod format;
pub mod prefix;

use std::fmt;

use uuid::Uuid;
use zeroize::Zeroizing;

/// The id of a key: `api_keys.id`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyId(pub Uuid);

/// A key with a valid grammar, borrowed from the request that carried it. Made by the parsers in [`format`](mod@format)
/// and by [`PlainKey::as_presented`].
#[derive(Clone, Copy)]
pub struct PresentedKey<'a> {
    text: &'a str,
    /// The offset of the `_` between prefix and secret.
    split: usize,
}

impl<'a> PresentedKey<'a> {
    /// Returns `llmk_<prefix>` or `llma_<prefix>`, as the database stores it.
    #[must_use]
    pub fn prefix(&self) -> &'a str {
        &self.text[..self.split]
    }

    /// Returns the whole key. Use it only to hash the key.
    #[must_use]
    pub fn expose(&self) -> &'a [u8] {
        self.text.as_bytes()
    }

    /// Returns the secret. Use it only to hash the key.
    #[must_use]
    pub fn expose_secret(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.split + 1..]
    }

    /// Returns an upper bound for the entropy of the secret in bits, from its length and the kinds of its characters.
    #[must_use]
    pub fn secret_bits(&self) -> f64 {
        format::secret_bits(self.text, self.split + 1)
    }

    /// Copies the key, so that it can outlive the request. The copy is wiped when dropped.
    #[must_use]
    pub fn to_plain(&self) -> PlainKey {
        PlainKey { text: Zeroizing::new(self.text.to_owned()), split: self.split }
    }
}

impl fmt::Debug for PresentedKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresentedKey").field("prefix", &self.prefix()).finish_non_exhaustive()
    }
}

/// A whole key that owns its text, and wipes it when dropped.
pub struct PlainKey {
    text: Zeroizing<String>,
    split: usize,
}

impl PlainKey {
    /// Returns `llmk_<prefix>` or `llma_<prefix>`.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.text[..self.split]
    }

    /// Borrows the key as if it had come with a request.
    #[must_use]
    pub fn as_presented(&self) -> PresentedKey<'_> {
        PresentedKey { text: &self.text, split: self.split }
    }

    /// Returns the whole key: to hash it, or to show it once to the person who created it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for PlainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainKey").field("prefix", &self.prefix()).finish_non_exhaustive()
    }
}

//! API keys: their identity, and a key as a client presents it.
//!
//! ```text
//! llmk_acmecorp7Gk2mQ9x_4fN…32…kTz0Ab3dE
//! └──────── prefix ────┘ └──── secret ───┘
//!   public, may be logged    shown once, never stored
//! ```
//!
//! Presented, issued and hashed keys are different types, so that a plaintext
//! cannot reach SQL or a log by mistake: neither [`PresentedKey`] nor
//! [`PlainKey`] implements `Display` or `Serialize`, and their `Debug` shows the
//! prefix alone.
//!
//! This module never knows where a key came from or whether it is any good.

pub mod format;
pub mod prefix;

use std::fmt;

use uuid::Uuid;
use zeroize::Zeroizing;

/// The identity of a key: `api_keys.id`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyId(pub Uuid);

/// A key that passed the grammar, borrowed from the request that carried it.
///
/// Produced by [`format::parse`] alone.
#[derive(Clone, Copy)]
pub struct PresentedKey<'a> {
    text: &'a str,
    /// Where the `_` between prefix and secret stands.
    split: usize,
}

impl<'a> PresentedKey<'a> {
    /// `llmk_<prefix>`, as `api_keys.key_prefix` stores it.
    #[must_use]
    pub fn prefix(&self) -> &'a str {
        &self.text[..self.split]
    }

    /// The whole key, for hashing only.
    #[must_use]
    pub fn expose(&self) -> &'a [u8] {
        self.text.as_bytes()
    }

    /// The secret alone, for hashing only.
    #[must_use]
    pub fn expose_secret(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.split + 1..]
    }

    /// The bits of randomness that the secret has at the very most: what its length and the kinds of
    /// characters in it leave room for. See [`format::secret_bits`].
    #[must_use]
    pub fn secret_bits(&self) -> f64 {
        format::secret_bits(self.text, self.split + 1)
    }

    /// A copy that outlives the request and wipes itself.
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

/// A whole key that owns its text and wipes it when dropped.
pub struct PlainKey {
    text: Zeroizing<String>,
    split: usize,
}

impl PlainKey {
    /// `llmk_<prefix>`.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.text[..self.split]
    }

    /// The key as if it had come with a request.
    #[must_use]
    pub fn as_presented(&self) -> PresentedKey<'_> {
        PresentedKey { text: &self.text, split: self.split }
    }

    /// The whole key: to hash it, or to show it once to the one who asked for it.
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

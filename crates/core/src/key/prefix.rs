//! The prefix of a key, stored without an allocation of its own.
//!
//! Prefixes of issued keys have at most 25 bytes and are stored in place. Longer ones of other programs, and invalid ones
//! of damaged rows, are allocated. The type does not tell whether a prefix is valid.

use std::fmt;
use std::ops::Deref;

/// `api_keys.key_prefix`: `llmk_<prefix>`, or what else stands there.
#[derive(Clone)]
pub struct Prefix(Kept);

#[derive(Clone)]
enum Kept {
    Here(u8, [u8; Prefix::ROOM]),
    Elsewhere(Box<str>),
}

impl Prefix {
    /// Bytes in place: with their number and the choice, four words.
    const ROOM: usize = 30;

    /// As bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Kept::Here(len, bytes) => &bytes[..usize::from(*len)],
            Kept::Elsewhere(text) => text.as_bytes(),
        }
    }
}

impl From<&str> for Prefix {
    fn from(text: &str) -> Self {
        let mut bytes = [0; Self::ROOM];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(room), Ok(len)) => {
                room.copy_from_slice(text.as_bytes());
                Self(Kept::Here(len, bytes))
            }
            _ => Self(Kept::Elsewhere(text.into())),
        }
    }
}

impl Deref for Prefix {
    type Target = str;

    fn deref(&self) -> &str {
        // It was made of a text.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl PartialEq for Prefix {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Prefix {}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_however_long() {
        assert_eq!(size_of::<Prefix>(), 32);
        for text in ["", "llmk_a", "llmk_é", &"p".repeat(30), &"p".repeat(31), &"é".repeat(200)] {
            let prefix = Prefix::from(text);
            assert_eq!((&*prefix, prefix.to_string().as_str()), (text, text));
            assert_eq!(prefix, prefix.clone());
        }
        assert_ne!(Prefix::from("llmk_a"), Prefix::from("llmk_b"));
        assert_eq!(format!("{:?}", Prefix::from("llmk_a")), "\"llmk_a\"");
    }

    #[test]
    fn only_long_ones_are_kept_elsewhere() {
        let here = |text: &str| matches!(Prefix::from(text).0, Kept::Here(..));
        assert!(here("") && here(&"p".repeat(30)) && !here(&"p".repeat(31)) && !here(&"p".repeat(300)));
    }
}

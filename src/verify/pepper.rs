//! Peppers: 32 random bytes that are kept outside of the database.
//!
//! A file has one pepper per line, as base64url. Blank lines and lines that begin with `#` are ignored:
//!
//! ```text
//! # since 2026-11: writes memos
//! 3q2-7wQz…
//! # until all keys were used once more: still accepted
//! Zm9vYmFy…
//! ```
//!
//! The first pepper writes memos, all are accepted. To replace one, put the new one at the top, distribute the file
//! to every server, and remove the old one when its memos are replaced. Losing a pepper costs one bcrypt per key and
//! nothing else.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use rand::TryRng;
use rand::rngs::{SysError, SysRng};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::invalid::InvalidValue;
use crate::record::PepperId;

const BYTES: usize = 32;
const ID_DOMAIN: &[u8] = b"llmk-pepper-id/v1\0";

/// The maximum number in a file: more are never in use at the same time.
const AT_MOST: usize = 16;

/// A pepper. It is wiped from memory when it is dropped.
#[derive(Clone)]
pub struct Pepper {
    id: PepperId,
    bytes: Arc<Zeroizing<[u8; BYTES]>>,
    /// An HMAC that is already keyed with the bytes, which saves half the work of each use.
    keyed: Hmac<Sha256>,
}

impl Pepper {
    /// Creates a pepper with randomness from the operating system.
    ///
    /// # Errors
    ///
    /// Fails if the operating system provides no randomness.
    pub fn random() -> Result<Self, SysError> {
        let mut bytes = Zeroizing::new([0; BYTES]);
        SysRng.try_fill_bytes(bytes.as_mut())?;
        Ok(Self::of(bytes))
    }

    fn of(bytes: Zeroizing<[u8; BYTES]>) -> Self {
        // Padded with zeros to a block of SHA-256, as HMAC does with a shorter key (RFC 2104 §2).
        let mut block = Zeroizing::new([0_u8; 64]);
        block[..BYTES].copy_from_slice(bytes.as_ref());
        let keyed: Hmac<Sha256> = Hmac::new((&*block).into());
        let mut id = keyed.clone();
        id.update(ID_DOMAIN);
        let id = id.finalize().into_bytes();
        Self { id: PepperId(std::array::from_fn(|at| id[at])), bytes: Arc::new(bytes), keyed }
    }

    /// Parses a file of peppers.
    ///
    /// # Errors
    ///
    /// Returns which line is invalid (its number, never its text), or that the number of peppers is, or that one
    /// occurs twice.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, InvalidValue> {
        let lines = text.lines().map(str::trim).enumerate();
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let peppers = lines.map(|(at, line)| Self::parse(line).ok_or(at + 1)).collect::<Result<Vec<_>, _>>();
        let peppers = peppers.map_err(|line| {
            format!("line {line} is not a valid pepper (32 bytes in base64url): create one with `tenantgate pepper new`")
        })?;
        let twice = |(at, pepper): (usize, &Self)| peppers[..at].iter().any(|other| other.id == pepper.id);
        match peppers.len() {
            0 => Err("contains no pepper: create one with `tenantgate pepper new`".into()),
            n if n > AT_MOST => {
                Err(format!("contains {n} peppers, at most {AT_MOST} are allowed: remove old ones").into())
            }
            _ if peppers.iter().enumerate().any(twice) => Err("contains the same pepper twice".into()),
            _ => Ok(peppers),
        }
    }

    /// Parses a line. Accepts the alphabets of base64 and base64url, with or without padding, because tools differ.
    fn parse(line: &str) -> Option<Self> {
        let plain = Zeroizing::new(line.trim_end_matches('=').replace('+', "-").replace('/', "_"));
        let decoded = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.decode(plain.as_bytes()).ok()?);
        let mut bytes = Zeroizing::new([0; BYTES]);
        (decoded.len() == BYTES).then(|| bytes.copy_from_slice(&decoded))?;
        Some(Self::of(bytes))
    }

    /// Returns the line for a file. Must be written only there.
    #[must_use]
    pub fn expose_line(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64_URL_SAFE_NO_PAD.encode(self.bytes.as_ref()))
    }

    /// Returns the id, from which the pepper cannot be derived.
    #[must_use]
    pub fn id(&self) -> PepperId {
        self.id
    }

    /// Starts an HMAC-SHA-256 with this pepper for one domain.
    #[must_use]
    pub fn mac(&self, domain: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.keyed.clone();
        mac.update(domain);
        mac
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pepper").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peppers_are_parsed_in_the_order_of_their_lines() {
        let (one, two) = (Pepper::random().unwrap(), Pepper::random().unwrap());
        let text = format!("# new\n{}\n\n  {}=\r\n", &*one.expose_line(), &*two.expose_line());
        let read = Pepper::parse_all(&text).unwrap();
        assert_eq!(read.iter().map(Pepper::id).collect::<Vec<_>>(), [one.id(), two.id()]);
    }

    #[test]
    fn an_error_names_the_line_and_does_not_repeat_it() {
        let good = Pepper::random().unwrap().expose_line();
        for (text, why) in [
            (String::new(), "no pepper"),
            ("# nothing".into(), "no pepper"),
            (format!("{}\nsecretsecret", &*good), "line 2"),
            (format!("{}AAAA", &*good), "line 1"),
            (format!("{0}\n{0}", &*good), "twice"),
        ] {
            let error = Pepper::parse_all(&text).unwrap_err().to_string();
            assert!(
                error.contains(why) && !error.contains("secretsecret") && !error.contains(good.as_str()),
                "{error}"
            );
        }
    }

    #[test]
    fn a_file_has_at_most_sixteen_peppers() {
        let lines: Vec<_> =
            (0..=AT_MOST).map(|_| Pepper::random().unwrap().expose_line().to_string()).collect();
        assert_eq!(Pepper::parse_all(&lines[..AT_MOST].join("\n")).unwrap().len(), 16);
        assert!(Pepper::parse_all(&lines.join("\n")).unwrap_err().to_string().contains("17 peppers"));
    }

    #[test]
    fn debug_shows_only_the_id() {
        let pepper = Pepper::random().unwrap();
        let shown = format!("{pepper:?}");
        assert!(shown.contains("PepperId") && !shown.contains("bytes"), "{shown}");
    }
}

//! What is a pepper, and how is it kept?
//!
//! 32 random bytes that are never in the database. A file has one in a line, as
//! base64url; blank lines and lines that begin with `#` are for people:
//!
//! ```text
//! # since 2026-11: writes
//! 3q2-7wQz…
//! # until all keys were used once more: is still understood
//! Zm9vYmFy…
//! ```
//!
//! The first one writes memos, all of them are understood. So a new one is put on top,
//! every server gets the new file, and the old one goes when its memos are replaced.
//! Losing a pepper costs one bcrypt a key and nothing else.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use rand::TryRng;
use rand::rngs::{SysError, SysRng};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::record::PepperId;

const BYTES: usize = 32;
const ID_DOMAIN: &[u8] = b"llmk-pepper-id/v1\0";

/// How many a file may have: more are never in use at the same time.
const AT_MOST: usize = 16;

/// A pepper. Wipes itself.
#[derive(Clone)]
pub struct Pepper {
    id: PepperId,
    bytes: Arc<Zeroizing<[u8; BYTES]>>,
    /// HMAC that has taken the bytes in: half the work of every one that is made with them.
    keyed: Hmac<Sha256>,
}

impl Pepper {
    /// A new one, with randomness from the operating system.
    ///
    /// # Errors
    ///
    /// The operating system has no randomness to give.
    pub fn random() -> Result<Self, SysError> {
        let mut bytes = Zeroizing::new([0; BYTES]);
        SysRng.try_fill_bytes(bytes.as_mut())?;
        Ok(Self::of(bytes))
    }

    fn of(bytes: Zeroizing<[u8; BYTES]>) -> Self {
        // Filled up with zeros to a block of SHA-256, as HMAC does with a shorter key (RFC 2104 §2).
        let mut block = Zeroizing::new([0_u8; 64]);
        block[..BYTES].copy_from_slice(bytes.as_ref());
        let keyed: Hmac<Sha256> = Hmac::new((&*block).into());
        let mut id = keyed.clone();
        id.update(ID_DOMAIN);
        let id = id.finalize().into_bytes();
        Self { id: PepperId(std::array::from_fn(|at| id[at])), bytes: Arc::new(bytes), keyed }
    }

    /// Reads a file of peppers.
    ///
    /// # Errors
    ///
    /// Which line is wrong, without repeating it.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, String> {
        let lines = text.lines().map(str::trim).enumerate();
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let peppers = lines.map(|(at, line)| Self::parse(line).ok_or(at + 1)).collect::<Result<Vec<_>, _>>();
        let peppers = peppers.map_err(|line| {
            format!("line {line} is no pepper (32 bytes in base64url): `tenantgate pepper new` makes one")
        })?;
        let twice = |(at, pepper): (usize, &Self)| peppers[..at].iter().any(|other| other.id == pepper.id);
        match peppers.len() {
            0 => Err("has no pepper in it: `tenantgate pepper new` makes one".into()),
            n if n > AT_MOST => Err(format!("has {n} peppers, more than {AT_MOST}: remove the old ones")),
            _ if peppers.iter().enumerate().any(twice) => Err("has the same pepper twice".into()),
            _ => Ok(peppers),
        }
    }

    /// The alphabets of base64 and base64url, with padding or without: people have their tools.
    fn parse(line: &str) -> Option<Self> {
        let plain = Zeroizing::new(line.trim_end_matches('=').replace('+', "-").replace('/', "_"));
        let decoded = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.decode(plain.as_bytes()).ok()?);
        let mut bytes = Zeroizing::new([0; BYTES]);
        (decoded.len() == BYTES).then(|| bytes.copy_from_slice(&decoded))?;
        Some(Self::of(bytes))
    }

    /// As a line of a file has it: to write it there, and nowhere else.
    #[must_use]
    pub fn expose_line(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64_URL_SAFE_NO_PAD.encode(self.bytes.as_ref()))
    }

    /// Its name, which tells nothing of it.
    #[must_use]
    pub fn id(&self) -> PepperId {
        self.id
    }

    /// HMAC-SHA-256 under this pepper, begun with a word for what it is about.
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
    fn a_file_is_read_as_it_is_written_in_the_order_of_its_lines() {
        let (one, two) = (Pepper::random().unwrap(), Pepper::random().unwrap());
        let text = format!("# new\n{}\n\n  {}=\r\n", &*one.expose_line(), &*two.expose_line());
        let read = Pepper::parse_all(&text).unwrap();
        assert_eq!(read.iter().map(Pepper::id).collect::<Vec<_>>(), [one.id(), two.id()]);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_and_not_repeated() {
        let good = Pepper::random().unwrap().expose_line();
        for (text, why) in [
            (String::new(), "no pepper"),
            ("# nothing".into(), "no pepper"),
            (format!("{}\nsecretsecret", &*good), "line 2"),
            (format!("{}AAAA", &*good), "line 1"),
            (format!("{0}\n{0}", &*good), "twice"),
        ] {
            let said = Pepper::parse_all(&text).unwrap_err();
            assert!(
                said.contains(why) && !said.contains("secretsecret") && !said.contains(good.as_str()),
                "{said}"
            );
        }
    }

    #[test]
    fn a_file_has_room_for_sixteen() {
        let lines: Vec<_> =
            (0..=AT_MOST).map(|_| Pepper::random().unwrap().expose_line().to_string()).collect();
        assert_eq!(Pepper::parse_all(&lines[..AT_MOST].join("\n")).unwrap().len(), 16);
        assert!(Pepper::parse_all(&lines.join("\n")).unwrap_err().contains("17 peppers"));
    }

    #[test]
    fn debug_shows_its_name_alone() {
        let pepper = Pepper::random().unwrap();
        let shown = format!("{pepper:?}");
        assert!(shown.contains("PepperId") && !shown.contains("bytes"), "{shown}");
    }
}

//! Random tokens that a browser keeps or a link contains: issued once, stored as SHA-256.
//!
//! A token has 256 random bits, so its hash cannot be inverted at any speed; see [`super::management`].

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRng;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::audit::hex;

/// Random bytes of a token.
const BYTES: usize = 32;

/// A new token. It has no `Debug`, so that no log can contain it.
pub struct RandomToken(Zeroizing<String>);

impl RandomToken {
    /// Issues a token.
    ///
    /// # Errors
    ///
    /// Returns the error of `rng`.
    pub fn issue_with<R: TryRng>(rng: &mut R) -> Result<Self, R::Error> {
        let mut bytes = Zeroizing::new([0_u8; BYTES]);
        rng.try_fill_bytes(bytes.as_mut())?;
        Ok(Self(Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_ref()))))
    }

    /// Returns the text for the browser.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns the value that the database stores for it.
    #[must_use]
    pub fn hash(&self) -> String {
        hash(&self.0)
    }
}

/// Returns the value that the database stores for a token with this text: SHA-256 in hexadecimal.
#[must_use]
pub fn hash(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn a_token_is_256_random_bits_and_fits_into_a_cookie_and_a_path() {
        let mut rng = SmallRng::seed_from_u64(7);
        let (one, other) =
            (RandomToken::issue_with(&mut rng).unwrap(), RandomToken::issue_with(&mut rng).unwrap());
        assert_ne!(one.expose(), other.expose());
        assert_eq!(URL_SAFE_NO_PAD.decode(one.expose()).unwrap().len(), BYTES);
        assert!(one.expose().bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
        assert_eq!(one.hash(), hash(one.expose()));
    }

    #[test]
    fn the_hash_is_sha_256() {
        // By `printf abc | sha256sum`.
        assert_eq!(hash("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}

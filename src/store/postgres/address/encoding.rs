//! Percent-encoding (RFC 3986 §2.1).

use std::fmt::Write as _;

use crate::store::AddressError;

/// Decodes a text. `part` names it in the error.
pub(super) fn decoded(part: &str, text: &str) -> Result<String, AddressError> {
    let invalid = || AddressError::Encoding(part.to_owned());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(invalid()) };
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| invalid())?);
    }
    let short = part.strip_prefix("the ").unwrap_or(part);
    let text = String::from_utf8(bytes).map_err(|_| {
        AddressError::invalid(short, "expected UTF-8 behind the percent-encoding, such as %C3%A9 for é")
    })?;
    if text.contains('\0') {
        return Err(AddressError::invalid(short, "Postgres allows no NUL (%00) in it"));
    }
    Ok(text)
}

pub(super) fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

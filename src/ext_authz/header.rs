//! The headers of responses to Envoy.

use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::wire::Message;

/// The response header with the id of the decision, which the client can report to the operator.
pub const DECISION_ID_HEADER: &str = "x-llmcore-decision-id";

/// Writes a header that replaces the client's. `append` is unset and `append_action` is explicit, because some
/// versions of Envoy read the one and some the other.
///
/// `headers` = 2 in both kinds of response. `HeaderValueOption`: header = 1, `append_action` = 3. `HeaderValue`:
/// key = 1, value = 2.
pub(super) fn header(response: &mut Message<'_>, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
    const OVERWRITE_IF_EXISTS_OR_ADD: u8 = 2;
    response.message(2, |option| {
        option.message(1, |header| {
            header.text(1, name);
            header.text_of(2, value);
        });
        option.number(3, OVERWRITE_IF_EXISTS_OR_ADD);
    });
}

pub(super) fn hyphenated(text: &mut Vec<u8>, id: Uuid) {
    text.extend_from_slice(id.hyphenated().encode_lower(&mut [0; Hyphenated::LENGTH]).as_bytes());
}

/// Appends `text` in a form that is valid in headers: `%` and all bytes outside 0x21–0x7E are percent-encoded (RFC
/// 3986 §2.1).
pub(super) fn percent_encoded(to: &mut Vec<u8>, text: &str) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            to.push(byte);
        } else {
            to.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 0xf)]]);
        }
    }
}

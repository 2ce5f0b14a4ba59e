//! Where does a message begin, and where does it end?
//!
//! gRPC's length-prefixed message: a byte that says whether it is compressed, four for
//! its length, and the message. What is in the message is not known here.

use bytes::{Buf as _, Bytes};
use tonic::Code;

use super::Refusal;

/// What stands before every message.
pub(super) const PREFIX: usize = 5;

/// A message on its way out. It is written behind its prefix from the start, so that nothing has to move.
#[derive(Debug)]
pub struct Frame(Vec<u8>);

impl Frame {
    /// A frame that `write` puts the message into, with room for so many bytes of it.
    #[must_use]
    pub fn of(room: usize, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = Vec::with_capacity(PREFIX + room);
        bytes.extend([0; PREFIX]);
        write(&mut bytes);
        Self(bytes)
    }

    /// The message alone.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        &self.0[PREFIX..]
    }

    /// Prefix and message.
    pub(super) fn into_bytes(mut self) -> Bytes {
        // A message of four gigabytes cannot be sent, and none that we make comes near.
        let len = u32::try_from(self.0.len() - PREFIX).unwrap_or(u32::MAX);
        self.0[1..PREFIX].copy_from_slice(&len.to_be_bytes());
        self.0.into()
    }
}

/// How long the message is that `prefix` announces.
pub(super) fn announced(prefix: &[u8], most: usize) -> Result<usize, Refusal> {
    let &[compressed, a, b, c, d] = prefix else { return Err(NO_MESSAGE) };
    let len = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    match compressed {
        0 if len <= most => Ok(len),
        0 => Err(Refusal { code: Code::ResourceExhausted, why: "the message is too long" }),
        1 => Err(Refusal { code: Code::Unimplemented, why: "no compression is understood here" }),
        _ => Err(Refusal { code: Code::Internal, why: "this is no message of gRPC" }),
    }
}

const NO_MESSAGE: Refusal = Refusal { code: Code::Internal, why: "the call has no message" };

/// The one message of a body that is all here.
pub(super) fn only_message(mut body: Bytes, most: usize) -> Result<Bytes, Refusal> {
    let len = announced(body.get(..PREFIX).ok_or(NO_MESSAGE)?, most)?;
    body.advance(PREFIX);
    match body.len() {
        rest if rest == len => Ok(body),
        rest if rest < len => Err(Refusal { code: Code::Internal, why: "the message is cut short" }),
        _ => Err(Refusal { code: Code::Internal, why: "the call takes one message" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let frame = Frame::of(8, |message| message.extend_from_slice(b"hello"));
        assert_eq!(frame.message(), b"hello");
        let bytes = frame.into_bytes();
        assert_eq!(bytes[..], *b"\0\0\0\0\x05hello");
        assert_eq!(only_message(bytes, 5).unwrap(), b"hello"[..]);
    }

    #[test]
    fn what_is_not_one_whole_message_is_refused() {
        for (body, code) in [
            (&b""[..], Code::Internal),
            (b"\0\0\0\0", Code::Internal),
            (b"\0\0\0\0\x02h", Code::Internal),
            (b"\0\0\0\0\x02hey", Code::Internal),
            (b"\0\0\0\0\x02he\0\0\0\0\0", Code::Internal),
            (b"\x02\0\0\0\x02he", Code::Internal),
            (b"\x01\0\0\0\x02he", Code::Unimplemented),
            (b"\0\0\0\0\x09123456789", Code::ResourceExhausted),
            (b"\0\xff\xff\xff\xff", Code::ResourceExhausted),
        ] {
            assert_eq!(only_message(Bytes::from_static(body), 8).unwrap_err().code, code, "{body:?}");
        }
        assert_eq!(only_message(Bytes::from_static(b"\0\0\0\0\0"), 8).unwrap(), b""[..]);
    }
}

//! Encodes and decodes gRPC's length-prefixed message: one byte for compression, four for the length, and the
//! message.
//!
//! Source: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

use bytes::{Buf as _, Bytes};

use super::CallFailure;

/// Bytes that precede every message.
pub(super) const PREFIX: usize = 5;

/// A message to be sent, in a buffer that starts with its prefix.
#[derive(Debug)]
pub struct Frame(Vec<u8>);

impl Frame {
    /// Creates a frame whose message `write` appends. Allocates `room` bytes for the message.
    #[must_use]
    pub fn of(room: usize, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = Vec::with_capacity(PREFIX + room);
        bytes.extend([0; PREFIX]);
        write(&mut bytes);
        Self(bytes)
    }

    /// Returns the message without its prefix.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        &self.0[PREFIX..]
    }

    /// Returns prefix and message.
    pub(super) fn into_bytes(mut self) -> Bytes {
        // The length always fits: responses are much smaller than 4 GiB.
        let len = u32::try_from(self.0.len() - PREFIX).unwrap_or(u32::MAX);
        self.0[1..PREFIX].copy_from_slice(&len.to_be_bytes());
        self.0.into()
    }
}

/// Returns the length of the message, from its prefix.
pub(super) fn announced(prefix: &[u8]) -> Result<usize, CallFailure> {
    let &[compressed, a, b, c, d] = prefix else { return Err(CallFailure::Incomplete) };
    match compressed {
        0 => Ok(usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX)),
        1 => Err(CallFailure::Compressed),
        _ => Err(CallFailure::InvalidFraming),
    }
}

/// Returns the message of a complete body, which must have exactly one.
pub(super) fn only_message(mut body: Bytes) -> Result<Bytes, CallFailure> {
    let len = announced(body.get(..PREFIX).ok_or(CallFailure::Incomplete)?)?;
    body.advance(PREFIX);
    match body.len() {
        rest if rest == len => Ok(body),
        rest if rest < len => Err(CallFailure::Incomplete),
        _ => Err(CallFailure::InvalidFraming),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_decoded_to_its_message() {
        let frame = Frame::of(8, |message| message.extend_from_slice(b"hello"));
        assert_eq!(frame.message(), b"hello");
        let bytes = frame.into_bytes();
        assert_eq!(bytes[..], *b"\0\0\0\0\x05hello");
        assert_eq!(only_message(bytes).unwrap(), b"hello"[..]);
    }

    #[test]
    fn a_body_that_is_not_one_whole_message_is_rejected() {
        use CallFailure::{Compressed, Incomplete, InvalidFraming};
        for (body, failure) in [
            (&b""[..], Incomplete),
            (b"\0\0\0\0", Incomplete),
            (b"\0\0\0\0\x02h", Incomplete),
            (b"\0\xff\xff\xff\xff", Incomplete),
            (b"\0\0\0\0\x02hey", InvalidFraming),
            (b"\0\0\0\0\x02he\0\0\0\0\0", InvalidFraming),
            (b"\x02\0\0\0\x02he", InvalidFraming),
            (b"\x01\0\0\0\x02he", Compressed),
        ] {
            assert_eq!(only_message(Bytes::from_static(body)).unwrap_err(), failure, "{body:?}");
        }
        assert_eq!(only_message(Bytes::from_static(b"\0\0\0\0\0")).unwrap(), b""[..]);
    }
}

//! Speaks HTTP/2 frame by frame over a plain socket, as no library would.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use super::PATIENCE;

/// The connection preface of a client (RFC 9113 §3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames (RFC 9113 §6).
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// A frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn new(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Self {
        Self { kind, flags, stream, payload: payload.to_vec() }
    }

    /// The headers of a Check, without `END_STREAM`.
    pub(crate) fn check(stream: u32) -> Self {
        let headers = [
            (":path", "/envoy.service.auth.v3.Authorization/Check"),
            (":authority", "tenantgate"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        // `:method: POST` and `:scheme: http` from the static table.
        Self::headers(stream, 0x4, &[0x83, 0x86], headers)
    }

    /// A HEADERS frame: fields of the static table in `indexed`, and others without Huffman coding or the
    /// dynamic table (RFC 7541).
    pub(crate) fn headers<'a>(
        stream: u32,
        flags: u8,
        indexed: &[u8],
        fields: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let mut block = indexed.to_vec();
        for (name, value) in fields {
            literal(&mut block, name.as_bytes(), value.as_bytes());
        }
        Self::new(kind::HEADERS, flags, stream, &block)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let len = u32::try_from(self.payload.len()).expect("short").to_be_bytes();
        [&len[1..], &[self.kind, self.flags], &self.stream.to_be_bytes(), &self.payload].concat()
    }
}

/// Appends a field by name and value, without Huffman coding or the dynamic table (RFC 7541 §6.2.2).
pub(crate) fn literal(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    block.push(0);
    for text in [name, value] {
        length(block, text.len());
        block.extend(text);
    }
}

/// The length of a string: an integer with a prefix of 7 bits (RFC 7541 §5.1).
fn length(block: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(0x7f) else {
        return block.push(u8::try_from(length).expect("below 127"));
    };
    block.push(0x7f);
    while rest >= 0x80 {
        block.push(u8::try_from(rest % 0x80).expect("7 bits") | 0x80);
        rest /= 0x80;
    }
    block.push(u8::try_from(rest).expect("7 bits"));
}

/// A header block of any size: one HEADERS frame, and CONTINUATION frames for the rest (RFC 9113 §6.10).
pub(crate) fn header_frames(stream: u32, end_stream: bool, block: &[u8], size: usize) -> Vec<u8> {
    let parts: Vec<&[u8]> = block.chunks(size.min(MAX_FRAME)).collect();
    let mut bytes = Vec::with_capacity(block.len() + 9 * parts.len());
    for (n, part) in parts.iter().enumerate() {
        let end_headers = if n + 1 == parts.len() { 0x4 } else { 0 };
        let frame = if n == 0 {
            Frame::new(kind::HEADERS, end_headers | u8::from(end_stream), stream, part)
        } else {
            Frame::new(kind::CONTINUATION, end_headers, stream, part)
        };
        bytes.extend(frame.bytes());
    }
    bytes
}

/// The largest payload that every peer accepts (RFC 9113 §4.2).
pub(crate) const MAX_FRAME: usize = 16_384;

/// A connection of frames.
pub(crate) struct Raw(TcpStream);

impl Raw {
    /// A connection without a preface.
    pub(crate) fn silent(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
        Self(stream)
    }

    /// A connection with a preface that fails soon if the server does not read.
    pub(crate) fn impatient(address: &str) -> Self {
        let raw = Self::to(address);
        raw.0.set_write_timeout(Some(std::time::Duration::from_millis(500))).expect("a socket");
        raw
    }

    /// A connection with a preface.
    pub(crate) fn to(address: &str) -> Self {
        let mut raw = Self::silent(address);
        raw.send(PREFACE).expect("sent");
        raw.send(&Frame::new(kind::SETTINGS, 0, 0, &[]).bytes()).expect("sent");
        raw
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Returns the next frame; `None` if the connection has ended.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Returns the first settings of the server, by identifier.
    pub(crate) fn settings(&mut self) -> std::collections::BTreeMap<u16, u32> {
        let first = self.next().expect("settings come first");
        assert_eq!((first.kind, first.flags), (kind::SETTINGS, 0), "{first:?}");
        let pair = |six: &[u8]| {
            (u16::from_be_bytes([six[0], six[1]]), u32::from_be_bytes([six[2], six[3], six[4], six[5]]))
        };
        first.payload.chunks(6).map(pair).collect()
    }

    /// Returns why the server ends the connection: the error code of its GOAWAY (RFC 9113 §7), or `None`.
    pub(crate) fn goodbye(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.next() {
            if frame.kind == kind::GOAWAY {
                code = Some(u32::from_be_bytes(frame.payload[4..8].try_into().expect("four bytes")));
            }
        }
        code
    }
}

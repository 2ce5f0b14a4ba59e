//! Encodes protobuf messages without generated code.
//!
//! Implements the part of protobuf that responses need, and writes the same bytes as the generated encoder. All
//! messages are written into one buffer, which is the only allocation. This module does not know the meaning of the
//! fields.
//!
//! Source: <https://protobuf.dev/programming-guides/encoding/>

/// A message that is being written to the end of a buffer.
#[derive(Debug)]
pub(super) struct Message<'b>(pub(super) &'b mut Vec<u8>);

impl Message<'_> {
    /// Writes a number below 128. Omits zero, as proto3 does.
    pub(super) fn number(&mut self, field: u8, value: u8) {
        debug_assert!(value < 0x80, "one byte of varint");
        if value != 0 {
            self.0.extend([field << 3, value]);
        }
    }

    /// Writes a number below 2^14, which takes at most two bytes as a varint. Omits zero.
    pub(super) fn short(&mut self, field: u8, value: u16) {
        if value < 0x80 {
            self.number(field, value.to_le_bytes()[0]);
        } else {
            let [low, _] = value.to_le_bytes();
            let [high, _] = (value >> 7).to_le_bytes();
            self.0.extend([field << 3, low | 0x80, high & 0x7f]);
        }
    }

    /// Writes a `double`, also if it is zero.
    pub(super) fn double(&mut self, field: u8, value: f64) {
        self.0.push(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    /// Writes a text. Omits an empty one.
    pub(super) fn text(&mut self, field: u8, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    /// Writes bytes. Omits an empty slice.
    pub(super) fn bytes(&mut self, field: u8, value: &[u8]) {
        if !value.is_empty() {
            self.within(field, |message| message.0.extend_from_slice(value));
        }
    }

    /// Writes a text that `write` appends to the buffer.
    pub(super) fn text_of(&mut self, field: u8, write: impl FnOnce(&mut Vec<u8>)) {
        self.within(field, |message| write(message.0));
    }

    /// Appends fields that are already encoded.
    pub(super) fn fields(&mut self, written: &[u8]) {
        self.0.extend_from_slice(written);
    }

    /// Writes an embedded message.
    pub(super) fn message(&mut self, field: u8, write: impl FnOnce(&mut Self)) {
        self.within(field, write);
    }

    /// Writes a length-delimited field. The length comes first but is known only afterwards, so one byte is reserved
    /// for it, which is nearly always enough.
    fn within(&mut self, field: u8, write: impl FnOnce(&mut Self)) {
        self.0.extend([field << 3 | 2, 0]);
        let from = self.0.len();
        write(self);
        let mut rest = self.0.len() - from;
        if rest < 0x80 {
            self.0[from - 1] = rest.to_le_bytes()[0];
            return;
        }
        let mut length = [0_u8; 10];
        let mut bytes = 0;
        while rest > 0 {
            length[bytes] = rest.to_le_bytes()[0] & 0x7f | u8::from(rest >= 0x80) << 7;
            rest >>= 7;
            bytes += 1;
        }
        // Moves the content to make room for a longer length.
        let end = self.0.len();
        self.0.resize(end + bytes - 1, 0);
        self.0.copy_within(from..end, from + bytes - 1);
        self.0[from - 1..from - 1 + bytes].copy_from_slice(&length[..bytes]);
    }
}

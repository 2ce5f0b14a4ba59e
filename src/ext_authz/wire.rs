//! Encodes protobuf messages by hand.
//!
//! The half of protobuf that answers need: fields in one buffer, messages within
//! messages, nothing allocated but the buffer. What comes out is what the generated
//! encoder would write. What the fields mean is not known here.
//! <https://protobuf.dev/programming-guides/encoding/>

/// A message that is being written.
#[derive(Debug)]
pub(super) struct Message<'b>(pub(super) &'b mut Vec<u8>);

impl Message<'_> {
    /// A number. Zero is not written, as everywhere in proto3.
    pub(super) fn number(&mut self, field: u8, value: u8) {
        debug_assert!(value < 0x80, "one byte of varint");
        if value != 0 {
            self.0.extend([field << 3, value]);
        }
    }

    /// A number of up to two bytes of varint.
    pub(super) fn short(&mut self, field: u8, value: u16) {
        if value < 0x80 {
            self.number(field, value.to_le_bytes()[0]);
        } else {
            let [low, _] = value.to_le_bytes();
            let [high, _] = (value >> 7).to_le_bytes();
            self.0.extend([field << 3, low | 0x80, high & 0x7f]);
        }
    }

    /// A number of 64 bits in floating point, which is written where it is zero, too.
    pub(super) fn double(&mut self, field: u8, value: f64) {
        self.0.push(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    /// Text. An empty one is not written.
    pub(super) fn text(&mut self, field: u8, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    /// Bytes. None are not written.
    pub(super) fn bytes(&mut self, field: u8, value: &[u8]) {
        if !value.is_empty() {
            self.within(field, |message| message.0.extend_from_slice(value));
        }
    }

    /// Text that is put together as it is written.
    pub(super) fn text_of(&mut self, field: u8, write: impl FnOnce(&mut Vec<u8>)) {
        self.within(field, |message| write(message.0));
    }

    /// Fields that were written before.
    pub(super) fn fields(&mut self, written: &[u8]) {
        self.0.extend_from_slice(written);
    }

    /// A message within this one.
    pub(super) fn message(&mut self, field: u8, write: impl FnOnce(&mut Self)) {
        self.within(field, write);
    }

    /// Its length stands before what is written, and is known only after: nearly always it takes one byte.
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
        // Moves what was written up by what the length takes more than one byte.
        let end = self.0.len();
        self.0.resize(end + bytes - 1, 0);
        self.0.copy_within(from..end, from + bytes - 1);
        self.0[from - 1..from - 1 + bytes].copy_from_slice(&length[..bytes]);
    }
}

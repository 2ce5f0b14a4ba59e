//! Measures header blocks that are still arriving.
//!
//! `h2` buffers a header block (RFC 9113 §4.3) until its last CONTINUATION frame arrives, and does not expose its
//! size. The scanner follows the frames in the bytes from the peer, so that this memory can be accounted for. It also
//! counts `RST_STREAM` frames, which `h2` does not report for streams that were answered. It reads only frame headers and
//! never fails: `h2` rejects invalid frames.

/// Bytes of the connection preface that a client sends first (RFC 9113 §3.4).
const PREFACE: usize = 24;

/// Bytes of a frame header (RFC 9113 §4.1).
const HEADER: usize = 9;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;

/// The position in the sequence of frames.
#[derive(Debug)]
pub(super) struct FrameScanner {
    /// Bytes to skip before the next frame header.
    skip: usize,
    header: [u8; HEADER],
    header_len: usize,
    unfinished: usize,
    resets: u64,
}

impl FrameScanner {
    /// Creates a scanner for a new connection.
    pub(super) fn new() -> Self {
        Self { skip: PREFACE, header: [0; HEADER], header_len: 0, unfinished: 0, resets: 0 }
    }

    /// Returns the bytes of the header block that is still arriving; 0 if there is none.
    pub(super) fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Returns the number of `RST_STREAM` frames since the last call.
    pub(super) fn take_resets(&mut self) -> u64 {
        std::mem::take(&mut self.resets)
    }

    /// Scans the next bytes from the peer.
    pub(super) fn scan(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = bytes.len().min(HEADER - self.header_len);
            self.header[self.header_len..][..taken].copy_from_slice(&bytes[..taken]);
            self.header_len += taken;
            bytes = &bytes[taken..];
            if self.header_len == HEADER {
                self.header_len = 0;
                self.frame();
            }
        }
    }

    fn frame(&mut self) {
        let [high, middle, low, kind, flags, ..] = self.header;
        self.skip = u32::from_be_bytes([0, high, middle, low]) as usize;
        if matches!(kind, HEADERS | CONTINUATION) {
            self.unfinished = if flags & END_HEADERS == 0 { self.unfinished + self.skip } else { 0 };
        } else if kind == RST_STREAM {
            self.resets += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, len: u16) -> Vec<u8> {
        let [high, low] = len.to_be_bytes();
        [&[0, high, low, kind, flags, 0, 0, 0, 1][..], &vec![0xff; usize::from(len)]].concat()
    }

    #[test]
    fn a_header_block_is_counted_from_its_first_frame_to_its_last() {
        let mut scanner = FrameScanner::new();
        scanner.scan(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        for (frame, expected) in [
            (frame(4, 0, 12), 0),
            (frame(HEADERS, END_HEADERS, 500), 0),
            (frame(0, 1, 1400), 0),
            (frame(HEADERS, 1, 500), 500),
            (frame(CONTINUATION, 0, 70), 570),
            (frame(CONTINUATION, 0, 0), 570),
            (frame(CONTINUATION, END_HEADERS, 9), 0),
            (frame(RST_STREAM, 0, 4), 0),
        ] {
            scanner.scan(&frame);
            assert_eq!(scanner.unfinished(), expected, "{:?}", &frame[..HEADER]);
        }
        assert_eq!((scanner.take_resets(), scanner.take_resets()), (1, 0));
    }

    proptest! {
        #[test]
        fn the_result_does_not_depend_on_the_chunks(
            frames in proptest::collection::vec((0_u8..12, 0_u8..8, 0_u16..40), 0..20),
            cut in 1_usize..60,
        ) {
            let frames = frames.iter().map(|&(kind, flags, len)| frame(kind, flags, len));
            let bytes = [vec![b' '; PREFACE], frames.collect::<Vec<_>>().concat()].concat();
            let (mut whole, mut pieces) = (FrameScanner::new(), FrameScanner::new());
            whole.scan(&bytes);
            bytes.chunks(cut).for_each(|piece| pieces.scan(piece));
            prop_assert_eq!(whole.unfinished(), pieces.unfinished());
            prop_assert_eq!(whole.take_resets(), pieces.take_resets());
        }
    }
}

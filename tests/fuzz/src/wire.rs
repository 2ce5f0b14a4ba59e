//! The part of HTTP/2 that is needed to start a call (RFC 9113).

/// The connection preface of a client.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Empty settings.
pub const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).expect("a short one").to_be_bytes();
    [&length[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The HEADERS of a Check. Literals without index or Huffman coding (RFC 7541 §6.2.2).
pub fn check_head(stream: u32) -> Vec<u8> {
    let path = "/envoy.service.auth.v3.Authorization/Check";
    let headers = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "tenantgate")];
    let others = [("content-type", "application/grpc"), ("te", "trailers")];
    let literal = |(name, value): (&str, &str)| {
        let text =
            |text: &str| [&[u8::try_from(text.len()).expect("a short one")][..], text.as_bytes()].concat();
        [&[0][..], &text(name), &text(value)].concat()
    };
    let block: Vec<u8> = headers.into_iter().chain(others).flat_map(literal).collect();
    frame(1, 4, stream, &block)
}

/// A complete call with this message: HEADERS, and DATA in frames of maximum size.
pub fn call(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a short one").to_be_bytes();
    let framed = [&[0][..], &length, message].concat();
    let last = framed.chunks(16_384).count() - 1;
    let data =
        framed.chunks(16_384).enumerate().flat_map(|(at, chunk)| frame(0, u8::from(at == last), 1, chunk));
    [PREFACE, &SETTINGS, &check_head(1)].concat().into_iter().chain(data).collect()
}

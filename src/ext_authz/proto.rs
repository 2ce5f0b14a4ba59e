//! The generated types of Envoy's messages.
//!
//! The client, the tests and reflection use them. The server encodes responses with `wire`, which costs less, and
//! decodes requests with `codec`, because a generated decoder rejects a whole message if one string is not UTF-8.
#![expect(
    missing_docs,
    unused_qualifications,
    clippy::pedantic,
    reason = "generated; the meaning is in proto/"
)]

tonic::include_proto!("envoy");

/// The descriptors of `proto/`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("descriptors");

//! Which messages does Envoy speak? The generated types, and nothing else.
//!
//! They describe the protocol as it is: the client, the tests and reflection use
//! them. The server writes answers with `wire`, which costs less, and reads requests
//! with `codec`, because a generated decoder refuses a whole
//! message for one string that is not UTF-8.
#![expect(
    missing_docs,
    unused_qualifications,
    clippy::pedantic,
    reason = "generated; the meaning is in proto/"
)]

tonic::include_proto!("envoy");

/// The descriptors of `proto/`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("descriptors");

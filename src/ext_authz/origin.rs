//! Where does a request come from?
//!
//! Asked only of requests that pass in shadow mode: the message is walked a second time
//! for that, so that no other request pays for it.

use super::codec::{Fields, Visitor, walk};
use crate::shadow::Origin;

struct UserAgent<'a>(&'a [u8]);

impl<'a> Visitor<'a> for UserAgent<'a> {
    fn header(&mut self, name: &'a [u8], value: &'a [u8]) {
        if name == b"user-agent" {
            self.0 = value;
        }
    }
}

/// What a `CheckRequest` says of its origin; nothing where it does not, or makes no sense.
pub(super) fn origin(message: &[u8]) -> Origin<'_> {
    let mut user_agent = UserAgent(&[]);
    let target = walk(message, &mut user_agent).unwrap_or_default();
    Origin { address: address(message), user_agent: user_agent.0, method: target.method, path: target.path }
}

/// CheckRequest.attributes = 1, AttributeContext.source = 1, Peer.address = 1, `Address.socket_address` = 1,
/// SocketAddress.address = 2.
fn address(message: &[u8]) -> &[u8] {
    [1, 1, 1, 1, 2].into_iter().try_fold(message, field).unwrap_or_default()
}

/// The last field of this number, as in the generated decoder where it is a scalar; Envoy writes each once.
fn field(message: &[u8], number: u32) -> Option<&[u8]> {
    let (mut fields, mut found) = (Fields(message), None);
    while let Some((field, value)) = fields.next().ok()? {
        if field == number {
            found = Some(value.bytes().ok()?);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::ext_authz::proto::envoy::service::auth::v3::CheckRequest;

    /// Requests as Envoy 1.40 sent them: the address is where the generated decoder finds it.
    #[test]
    fn the_origin_is_what_envoy_says() {
        for file in ["http1_basic", "http2_grpc", "tls_client_cert", "raw_headers_dup_nonutf8"] {
            let path = format!("{}/tests/it/fixtures/{file}.bin", env!("CARGO_MANIFEST_DIR"));
            let bytes = std::fs::read(path).unwrap();
            let origin = origin(&bytes);
            assert!(std::str::from_utf8(origin.address).unwrap().parse::<std::net::IpAddr>().is_ok());
            assert!(origin.path.starts_with(b"/") && !origin.method.is_empty(), "{origin:?}");
            assert!(CheckRequest::decode(bytes.as_slice()).is_ok());
        }
    }

    #[test]
    fn a_request_that_says_nothing_has_no_origin() {
        for message in [&[][..], &[0x0a, 0x00], &[0xff], b"not protobuf"] {
            let origin = origin(message);
            assert!(origin.address.is_empty() && origin.user_agent.is_empty() && origin.path.is_empty());
        }
    }
}

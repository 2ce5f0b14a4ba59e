//! What the queue of first proofs is fair between: clients, and the keys that they present.

use std::net::{IpAddr, Ipv6Addr};

use crate::key::KeyId;

/// The bits of an IPv6 address that identify a network of one customer. The other 64 are the customer's to choose, one
/// for each request if they like. <https://www.rfc-editor.org/rfc/rfc6177>
const CUSTOMER: u128 = !0 << 64;

/// Where requests of the same client come from: an IPv4 address, or an IPv6 network of 64 bits. Clients without an
/// address count as one.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ClientNetwork(Option<IpAddr>);

impl From<Option<IpAddr>> for ClientNetwork {
    fn from(address: Option<IpAddr>) -> Self {
        Self(address.map(|address| match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & CUSTOMER).into(),
            v4 @ IpAddr::V4(_) => v4,
        }))
    }
}

/// A key and the client that presents it with a secret.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Attempt {
    pub(super) client: ClientNetwork,
    pub(super) key: KeyId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_one_client_can_choose_are_one_network() {
        let network = |text: &str| ClientNetwork::from(Some(text.parse().unwrap()));
        assert_eq!(network("2001:db8:1:2::3"), network("2001:db8:1:2:ffff::9"));
        assert_ne!(network("2001:db8:1:2::3"), network("2001:db8:1:3::3"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
        assert_eq!(network("192.0.2.1"), network("::ffff:192.0.2.1"));
        assert_ne!(network("192.0.2.1"), ClientNetwork::default());
    }
}

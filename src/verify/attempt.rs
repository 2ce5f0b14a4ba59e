//! What the queue of first proofs is fair between: clients, and the keys that they present.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::key::KeyId;

/// The bits of an IPv6 address that identify a network. The other 64 are its owner's to choose, one address for each
/// request if they like. <https://www.rfc-editor.org/rfc/rfc4291#section-2.5.1>
const NETWORK: u128 = !0 << 64;

/// The bits of an IPv6 address that identify a site, which has up to 65,536 networks.
/// <https://www.rfc-editor.org/rfc/rfc6177>
const SITE: u128 = !0 << 80;

/// The bits of an IPv4 address that identify a site: addresses are rented in blocks of 256.
const SITE_OF_IPV4: u32 = !0 << 8;

/// The prefix of IPv4 addresses that were translated to IPv6, in the upper 96 bits.
/// <https://www.rfc-editor.org/rfc/rfc6052#section-2.1>
const TRANSLATED: u128 = 0x0064_ff9b << 96;

/// Where requests of the same client come from: an IPv4 address, or an IPv6 network of 64 bits. Clients without an
/// address count as one.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ClientNetwork {
    site: Site,
    network: Option<IpAddr>,
}

/// The neighbours of a client, who may be the same one: 256 IPv4 addresses, or an IPv6 network of 48 bits.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Site(Option<IpAddr>);

impl ClientNetwork {
    pub(super) fn site(self) -> Site {
        self.site
    }
}

impl From<Option<IpAddr>> for ClientNetwork {
    fn from(address: Option<IpAddr>) -> Self {
        let Some(address) = address.map(ipv4_if_possible) else { return Self::default() };
        let (site, network) = match address {
            IpAddr::V4(v4) => (Ipv4Addr::from_bits(v4.to_bits() & SITE_OF_IPV4).into(), v4.into()),
            IpAddr::V6(v6) => {
                let of = |bits: u128| IpAddr::from(Ipv6Addr::from_bits(v6.to_bits() & bits));
                (of(SITE), of(NETWORK))
            }
        };
        Self { site: Site(Some(site)), network: Some(network) }
    }
}

/// Returns the IPv4 address that an IPv6 address contains, if it does.
fn ipv4_if_possible(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if v6.to_bits() >> 32 == TRANSLATED >> 32 => {
            let [.., a, b, c, d] = v6.octets();
            Ipv4Addr::new(a, b, c, d).into()
        }
        canonical => canonical,
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

    fn network(text: &str) -> ClientNetwork {
        ClientNetwork::from(Some(text.parse().unwrap()))
    }

    #[test]
    fn addresses_that_one_client_can_choose_are_one_network() {
        assert_eq!(network("2001:db8:1:2::3"), network("2001:db8:1:2:ffff::9"));
        assert_ne!(network("2001:db8:1:2::3"), network("2001:db8:1:3::3"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
        assert_ne!(network("192.0.2.1"), ClientNetwork::default());
    }

    #[test]
    fn networks_that_one_client_may_have_are_one_site() {
        let site = |text: &str| network(text).site();
        assert_eq!(site("2001:db8:1:2::3"), site("2001:db8:1:fffe::9"));
        assert_ne!(site("2001:db8:1:2::3"), site("2001:db8:2:2::3"));
        assert_eq!(site("192.0.2.1"), site("192.0.2.254"));
        assert_ne!(site("192.0.2.1"), site("192.0.3.1"));
    }

    #[test]
    fn an_ipv4_address_inside_an_ipv6_address_is_the_same_client() {
        for text in ["::ffff:192.0.2.1", "64:ff9b::192.0.2.1"] {
            assert_eq!(network(text), network("192.0.2.1"), "{text}");
        }
        assert_ne!(network("64:ff9b::1:192.0.2.1"), network("192.0.2.1"));
        assert_ne!(network("64:ff9c::192.0.2.1"), network("192.0.2.1"));
    }
}

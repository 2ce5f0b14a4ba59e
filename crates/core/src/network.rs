//! The networks from which a key may be used.
//!
//! IPv4-mapped IPv6 addresses count as IPv4. An IPv6 network therefore never contains an IPv4 address, not even
//! `::/0`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::invalid::{Invalid, words};

/// The most networks of a key.
pub const MAX_NETWORKS: usize = 32;

const WHAT: &str = "list of networks";

/// A network: its base address and netmask.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Network {
    V4 { base: u32, mask: u32 },
    V6 { base: u128, mask: u128 },
}

impl Network {
    fn parse(text: &str) -> Result<Self, Invalid> {
        let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
        let written: IpAddr = address.parse().map_err(|_| {
            Invalid::new(WHAT, 0, "an address or CIDR, such as 192.0.2.0/24 or 2001:db8::/32")
        })?;
        let canonical = written.to_canonical();
        let Some(length) = length else { return Ok(Self::of(canonical, u32::MAX)) };
        let after = address.len() + 1;
        let most = if written.is_ipv4() { 32 } else { 128 };
        let plain = !length.is_empty() && length.len() <= 3 && length.bytes().all(|b| b.is_ascii_digit());
        let plain = plain && (length == "0" || !length.starts_with('0'));
        let length = Some(length).filter(|_| plain).and_then(|l| l.parse().ok()).filter(|l| *l <= most);
        let Some(length) = length else {
            return Err(Invalid::new(WHAT, after, format!("a prefix length from 0 to {most}")));
        };
        if written != canonical && length >= 96 {
            return Err(Invalid::new(WHAT, 0, format!("an IPv4 network, {canonical}/{}", length - 96)));
        }
        let network = Self::of(written, length);
        let base = network.base();
        if base != written {
            return Err(Invalid::new(
                WHAT,
                0,
                format!("{base}/{length}, or a longer prefix: host bits are set"),
            ));
        }
        Ok(network)
    }

    /// Returns the network of `address` with a prefix of `length` bits. Longer than the address means only this
    /// address.
    fn of(address: IpAddr, length: u32) -> Self {
        match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32_u32.saturating_sub(length)).unwrap_or(0);
                Self::V4 { base: address.to_bits() & mask, mask }
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length)).unwrap_or(0);
                Self::V6 { base: address.to_bits() & mask, mask }
            }
        }
    }

    fn base(self) -> IpAddr {
        match self {
            Self::V4 { base, .. } => Ipv4Addr::from_bits(base).into(),
            Self::V6 { base, .. } => Ipv6Addr::from_bits(base).into(),
        }
    }

    fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4 { base, mask }, IpAddr::V4(address)) => address.to_bits() & mask == base,
            (Self::V6 { base, mask }, IpAddr::V6(address)) => address.to_bits() & mask == base,
            _ => false,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = match self {
            Self::V4 { mask, .. } => mask.count_ones(),
            Self::V6 { mask, .. } => mask.count_ones(),
        };
        write!(f, "{}/{length}", self.base())
    }
}

/// A list of 1 to 32 distinct networks, in the order of the text.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Networks(Box<[Network]>);

impl Networks {
    /// Parses `api_keys.networks`: addresses and CIDRs with spaces between them. Skips repeated ones.
    ///
    /// # Errors
    ///
    /// Returns the first network that is invalid or has host bits set, the first one above 32, or that the list is
    /// empty.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let mut kept = Vec::new();
        for (at, word) in words(text) {
            let network = Network::parse(word).map_err(|error| error.moved(at))?;
            if kept.contains(&network) {
                continue;
            }
            if kept.len() == MAX_NETWORKS {
                return Err(Invalid::new(WHAT, at, "the end of a list of at most 32 networks"));
            }
            kept.push(network);
        }
        if kept.is_empty() {
            return Err(Invalid::new(WHAT, 0, "at least one network, such as 192.0.2.0/24"));
        }
        Ok(Self(kept.into()))
    }

    /// Returns whether one of the networks contains `address`.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(address))
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, network) in self.0.iter().enumerate() {
            write!(f, "{}{network}", if number > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn networks_are_parsed_and_repeated_ones_skipped() {
        for (text, shown) in [
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("  10.0.0.0/8   10.0.0.0/8 2001:DB8::/32 ", "10.0.0.0/8 2001:db8::/32"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
            ("0.0.0.0/0 ::/0", "0.0.0.0/0 ::/0"),
            ("::/80", "::/80"),
        ] {
            let networks = Networks::parse(text).unwrap();
            assert_eq!(networks.to_string(), shown);
            assert_eq!(Networks::parse(shown), Ok(networks));
        }
    }

    #[test]
    fn an_invalid_network_is_rejected_with_its_position_and_what_is_expected() {
        let many = (0..33).map(|n| format!("10.0.0.{:<3}", n + 100)).collect::<Vec<_>>().join(" ");
        for (text, at, expected) in [
            ("", 1, "at least one network"),
            ("  ", 1, "at least one network"),
            ("10.0.0.0/8 x", 12, "an address or CIDR"),
            ("10.0.0.0/8,10.1.0.0/16", 10, "a prefix length from 0 to 32"),
            ("192.0.2.1/24", 1, "192.0.2.0/24, or a longer prefix"),
            ("a:: 2001:db8::1/32", 5, "2001:db8::/32, or a longer"),
            ("10.0.0.0/33", 10, "from 0 to 32"),
            ("10.0.0.0/", 10, "from 0 to 32"),
            ("10.0.0.0/08", 10, "from 0 to 32"),
            ("10.0.0.0/+8", 10, "from 0 to 32"),
            ("10.0.0.0/-1", 10, "from 0 to 32"),
            ("::/129", 4, "from 0 to 128"),
            ("010.0.0.0/8", 1, "an address or CIDR"),
            ("10.0.0/8", 1, "an address or CIDR"),
            ("[::1]", 1, "an address or CIDR"),
            ("fe80::1%eth0", 1, "an address or CIDR"),
            ("10.0.0.1:80", 1, "an address or CIDR"),
            ("::ffff:10.0.0.0/104", 1, "an IPv4 network, 10.0.0.0/8"),
            ("::ffff:0:0/96", 1, "an IPv4 network, 0.0.0.0/0"),
            (&many, 32 * 11 + 1, "at most 32 networks"),
        ] {
            let error = Networks::parse(text).unwrap_err();
            assert_eq!(error.position(), at, "{text}: {error}");
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_network_contains_its_addresses_and_no_others() {
        for (networks, address, expected) in [
            ("192.0.2.0/24", "192.0.2.0", true),
            ("192.0.2.0/24", "192.0.2.255", true),
            ("192.0.2.0/24", "192.0.3.0", false),
            ("192.0.2.0/24", "::ffff:192.0.2.9", true),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.6", false),
            ("2001:db8::/32", "2001:db8:ffff::", true),
            ("2001:db8::/32", "2001:db9::", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "192.0.2.7", false),
            ("::/0", "::ffff:192.0.2.7", false),
            ("0.0.0.0/0", "192.0.2.7", true),
            ("0.0.0.0/0", "::1", false),
            ("10.0.0.0/8 192.0.2.0/24", "192.0.2.1", true),
        ] {
            let networks = Networks::parse(networks).unwrap();
            assert_eq!(networks.contains(address.parse().unwrap()), expected, "{networks} {address}");
        }
    }

    proptest! {
        #[test]
        fn a_network_contains_addresses_with_the_same_leading_bits(bits: u32, other: u32, length in 0_u32..=32) {
            let cut = |bits: u32| (u64::from(bits) >> (32 - length)) << (32 - length);
            let base = Ipv4Addr::from_bits(u32::try_from(cut(bits)).unwrap());
            let networks = Networks::parse(&format!("{base}/{length}")).unwrap();
            prop_assert!(networks.contains(Ipv4Addr::from_bits(bits).into()));
            let inside = networks.contains(Ipv4Addr::from_bits(other).into());
            prop_assert_eq!(inside, cut(bits) == cut(other));
            prop_assert_eq!(networks.to_string(), format!("{base}/{length}"));
        }

        #[test]
        fn no_text_causes_a_panic(text in "[0-9a-f:./ ]{0,40}") {
            if let Ok(read) = Networks::parse(&text) {
                prop_assert_eq!(Networks::parse(&read.to_string()), Ok(read));
            }
        }
    }
}

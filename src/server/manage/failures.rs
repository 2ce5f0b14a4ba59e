//! Counts wrong management keys by address.
//!
//! After ten in a minute, further wrong keys get 429 until the minute is over. A right key always passes, so that a
//! client cannot lock out others behind the same address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use crate::clock::Timestamp;

/// The number of wrong keys allowed in a minute.
const MAX_FAILURES_A_MINUTE: u32 = 10;

/// In microseconds.
const MINUTE: i64 = 60_000_000;

/// The maximum number of addresses in memory. All of an IPv6 /64 count as one, so filling it takes many networks.
const ADDRESSES: usize = 10_000;

/// Wrong keys by address.
#[derive(Debug, Default)]
pub(super) struct WrongKeys(Mutex<HashMap<IpAddr, Window>>);

/// The minute that began with a wrong key.
#[derive(Clone, Copy, Debug)]
struct Window {
    began: Timestamp,
    count: u32,
}

impl WrongKeys {
    /// Counts a wrong key. After too many, the error is the number of seconds until the minute is over.
    pub(super) fn count(&self, address: IpAddr, now: Timestamp) -> Result<(), u64> {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= ADDRESSES {
            windows.retain(|_, window| window.is_on(now));
            if windows.len() >= ADDRESSES {
                windows.clear();
            }
        }
        let window = windows.entry(network(address)).or_insert(Window { began: now, count: 0 });
        if !window.is_on(now) {
            *window = Window { began: now, count: 0 };
        }
        if window.count >= MAX_FAILURES_A_MINUTE {
            let left = window.began.0 + MINUTE - now.0;
            return Err(u64::try_from(left).unwrap_or(0).div_ceil(1_000_000).max(1));
        }
        window.count += 1;
        Ok(())
    }
}

impl Window {
    fn is_on(&self, now: Timestamp) -> bool {
        (0..MINUTE).contains(&(now.0 - self.began.0))
    }
}

/// Returns an IPv4 address, or the /64 of an IPv6 address, which usually belongs to one client.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * 1_000_000)
    }

    #[test]
    fn the_eleventh_wrong_key_in_a_minute_is_rejected() {
        let (wrong, here) = (WrongKeys::default(), "192.0.2.1".parse().unwrap());
        for second in 0..10 {
            assert_eq!(wrong.count(here, at(second)), Ok(()));
        }
        assert_eq!(wrong.count(here, at(10)), Err(50));
        assert_eq!(wrong.count(here, Timestamp(59_999_999)), Err(1));
        assert_eq!(wrong.count("192.0.2.2".parse().unwrap(), at(10)), Ok(()));
        assert_eq!(wrong.count(here, at(60)), Ok(()));
    }

    #[test]
    fn all_addresses_of_a_network_share_one_count() {
        let wrong = WrongKeys::default();
        for host in 0..10_u128 {
            let address = IpAddr::V6((0x2001_0db8_u128 << 96 | host).into());
            assert_eq!(wrong.count(address, at(0)), Ok(()));
        }
        assert_eq!(wrong.count("2001:db8::ffff".parse().unwrap(), at(0)), Err(60));
        assert_eq!(wrong.count("2001:db8:0:1::1".parse().unwrap(), at(0)), Ok(()));
    }

    #[test]
    fn a_clock_that_is_set_back_locks_no_client_out() {
        let (wrong, here) = (WrongKeys::default(), "192.0.2.1".parse().unwrap());
        for _ in 0..10 {
            assert_eq!(wrong.count(here, at(1_000)), Ok(()));
        }
        assert_eq!(wrong.count(here, at(0)), Ok(()));
    }

    #[test]
    fn memory_is_bounded() {
        let wrong = WrongKeys::default();
        for number in 0..=u32::try_from(ADDRESSES).unwrap() * 2 {
            let _ = wrong.count(IpAddr::V4(number.into()), at(0));
        }
        assert!(wrong.0.lock().unwrap().len() <= ADDRESSES);
    }
}

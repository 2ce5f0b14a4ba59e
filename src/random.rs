//! Random numbers that are not secret: identities, markers, and intervals that spread load.
//!
//! Secrets get their random numbers in `key` and `verify`, from a source that their callers pass in. Everything else
//! uses this module, so that its callers show what depends on chance.

use std::time::Duration;

use rand::Rng as _;
use uuid::Uuid;

/// Returns a new identity: a `UUIDv4` (RFC 9562 §5.4).
#[must_use]
pub fn new_id() -> Uuid {
    Uuid::new_v4()
}

/// Random bytes, as hard to guess as secrets are, from a generator of the thread: it takes no lock and no system call.
#[must_use]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

/// Returns a duration that differs from this one by up to a tenth, so that periods that begin together do not end
/// together.
#[must_use]
pub fn about(duration: Duration) -> Duration {
    duration.mul_f64(rand::random_range(0.9..1.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_differs_by_up_to_a_tenth() {
        let all: Vec<_> = (0..1_000).map(|_| about(Duration::from_secs(100))).collect();
        assert!(all.iter().all(|one| (90..=110).contains(&one.as_secs())), "{all:?}");
        assert!(all.iter().any(|one| one.as_secs() < 95) && all.iter().any(|one| one.as_secs() >= 105));
    }

    #[test]
    fn two_identities_and_two_draws_differ() {
        assert_ne!(new_id(), new_id());
        assert_ne!(bytes::<16>(), bytes::<16>());
    }
}

//! Counts connections, for operators.

use std::sync::Arc;

use super::{ConnectionFailure, Failures};
use crate::clock::Clock;
use crate::stats::Counter;

/// Counts of connections, for operators.
#[derive(Debug)]
pub struct ListenStats {
    /// Accepted.
    pub accepted: Counter,
    /// Closed at once because there was no room.
    pub no_room: Counter,
    /// Failed attempts to accept, for example without a file descriptor left.
    pub failed: Counter,
    /// Connections and calls that failed without a decision.
    pub failures: Arc<Failures>,
}

impl ListenStats {
    /// Creates counters at zero.
    #[must_use]
    pub fn new(clock: &Arc<dyn Clock>) -> Self {
        let failures = Arc::new(Failures::new(clock));
        Self {
            accepted: Counter::default(),
            no_room: Counter::default(),
            failed: Counter::default(),
            failures,
        }
    }

    /// Returns the number of connections whose peers were not admitted.
    #[must_use]
    pub fn turned_away(&self) -> u64 {
        let admitted = |failure: &ConnectionFailure| !failure.is_handshake();
        let all = ConnectionFailure::ALL.iter().zip(self.failures.connections());
        all.filter(|(failure, _)| !admitted(failure)).map(|(_, (_, count))| count).sum()
    }

    /// Returns the number of connections closed because the peer did not read its responses.
    #[must_use]
    pub fn not_taking(&self) -> u64 {
        let name = ConnectionFailure::ResponsesNotTaken.as_str();
        self.failures.connections().find(|(reason, _)| *reason == name).map_or(0, |(_, count)| count)
    }
}

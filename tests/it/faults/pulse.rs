//! Detects pauses of the machine, with a thread that only sleeps and records when it slept too long.
//!
//! A shared machine can pause for a second. Tests must not expect a server to act within such a pause.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use super::history::Span;

const BEAT: Duration = Duration::from_millis(20);

/// The minimum length of a pause.
const STALL: Duration = Duration::from_millis(200);

/// The measuring thread; it ends with this value.
pub(super) struct Pulse {
    stop: Sender<()>,
    thread: JoinHandle<Vec<Span>>,
}

impl Pulse {
    /// Starts the thread; instants count from `start`.
    pub(super) fn since(start: Instant) -> Self {
        let (stop, stopped) = channel();
        let thread = spawn(move || {
            let (mut stalls, mut begin) = (Vec::new(), start.elapsed());
            while stopped.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                let end = start.elapsed();
                stalls.extend(Some(Span { begin, end }).filter(|_| end.saturating_sub(begin) > BEAT + STALL));
                begin = end;
            }
            stalls
        });
        Self { stop, thread }
    }

    /// Returns the pauses.
    pub(super) fn stalls(self) -> Vec<Span> {
        drop(self.stop);
        self.thread.join().expect("it only sleeps")
    }
}

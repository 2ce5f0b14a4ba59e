//! Detects pauses of the machine, with threads that record when something that takes no time took too long.
//!
//! A shared machine can pause for a second. Tests must not expect a server to act within such a pause.
//!
//! One thread only sleeps. That tells about the processes of the test, and not about those of the database: Linux
//! shares the CPU between sessions first (`sched_autogroup`, sched(7)), each backend of Postgres is a session of its
//! own, and on a machine without free CPU a session was seen to get none for a second while the threads of the test had
//! all of it. So for each CPU there is also a backend, bound to it, that is asked for a constant.

use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use super::history::Span;
use crate::support::Database;
use crate::support::database::Session;

const BEAT: Duration = Duration::from_millis(20);

/// The minimum length of a pause.
const STALL: Duration = Duration::from_millis(200);

/// The measuring threads; each ends with the pauses that it saw.
pub(super) struct Pulse(Vec<(Sender<()>, JoinHandle<Vec<Span>>)>);

impl Pulse {
    /// Starts the threads; instants count from `start`.
    pub(super) fn since(start: Instant, database: &Database) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let backends = (0..cpus).map(|cpu| {
            let session = bound_to(cpu, database.session());
            beats(start, session, |session| session.run("SELECT 1").is_ok())
        });
        Self(std::iter::once(beats(start, (), |()| true)).chain(backends).collect())
    }

    /// Returns the pauses, in their order and without overlaps.
    pub(super) fn stalls(self) -> Vec<Span> {
        let stalls = self.0.into_iter().flat_map(|(stop, thread)| {
            drop(stop);
            thread.join().expect("it only waits")
        });
        united(stalls.collect())
    }
}

/// Starts a thread that waits for one beat, then for `work`. It ends early if that fails, because a fault may have ended
/// the session. Plays stop only backends of tenantgate, so a late answer here is the machine's.
fn beats<T: Send + 'static>(
    start: Instant,
    mut what: T,
    work: impl Fn(&mut T) -> bool + Send + 'static,
) -> (Sender<()>, JoinHandle<Vec<Span>>) {
    let (stop, stopped): (_, Receiver<()>) = channel();
    let thread = spawn(move || {
        let (mut stalls, mut begin) = (Vec::new(), start.elapsed());
        while stopped.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) && work(&mut what) {
            let end = start.elapsed();
            stalls.extend(Some(Span { begin, end }).filter(|_| end.saturating_sub(begin) > BEAT + STALL));
            begin = end;
        }
        stalls
    });
    (stop, thread)
}

/// Binds the backend of a session to a CPU. Without the permission it stays where it is.
fn bound_to(cpu: usize, mut session: Session) -> Session {
    let backend = session.texts("SELECT pg_backend_pid()::text").remove(0).expect("a process id");
    let _ = Command::new("taskset")
        .args(["--pid", "--cpu-list", &cpu.to_string(), &backend])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    session
}

fn united(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_by_key(|span| span.begin);
    spans.into_iter().fold(Vec::new(), |mut united: Vec<Span>, span| {
        match united.last_mut().filter(|last| span.begin <= last.end) {
            Some(last) => last.end = last.end.max(span.end),
            None => united.push(span),
        }
        united
    })
}

#[test]
fn pauses_that_overlap_count_once() {
    let span = |begin, end| Span { begin: Duration::from_millis(begin), end: Duration::from_millis(end) };
    let united = united(vec![span(500, 900), span(0, 300), span(200, 400), span(600, 700)]);
    let spans: Vec<_> = united.iter().map(|span| (span.begin.as_millis(), span.end.as_millis())).collect();
    assert_eq!(spans, [(0, 400), (500, 900)]);
}

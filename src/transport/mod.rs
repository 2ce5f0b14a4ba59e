//! The transport: gRPC over HTTP/2, below tonic.
//!
//! ```text
//! socket ─► connection ── the unary method ─► call ─► Unary::answer_now ─► three frames out
//!               │                               └─ not at once ─► a task ─► Unary::answer
//!               └──────── any other method ─► tower_bridge ─► a tower service (health, reflection)
//! ```
//!
//! The unary method (Envoy's Check) goes directly from `h2`'s stream to its response, without a task, a boxed future or
//! a layer in between. This module exists because of the cost: a Check takes 82,000 instructions with tonic's server
//! and 41,900 here (`benches/README.md`). It can be dropped once tonic or hyper answers a unary call at that cost.
//!
//! The peer is Envoy, and one connection carries the requests of thousands of unrelated clients. So nothing that a
//! client of Envoy does may close a connection, and everything that it can cause is answered with a response that
//! rejects the request: Envoy treats any other end of a call as a failure of the server, and allows the request under
//! `failure_mode_allow`. Limits bound the memory of each call ([`memory_budget`]). `--client-ca` and
//! `--unix-peer-uid` protect against peers that connect directly.
//!
//! Depends on: `h2`, and `tonic` for the other services. It does not know the content of messages.
//!
//! Source: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

mod buffered_io;
mod call;
mod connection;
mod deadline;
mod failure;
mod frame;
mod frame_scanner;
mod memory_budget;
mod stats;
mod task_waker;
mod tower_bridge;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::service::Routes;

pub use self::connection::serve;
use self::deadline::Lateness;
pub use self::failure::{CallFailure, ConnectionFailure, Failures, Unable};
pub use self::frame::Frame;
use self::memory_budget::MemoryBudget;
pub use self::stats::ListenStats;

/// A unary gRPC method: one message in, one message out.
pub trait Unary: Send + Sync + 'static {
    /// The path of the method: `/package.Service/Method`.
    const PATH: &'static str;

    /// Returns the response, or `None` if it must wait for something. `metadata` are the headers of the call.
    ///
    /// # Errors
    ///
    /// Returns that the message is invalid.
    fn answer_now(&self, message: &[u8], metadata: &HeaderMap) -> Option<Result<Frame, CallFailure>>;

    /// Returns the response at `deadline` at the latest, and why it is without a decision if the reason is what the
    /// call waited for. Also works for calls that need not wait.
    ///
    /// # Errors
    ///
    /// Returns that the message is invalid.
    fn answer(
        &self,
        message: Bytes,
        metadata: &HeaderMap,
        deadline: Instant,
    ) -> impl Future<Output = Result<(Frame, Option<Unable>), CallFailure>> + Send;

    /// Removes from a large message what [`Unary::answer`] does not need.
    fn compact(&self, message: Bytes) -> Bytes;

    /// Copies what [`Unary::answer`] needs of the headers of a call.
    fn compact_metadata(&self, metadata: &HeaderMap) -> HeaderMap;

    /// Returns the response to a call whose message was not processed: it rejects the request.
    fn unable(&self, why: Unable) -> Frame;
}

/// The services of a listener, with their limits and counters.
pub struct Services<U> {
    /// The unary method.
    pub unary: U,
    /// The services of all other methods.
    pub others: Routes,
    /// The limits of connections and calls.
    pub limits: Limits,
    /// Counts and logs calls and connections that failed without a decision.
    pub failures: Arc<Failures>,
    budget: Arc<MemoryBudget>,
    lateness: Lateness,
    /// Whether calls may no longer wait.
    ended: watch::Sender<bool>,
}

impl<U> Services<U> {
    /// Creates services that connections share.
    #[must_use]
    pub fn new(unary: U, others: Routes, limits: Limits, failures: Arc<Failures>) -> Arc<Self> {
        let budget = MemoryBudget::new(limits.pending);
        let (lateness, ended) = (Lateness::new(Instant::now()), watch::Sender::new(false));
        Arc::new(Self { unary, others: others.prepare(), limits, failures, budget, lateness, ended })
    }

    /// Answers all calls that wait, and those that would have to, with [`Unable::Stopping`], because their connections
    /// will be closed.
    pub(crate) fn end_waiting(&self) {
        self.ended.send_replace(true);
    }

    /// Completes after [`Self::end_waiting`].
    async fn waiting_ended(&self) {
        // Fails only without a sender, which is `self`.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }
}

/// The other end of a connection, for log lines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Peer {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A process on this machine, with its user id.
    Unix(u32),
    /// The operating system returned no address.
    Unknown,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(uid) => write!(f, "unix:uid={uid}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// The limits of connections and calls. A client of Envoy cannot cause a connection to be closed by any of these.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most bytes of a call's header list; a longer one is rejected ([`Unable::TooLarge`]). Envoy copies trace
    /// headers of its clients into its calls, so the default is above the largest `max_request_headers_kb`, 8192.
    pub header_list: u32,
    /// The most bytes of a message; a longer one is rejected ([`Unable::TooLarge`]).
    pub message: usize,
    /// The most bytes that are held for all pending calls: those that wait for the rest of their message, for a
    /// proof, or for the peer to read their response.
    pub pending: usize,
    /// The timeout of the TLS and HTTP/2 handshakes.
    pub handshake: Duration,
    /// The maximum duration of a call, which also applies without `grpc-timeout`.
    pub call: Duration,
    /// The interval of pings, and the timeout of their answers.
    pub keepalive: (Duration, Duration),
    /// The age (± 10 %) at which a connection is ended with GOAWAY, so that new replicas get their share of
    /// connections.
    pub age: Duration,
    /// How long calls in progress may continue after GOAWAY.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_list: 10 * 1024 * 1024,
            message: 16 * 1024 * 1024,
            pending: 256 * 1024 * 1024,
            handshake: Duration::from_secs(5),
            call: Duration::from_secs(10),
            keepalive: (Duration::from_secs(25), Duration::from_secs(10)),
            age: Duration::from_mins(30),
            grace: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests;

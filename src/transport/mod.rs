//! The transport: gRPC over HTTP/2, below tonic.
//!
//! ```text
//! socket ─► connection ── the unary method ─► call ─► Unary::answer_now ─► three frames out
//!               │                               └─ not at once ─► a task ─► Unary::answer
//!               └──────── any other method ─► tower_bridge ─► a tower service (health, reflection)
//! ```
//!
//! The one method that the server exists for goes straight from `h2`'s stream to its response: no task, no boxed
//! future and no layer in between. That is why this module exists at all: a check costs 82,000 instructions through
//! tonic's server and 41,900 here (`benches/README.md`). Once tonic or hyper answers a unary call at that cost, this
//! module can be dropped for them.
//!
//! The peer is Envoy, and one connection carries the requests of thousands of strangers. So no limit ends a connection
//! for what a client of Envoy does, and whatever such a client can cause is answered with a response that refuses the
//! request: Envoy takes every other end of a call for a failure of the server, and lets the request pass under
//! `failure_mode_allow`. Limits hold what memory needs, call by call ([`memory_budget`]); what protects against peers
//! that connect themselves is `--client-ca` and `--unix-peer-uid`.
//!
//! Depends on: `h2`, `tonic` for the other services. Does not know what is called and what is answered.
//!
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

mod buffered_io;
mod call;
mod connection;
mod failure;
mod frame;
mod frame_scanner;
mod memory_budget;
mod stats;
mod tower_bridge;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::Instant;
use tonic::service::Routes;

pub use self::connection::serve;
pub use self::failure::{CallFailure, ConnectionFailure, Failures, Unable};
pub use self::frame::Frame;
use self::memory_budget::MemoryBudget;
pub use self::stats::ListenStats;

/// A gRPC method that takes one message and returns one.
pub trait Unary: Send + Sync + 'static {
    /// `/package.Service/Method`.
    const PATH: &'static str;

    /// Returns the response, or `None` if it has to wait for something. `metadata` are the headers of the call.
    ///
    /// # Errors
    ///
    /// The message is invalid.
    fn answer_now(&self, message: &[u8], metadata: &HeaderMap) -> Option<Result<Frame, CallFailure>>;

    /// Returns the response, at `deadline` at the latest; also one that could be given at once.
    ///
    /// # Errors
    ///
    /// The message is invalid.
    fn answer(
        &self,
        message: Bytes,
        metadata: &HeaderMap,
        deadline: Instant,
    ) -> impl Future<Output = Result<Frame, CallFailure>> + Send;

    /// Removes from a large message what [`Unary::answer`] does not need.
    fn compact(&self, message: Bytes) -> Bytes;

    /// Copies what [`Unary::answer`] needs of the headers of a call.
    fn compact_metadata(&self, metadata: &HeaderMap) -> HeaderMap;

    /// Returns the response to a call whose message was not looked at. It refuses the request.
    fn unable(&self, why: Unable) -> Frame;
}

/// What is served on a connection.
pub struct Services<U> {
    /// The method that the server exists for.
    pub unary: U,
    /// All others.
    pub others: Routes,
    /// What a peer may take.
    pub limits: Limits,
    /// What failed without a decision.
    pub failures: Arc<Failures>,
    budget: Arc<MemoryBudget>,
}

impl<U> Services<U> {
    /// Services to be shared by connections.
    #[must_use]
    pub fn new(unary: U, others: Routes, limits: Limits, failures: Arc<Failures>) -> Arc<Self> {
        let budget = MemoryBudget::new(limits.pending);
        Arc::new(Self { unary, others: others.prepare(), limits, failures, budget })
    }
}

/// The other end of a connection, for log lines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Peer {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A process on this machine, by its user id.
    Unix(u32),
    /// The system did not tell.
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

/// What a peer may take. None of these closes a connection for what a client of Envoy does.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a call's header list; a longer one is refused ([`Unable::TooLarge`]). Envoy copies trace headers of
    /// its clients into its calls, so the default is above the largest `max_request_headers_kb`, 8192.
    pub header_list: u32,
    /// Bytes of a message; a longer one is refused ([`Unable::TooLarge`]).
    pub message: usize,
    /// Bytes that may be held for all calls that wait: for the rest of their message, for a proof, or for their
    /// response to be taken.
    pub pending: usize,
    /// How long a peer may take to finish the handshakes of TLS and HTTP/2.
    pub handshake: Duration,
    /// The longest that a call may take, and the time for a call without `grpc-timeout`.
    pub call: Duration,
    /// How often a peer is pinged, and how long it may take to answer.
    pub keepalive: (Duration, Duration),
    /// The age, up to a tenth more or less, at which a connection is ended by GOAWAY, so that a new replica gets its
    /// share of connections.
    pub age: Duration,
    /// How long calls under way may go on after that.
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

//! How does a gRPC call come in over HTTP/2, and how does its answer go out?
//!
//! ```text
//! socket ─► connection ── the one call we live for ─► call ─► Unary::answer_now ─► three frames out
//!               │                                       └─ not at once ─► a task ─► Unary::answer
//!               └──────── any other call ─► bridge ─► a tower service (health, reflection)
//! ```
//!
//! The one call goes straight from `h2`'s stream to its answer: no task, no boxed future and no layer in
//! between. A server's framework costs twice what the whole check does (see `benches/README.md`). Everything
//! else is rare, and goes the usual way. Answers leave when there is nothing more to take up ([`held`]), and what
//! has to wait is counted ([`room`]).
//!
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
//!
//! What is called and what is answered is not known here.

mod bridge;
mod call;
mod connection;
mod frame;
mod held;
mod room;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tonic::Code;
use tonic::service::Routes;

pub use self::connection::{Parting, serve};
pub use self::frame::Frame;
use self::room::Room;
use crate::trace::Parent;

/// A call that takes one message and gives one.
pub trait Unary: Send + Sync + 'static {
    /// `/package.Service/Method`.
    const PATH: &'static str;

    /// Whether to look for the trace that a call is part of.
    fn traces(&self) -> bool {
        false
    }

    /// The answer, if it can be given at once. Awaits nothing.
    fn answer_now(&self, message: &[u8], parent: Option<Parent>) -> Option<Outcome>;

    /// The answer, waited for until `deadline`. Also gives answers that could be given at once.
    fn answer(
        &self,
        message: Bytes,
        deadline: Instant,
        parent: Option<Parent>,
    ) -> impl Future<Output = Outcome> + Send;

    /// What is said when answering went wrong in a way that nobody thought of.
    fn broken(&self) -> Frame;

    /// What is said when a call would have to wait and there is no room to.
    fn overloaded(&self) -> Frame;
}

/// What came of a call: an answer, or the status it fails with.
pub type Outcome = Result<Frame, Refusal>;

/// A call that failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The status.
    pub code: Code,
    /// Why, in ASCII and without `%`.
    pub why: &'static str,
}

/// What is served on a connection.
pub struct Services<U> {
    /// The call we live for.
    pub unary: U,
    /// All others.
    pub others: Routes,
    /// What a peer may take.
    pub limits: Limits,
    room: Arc<Room>,
}

impl<U> Services<U> {
    /// Ready to be shared by connections.
    #[must_use]
    pub fn new(unary: U, others: Routes, limits: Limits) -> Arc<Self> {
        Arc::new(Self { unary, others: others.prepare(), limits, room: Room::of(limits.pending) })
    }
}

/// What a peer may take of us. Every one of them is there because somebody once took more.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Calls at the same time on one connection (`SETTINGS_MAX_CONCURRENT_STREAMS`). Envoy opens another
    /// connection beyond it.
    pub streams: u32,
    /// Streams that we reset for the peer's errors before the connection is closed (RUSTSEC-2024-0003).
    pub error_resets: usize,
    /// Streams that the peer reset before we took them up (CVE-2023-44487, rapid reset).
    pub pending_resets: usize,
    /// Bytes of a call's header list (`SETTINGS_MAX_HEADER_LIST_SIZE`); what Envoy tells of the request is in
    /// the message.
    pub header_list: u32,
    /// Bytes of a message.
    pub message: usize,
    /// Bytes that all calls may take together that wait: for the rest of their message, for their answer, or for
    /// their caller to take it (CVE-2019-9517).
    pub pending: usize,
    /// How long a peer may take to say that it speaks HTTP/2, TLS included.
    pub handshake: Duration,
    /// How long a call may take whose caller sets no limit, and the longest that any may.
    pub call: Duration,
    /// How often a peer is asked whether it is still there, and how long it may take to answer. One that is
    /// gone without a word is found after both.
    pub keepalive: (Duration, Duration),
    /// How old a connection gets, a tenth more or less, before it is told to make another one: so that a
    /// new replica gets its share.
    pub age: Duration,
    /// How long calls that are under way may go on after that.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 1_024,
            error_resets: 256,
            pending_resets: 32,
            header_list: 8 * 1024,
            message: 1024 * 1024,
            pending: 64 * 1024 * 1024,
            handshake: Duration::from_secs(5),
            call: Duration::from_secs(10),
            keepalive: (Duration::from_secs(25), Duration::from_secs(10)),
            age: Duration::from_mins(30),
            grace: Duration::from_secs(30),
        }
    }
}

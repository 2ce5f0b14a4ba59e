//! Serves one HTTP/2 connection from its handshake to its end.
//!
//! The handshake has a timeout, and the peer is pinged regularly. When the connection is old or the server stops, the
//! connection is ended gracefully: GOAWAY is sent, so that the peer opens no further stream; then the calls in
//! progress are answered; then the socket is closed once the peer has read everything.
//!
//! No limit here ends a connection because of what a client of Envoy does. The limits of `h2` that would do so
//! (resets before a stream is accepted, streams that end with an error, concurrent streams) are disabled. Instead,
//! [`buffered_io`](super::buffered_io) stops reading, and [`memory_budget`](super::memory_budget) bounds the memory
//! of each call. If a stream were rejected, Envoy would allow its request under `failure_mode_allow`.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::server::{Builder, Connection, SendResponse};
use h2::{Ping, PingPong, RecvStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, sleep_until, timeout};

use super::buffered_io::BufferedIo;
use super::memory_budget::{ConnectionBudget, CountedBuf, HeaderBlock, ResponseBacklog};
use super::task_waker::TaskWaker;
use super::{ConnectionFailure, Limits, Peer, Services, Unary, call};
use crate::random;

/// The flow-control windows of a stream and of a connection in bytes. The usual messages of Envoy fit into one
/// window.
const WINDOWS: (u32, u32) = (256 * 1024, 1024 * 1024);

/// How long a peer may take to close its side after the last response.
const LINGER: Duration = Duration::from_secs(1);

/// The interval of checks for responses that the peer does not read.
const TICK: Duration = Duration::from_secs(1);

/// Serves a connection to its end; ends it gracefully once `stop` is true. Records failures in `services`.
pub async fn serve<T, U>(io: T, peer: Peer, services: Arc<Services<U>>, stop: watch::Receiver<bool>)
where
    T: AsyncRead + AsyncWrite + Unpin,
    U: Unary,
{
    if let Err((failure, detail)) = attempt(io, peer, &services, stop).await {
        services.failures.connection(failure, &peer, detail.as_deref());
    }
}

/// A failure, and the message of the library.
type Failed = (ConnectionFailure, Option<String>);

async fn attempt<T, U>(
    io: T,
    peer: Peer,
    services: &Arc<Services<U>>,
    stop: watch::Receiver<bool>,
) -> Result<(), Failed>
where
    T: AsyncRead + AsyncWrite + Unpin,
    U: Unary,
{
    let limits = services.limits;
    let io = BufferedIo::new(io);
    let connected = tokio::select! {
        connected = settings(&limits).handshake(io.clone()) => Some(connected),
        () = too_late(&io, &limits, stop.clone()) => None,
    };
    let mut connection = match connected {
        Some(Ok(connection)) => connection,
        Some(Err(error)) => {
            return no_handshake(&io.first_bytes(), error.is_io(), Some(error.to_string()));
        }
        None => return no_handshake(&io.first_bytes(), false, None),
    };
    let Some(pings) = connection.ping_pong() else { return Ok(()) };
    let budget = ConnectionBudget::new(&services.budget, peer);
    io.start_buffering(
        HeaderBlock::new(&budget),
        header_list_of_h2(&limits),
        Arc::clone(services.failures.resets()),
    );
    // The timers have a task of their own, so that calls do not poll them.
    let (send_end, end) = oneshot::channel();
    let mut clocks = JoinSet::new();
    let ours = Arc::clone(&budget);
    clocks.spawn(async move { drop(send_end.send(end_of_life(pings, ours, limits, stopped(stop)).await)) });
    let task = TaskWaker::new();
    let mut served = Served { connection, io, backlog: budget.backlog(), budget, goes_on: false };
    let end = async { end.await.unwrap_or(End::Now) };
    match served.accept_calls(services, &task, end).await {
        End::InOrder => {}
        End::Now => return Ok(()),
        End::Failed(failure, detail) => return Err((failure, detail)),
    }
    served.connection.graceful_shutdown();
    let grace = async {
        sleep(limits.grace).await;
        End::Now
    };
    let end = served.accept_calls(services, &task, grace).await;
    let Served { connection, io, .. } = served;
    drop(connection);
    io.linger(LINGER).await;
    match end {
        End::Failed(failure, detail) => Err((failure, detail)),
        End::InOrder | End::Now => Ok(()),
    }
}

/// Returns the most bytes of a header list for `h2`. It is greater than our limit, so that `call` answers a longer
/// list. Beyond it `h2` responds with 431, which clients of Envoy cannot reach: Envoy limits all headers of a
/// request to 8 MiB.
fn header_list_of_h2(limits: &Limits) -> u32 {
    const LEAST: u32 = 10 * 1024 * 1024;
    limits.header_list.max(LEAST).saturating_add(LEAST / 2)
}

fn settings(limits: &Limits) -> Builder {
    let mut settings = Builder::new();
    settings
        .max_local_error_reset_streams(None)
        .max_pending_accept_reset_streams(usize::MAX)
        .max_header_list_size(header_list_of_h2(limits))
        .initial_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1);
    settings
}

/// Returns when the handshake has timed out. The timeout starts with the first byte from the peer.
///
/// Envoy keeps a connection silent until its next request, if the client for which it opened the connection has
/// disconnected. Closing it could lose that request, so a silent connection is closed only when it is old or the
/// server stops.
async fn too_late<T: AsyncRead + AsyncWrite + Unpin>(
    io: &BufferedIo<T>,
    limits: &Limits,
    stop: watch::Receiver<bool>,
) {
    let spoken = async {
        // Looking this often never misses the deadline, which is later than the first byte by the same time.
        while io.first_at().is_none() {
            sleep(limits.handshake).await;
        }
        if let Some(at) = io.first_at() {
            sleep_until(at + limits.handshake).await;
        }
    };
    tokio::select! {
        () = spoken => {}
        () = sleep(random::about(limits.age)) => {}
        () = stopped(stop) => sleep(LINGER).await,
    }
}

/// Returns once `stop` is true, or its sender has gone.
async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Returns why there was no handshake, from the first bytes of the peer, whether it has closed the connection, and the
/// error of the library; none if the time was up. A peer that sent nothing, like the probe of a load balancer, is no
/// failure.
fn no_handshake(first: &[u8], closed: bool, error: Option<String>) -> Result<(), Failed> {
    // As much of the preface as is kept (RFC 9113 §3.4).
    const PREFACE: &[u8] = b"PRI * HT";
    const METHODS: [&[u8]; 9] =
        [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"CONNECT ", b"OPTIONS ", b"TRACE ", b"PATCH "];
    let http1 = METHODS.iter().any(|method| first.starts_with(&method[..method.len().min(8)]));
    let failure = match first {
        [] => return Ok(()),
        [0x16, 0x03, ..] => ConnectionFailure::TlsOnPlaintext,
        _ if http1 => ConnectionFailure::Http1,
        _ if error.is_none() => ConnectionFailure::HandshakeTimeout,
        _ if closed && PREFACE.starts_with(first) => ConnectionFailure::PrefaceIncomplete,
        PREFACE => ConnectionFailure::ProtocolError,
        _ => ConnectionFailure::NotHttp2,
    };
    Err((failure, error))
}

/// How a connection ends.
enum End {
    /// Gracefully: calls in progress are answered.
    InOrder,
    /// At once, because the peer has disconnected.
    Now,
    /// At once, with a failure to record.
    Failed(ConnectionFailure, Option<String>),
}

impl End {
    fn failed(failure: ConnectionFailure) -> Self {
        Self::Failed(failure, None)
    }

    /// Returns the end of a connection on which `h2` returned an error.
    fn of(error: &h2::Error) -> Self {
        let ours = !error.is_io() && !error.is_remote();
        if ours { Self::Failed(ConnectionFailure::ProtocolError, Some(error.to_string())) } else { Self::Now }
    }
}

/// A connection with its unsent responses.
struct Served<T> {
    connection: Connection<BufferedIo<T>, CountedBuf>,
    io: BufferedIo<T>,
    budget: Arc<ConnectionBudget>,
    backlog: ResponseBacklog,
    /// Whether there is more to read than one turn of the task may read.
    goes_on: bool,
}

type Call = (Request<RecvStream>, SendResponse<CountedBuf>);

impl<T: AsyncRead + AsyncWrite + Unpin> Served<T> {
    /// Accepts calls until the peer disconnects, or until `end` completes. Returns how to end the connection.
    async fn accept_calls<U: Unary>(
        &mut self,
        services: &Arc<Services<U>>,
        task: &TaskWaker,
        end: impl Future<Output = End>,
    ) -> End {
        let mut end = std::pin::pin!(end);
        loop {
            let call = tokio::select! {
                // `end` is polled only when there is no call to accept.
                biased;
                call = poll_fn(|cx| self.poll_call(task, cx)) => call,
                end = &mut end => return end,
            };
            match call {
                Ok(call) => self.answer(services, call),
                Err(end) => return end,
            }
        }
    }

    fn poll_call(&mut self, task: &TaskWaker, cx: &mut Context<'_>) -> Poll<Result<Call, End>> {
        if task.before_poll() {
            self.io.start_reading();
        }
        let call = self.poll_h2(&mut Context::from_waker(task.waker()));
        if call.is_pending() {
            if std::mem::take(&mut self.goes_on) {
                wake_after_others(cx);
            }
            task.before_wait(cx);
        }
        call
    }

    /// Returns the next call, or how the connection ends. Sends the buffered responses when there is no call to
    /// accept.
    fn poll_h2(&mut self, cx: &mut Context<'_>) -> Poll<Result<Call, End>> {
        // Accepts every open stream, also while the peer does not read: inside `h2` it would take the same memory
        // without being counted.
        match self.connection.poll_accept(cx) {
            Poll::Ready(Some(Ok(call))) => return Poll::Ready(Ok(call)),
            Poll::Ready(Some(Err(error))) => {
                return self.io.send_buffered(cx).map(|_| Err(End::of(&error)));
            }
            Poll::Ready(None) => return self.io.send_buffered(cx).map(|_| Err(End::Now)),
            Poll::Pending => {}
        }
        let was_full = self.io.is_full();
        if let Poll::Ready(Err(_)) = self.io.send_buffered(cx) {
            return Poll::Ready(Err(End::Now));
        }
        self.backlog.account();
        // Backpressure: reads no further calls while the peer does not read its responses.
        let is_full = self.io.is_full();
        let has_more =
            !is_full && self.budget.may_read() && self.io.renew_read_budget(self.budget.is_scarce());
        self.goes_on = has_more || (was_full && !is_full);
        Poll::Pending
    }

    fn answer<U: Unary>(&self, services: &Arc<Services<U>>, (request, respond): Call) {
        match call::is_grpc(request.method(), request.headers()) {
            Ok(()) if request.uri().path() == U::PATH => {
                call::answer(services, &self.budget, request, respond);
            }
            Ok(()) => call::pass_on(services, &self.budget, request, respond),
            Err(status) => call::reject_http(services, &self.budget, status, request, respond),
        }
    }
}

/// Wakes the task after the other tasks of its thread, and after those whose sockets are ready by then.
///
/// A task that wakes itself would be polled again before the runtime looks at any socket: 61 times, by default. See
/// [`yield_now`].
fn wake_after_others(cx: &mut Context<'_>) {
    let _ = std::pin::pin!(yield_now()).poll(cx);
}

async fn end_of_life(
    pings: PingPong,
    budget: Arc<ConnectionBudget>,
    limits: Limits,
    stop: impl Future<Output = ()>,
) -> End {
    tokio::select! {
        () = stop => End::InOrder,
        () = sleep(random::about(limits.age)) => End::InOrder,
        () = until_silent(pings, limits.keepalive) => End::failed(ConnectionFailure::KeepaliveTimeout),
        failure = until_stuck(&budget, limits.call) => End::failed(failure),
    }
}

/// Returns when the peer no longer answers pings.
async fn until_silent(mut pings: PingPong, (interval, patience): (Duration, Duration)) {
    loop {
        sleep(interval).await;
        let pong = timeout(patience, pings.ping(Ping::opaque())).await;
        match pong {
            Ok(Ok(_)) => {}
            // The connection has ended, which its own task notices.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// Returns when the peer has read none of a backlog of responses for `patience`, or for one tick if the budget is
/// used up; or when it takes too long to send a header block.
async fn until_stuck(budget: &ConnectionBudget, patience: Duration) -> ConnectionFailure {
    let tick = TICK.min(patience);
    let (mut stuck, mut block) = (Unchanged::default(), Unchanged::default());
    loop {
        sleep(tick).await;
        let not_taken = stuck.time(budget.stuck_at(), tick);
        if not_taken >= patience || (not_taken >= tick && budget.is_over()) {
            return ConnectionFailure::ResponsesNotTaken;
        }
        if let Some(unfinished) = budget.unfinished_header_block()
            && block.time(Some(unfinished.number), tick) >= unfinished.time_allowed(patience)
        {
            return ConnectionFailure::SlowHeaders;
        }
    }
}

/// Measures how long a number has been the same.
#[derive(Default)]
struct Unchanged {
    number: Option<u64>,
    time: Duration,
}

impl Unchanged {
    /// Takes the number after another `tick`. Returns how long it has been the same; zero if it changed or is `None`.
    fn time(&mut self, number: Option<u64>, tick: Duration) -> Duration {
        self.time = if number.is_some() && number == self.number { self.time + tick } else { Duration::ZERO };
        self.number = number;
        self.time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_identify_the_protocol_of_the_peer() {
        let failure = |first: &[u8], (closed, error): (bool, Option<&str>)| {
            no_handshake(first, closed, error.map(str::to_owned)).map_err(|(failure, _)| failure.as_str())
        };
        let (timeout, closed, invalid) = ((false, None), (true, Some("io")), (false, Some("h2")));
        for (first, how, expected) in [
            (&b""[..], closed, Ok(())),
            (b"", timeout, Ok(())),
            (b"\x16\x03\x01\x02\0\x01\0\x01", invalid, Err("tls_on_plaintext")),
            (b"\x16\x03\x01", timeout, Err("tls_on_plaintext")),
            (b"GET / HT", invalid, Err("http1")),
            (b"OPTIONS ", invalid, Err("http1")),
            (b"CONNECT ", timeout, Err("http1")),
            (b"PRI * HT", invalid, Err("protocol_error")),
            (b"PRI * HT", timeout, Err("handshake_timeout")),
            (b"PRI * HT", closed, Err("preface_incomplete")),
            (b"PRI", closed, Err("preface_incomplete")),
            (b"PRI", timeout, Err("handshake_timeout")),
            (b"SSH-2.0-", invalid, Err("not_http2")),
            (b"SSH", closed, Err("not_http2")),
        ] {
            assert_eq!(failure(first, how), expected, "{first:?} {how:?}");
        }
    }
}

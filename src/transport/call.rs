//! Answers one call.
//!
//! Most calls are answered at once, on the task of their connection, because the message arrives together with the
//! headers and the response needs no waiting. For the other calls, a spawned task waits.
//!
//! Every call gets exactly one response: a [`Responder`] that is dropped sends the response for [`Unable::Panicked`]
//! or [`Unable::Stopping`]. If `h2` ended the call with an error, Envoy would allow the request under
//! `failure_mode_allow`. For the same reason, what a client of Envoy can cause (a large message, a long header list,
//! a full server) is answered with a response that rejects the request, and never with a gRPC status.

use std::future::poll_fn;
use std::mem::take;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread::panicking;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use tokio::time::{Instant, timeout, timeout_at};

use super::deadline::Deadline;
use super::frame::{PREFIX, announced, only_message};
use super::memory_budget::{ConnectionBudget, CountedBuf, LARGE, PendingCall};
use super::{CallFailure, Frame, Services, Unable, Unary, tower_bridge};

/// Pending calls compact messages with more bytes than this.
const COMPACTED: usize = 8 * 1024;

/// The most bytes of all messages of a call of another service: a question of health or reflection has less than 200.
const MOST_OF_OTHERS: usize = 16 * 1024;

/// The headers that other services need.
static KEPT: [HeaderName; 4] = [
    CONTENT_TYPE,
    HeaderName::from_static("te"),
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-timeout"),
];

/// Header maps with a capacity of at most this many fields are reused for the response.
const REUSED: usize = 64;

static GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
static GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
static IDENTITY: HeaderValue = HeaderValue::from_static("identity");
static OK: HeaderValue = HeaderValue::from_static("0");

/// The result of a call that does not get the service's response.
#[derive(Debug)]
enum Rejection {
    /// A response that rejects the request.
    Unable(Unable),
    /// The same, for a message that is too large: its length in bytes.
    TooLarge(usize),
    /// A gRPC status.
    Status(CallFailure),
}

impl From<CallFailure> for Rejection {
    fn from(failure: CallFailure) -> Self {
        Self::Status(failure)
    }
}

/// Answers a call of the unary method.
pub(super) fn answer<U: Unary>(
    services: &Arc<Services<U>>,
    budget: &Arc<ConnectionBudget>,
    request: Request<RecvStream>,
    respond: SendResponse<CountedBuf>,
) {
    let (Parts { headers, .. }, mut body) = request.into_parts();
    let unsent = Some((respond, Arc::clone(budget)));
    let mut responder = Responder { services: Arc::clone(services), unsent, headers };
    let most = services.limits.header_list as usize;
    if let Err(size) = within(&responder.headers, most) {
        services.failures.too_large(&budget.peer, "--max-header-bytes", size, most);
        return responder.respond(Err(Rejection::Unable(Unable::TooLarge)));
    }
    // Polls once. If the body is incomplete, a spawned task waits for the rest, because this task serves the
    // connection.
    let first = body.poll_data(&mut Context::from_waker(Waker::noop()));
    if let Poll::Ready(Some(Ok(bytes))) = &first
        && body.is_end_stream()
    {
        let message = match whole_message(bytes.clone(), services.limits.message) {
            Ok(message) => message,
            Err(rejection) => return responder.respond(Err(rejection)),
        };
        // A panic must not end the connection, so it is caught and answered.
        let now = || services.unary.answer_now(&message, &responder.headers);
        match catch_unwind(AssertUnwindSafe(now)) {
            Ok(Some(outcome)) => return responder.respond(outcome.map_err(Rejection::from)),
            Ok(None) => {}
            Err(_) => return responder.respond(Err(Rejection::Unable(Unable::Panicked))),
        }
    }
    if let Poll::Ready(Some(Err(_))) = first {
        return responder.respond(Err(CallFailure::Cancelled.into()));
    }
    let (limit, lateness) = (services.limits.call, &services.lateness);
    let deadline = Deadline::of(&responder.headers, limit, lateness, Instant::now());
    // A pending call keeps only the headers that it needs.
    responder.headers = services.unary.compact_metadata(&responder.headers);
    let Some(pending) = budget.admit(weight(&responder.headers)) else {
        return responder.respond(Err(Rejection::Unable(Unable::MemoryFull)));
    };
    tokio::spawn(async move {
        let first = match first {
            Poll::Ready(first) => Some(first),
            Poll::Pending => None,
        };
        let outcome = tokio::select! {
            biased;
            outcome = wait_for_answer(&responder, pending, (first, body), deadline.answer_by) => outcome,
            () = responder.services.waiting_ended() => Err(Rejection::Unable(Unable::Stopping)),
        };
        responder.note_delay(&deadline, Instant::now());
        responder.respond(outcome);
    });
}

/// Passes a call of another method to the tower services, with only the headers that these need.
pub(super) fn pass_on<U: Unary>(
    services: &Services<U>,
    budget: &Arc<ConnectionBudget>,
    mut request: Request<RecvStream>,
    respond: SendResponse<CountedBuf>,
) {
    let kept = |name: &HeaderName| Some((name.clone(), request.headers().get(name)?.clone()));
    let headers: HeaderMap = KEPT.iter().filter_map(kept).collect();
    let Some(pending) = budget.admit_other(weight(&headers) + MOST_OF_OTHERS) else {
        return send_status(respond, tonic::Code::ResourceExhausted, "too many calls are waiting");
    };
    *request.headers_mut() = headers;
    let (others, failures) = (services.others.clone(), Arc::clone(&services.failures));
    let budget = Arc::clone(budget);
    tokio::spawn(async move {
        let unknown = || failures.call(CallFailure::UnknownMethod, &budget.peer);
        tower_bridge::answer(others, request, MOST_OF_OTHERS, respond, unknown).await;
        drop(pending);
    });
}

type Chunk = Option<Result<Bytes, h2::Error>>;

async fn wait_for_answer<U: Unary>(
    responder: &Responder<U>,
    mut pending: PendingCall,
    (first, body): (Option<Chunk>, RecvStream),
    deadline: Instant,
) -> Result<Frame, Rejection> {
    let (services, late) = (&responder.services, |_| Rejection::Unable(Unable::DeadlineExceeded));
    let whole = gather(first, body, services.limits.message, &mut pending);
    let whole = timeout_at(deadline, whole).await.map_err(late)??;
    let mut message = only_message(whole)?;
    if message.len() > COMPACTED {
        message = services.unary.compact(message);
        pending.shrink_to(message.len());
    }
    let (frame, unable) = services.unary.answer(message, &responder.headers, deadline).await?;
    if let Some(why) = unable {
        services.failures.unable(why, pending.peer());
    }
    Ok(frame)
}

/// Returns the message of a complete body. Rejects a message of more than `most` bytes.
fn whole_message(body: Bytes, most: usize) -> Result<Bytes, Rejection> {
    if body.len() > PREFIX + most {
        Err(Rejection::TooLarge(body.len() - PREFIX))
    } else {
        Ok(only_message(body)?)
    }
}

/// Waits for the whole body. Rejects a message of more than `most` bytes.
async fn gather(
    first: Option<Chunk>,
    mut body: RecvStream,
    most: usize,
    pending: &mut PendingCall,
) -> Result<Bytes, Rejection> {
    let mut all = Vec::new();
    let mut next = first;
    loop {
        let chunk = match next.take() {
            Some(chunk) => chunk,
            None => poll_fn(|cx| body.poll_data(cx)).await,
        };
        let Some(chunk) = chunk else { return Ok(all.into()) };
        let chunk = chunk.map_err(|_| CallFailure::Cancelled)?;
        let len = all.len() + chunk.len();
        if len > all.capacity() {
            // The capacity doubles, but not beyond the announced length. All of it is counted.
            let announced = all.get(..PREFIX).map_or(Ok(0), announced)?;
            let capacity = len.max((2 * all.capacity()).min(PREFIX + announced));
            if !pending.grow(capacity - all.capacity()) {
                return Err(Rejection::Unable(Unable::MemoryFull));
            }
            all.reserve_exact(capacity - all.len());
        }
        all.extend_from_slice(&chunk);
        // A message that is too large is rejected without waiting for the rest.
        if let Some(prefix) = all.get(..PREFIX) {
            let len = announced(prefix)?;
            if len > most {
                return Err(Rejection::TooLarge(len));
            }
            if all.len() > PREFIX + len {
                return Err(CallFailure::InvalidFraming.into());
            }
        }
        let _ = body.flow_control().release_capacity(chunk.len());
    }
}

/// Checks the size of a header list (RFC 9113 §6.5.2) without pseudo-header fields. Returns the size if it is over
/// `most`.
fn within(headers: &HeaderMap, most: usize) -> Result<(), usize> {
    const OVERHEAD: usize = 32;
    let size = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + OVERHEAD).sum();
    if size > most { Err(size) } else { Ok(()) }
}

/// Returns the memory of a header list in bytes. An entry of a [`HeaderMap`] takes at most 80 bytes besides its name
/// and value, and the capacity of its vectors doubles.
fn weight(headers: &HeaderMap) -> usize {
    const ENTRY: usize = 2 * 80;
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ENTRY).sum()
}

/// A call that has no response yet.
struct Responder<U: Unary> {
    services: Arc<Services<U>>,
    unsent: Option<(SendResponse<CountedBuf>, Arc<ConnectionBudget>)>,
    /// The headers of the request. The map is reused for those of the response.
    headers: HeaderMap,
}

impl<U: Unary> Responder<U> {
    /// Records that the response is late, if it is.
    fn note_delay(&self, deadline: &Deadline, now: Instant) {
        let late = deadline.late_by(now);
        if late.is_zero() {
            return;
        }
        self.services.lateness.note(late, now);
        if let Some((_, budget)) = &self.unsent
            && deadline.is_close(now)
        {
            self.services.failures.late_answer(late, deadline.is_over(now), &budget.peer);
        }
    }

    fn respond(mut self, outcome: Result<Frame, Rejection>) {
        let Some((respond, budget)) = self.unsent.take() else { return };
        match outcome {
            Ok(frame) => send(respond, budget, take(&mut self.headers), frame),
            Err(Rejection::Status(failure)) => {
                self.services.failures.call(failure, &budget.peer);
                send_failure(respond, failure);
            }
            Err(Rejection::Unable(why)) => {
                self.services.failures.unable(why, &budget.peer);
                let frame = self.services.unary.unable(why);
                send(respond, budget, take(&mut self.headers), frame);
            }
            Err(Rejection::TooLarge(bytes)) => {
                let limit = self.services.limits.message;
                self.services.failures.too_large(&budget.peer, "--max-message-bytes", bytes, limit);
                let frame = self.services.unary.unable(Unable::TooLarge);
                send(respond, budget, take(&mut self.headers), frame);
            }
        }
    }
}

impl<U: Unary> Drop for Responder<U> {
    fn drop(&mut self) {
        let Some((respond, budget)) = self.unsent.take() else { return };
        // Dropped by a panic, or because the server stops while the call waits.
        let why = if panicking() { Unable::Panicked } else { Unable::Stopping };
        // A second panic during a panic would abort the process.
        let unable = || {
            self.services.failures.unable(why, &budget.peer);
            self.services.unary.unable(why)
        };
        if let Ok(frame) = catch_unwind(AssertUnwindSafe(unable)) {
            send(respond, budget, take(&mut self.headers), frame);
        }
    }
}

/// Sends headers, message and trailers. An error means that the peer has gone.
fn send(
    mut respond: SendResponse<CountedBuf>,
    budget: Arc<ConnectionBudget>,
    mut headers: HeaderMap,
    frame: Frame,
) {
    // `h2` keeps the map, with its capacity, until it is sent.
    if headers.capacity() > REUSED {
        headers = HeaderMap::with_capacity(1);
    }
    headers.clear();
    headers.insert(CONTENT_TYPE, GRPC.clone());
    let mut head = Response::new(());
    *head.headers_mut() = headers;
    let Ok(mut stream) = respond.send_response(head, false) else { return };
    if stream.send_data(CountedBuf::response(frame.into_bytes(), budget), false).is_ok() {
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert(GRPC_STATUS.clone(), OK.clone());
        let _ = stream.send_trailers(trailers);
    }
}

/// Ends a call with the gRPC status of a failure.
fn send_failure(respond: SendResponse<CountedBuf>, failure: CallFailure) {
    let (code, message) = failure.status();
    send_status(respond, code, message);
}

/// Sends a response that consists only of headers, which are also the trailers.
fn send_status(mut respond: SendResponse<CountedBuf>, code: tonic::Code, message: &'static str) {
    let mut head = Response::new(());
    let headers = head.headers_mut();
    headers.insert(CONTENT_TYPE, GRPC.clone());
    headers.insert(GRPC_ACCEPT_ENCODING.clone(), IDENTITY.clone());
    headers.insert(GRPC_STATUS.clone(), HeaderValue::from(i32::from(code)));
    headers.insert(GRPC_MESSAGE.clone(), HeaderValue::from_static(message));
    let _ = respond.send_response(head, true);
}

/// Checks that a request is a gRPC call. Otherwise returns the HTTP status of the response.
pub(super) fn is_grpc(method: &Method, headers: &HeaderMap) -> Result<(), StatusCode> {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    // `application/grpc+proto` and parameters are gRPC, `application/grpc-web` is another protocol.
    match kind.strip_prefix(b"application/grpc") {
        Some([] | [b'+' | b';', ..]) if method == Method::POST => Ok(()),
        Some([] | [b'+' | b';', ..]) => Err(StatusCode::METHOD_NOT_ALLOWED),
        _ => Err(StatusCode::UNSUPPORTED_MEDIA_TYPE),
    }
}

/// Responds to a request that is not gRPC after reading a bounded part of its body.
pub(super) fn reject_http<U: Unary>(
    services: &Services<U>,
    budget: &Arc<ConnectionBudget>,
    status: StatusCode,
    request: Request<RecvStream>,
    mut respond: SendResponse<CountedBuf>,
) {
    const BODY: &[u8] = b"This port serves gRPC. Use grpcurl, or tenantgate check.\n";
    services.failures.call(CallFailure::NotGrpc, &budget.peer);
    let head = |status: StatusCode| {
        let mut head = Response::new(());
        *head.status_mut() = status;
        head.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        head
    };
    let Some(mut pending) = budget.admit(0) else {
        let _ = respond.send_response(head(status), true);
        return;
    };
    let (limits, mut body) = (services.limits, request.into_body());
    tokio::spawn(async move {
        let _ = timeout(limits.call, discard(&mut body, &mut pending)).await;
        if let Ok(mut stream) = respond.send_response(head(status), false) {
            let _ = stream.send_data(Bytes::from_static(BODY).into(), true);
        }
    });
}

/// Reads and discards a body up to its end, or up to [`LARGE`] bytes.
async fn discard(body: &mut RecvStream, pending: &mut PendingCall) {
    let mut read = 0;
    while let Some(Ok(chunk)) = poll_fn(|cx| body.poll_data(cx)).await {
        read += chunk.len();
        let _ = body.flow_control().release_capacity(chunk.len());
        if read > LARGE || !pending.grow(chunk.len()) {
            return;
        }
    }
}

#[cfg(test)]
mod tests;

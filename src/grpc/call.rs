//! How is one call answered?
//!
//! Nearly always at once, on the task of its connection: the message is here with the
//! headers, and the answer is known. Else a task of its own waits for the rest.
//!
//! A call is answered exactly once, whatever happens: a [`Responder`] that is dropped
//! without an answer says [`Unary::broken`]. An error that `h2` would make of it could
//! be taken for a reason to let the request pass.

use std::future::poll_fn;
use std::mem::take;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::Code;

use super::frame::{PREFIX, announced, only_message};
use super::room::{Parcel, Share, Waiting};
use super::{Frame, Limits, Outcome, Refusal, Services, Unary, bridge};
use crate::trace::Parent;

static GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
static OK: HeaderValue = HeaderValue::from_static("0");

/// Takes up a call.
pub(super) fn take_up<U: Unary>(
    services: &Arc<Services<U>>,
    share: &Arc<Share>,
    request: Request<RecvStream>,
    respond: SendResponse<Parcel>,
) {
    let (Parts { headers, .. }, mut body) = request.into_parts();
    let parent = services.unary.traces().then(|| parent(&headers)).flatten();
    let unsent = Some((respond, Arc::clone(share)));
    let responder = Responder { services: Arc::clone(services), unsent, headers };
    // What is not here yet is waited for elsewhere, by who asks again; this task has a connection to look after.
    let first = body.poll_data(&mut Context::from_waker(Waker::noop()));
    if let Poll::Ready(Some(Ok(bytes))) = &first
        && body.is_end_stream()
    {
        let message = match only_message(bytes.clone(), services.limits.message) {
            Ok(message) => message,
            Err(refusal) => return responder.respond(Err(refusal)),
        };
        // A panic is the responder's to answer, and not the end of the connection.
        let answer = catch_unwind(AssertUnwindSafe(|| services.unary.answer_now(&message, parent)));
        match answer {
            Ok(Some(outcome)) => return responder.respond(outcome),
            Ok(None) => {}
            Err(_) => return,
        }
    }
    let Some(waiting) = share.wait() else {
        return responder.respond(Ok(services.unary.overloaded()));
    };
    let deadline = deadline(&responder.headers, services.limits.call);
    tokio::spawn(async move {
        let first = match first {
            Poll::Ready(first) => Some(first),
            Poll::Pending => None,
        };
        let outcome = wait_for_answer(&responder.services, waiting, (first, body), deadline, parent).await;
        responder.respond(outcome);
    });
}

/// Has a call answered that is not ours.
pub(super) fn hand_over<U: Unary>(
    services: &Services<U>,
    share: &Arc<Share>,
    request: Request<RecvStream>,
    respond: SendResponse<Parcel>,
) {
    const NO_ROOM: Refusal = Refusal { code: Code::ResourceExhausted, why: "too many calls wait" };
    let Some(waiting) = share.wait() else { return refuse(respond, NO_ROOM) };
    let others = services.others.clone();
    tokio::spawn(async move {
        bridge::answer(others, request, respond).await;
        drop(waiting);
    });
}

type Chunk = Option<Result<Bytes, h2::Error>>;

async fn wait_for_answer<U: Unary>(
    services: &Services<U>,
    mut waiting: Waiting,
    (first, body): (Option<Chunk>, RecvStream),
    deadline: Instant,
    parent: Option<Parent>,
) -> Outcome {
    const LATE: Refusal =
        Refusal { code: Code::DeadlineExceeded, why: "the message took too long to arrive" };
    let whole = gather(first, body, services.limits.message, &mut waiting);
    let Some(whole) = timeout_at(deadline, whole).await.map_err(|_| LATE)?? else {
        return Ok(services.unary.overloaded());
    };
    services.unary.answer(only_message(whole, services.limits.message)?, deadline, parent).await
}

/// Waits for all of a body that has one message of at most `most` bytes; nothing if there is no room for it.
async fn gather(
    first: Option<Chunk>,
    mut body: RecvStream,
    most: usize,
    waiting: &mut Waiting,
) -> Result<Option<Bytes>, Refusal> {
    const GONE: Refusal = Refusal { code: Code::Cancelled, why: "the call was given up" };
    let mut all = BytesMut::new();
    let mut next = first;
    loop {
        let chunk = match next.take() {
            Some(chunk) => chunk,
            None => poll_fn(|cx| body.poll_data(cx)).await,
        };
        let Some(chunk) = chunk else { return Ok(Some(all.freeze())) };
        let chunk = chunk.map_err(|_| GONE)?;
        if !waiting.grow(chunk.len()) {
            return Ok(None);
        }
        all.extend_from_slice(&chunk);
        // Nothing is read on for a message that is refused anyway.
        if let Some(prefix) = all.get(..PREFIX) {
            announced(prefix, most)?;
        }
        if all.len() > PREFIX + most {
            return Err(Refusal { code: Code::Internal, why: "the call takes one message" });
        }
        let _ = body.flow_control().release_capacity(chunk.len());
    }
}

/// A call that has not been answered yet.
struct Responder<U: Unary> {
    services: Arc<Services<U>>,
    unsent: Option<(SendResponse<Parcel>, Arc<Share>)>,
    /// Those of the request, whose memory those of the answer will be in.
    headers: HeaderMap,
}

impl<U: Unary> Responder<U> {
    fn respond(mut self, outcome: Outcome) {
        if let Some((respond, share)) = self.unsent.take() {
            match outcome {
                Ok(frame) => send(respond, share, take(&mut self.headers), frame),
                Err(refusal) => refuse(respond, refusal),
            }
        }
    }
}

impl<U: Unary> Drop for Responder<U> {
    fn drop(&mut self) {
        let Some((respond, share)) = self.unsent.take() else { return };
        // Perhaps in the middle of a panic, which a second one would turn into the end of the process.
        if let Ok(frame) = catch_unwind(AssertUnwindSafe(|| self.services.unary.broken())) {
            send(respond, share, take(&mut self.headers), frame);
        }
    }
}

/// Headers, message, trailers. Whoever has gone meanwhile gets none of them, which is all there is to an error.
fn send(mut respond: SendResponse<Parcel>, share: Arc<Share>, mut headers: HeaderMap, frame: Frame) {
    headers.clear();
    headers.insert(CONTENT_TYPE, GRPC.clone());
    let mut head = Response::new(());
    *head.headers_mut() = headers;
    let Ok(mut stream) = respond.send_response(head, false) else { return };
    if stream.send_data(Parcel::counted(frame.into_bytes(), share), false).is_ok() {
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert(GRPC_STATUS.clone(), OK.clone());
        let _ = stream.send_trailers(trailers);
    }
}

/// Headers that are trailers, too.
fn refuse(mut respond: SendResponse<Parcel>, refusal: Refusal) {
    let mut head = Response::new(());
    let headers = head.headers_mut();
    headers.insert(CONTENT_TYPE, GRPC.clone());
    headers.insert(GRPC_STATUS.clone(), HeaderValue::from(i32::from(refusal.code)));
    headers.insert(GRPC_MESSAGE.clone(), HeaderValue::from_static(refusal.why));
    let _ = respond.send_response(head, true);
}

/// Whether this is a call at all, or else the status of HTTP that says why not.
pub(super) fn is_grpc(method: &Method, headers: &HeaderMap) -> Result<(), StatusCode> {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    // `application/grpc+proto` and parameters are fine, `application/grpc-web` is something else.
    match kind.strip_prefix(b"application/grpc") {
        Some([] | [b'+' | b';', ..]) if method == Method::POST => Ok(()),
        Some([] | [b'+' | b';', ..]) => Err(StatusCode::METHOD_NOT_ALLOWED),
        _ => Err(StatusCode::UNSUPPORTED_MEDIA_TYPE),
    }
}

/// Answers what is no call, for who looks with a browser; once it was said, but not for ever and not all of it.
pub(super) fn turn_away(
    share: &Arc<Share>,
    (status, limits): (StatusCode, Limits),
    request: Request<RecvStream>,
    mut respond: SendResponse<Parcel>,
) {
    const WORDS: &[u8] = b"this is a server of gRPC: ask it with grpcurl, or tenantgate check\n";
    let Some(mut waiting) = share.wait() else { return };
    tokio::spawn(async move {
        let _ = timeout(limits.call, gather(None, request.into_body(), limits.message, &mut waiting)).await;
        let mut head = Response::new(());
        *head.status_mut() = status;
        head.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        if let Ok(mut stream) = respond.send_response(head, false) {
            let _ = stream.send_data(Bytes::from_static(WORDS).into(), true);
        }
    });
}

/// The trace that the caller keeps.
fn parent(headers: &HeaderMap) -> Option<Parent> {
    Parent::sampled(headers.get("traceparent")?.as_bytes())
}

/// When an answer must be on its way so that the caller still gets it: a fifth of `grpc-timeout` before its
/// end, but 5 ms at least and 25 ms at most; or after `most`.
fn deadline(headers: &HeaderMap, most: Duration) -> Instant {
    let timeout = headers.get("grpc-timeout").and_then(|value| grpc_timeout(value.to_str().ok()?));
    let margin = |timeout: Duration| (timeout / 5).clamp(Duration::from_millis(5), Duration::from_millis(25));
    let left = timeout.map_or(most, |timeout| timeout.saturating_sub(margin(timeout)).min(most));
    Instant::now() + left
}

/// `grpc-timeout`: at most eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount.saturating_mul(3_600))),
        "M" => Some(Duration::from_secs(amount.saturating_mul(60))),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_as_the_protocol_has_them() {
        for (text, expected) in [
            ("200m", Some(Duration::from_millis(200))),
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_hours(99_999_999))),
            ("5M", Some(Duration::from_mins(5))),
            ("7u", Some(Duration::from_micros(7))),
            ("7n", Some(Duration::from_nanos(7))),
            ("", None),
            ("m", None),
            ("123456789m", None),
            ("-1m", None),
            ("1.5S", None),
            ("5", None),
            ("5é", None),
        ] {
            assert_eq!(grpc_timeout(text), expected, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_due_before_the_caller_leaves_and_never_later_than_we_allow() {
        let due = |timeout: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            timeout.map(|timeout| headers.insert("grpc-timeout", HeaderValue::from_static(timeout)));
            (deadline(&headers, Duration::from_secs(10)) - Instant::now()).as_millis()
        };
        for (timeout, expected) in [
            (None, 10_000),
            (Some("soon"), 10_000),
            (Some("1H"), 10_000),
            (Some("2S"), 1_975),
            (Some("100m"), 80),
            (Some("10m"), 5),
            (Some("1m"), 0),
        ] {
            assert_eq!(due(timeout), expected, "{timeout:?}");
        }
    }

    #[test]
    fn a_call_of_grpc_is_a_post_of_its_type() {
        let mut headers = HeaderMap::new();
        assert_eq!(is_grpc(&Method::POST, &headers), Err(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        for (kind, fine) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            assert_eq!(is_grpc(&Method::POST, &headers).is_ok(), fine, "{kind}");
            let why = if fine { StatusCode::METHOD_NOT_ALLOWED } else { StatusCode::UNSUPPORTED_MEDIA_TYPE };
            assert_eq!(is_grpc(&Method::GET, &headers), Err(why), "{kind}");
        }
    }
}

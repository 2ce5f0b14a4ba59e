//! How long does a connection live, and what may it take meanwhile?
//!
//! It begins with a handshake that may not take long, is asked now and then whether
//! anybody is still there, and is told to come to an end when it is old or when we stop:
//! then no new calls begin on it, and those under way are answered.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Ping, PingPong, RecvStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::held::Held;
use super::{Limits, Services, Unary, bridge, call};

/// Bytes that may be on their way to us on a stream and on a connection: messages that Envoy sends fit whole.
const WINDOWS: (u32, u32) = (256 * 1024, 1024 * 1024);

/// Serves a connection to its end, which is in order once `stop` is done.
pub async fn serve<T, U>(io: T, services: Arc<Services<U>>, stop: impl Future<Output = ()> + Send + 'static)
where
    T: AsyncRead + AsyncWrite + Unpin,
    U: Unary,
{
    let limits = services.limits;
    let held = Held::new(io);
    let hello = settings(&limits).handshake(held.clone());
    let Ok(Ok(mut connection)) = timeout(limits.handshake, hello).await else { return };
    let Some(pings) = connection.ping_pong() else { return };
    held.hold();
    // On a task of its own: clocks that a call would ask for nothing.
    let (say, said) = oneshot::channel();
    let mut life = JoinSet::new();
    life.spawn(async move { drop(say.send(end_of_life(pings, limits, stop).await)) });
    let end = async { said.await.unwrap_or(End::Now) };
    let End::InOrder = take_calls(&mut connection, &held, &services, end).await else { return };
    connection.graceful_shutdown();
    let _ = take_calls(&mut connection, &held, &services, sleep_then(limits.grace, End::Now)).await;
}

fn settings(limits: &Limits) -> Builder {
    let mut settings = Builder::new();
    settings
        .max_concurrent_streams(limits.streams)
        .max_local_error_reset_streams(Some(limits.error_resets))
        .max_pending_accept_reset_streams(limits.pending_resets)
        .max_header_list_size(limits.header_list)
        .initial_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1);
    settings
}

/// How a connection ends.
enum End {
    /// Calls that are under way are answered.
    InOrder,
    /// At once: there is nobody any more, or nobody who can wait.
    Now,
}

/// Takes calls until the peer has gone or `end` says how to end.
async fn take_calls<T, U>(
    connection: &mut Connection<Held<T>, Bytes>,
    held: &Held<T>,
    services: &Arc<Services<U>>,
    end: impl Future<Output = End>,
) -> End
where
    T: AsyncRead + AsyncWrite + Unpin,
    U: Unary,
{
    let mut end = std::pin::pin!(end);
    loop {
        let call = tokio::select! {
            // While there are calls to take, nothing else is looked at.
            biased;
            call = next_call(connection, held) => call,
            end = &mut end => return end,
        };
        let Some((request, respond)) = call else { return End::Now };
        match call::is_grpc(request.method(), request.headers()) {
            Ok(()) if request.uri().path() == U::PATH => call::take_up(services, request, respond),
            Ok(()) => drop(tokio::spawn(bridge::answer(services.others.clone(), request, respond))),
            Err(status) => {
                tokio::spawn(call::turn_away(status, request.into_body(), respond, services.limits));
            }
        }
    }
}

type Call = (Request<RecvStream>, SendResponse<Bytes>);

/// The next call, or nothing when there will be none. Answers that were made meanwhile go out once there is none to
/// take up at once.
async fn next_call<T>(connection: &mut Connection<Held<T>, Bytes>, held: &Held<T>) -> Option<Call>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    poll_fn(|cx| match connection.poll_accept(cx) {
        Poll::Ready(Some(Ok(call))) => Poll::Ready(Some(call)),
        Poll::Ready(_) => held.let_go(cx).map(|_| None),
        Poll::Pending => match held.let_go(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(None),
            _ => Poll::Pending,
        },
    })
    .await
}

async fn end_of_life(pings: PingPong, limits: Limits, stop: impl Future<Output = ()>) -> End {
    tokio::select! {
        () = stop => End::InOrder,
        () = sleep(jittered(limits.age)) => End::InOrder,
        () = until_silent(pings, limits.keepalive) => End::Now,
    }
}

async fn sleep_then(span: Duration, end: End) -> End {
    sleep(span).await;
    end
}

/// A tenth more or less, so that connections made together do not end together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(rand::random_range(0.9..1.1))
}

/// Ends when the peer does not answer any more.
async fn until_silent(mut pings: PingPong, (interval, patience): (Duration, Duration)) {
    loop {
        sleep(interval).await;
        let pong = timeout(patience, pings.ping(Ping::opaque())).await;
        if !matches!(pong, Ok(Ok(_))) {
            return;
        }
    }
}

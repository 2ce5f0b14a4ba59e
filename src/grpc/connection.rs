//! How long does a connection live, and what may it take meanwhile?
//!
//! It begins with a handshake that may not take long, is asked now and then whether
//! anybody is still there, and is told to come to an end when it is old or when we stop:
//! then no new calls begin on it, and those under way are answered.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::server::{Builder, Connection, SendResponse};
use h2::{Ping, PingPong, RecvStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::held::Held;
use super::room::{Backlog, Parcel, Share};
use super::{Limits, Services, Unary, call};

/// Bytes that may be on their way to us on a stream and on a connection: messages that Envoy sends fit whole.
const WINDOWS: (u32, u32) = (256 * 1024, 1024 * 1024);

/// How a connection ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Parting {
    /// As connections do.
    Usual,
    /// We hung up on a peer that does not take its answers.
    NotTaking,
}

/// Serves a connection to its end, which is in order once `stop` is done.
pub async fn serve<T, U>(
    io: T,
    services: Arc<Services<U>>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Parting
where
    T: AsyncRead + AsyncWrite + Unpin,
    U: Unary,
{
    let limits = services.limits;
    let held = Held::new(io);
    let hello = settings(&limits).handshake(held.clone());
    let Ok(Ok(mut connection)) = timeout(limits.handshake, hello).await else { return Parting::Usual };
    let Some(pings) = connection.ping_pong() else { return Parting::Usual };
    held.hold();
    let share = Share::of(&services.room);
    // On a task of its own: clocks that a call would ask for nothing.
    let (say, said) = oneshot::channel();
    let mut clocks = JoinSet::new();
    let ours = Arc::clone(&share);
    clocks.spawn(async move { drop(say.send(end_of_life(pings, ours, limits, stop).await)) });
    let mut line = Line { connection, held, backlog: share.backlog(), share };
    let end = async { said.await.unwrap_or(End::Now) };
    match line.take_calls(&services, end).await {
        End::InOrder => {}
        End::Now => return Parting::Usual,
        End::NotTaking => return Parting::NotTaking,
    }
    line.connection.graceful_shutdown();
    let _ = line.take_calls(&services, sleep_then(limits.grace, End::Now)).await;
    Parting::Usual
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
    /// At once: the peer does not take its answers.
    NotTaking,
}

/// A connection, and what is on its way out on it.
struct Line<T> {
    connection: Connection<Held<T>, Parcel>,
    held: Held<T>,
    share: Arc<Share>,
    backlog: Backlog,
}

type Call = (Request<RecvStream>, SendResponse<Parcel>);

impl<T: AsyncRead + AsyncWrite + Unpin> Line<T> {
    /// Takes calls until the peer has gone or `end` says how to end.
    async fn take_calls<U: Unary>(
        &mut self,
        services: &Arc<Services<U>>,
        end: impl Future<Output = End>,
    ) -> End {
        let mut end = std::pin::pin!(end);
        loop {
            let call = tokio::select! {
                // While there are calls to take, nothing else is looked at.
                biased;
                call = poll_fn(|cx| self.poll_call(cx)) => call,
                end = &mut end => return end,
            };
            match call {
                Ok(call) => self.take_up(services, call),
                Err(end) => return end,
            }
        }
    }

    /// The next call, or how the connection ends. Answers that were made meanwhile go out once there is none to take
    /// up at once.
    fn poll_call(&mut self, cx: &mut Context<'_>) -> Poll<Result<Call, End>> {
        // Who does not read is not listened to.
        if self.held.is_full() && self.held.let_go(cx).is_pending() {
            return Poll::Pending;
        }
        match self.connection.poll_accept(cx) {
            Poll::Ready(Some(Ok(call))) => Poll::Ready(Ok(call)),
            Poll::Ready(_) => self.held.let_go(cx).map(|_| Err(End::Now)),
            Poll::Pending => match self.held.let_go(cx) {
                Poll::Ready(Err(_)) => Poll::Ready(Err(End::Now)),
                _ if !self.backlog.fits() => Poll::Ready(Err(End::NotTaking)),
                _ => Poll::Pending,
            },
        }
    }

    fn take_up<U: Unary>(&self, services: &Arc<Services<U>>, (request, respond): Call) {
        match call::is_grpc(request.method(), request.headers()) {
            Ok(()) if request.uri().path() == U::PATH => {
                call::take_up(services, &self.share, request, respond);
            }
            Ok(()) => call::hand_over(services, &self.share, request, respond),
            Err(status) => call::turn_away(&self.share, (status, services.limits), request, respond),
        }
    }
}

async fn end_of_life(
    pings: PingPong,
    share: Arc<Share>,
    limits: Limits,
    stop: impl Future<Output = ()>,
) -> End {
    tokio::select! {
        () = stop => End::InOrder,
        () = sleep(jittered(limits.age)) => End::InOrder,
        () = until_silent(pings, limits.keepalive) => End::Now,
        () = until_stuck(&share, limits.call) => End::NotTaking,
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

/// Ends when too many answers wait for the peer to take them, and none was taken for so long.
async fn until_stuck(share: &Share, patience: Duration) {
    loop {
        let before = share.stuck_at();
        sleep(patience).await;
        if before.is_some() && share.stuck_at() == before {
            return;
        }
    }
}

//! Accepts the connections of management and serves HTTP/1.1 on them.
//!
//! The number of connections is limited. At the limit, the connection whose client has been idle longest is closed to
//! make room: in a handshake, a header list, a body, or before the next request. Idle or slow clients therefore cannot
//! lock out active ones. Each write of a long response resets the idle time of its connection. Slow header lists,
//! handshakes and requests also end after a timeout.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use hyper::Request;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower::ServiceExt as _;
use tracing::{debug, warn};

use crate::rate_limited_log::RateLimitedLog;
use crate::server::acceptor::stopped;
use crate::server::tls::{NotAdmitted, Tls};
use crate::telemetry::manage_metrics::ManageStats;
use crate::transport::ConnectionFailure;

/// The maximum number of connections: each takes some 20 KB and a file descriptor, of which systems often allow 1,024.
const CONNECTIONS: usize = 512;

/// How long a header list may take, and how long a connection may wait for its next request.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);

/// How long a TLS handshake may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);

/// How long a request may take from its header list to its response. Longer than the longest wait that a client can
/// request.
const REQUEST_WITHIN: Duration = Duration::from_secs(90);

/// The client of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum HttpPeer {
    /// A client over TCP.
    Tcp(IpAddr),
    /// A process of this user on a Unix socket; `None` if the user is unknown.
    Unix(Option<u32>),
}

impl HttpPeer {
    /// Returns the address of a client over TCP.
    pub(super) fn address(self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address),
            Self::Unix(_) => None,
        }
    }
}

/// State shared by all listeners.
pub(super) struct HttpAcceptor {
    app: Router,
    tls: Option<Tls>,
    stats: Arc<ManageStats>,
    log: RateLimitedLog,
    open: Mutex<OpenConnections>,
}

/// The connections that are open.
#[derive(Default)]
struct OpenConnections {
    number: usize,
    next: u64,
    /// The connections with an idle client, the longest idle first.
    waiting: BTreeMap<u64, Arc<Notify>>,
}

impl HttpAcceptor {
    /// Creates the acceptor for all listeners of a process. Without `tls`, TCP connections are not encrypted.
    pub(super) fn new(app: Router, tls: Option<Tls>, stats: Arc<ManageStats>, log: RateLimitedLog) -> Self {
        Self { app, tls, stats, log, open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, OpenConnections> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts connections over TCP until `stop`, then waits until all have ended.
    pub(super) async fn serve_tcp(self: Arc<Self>, listener: TcpListener, stop: watch::Receiver<bool>) {
        let accept = || async {
            let (stream, address): (_, SocketAddr) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok((stream, address.ip().to_canonical()))
        };
        let handle = |place: ConnectionPlace, (stream, address), stop| async move {
            let (acceptor, peer) = (Arc::clone(&place.0.acceptor), HttpPeer::Tcp(address));
            let Some(tls) = acceptor.tls.clone() else { return serve(place, stream, peer, stop).await };
            let shaken = tokio::select! {
                shaken = timeout(HANDSHAKE_WITHIN, tls.accept(stream)) => shaken,
                () = place.evicted() => return,
            };
            match shaken {
                Ok(Ok(stream)) => serve(place, stream, peer, stop).await,
                Ok(Err(NotAdmitted::Probe)) => {}
                Ok(Err(NotAdmitted::Failed(failure, detail))) => {
                    let reason = match failure {
                        // Here HTTP/1.1 is what a client must offer.
                        ConnectionFailure::NoAlpnH2 => "no_alpn_http1",
                        other => other.as_str(),
                    };
                    acceptor.note_handshake(address, reason, detail.as_deref());
                }
                Err(_) => acceptor.note_handshake(address, "handshake_timeout", None),
            }
        };
        self.accept_all(accept, handle, stop).await;
    }

    /// Accepts connections on a Unix socket until `stop`, then waits until all have ended.
    pub(super) async fn serve_unix(self: Arc<Self>, listener: UnixListener, stop: watch::Receiver<bool>) {
        let accept = || async { Ok(listener.accept().await?.0) };
        let handle = |place: ConnectionPlace, stream: tokio::net::UnixStream, stop| async move {
            let uid = stream.peer_cred().ok().map(|credentials| credentials.uid());
            serve(place, stream, HttpPeer::Unix(uid), stop).await;
        };
        self.accept_all(accept, handle, stop).await;
    }

    async fn accept_all<S, A, H>(
        self: Arc<Self>,
        accept: impl Fn() -> A,
        handle: impl Fn(ConnectionPlace, S, watch::Receiver<bool>) -> H,
        stop: watch::Receiver<bool>,
    ) where
        A: Future<Output = io::Result<S>>,
        H: Future<Output = ()> + Send + 'static,
    {
        let mut connections = JoinSet::new();
        let mut stopping = pin!(stopped(stop.clone()));
        loop {
            let accepted = tokio::select! {
                accepted = accept() => accepted,
                () = &mut stopping => break,
                // Removes ended connections.
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok(stream) => {
                    if let Some(place) = self.admit() {
                        connections.spawn(handle(place, stream, stop.clone()));
                    }
                }
                Err(error) => {
                    self.log.write(|left_out| {
                        warn!(%error, left_out, "a connection could not be accepted: raise the limit of open files");
                    });
                    // Without a file descriptor the next one fails, too, until another one ends.
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
        while connections.join_next().await.is_some() {}
    }

    /// Admits one more connection. At the limit, the connection whose client has been idle longest is closed.
    fn admit(self: &Arc<Self>) -> Option<ConnectionPlace> {
        let mut open = self.open();
        if open.number >= CONNECTIONS {
            self.stats.crowded.add_one();
            self.log.write(|left_out| {
                let connections = CONNECTIONS;
                warn!(
                    connections,
                    left_out,
                    "all connections are taken: those that wait longest for their clients are closed"
                );
            });
            let (_, longest) = open.waiting.pop_first()?;
            longest.notify_one();
        }
        open.number += 1;
        drop(open);
        let idle = IdleTracker { acceptor: Arc::clone(self), place: Arc::default(), evicted: Arc::default() };
        idle.mark_idle();
        Some(ConnectionPlace(idle))
    }

    fn note_handshake(&self, address: IpAddr, reason: &str, detail: Option<&str>) {
        self.stats.handshakes.add_one();
        self.log.write(|left_out| {
            warn!(%address, reason, detail, left_out, "a TLS handshake failed");
        });
    }
}

async fn serve<S>(place: ConnectionPlace, stream: S, peer: HttpPeer, stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (app, idle) = (place.0.acceptor.app.clone(), place.0.clone());
    let stream = Answering { stream, idle: idle.clone() };
    let service = service_fn(move |request: Request<Incoming>| {
        let idle = idle.clone();
        let mut request = request.map(|body| Arriving::of(body, &idle));
        request.extensions_mut().insert(peer);
        let answer = app.clone().oneshot(request);
        async move {
            let answer = timeout(REQUEST_WITHIN, answer).await;
            idle.mark_idle();
            // Without a response the connection is closed.
            let Ok(Ok(answer)) = answer else { return Err(io::Error::from(io::ErrorKind::TimedOut)) };
            Ok(answer)
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = place.evicted() => return,
        () = stopped(stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended");
    }
}

/// The place of a connection among those that are open.
struct ConnectionPlace(IdleTracker);

impl ConnectionPlace {
    /// Waits until another connection needs the place.
    async fn evicted(&self) {
        self.0.evicted.notified().await;
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.0.mark_busy();
        self.0.acceptor.open().number -= 1;
    }
}

/// Whether the client of a connection is idle, and its place in the order of idle ones.
#[derive(Clone)]
struct IdleTracker {
    acceptor: Arc<HttpAcceptor>,
    place: Arc<Mutex<Option<u64>>>,
    evicted: Arc<Notify>,
}

impl IdleTracker {
    /// Marks the connection as busy: the request is complete.
    fn mark_busy(&self) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = place.take() {
            self.acceptor.open().waiting.remove(&place);
        }
    }

    /// Resets the idle time after a write, for example of a part of a long list.
    fn reset(&self) {
        let waits = self.place.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if waits {
            self.mark_idle();
        }
    }

    /// Marks the connection as idle from now on.
    fn mark_idle(&self) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let mut open = self.acceptor.open();
        if let Some(place) = place.take() {
            open.waiting.remove(&place);
        }
        let next = open.next;
        open.next += 1;
        open.waiting.insert(next, Arc::clone(&self.evicted));
        *place = Some(next);
    }
}

/// A stream that resets the idle time with each write: `hyper` writes a response after the service has returned it.
struct Answering<S> {
    stream: S,
    idle: IdleTracker,
}

impl<S: AsyncRead + Unpin> AsyncRead for Answering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Answering<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, parts));
        self.idle.reset();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The body of a request. Marks the connection as busy once the body is complete or dropped.
struct Arriving {
    body: Incoming,
    idle: IdleTracker,
}

impl Arriving {
    fn of(body: Incoming, idle: &IdleTracker) -> Self {
        if body.is_end_stream() {
            idle.mark_busy();
        }
        Self { body, idle: idle.clone() }
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() || self.body.is_end_stream() {
            self.idle.mark_busy();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.idle.mark_busy();
    }
}

#[cfg(test)]
mod tests;

//! Accepts the connections of management and serves HTTP/1.1 on them.
//!
//! The number of connections is limited. At the limit, the connection that has been idle longest is closed for a new
//! one, so that idle clients cannot lock out others. Slow header lists, handshakes and requests end after a timeout.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
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

/// The maximum number of open connections. Each takes about 20 KB and a file descriptor, of which systems often allow
/// 1,024.
const CONNECTIONS: usize = 512;

/// How long a header list may take, and how long a connection may be idle.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);

/// How long a TLS handshake may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);

/// How long a request may take from its header list to its answer. Longer than the longest `Prefer: wait`.
const REQUEST_WITHIN: Duration = Duration::from_secs(90);

/// The other end of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Peer {
    /// A client over TCP.
    Tcp(IpAddr),
    /// A process on a Unix socket, with its user id if the system reports it.
    Unix(Option<u32>),
}

impl Peer {
    /// The address of a client over TCP; `None` on a Unix socket.
    pub(super) fn address(self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address),
            Self::Unix(_) => None,
        }
    }
}

/// Accepts the connections of all listeners, up to the limit.
pub(super) struct Acceptor {
    app: Router,
    tls: Option<Tls>,
    stats: Arc<ManageStats>,
    log: RateLimitedLog,
    open: Mutex<Open>,
}

/// The open connections.
#[derive(Default)]
struct Open {
    number: usize,
    next: u64,
    /// The idle ones, ordered by how long they have been idle, longest first.
    idle: BTreeMap<u64, Arc<Notify>>,
}

impl Acceptor {
    pub(super) fn new(app: Router, tls: Option<Tls>, stats: Arc<ManageStats>, log: RateLimitedLog) -> Self {
        Self { app, tls, stats, log, open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts connections over TCP until `stop`, then waits until all have ended.
    pub(super) async fn serve_tcp(self: Arc<Self>, listener: TcpListener, stop: watch::Receiver<bool>) {
        let accept = || async {
            let (stream, address): (_, SocketAddr) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok((stream, address.ip().to_canonical()))
        };
        let handle = |acceptor: Arc<Self>, (stream, address), stop| async move {
            let peer = Peer::Tcp(address);
            let Some(tls) = acceptor.tls.clone() else { return acceptor.serve(stream, peer, stop).await };
            match timeout(HANDSHAKE_WITHIN, tls.accept(stream)).await {
                Ok(Ok(stream)) => acceptor.serve(stream, peer, stop).await,
                Ok(Err(NotAdmitted::Probe)) => {}
                Ok(Err(NotAdmitted::Failed(failure, detail))) => {
                    acceptor.note_handshake(address, failure.as_str(), detail.as_deref());
                }
                Err(_) => acceptor.note_handshake(address, "handshake_timeout", None),
            }
        };
        self.accept_all(accept, handle, stop).await;
    }

    /// Accepts connections on a Unix socket until `stop`, then waits until all have ended.
    pub(super) async fn serve_unix(self: Arc<Self>, listener: UnixListener, stop: watch::Receiver<bool>) {
        let accept = || async { Ok(listener.accept().await?.0) };
        let handle = |acceptor: Arc<Self>, stream: tokio::net::UnixStream, stop| async move {
            let uid = stream.peer_cred().ok().map(|credentials| credentials.uid());
            acceptor.serve(stream, Peer::Unix(uid), stop).await;
        };
        self.accept_all(accept, handle, stop).await;
    }

    async fn accept_all<S, A, H>(
        self: Arc<Self>,
        accept: impl Fn() -> A,
        handle: impl Fn(Arc<Self>, S, watch::Receiver<bool>) -> H,
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
                    if let Some(slot) = self.admit() {
                        let served = handle(Arc::clone(&self), stream, stop.clone());
                        connections.spawn(async move {
                            served.await;
                            drop(slot);
                        });
                    }
                }
                Err(error) => {
                    self.log.write(|left_out| {
                        warn!(%error, left_out, "a connection could not be accepted: raise the limit of open files");
                    });
                    // Without a file descriptor, accepting fails until another connection ends.
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
        while connections.join_next().await.is_some() {}
    }

    /// Reserves a slot for a new connection. At the limit, closes the connection that has been idle longest; `None` if
    /// none is idle.
    fn admit(self: &Arc<Self>) -> Option<Slot> {
        let mut open = self.open();
        if open.number >= CONNECTIONS {
            self.stats.crowded.add_one();
            self.log.write(|left_out| {
                let connections = CONNECTIONS;
                warn!(connections, left_out, "all connections are in use: idle ones are closed for new ones");
            });
            let (_, longest) = open.idle.pop_first()?;
            longest.notify_one();
        }
        open.number += 1;
        drop(open);
        Some(Slot(Arc::clone(self)))
    }

    fn note_handshake(&self, address: IpAddr, reason: &str, detail: Option<&str>) {
        self.stats.handshakes.add_one();
        self.log.write(|left_out| {
            warn!(%address, reason, detail, left_out, "a TLS handshake failed");
        });
    }

    async fn serve<S>(self: Arc<Self>, stream: S, peer: Peer, stop: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let guard = IdleGuard::new(&self);
        let (app, mark) = (self.app.clone(), guard.mark());
        let service = service_fn(move |mut request: Request<Incoming>| {
            let mark = mark.clone();
            mark.busy();
            request.extensions_mut().insert(peer);
            let answer = app.clone().oneshot(request);
            async move {
                let answer = timeout(REQUEST_WITHIN, answer).await;
                mark.idle();
                // Without an answer the connection is closed.
                let Ok(Ok(answer)) = answer else { return Err(io::Error::from(io::ErrorKind::TimedOut)) };
                Ok(answer)
            }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = guard.evicted() => return,
            () = stopped(stop) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(%error, "a connection ended");
        }
    }
}

/// The slot of an open connection, until it is dropped.
struct Slot(Arc<Acceptor>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open().number -= 1;
    }
}

/// Keeps track of whether a connection is idle. Dropping it removes the connection from the idle ones.
struct IdleGuard(IdleMark);

/// A handle by which requests mark their connection as idle or busy.
#[derive(Clone)]
struct IdleMark {
    acceptor: Arc<Acceptor>,
    place: Arc<Mutex<Option<u64>>>,
    evicted: Arc<Notify>,
}

impl IdleGuard {
    fn new(acceptor: &Arc<Acceptor>) -> Self {
        let mark =
            IdleMark { acceptor: Arc::clone(acceptor), place: Arc::default(), evicted: Arc::default() };
        mark.idle();
        Self(mark)
    }

    fn mark(&self) -> IdleMark {
        self.0.clone()
    }

    async fn evicted(&self) {
        self.0.evicted.notified().await;
    }
}

impl Drop for IdleGuard {
    fn drop(&mut self) {
        self.0.busy();
    }
}

impl IdleMark {
    /// Marks the connection as busy.
    fn busy(&self) {
        let place = self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(place) = place {
            self.acceptor.open().idle.remove(&place);
        }
    }

    /// Marks the connection as idle from now on.
    fn idle(&self) {
        let mut open = self.acceptor.open();
        let place = open.next;
        open.next += 1;
        open.idle.insert(place, Arc::clone(&self.evicted));
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    }
}

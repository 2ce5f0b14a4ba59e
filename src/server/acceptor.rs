//! Accepts connections and gives them to workers.
//!
//! A listener accepts a connection, checks that the limit of connections is not reached, and gives the connection to a
//! worker, which checks the peer. No failure of a single connection stops the listener, not even a lack of file
//! descriptors.
//!
//! When the server stops, listeners continue to accept until the open connections have ended. Before they close, they
//! accept what is in the queue of the kernel, because a connection that the kernel resets is a lost request.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::ServeError;
use super::tls::{NotAdmitted, Tls};
use super::worker_pool::WorkerPool;
use crate::clock::Clock;
use crate::rate_limited_log::RateLimitedLog;
use crate::transport::{self, ConnectionFailure, ListenStats, Peer, Services, Unary};

/// An address to listen on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ListenAddress {
    /// `host:port`; port 0 lets the system choose.
    Tcp(String),
    /// A Unix socket at this path.
    Unix(PathBuf),
}

impl ListenAddress {
    /// Returns the paths of the Unix sockets among `addresses`.
    pub fn sockets(addresses: &[Self]) -> impl Iterator<Item = &PathBuf> {
        addresses.iter().filter_map(|address| match address {
            Self::Tcp(_) => None,
            Self::Unix(path) => Some(path),
        })
    }
}

/// The listeners, the peers that may connect, and the limits.
#[derive(Clone)]
pub struct ListenOptions {
    /// The addresses.
    pub listen: Vec<ListenAddress>,
    /// TLS for TCP listeners.
    pub tls: Option<Tls>,
    /// The mode of Unix sockets. Owner and group by default: put Envoy into the group.
    pub unix_mode: u32,
    /// The user ids that may connect to a Unix socket. Empty allows all users that the mode of the socket allows.
    pub unix_peers: Vec<u32>,
    /// The maximum number of open connections of all listeners. Each takes 50 KB and a file descriptor.
    pub connections: u32,
    /// The number of worker threads; 0 for one per core.
    pub workers: usize,
    /// Limits of each connection.
    pub limits: transport::Limits,
    /// The Unix socket for the module inside Envoy, if there is one.
    pub publish: Option<PathBuf>,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            tls: None,
            unix_mode: 0o660,
            unix_peers: Vec::new(),
            connections: 4_096,
            workers: 0,
            limits: transport::Limits::default(),
            publish: None,
        }
    }
}

/// Bound addresses.
pub(super) struct Listeners(Vec<Listener>);

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

enum Socket {
    Tcp(std::net::TcpStream, Peer),
    Unix(std::os::unix::net::UnixStream),
}

impl Listeners {
    pub(super) async fn bind(options: &ListenOptions) -> Result<Self, ServeError> {
        let mut listeners = Vec::new();
        for address in &options.listen {
            listeners.push(match address {
                ListenAddress::Tcp(address) => Listener::Tcp(bind_tcp(address, "grpc").await?),
                ListenAddress::Unix(path) => {
                    Listener::Unix(bind_unix(path, options.unix_mode, "grpc").await?)
                }
            });
        }
        Ok(Self(listeners))
    }

    /// Accepts connections until `closing`, then those in the queue of the kernel.
    pub(super) async fn serve<U: Unary>(self, acceptor: Arc<Acceptor<U>>, closing: watch::Receiver<bool>) {
        let mut each = tokio::task::JoinSet::new();
        for listener in self.0 {
            let (acceptor, closing) = (Arc::clone(&acceptor), closing.clone());
            each.spawn(async move { acceptor.serve(listener, closing).await });
        }
        while each.join_next().await.is_some() {}
    }
}

impl Listener {
    /// Returns the next connection, ready to be given to another thread.
    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // A response is one small packet; it must not wait for a second one.
                stream.set_nodelay(true)?;
                stream.into_std().map(|stream| Socket::Tcp(stream, Peer::Tcp(address)))
            }
            Self::Unix(listener) => listener.accept().await?.0.into_std().map(Socket::Unix),
        }
    }

    /// Returns the connections that are still in the queue of the kernel. Closes the listener.
    fn queued(self) -> Box<dyn Iterator<Item = Socket>> {
        // Not through the runtime, which may not have noticed the latest ones yet. The sockets do not block, because
        // tokio created them.
        match self {
            Self::Tcp(listener) => {
                let listener = listener.into_std().ok();
                let accept = move || listener.as_ref().map(std::net::TcpListener::accept);
                Box::new(all(accept).filter_map(|(stream, address)| {
                    stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).ok()?;
                    Some(Socket::Tcp(stream, Peer::Tcp(address)))
                }))
            }
            Self::Unix(listener) => {
                let listener = listener.into_std().ok();
                let accept = move || listener.as_ref().map(std::os::unix::net::UnixListener::accept);
                Box::new(all(accept).filter_map(|(stream, _)| {
                    stream.set_nonblocking(true).ok()?;
                    Some(Socket::Unix(stream))
                }))
            }
        }
    }
}

/// Accepts until the queue is empty. Skips connections that the peer has closed already.
fn all<T>(mut accept: impl FnMut() -> Option<io::Result<T>>) -> impl Iterator<Item = T> {
    std::iter::from_fn(move || {
        loop {
            match accept()? {
                Ok(socket) => return Some(socket),
                Err(error) if is_of_one_connection(&error) => {}
                Err(_) => return None,
            }
        }
    })
}

/// Returns whether a failure to accept concerns only this connection, because its peer closed it.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// Accepts the connections of all listeners, up to the limit, and gives them to workers.
pub(super) struct Acceptor<U> {
    services: Arc<Services<U>>,
    workers: WorkerPool,
    tls: Option<Tls>,
    peers: Vec<u32>,
    most: u32,
    open: watch::Sender<u32>,
    stop: watch::Receiver<bool>,
    stats: Arc<ListenStats>,
    log: RateLimitedLog,
}

impl<U: Unary> Acceptor<U> {
    pub(super) fn new(
        options: &ListenOptions,
        services: Arc<Services<U>>,
        stop: watch::Receiver<bool>,
        stats: Arc<ListenStats>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ServeError> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let workers = if options.workers == 0 { cores() } else { options.workers };
        let workers = WorkerPool::start(workers)
            .map_err(|e| ServeError::Start(format!("cannot start a worker: {e}")))?;
        Ok(Self {
            services,
            workers,
            tls: options.tls.clone(),
            peers: options.unix_peers.clone(),
            most: options.connections,
            open: watch::Sender::new(0),
            stop,
            stats,
            log: RateLimitedLog::new(clock, 1),
        })
    }

    /// Returns whether a connection is open.
    pub(super) fn is_in_use(&self) -> bool {
        *self.open.borrow() > 0
    }

    /// Waits until no connection is open.
    pub(super) async fn idle(&self) {
        // The sender is not dropped meanwhile.
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// Answers the calls that still wait, so that their connections can end.
    pub(super) fn end_waiting(&self) {
        self.services.end_waiting();
    }

    async fn serve(self: Arc<Self>, listener: Listener, closing: watch::Receiver<bool>) {
        let mut closing = std::pin::pin!(stopped(closing));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut closing => break,
            };
            match accepted {
                Ok(socket) => self.admit(socket),
                Err(error) => self.recover_from(&error).await,
            }
        }
        listener.queued().for_each(|socket| self.admit(socket));
    }

    fn admit(self: &Arc<Self>, socket: Socket) {
        let Some(slot) = ConnectionSlot::take(self) else {
            self.stats.no_room.add_one();
            let connections = self.most;
            return self.log.write(|left_out| {
                warn!(
                    connections,
                    left_out,
                    "connection closed: --max-connections are open; raise it, or find the client that has so many"
                );
            });
        };
        self.stats.accepted.add_one();
        let acceptor = Arc::clone(self);
        self.workers.give(async move {
            acceptor.handle(socket).await;
            drop(slot);
        });
    }

    /// Logs a failure to accept and pauses: without a file descriptor or memory, accepting fails until another
    /// connection ends.
    async fn recover_from(&self, error: &io::Error) {
        if is_of_one_connection(error) {
            return;
        }
        self.stats.failed.add_one();
        self.log.write(|left_out| {
            warn!(%error, left_out, "a connection could not be accepted: raise the limit of open files");
        });
        sleep(Duration::from_millis(50)).await;
    }

    /// Serves a connection. Runs on a worker.
    async fn handle(self: &Arc<Self>, socket: Socket) {
        match socket {
            Socket::Tcp(stream, peer) => {
                if let Ok(stream) = TcpStream::from_std(stream) {
                    self.over_tcp(stream, peer).await;
                }
            }
            Socket::Unix(stream) => {
                if let Ok(stream) = UnixStream::from_std(stream) {
                    self.over_unix(stream).await;
                }
            }
        }
    }

    async fn over_tcp(&self, stream: TcpStream, peer: Peer) {
        let Some(tls) = &self.tls else { return self.serve_stream(stream, peer).await };
        match timeout(self.services.limits.handshake, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.serve_stream(stream, peer).await,
            Ok(Err(NotAdmitted::Failed(failure, detail))) => {
                self.stats.failures.connection(failure, &peer, detail.as_deref());
            }
            Ok(Err(NotAdmitted::Probe)) => {}
            Err(_) => self.stats.failures.connection(ConnectionFailure::HandshakeTimeout, &peer, None),
        }
    }

    async fn over_unix(&self, stream: UnixStream) {
        let peer = stream.peer_cred().map_or(Peer::Unknown, |peer| Peer::Unix(peer.uid()));
        let allowed = matches!(peer, Peer::Unix(uid) if self.peers.contains(&uid));
        if self.peers.is_empty() || allowed {
            return self.serve_stream(stream, peer).await;
        }
        self.stats.failures.connection(ConnectionFailure::PeerUidNotAllowed, &peer, None);
    }

    async fn serve_stream(&self, io: impl AsyncRead + AsyncWrite + Unpin, peer: Peer) {
        transport::serve(io, peer, Arc::clone(&self.services), self.stop.clone()).await;
    }
}

/// One of the allowed open connections, until it is dropped.
struct ConnectionSlot(watch::Sender<u32>);

impl ConnectionSlot {
    fn take<U>(acceptor: &Acceptor<U>) -> Option<Self> {
        let mut taken = false;
        acceptor.open.send_if_modified(|open| {
            taken = *open < acceptor.most;
            *open += u32::from(taken);
            taken
        });
        taken.then(|| Self(acceptor.open.clone()))
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

/// Returns once `stopped` is true or its sender is gone.
pub(super) async fn stopped(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone.
    let _ = stopped.wait_for(|stop| *stop).await;
}

pub(super) async fn bind_tcp(address: &str, listener: &str) -> Result<TcpListener, ServeError> {
    let bound = TcpListener::bind(address).await.and_then(|bound| Ok((bound.local_addr()?, bound)));
    let (local, bound) = bound.map_err(|e| cannot_listen(address, &e))?;
    info!(%listener, address = %local, "listening");
    Ok(bound)
}

fn cannot_listen(address: &str, error: &io::Error) -> ServeError {
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens there, stop it or choose another address".into(),
        io::ErrorKind::PermissionDenied => {
            "permission denied, choose another address or run as a user permitted to bind it".into()
        }
        _ => error.to_string(),
    };
    ServeError::Listen { address: address.to_owned(), why }
}

/// Binds a Unix socket. Replaces a socket file without a listener, which a killed process leaves behind.
pub(super) async fn bind_unix(path: &Path, mode: u32, listener: &str) -> Result<UnixListener, ServeError> {
    let shown = format!("unix:{}", path.display());
    let stale = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
        && UnixStream::connect(path).await.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
    let bind = || {
        if stale {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        Ok(listener)
    };
    let bound = bind().map_err(|e: io::Error| cannot_listen(&shown, &e))?;
    info!(%listener, address = %shown, "listening");
    Ok(bound)
}

/// Removes the socket files.
pub(super) fn remove_sockets(listen: &[ListenAddress]) {
    for path in ListenAddress::sockets(listen) {
        // It may be removed already.
        let _ = std::fs::remove_file(path);
    }
}

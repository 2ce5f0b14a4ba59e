//! Where do connections come in, and which ones are let in?
//!
//! A listener takes a connection, looks whether there is room and whether the peer may
//! come, and gives it to a worker. It goes on whatever happens to a single connection,
//! also when the system has no file descriptor left for the next one.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::ServeError;
use super::tls::Tls;
use super::workers::Workers;
use crate::clock::Clock;
use crate::grpc::{self, Parting, Services, Unary};
use crate::stats::Count;

/// Where to listen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    /// `host:port`; port 0 lets the system choose.
    Tcp(String),
    /// A Unix socket at this path.
    Unix(PathBuf),
}

/// Who may connect, and how many at a time.
#[derive(Clone)]
pub struct Options {
    /// Where.
    pub listen: Vec<Address>,
    /// TLS for TCP listeners.
    pub tls: Option<Tls>,
    /// The mode of Unix sockets. Owner and group by default: put Envoy into the group.
    pub unix_mode: u32,
    /// Who may connect to a Unix socket, by user id; empty: whoever its mode lets.
    pub unix_peers: Vec<u32>,
    /// Connections at a time, over all listeners: each takes 50 KB and a file descriptor.
    pub connections: u32,
    /// Threads that serve them; 0: as many as there are cores.
    pub workers: usize,
    /// What a peer may take of a connection.
    pub limits: grpc::Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            tls: None,
            unix_mode: 0o660,
            unix_peers: Vec::new(),
            connections: 4_096,
            workers: 0,
            limits: grpc::Limits::default(),
        }
    }
}

/// Connections, for operators.
#[derive(Debug, Default)]
pub struct Stats {
    /// Taken.
    pub accepted: Count,
    /// Closed at once because there was no room.
    pub no_room: Count,
    /// Closed at once because the peer may not come: the wrong user, or no certificate that is asked for.
    pub turned_away: Count,
    /// Hung up on because the peer did not take its answers.
    pub not_taking: Count,
    /// Times that the system had no connection to give, such as without a file descriptor left.
    pub failed: Count,
}

/// Addresses that are ours now.
pub(super) struct Listeners(Vec<Listener>);

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

enum Socket {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Listeners {
    pub(super) async fn bind(options: &Options) -> Result<Self, ServeError> {
        let mut listeners = Vec::new();
        for address in &options.listen {
            listeners.push(match address {
                Address::Tcp(address) => Listener::Tcp(bind_tcp(address, "grpc").await?),
                Address::Unix(path) => Listener::Unix(bind_unix(path, options.unix_mode).await?),
            });
        }
        Ok(Self(listeners))
    }

    /// Takes connections for ever.
    pub(super) async fn serve<U: Unary>(self, door: Arc<Door<U>>) {
        let mut each = tokio::task::JoinSet::new();
        for listener in self.0 {
            let door = Arc::clone(&door);
            each.spawn(async move { door.serve(listener).await });
        }
        while each.join_next().await.is_some() {}
    }
}

impl Listener {
    /// The next connection, ready to be given to another thread.
    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // An answer is one small packet; it is not held back for a second one.
                stream.set_nodelay(true)?;
                stream.into_std().map(Socket::Tcp)
            }
            Self::Unix(listener) => listener.accept().await?.0.into_std().map(Socket::Unix),
        }
    }
}

/// Where connections come in: shared by all listeners.
pub(super) struct Door<U> {
    services: Arc<Services<U>>,
    workers: Workers,
    tls: Option<Tls>,
    peers: Vec<u32>,
    room: Arc<Semaphore>,
    places: u32,
    stop: watch::Receiver<bool>,
    stats: Arc<Stats>,
    complaint: Complaint,
}

impl<U: Unary> Door<U> {
    pub(super) fn open(
        options: &Options,
        services: Arc<Services<U>>,
        stop: watch::Receiver<bool>,
        stats: Arc<Stats>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ServeError> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let workers = if options.workers == 0 { cores() } else { options.workers };
        let workers =
            Workers::start(workers).map_err(|e| ServeError::Start(format!("no thread to serve on: {e}")))?;
        let room = Arc::new(Semaphore::new(options.connections as usize));
        Ok(Self {
            services,
            workers,
            tls: options.tls.clone(),
            peers: options.unix_peers.clone(),
            room,
            places: options.connections,
            stop,
            stats,
            complaint: Complaint { clock, last: AtomicU64::new(u64::MAX) },
        })
    }

    /// Waits until all connections have ended.
    pub(super) async fn emptied(&self) {
        // The room is never closed.
        let _ = self.room.acquire_many(self.places).await;
    }

    async fn serve(self: Arc<Self>, listener: Listener) {
        let stop = told(self.stop.clone());
        let accept = async {
            loop {
                match listener.accept().await {
                    Ok(socket) => self.let_in(socket),
                    Err(error) => self.go_on_after(&error).await,
                }
            }
        };
        tokio::select! {
            () = accept => {}
            () = stop => {}
        }
    }

    fn let_in(self: &Arc<Self>, socket: Socket) {
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
            self.stats.no_room.add_one();
            let connections = self.places;
            return self.complaint.once_a_second(|| {
                warn!(
                    connections,
                    "no room for another connection: raise --max-connections, or find who has so many"
                );
            });
        };
        self.stats.accepted.add_one();
        let door = Arc::clone(self);
        self.workers.give(async move { door.welcome(socket, place).await });
    }

    /// A connection that the peer gave up before we took it says nothing about the next one; without a file
    /// descriptor or memory the next one fails, too, until somebody leaves.
    async fn go_on_after(&self, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
        if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
            return;
        }
        self.stats.failed.add_one();
        self.complaint.once_a_second(|| warn!(%error, "a connection could not be taken, going on"));
        sleep(Duration::from_millis(50)).await;
    }

    /// On a worker.
    async fn welcome(self: Arc<Self>, socket: Socket, place: OwnedSemaphorePermit) {
        match socket {
            Socket::Tcp(stream) => {
                if let Ok(stream) = TcpStream::from_std(stream) {
                    self.over_tcp(stream).await;
                }
            }
            Socket::Unix(stream) => {
                if let Ok(stream) = UnixStream::from_std(stream) {
                    self.over_unix(stream).await;
                }
            }
        }
        drop(place);
    }

    async fn over_tcp(&self, stream: TcpStream) {
        let Some(tls) = &self.tls else { return self.talk(stream).await };
        let hello = timeout(self.services.limits.handshake, tls.acceptor().accept(stream)).await;
        let Ok(Ok(stream)) = hello else { return self.stats.turned_away.add_one() };
        if tls.may_come(stream.get_ref().1) {
            return self.talk(stream).await;
        }
        self.stats.turned_away.add_one();
        self.complaint.once_a_second(|| {
            warn!("a client came whose certificate has none of the names of --client-san");
        });
    }

    async fn over_unix(&self, stream: UnixStream) {
        if self.peers.is_empty() {
            return self.talk(stream).await;
        }
        let uid = stream.peer_cred().map(|peer| peer.uid());
        if uid.as_ref().is_ok_and(|uid| self.peers.contains(uid)) {
            return self.talk(stream).await;
        }
        self.stats.turned_away.add_one();
        self.complaint.once_a_second(|| {
            warn!(uid = uid.unwrap_or(u32::MAX), "a user came to the socket who is none of --unix-peer-uid");
        });
    }

    async fn talk(&self, io: impl AsyncRead + AsyncWrite + Unpin) {
        let parting = grpc::serve(io, Arc::clone(&self.services), told(self.stop.clone())).await;
        if parting == Parting::NotTaking {
            self.stats.not_taking.add_one();
            self.complaint.once_a_second(|| {
                warn!("hung up on a client that does not take its answers: see --max-pending-bytes");
            });
        }
    }
}

/// Done once `stopped` says so.
pub(super) async fn told(mut stopped: watch::Receiver<bool>) {
    // An error means that whoever would tell is gone, which tells as much.
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// What would be said a thousand times a second is said once; the metrics have all of it.
struct Complaint {
    clock: Arc<dyn Clock>,
    last: AtomicU64,
}

impl Complaint {
    fn once_a_second(&self, say: impl FnOnce()) {
        let now = self.clock.uptime().as_secs();
        if self.last.swap(now, Relaxed) != now {
            say();
        }
    }
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
            "permission denied, choose another address or run as who may".into()
        }
        _ => error.to_string(),
    };
    ServeError::Listen { address: address.to_owned(), why }
}

/// A socket file that nobody listens on any more is taken over; it is what a killed process leaves behind.
async fn bind_unix(path: &Path, mode: u32) -> Result<UnixListener, ServeError> {
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
    let listener = bind().map_err(|e: io::Error| cannot_listen(&shown, &e))?;
    info!(listener = %"grpc", address = %shown, "listening");
    Ok(listener)
}

/// Takes the sockets away that were ours.
pub(super) fn tidy_up(listen: &[Address]) {
    for address in listen {
        if let Address::Unix(path) = address {
            // Somebody may have tidied up already.
            let _ = std::fs::remove_file(path);
        }
    }
}

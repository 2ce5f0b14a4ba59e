//! How is the house put together, and how is it closed?
//!
//! Listeners first, so that a taken port is known at once and Envoy is answered
//! while the database is still being looked for; then the machines; at the end
//! everything in the opposite order: not fit any more → answer who is in →
//! write down what was used → gone.

use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::http::{StatusCode, header::CONTENT_TYPE};
use axum::response::IntoResponse as _;
use axum::routing::get;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::{Router, TcpIncoming};
use tonic::transport::{Server, ServerTlsConfig};
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

use crate::clock::{Clock, SystemClock};
use crate::ext_authz::proto::DESCRIPTORS;
use crate::ext_authz::service::{AuthorizationServer, AuthorizationService, Options as ServiceOptions};
use crate::gate::{self, Gate};
use crate::health::Health;
use crate::memos::{self, Memos};
use crate::replica::Replica;
use crate::replica::announce::{self, Announcer};
use crate::replica::keep::{self, Keeper};
use crate::replica::prune;
use crate::replica::sync::{self, Sync};
use crate::store::{Store, StoreError};
use crate::telemetry::metrics::{self, Metrics};
use crate::usage::{self, Usage};
use crate::verify::memo::{Keyring, Peppers};
use crate::verify::{self, Verifier};

/// How long an orderly stop waits for requests that are under way. A stop is over within 10 s.
const DRAIN_WITHIN: Duration = Duration::from_millis(6_500);

/// How long it waits for last uses to be written down after that.
const FLUSH_WITHIN: Duration = Duration::from_millis(1_500);

/// Limits of a connection. tonic hands its `None`s on, which removes hyper's limit of streams and h2's of
/// resets (RUSTSEC-2024-0003): both are set.
mod limits {
    use std::time::Duration;

    /// Envoy opens another connection beyond this.
    pub(super) const STREAMS: u32 = 1_024;
    /// Streams reset for the client's errors before the connection is closed.
    pub(super) const ERROR_RESETS: usize = 256;
    /// Streams reset by the client before we took them up (CVE-2023-44487).
    pub(super) const PENDING_RESETS: usize = 32;
    /// gRPC's own headers; what Envoy tells of the request is in the message.
    pub(super) const HEADER_LIST: u32 = 8 * 1024;
    /// Envoy's request headers are 60 KiB by default; the rest is room for bodies somebody sends along.
    pub(super) const MESSAGE: usize = 1024 * 1024;
    /// A peer that is gone without a word is found after both.
    pub(super) const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(25), Duration::from_secs(10));
}

/// Where to listen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    /// `host:port`; port 0 lets the system choose.
    Tcp(String),
    /// A Unix socket at this path.
    Unix(PathBuf),
}

/// Everything the house is made of.
pub struct Settings {
    /// Where Envoy asks.
    pub listen: Vec<Address>,
    /// Where operators ask.
    pub ops_listen: String,
    /// TLS for TCP listeners.
    pub tls: Option<ServerTlsConfig>,
    /// Whether to serve gRPC reflection.
    pub reflection: bool,
    /// The database.
    pub store: Arc<dyn Store>,
    /// How requests are read and answered.
    pub ext_authz: ServiceOptions,
    /// How they are judged.
    pub gate: gate::Options,
    /// How keys are proven.
    pub verify: verify::Options,
    /// How the replica is kept true.
    pub sync: sync::Options,
    /// How uses are written down.
    pub usage: usage::Options,
    /// How the change log is cut.
    pub prune: prune::Options,
    /// By which proofs outlive the process, and what is asked of them.
    pub peppers: Peppers,
    /// How memos are written down.
    pub memos: memos::Options,
    /// How the snapshot is kept in a file, if it is.
    pub keep: Option<keep::Options>,
    /// The clock to go by.
    pub clock: Arc<dyn Clock>,
}

impl Settings {
    /// Machines as they come, on a store that is still to be named.
    #[must_use]
    pub fn on(store: Arc<dyn Store>) -> Self {
        Self {
            listen: Vec::new(),
            ops_listen: String::new(),
            tls: None,
            reflection: true,
            store,
            ext_authz: ServiceOptions::default(),
            gate: gate::Options::default(),
            verify: verify::Options::default(),
            sync: sync::Options::default(),
            usage: usage::Options::default(),
            prune: prune::Options::default(),
            peppers: Peppers::default(),
            memos: memos::Options::default(),
            keep: None,
            clock: Arc::new(SystemClock),
        }
    }
}

/// Why the server ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address could not be listened on.
    #[error("cannot listen on {address}: {why}")]
    Listen {
        /// The address as it was given.
        address: String,
        /// What the system said.
        why: String,
    },
    /// A part of the machinery did not start.
    #[error("cannot start: {0}")]
    Start(String),
    /// The database can never be served from as it is.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Serves until `shutdown` is done, then stops in order.
///
/// # Errors
///
/// An address is taken; the tables are too old.
pub async fn serve(settings: Settings, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
    let listeners = Listeners::bind(&settings).await?;
    let house = House::build(&settings)?;
    let (stop, stopped) = watch::channel(false);
    let mut doors = listeners.open(&settings, &house, &stopped)?;
    if let Some(keeper) = house.keeper(&settings) {
        keeper.restore();
    }
    // Reading and sorting in a hundred thousand rows takes a while, in which no request should have to wait for
    // the thread.
    let mut sync = Apart::run("replica", house.sync(&settings).run())?;
    let background = vec![
        tokio::spawn(house.memos.clone().run(Arc::clone(&settings.store))),
        tokio::spawn(keep_snapshot(house.keeper(&settings))),
        tokio::spawn(house.usage.clone().run(Arc::clone(&settings.store), settings.usage)),
        tokio::spawn(house.health.clone().run(house.reporter.clone())),
        tokio::spawn(house.announcer.clone().run()),
        tokio::spawn(prune::run(Arc::clone(&settings.store), settings.prune)),
    ];
    let outcome = tokio::select! {
        () = shutdown => Ok(()),
        fatal = sync.ended() => Err(fatal),
        ended = doors.ended() => Err(ServeError::Start(format!("a listener ended: {ended}"))),
    };
    house.close(&settings, stop, doors, sync, background).await;
    listeners_gone(&settings.listen);
    outcome
}

/// Addresses that are ours now.
struct Listeners {
    tcp: Vec<TcpListener>,
    unix: Vec<UnixListener>,
    ops: TcpListener,
}

impl Listeners {
    async fn bind(settings: &Settings) -> Result<Self, ServeError> {
        let (mut tcp, mut unix) = (Vec::new(), Vec::new());
        for address in &settings.listen {
            match address {
                Address::Tcp(address) => tcp.push(bind_tcp(address, "grpc").await?),
                Address::Unix(path) => unix.push(bind_unix(path).await?),
            }
        }
        Ok(Self { tcp, unix, ops: bind_tcp(&settings.ops_listen, "ops").await? })
    }

    fn open(
        self,
        settings: &Settings,
        house: &House,
        stopped: &watch::Receiver<bool>,
    ) -> Result<Doors, ServeError> {
        let mut grpc = JoinSet::new();
        for listener in self.tcp {
            let router = house.router(settings, settings.tls.as_ref())?;
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            let stop = told(stopped.clone());
            grpc.spawn(async move {
                router.serve_with_incoming_shutdown(incoming, stop).await.map_err(|e| e.to_string())
            });
        }
        for listener in self.unix {
            let router = house.router(settings, None)?;
            let (incoming, stop) = (UnixListenerStream::new(listener), told(stopped.clone()));
            grpc.spawn(async move {
                router.serve_with_incoming_shutdown(incoming, stop).await.map_err(|e| e.to_string())
            });
        }
        let ops = axum::serve(self.ops, house.ops());
        Ok(Doors { grpc, ops: tokio::spawn(async move { ops.await.map_err(|e| e.to_string()) }) })
    }
}

/// Listeners that are being served.
struct Doors {
    grpc: JoinSet<Result<(), String>>,
    /// Open to the last, so that operators can watch us go.
    ops: JoinHandle<Result<(), String>>,
}

impl Doors {
    /// The first one that ends, which none should.
    async fn ended(&mut self) -> String {
        tokio::select! {
            Some(ended) = self.grpc.join_next() => format!("{ended:?}"),
            ended = &mut self.ops => format!("{ended:?}"),
        }
    }
}

async fn told(mut stopped: watch::Receiver<bool>) {
    // An error means that whoever would tell is gone, which tells as much.
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn bind_tcp(address: &str, listener: &str) -> Result<TcpListener, ServeError> {
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
async fn bind_unix(path: &Path) -> Result<UnixListener, ServeError> {
    let shown = format!("unix:{}", path.display());
    let stale = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
        && UnixStream::connect(path).await.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
    let bind = || {
        if stale {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        // Owner and group: put Envoy into the group.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        Ok(listener)
    };
    let listener = bind().map_err(|e: io::Error| cannot_listen(&shown, &e))?;
    info!(listener = %"grpc", address = %shown, "listening");
    Ok(listener)
}

fn listeners_gone(listen: &[Address]) {
    for address in listen {
        if let Address::Unix(path) = address {
            // Somebody may have tidied up already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The machines, put together.
struct House {
    replica: Replica,
    usage: Usage,
    memos: Memos,
    service: Arc<AuthorizationService>,
    health: Health,
    reporter: HealthReporter,
    metrics: Metrics,
    announcer: Announcer,
}

impl House {
    fn build(settings: &Settings) -> Result<Self, ServeError> {
        let clock = &settings.clock;
        let (peppers, usage) = (&settings.peppers, Usage::default());
        let replica = Replica::new(peppers.clone());
        let memos = Memos::new(peppers.clone(), settings.memos);
        let keyring =
            Keyring::new(peppers.clone()).map_err(|e| ServeError::Start(format!("no randomness: {e}")))?;
        let verifier =
            Verifier::start(settings.verify, keyring).map_err(|e| ServeError::Start(e.to_string()))?;
        let verify = verifier.stats();
        let (ours, uses, proofs) = (replica.clone(), usage.clone(), memos.clone());
        let gate = Arc::new(Gate::new(ours, verifier, uses, proofs, Arc::clone(clock), settings.gate));
        let metrics = Metrics {
            gate: gate.stats(),
            verify,
            replica: replica.clone(),
            usage: usage.clone(),
            memos: memos.clone(),
            clock: Arc::clone(clock),
        };
        let service = AuthorizationService::new(gate, Arc::clone(clock), settings.ext_authz.clone());
        let kind = settings.store.kind();
        let health = Health::new(replica.clone(), Arc::clone(clock), settings.gate.max_staleness, kind);
        let reporter = HealthReporter::new();
        let announce = announce::Options {
            interval: Duration::from_secs(10),
            max_staleness: settings.gate.max_staleness,
        };
        let announcer =
            Announcer::new(process_name(), replica.clone(), Arc::clone(&settings.store), announce);
        Ok(Self { replica, usage, memos, service: Arc::new(service), health, reporter, metrics, announcer })
    }

    /// Who keeps the snapshot in a file, if anybody does.
    fn keeper(&self, settings: &Settings) -> Option<Keeper> {
        let (replica, clock) = (self.replica.clone(), Arc::clone(&settings.clock));
        Some(Keeper::new(replica, clock, settings.store.address(), settings.keep.clone()?))
    }

    fn sync(&self, settings: &Settings) -> Sync {
        let (store, clock) = (Arc::clone(&settings.store), Arc::clone(&settings.clock));
        Sync::new(self.replica.clone(), store, clock, settings.sync)
    }

    fn router(&self, settings: &Settings, tls: Option<&ServerTlsConfig>) -> Result<Router, ServeError> {
        let mut server = Server::builder()
            .max_concurrent_streams(limits::STREAMS)
            .http2_max_local_error_reset_streams(Some(limits::ERROR_RESETS))
            .http2_max_pending_accept_reset_streams(Some(limits::PENDING_RESETS))
            .http2_max_header_list_size(limits::HEADER_LIST)
            .http2_keepalive_interval(Some(limits::KEEPALIVE.0))
            .http2_keepalive_timeout(Some(limits::KEEPALIVE.1));
        if let Some(tls) = tls {
            server = server.tls_config(tls.clone()).map_err(|e| ServeError::Start(tls_error(&e)))?;
        }
        let service = AuthorizationServer::from_arc(Arc::clone(&self.service))
            .max_decoding_message_size(limits::MESSAGE);
        let health = tonic_health::pb::health_server::HealthServer::new(
            tonic_health::server::HealthService::from_health_reporter(self.reporter.clone()),
        );
        let reflection = settings.reflection.then(reflection).transpose()?;
        Ok(server.add_service(service).add_service(health).add_optional_service(reflection))
    }

    /// What operators see over HTTP.
    fn ops(&self) -> axum::Router {
        let (health, metrics) = (self.health.clone(), self.metrics.clone());
        axum::Router::new()
            .route("/livez", get(|| async { "ok\n" }))
            .route(
                "/readyz",
                get(move || async move {
                    let readiness = health.readiness();
                    let status = if readiness.fit { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                    (status, axum::Json(readiness)).into_response()
                }),
            )
            .route(
                "/metrics",
                get(move || async move { ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.render()) }),
            )
    }

    /// What saves the next process work: its snapshot and what it need not ask bcrypt.
    async fn last_things(&self, settings: &Settings) {
        if let Some(mut keeper) = self.keeper(settings) {
            keeper.write().await;
        }
        self.memos.flush(settings.store.as_ref()).await;
    }

    /// Not fit any more, answer who is in, write down what was used.
    async fn close(
        &self,
        settings: &Settings,
        stop: watch::Sender<bool>,
        mut doors: Doors,
        sync: Apart,
        background: Vec<JoinHandle<()>>,
    ) {
        info!("stopping");
        self.health.drain();
        self.health.report(&self.reporter).await;
        stop.send_replace(true);
        let answered = timeout(DRAIN_WITHIN, async { while doors.grpc.join_next().await.is_some() {} });
        if answered.await.is_err() {
            warn!("some connections did not end in time and are cut");
        }
        doors.grpc.abort_all();
        drop(sync);
        background.iter().for_each(JoinHandle::abort);
        let flush = usage::Options { timeout: FLUSH_WITHIN, ..settings.usage };
        let (_, kept) = tokio::join!(
            timeout(FLUSH_WITHIN, self.last_things(settings)),
            timeout(FLUSH_WITHIN, self.usage.flush(settings.store.as_ref(), flush)),
        );
        // What is left of the time; a row that stays ages out.
        let _ = timeout(FLUSH_WITHIN, self.announcer.retract()).await;
        match kept {
            Ok(0) => info!("stopped"),
            Ok(keys) => warn!(keys, "stopped, last_used_at of some keys could not be written"),
            Err(_) => warn!("stopped, last_used_at could not be written in time"),
        }
        doors.ops.abort();
    }
}

/// Work on a thread and a runtime of its own, which ends when this is dropped.
struct Apart {
    outcome: oneshot::Receiver<StoreError>,
    _running: oneshot::Sender<()>,
}

impl Apart {
    fn run(name: &str, work: impl Future<Output = StoreError> + Send + 'static) -> Result<Self, ServeError> {
        let start = |e: io::Error| ServeError::Start(format!("no thread for the {name}: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(start)?;
        let ((done, outcome), (running, dropped)) = (oneshot::channel(), oneshot::channel::<()>());
        let until_dropped = async move {
            tokio::select! {
                // Who waited for the outcome may be gone.
                error = work => drop(done.send(error)),
                _ = dropped => {}
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn(move || runtime.block_on(until_dropped)).map_err(start)?;
        Ok(Self { outcome, _running: running })
    }

    /// Why it ended, which it should not.
    async fn ended(&mut self) -> ServeError {
        match (&mut self.outcome).await {
            Ok(error) => ServeError::Store(error),
            Err(_) => ServeError::Start("the thread of the replica ended".into()),
        }
    }
}

/// Keeps the snapshot in a file for ever, if somebody is to.
async fn keep_snapshot(keeper: Option<Keeper>) {
    if let Some(keeper) = keeper {
        keeper.run().await;
    }
}

/// Which process on which host.
fn process_name() -> String {
    let uname = rustix::system::uname();
    format!("{}:{}", uname.nodename().to_string_lossy(), std::process::id())
}

fn reflection() -> Result<
    impl tonic::codegen::Service<
        http::Request<tonic::body::Body>,
        Response = http::Response<tonic::body::Body>,
        Error = std::convert::Infallible,
        Future: Send,
    > + tonic::server::NamedService
    + Clone
    + Send
    + core::marker::Sync
    + 'static,
    ServeError,
> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|e| ServeError::Start(e.to_string()))
}

/// tonic's own text says only that there was an error.
pub(crate) fn tls_error(error: &dyn std::error::Error) -> String {
    let mut text = format!("TLS: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

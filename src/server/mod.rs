//! How is the house put together, and how is it closed?
//!
//! Listeners first, so that a taken port is known at once and Envoy is answered
//! while the database is still being looked for; then the machines; at the end
//! everything in the opposite order: not fit any more → answer who is in →
//! write down what was used → gone.

mod listen;
mod tls;
mod workers;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse as _;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

pub use self::listen::{Address, Options as ListenOptions, Stats as ListenStats};
use self::listen::{Door, Listeners, bind_tcp, tidy_up};
pub use self::tls::{Tls, TlsError, TlsFiles};
use crate::clock::{Clock, SystemClock};
use crate::ext_authz::proto::DESCRIPTORS;
use crate::ext_authz::service::{AuthorizationService, Options as ServiceOptions};
use crate::ext_authz::spans::Spans;
use crate::gate::{self, Gate};
use crate::grpc::Services;
use crate::health::Health;
use crate::memos::{self, Memos};
use crate::replica::Replica;
use crate::replica::announce::{self, Announcer};
use crate::replica::keep::{self, Keeper};
use crate::replica::prune;
use crate::replica::sync::{self, Sync};
use crate::shadow;
use crate::store::{Store, StoreError};
use crate::supervise::{Part, Supervisor};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::page::Format;
use crate::telemetry::traces::Traces;
use crate::usage::{self, Usage};
use crate::verify::memo::{Keyring, Peppers};
use crate::verify::{self, Verifier};

/// How long an orderly stop waits for requests that are under way. A stop is over within 10 s.
const DRAIN_WITHIN: Duration = Duration::from_millis(6_500);

/// How long it waits for last uses to be written down after that.
const FLUSH_WITHIN: Duration = Duration::from_millis(1_500);

/// Everything the house is made of.
pub struct Settings {
    /// Where Envoy asks, and how much of it.
    pub listen: ListenOptions,
    /// Where operators ask.
    pub ops_listen: String,
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
    /// Where to send spans, if anywhere.
    pub otlp_endpoint: Option<String>,
    /// How the shadow report is kept.
    pub shadow: shadow::Options,
    /// How the snapshot is kept in a file, if it is.
    pub keep: Option<keep::Options>,
    /// What is allowed and should be thought over: said once the listeners are up.
    pub remarks: Vec<String>,
    /// The clock to go by.
    pub clock: Arc<dyn Clock>,
}

impl Settings {
    /// Machines as they come, on a store that is still to be named.
    #[must_use]
    pub fn on(store: Arc<dyn Store>) -> Self {
        Self {
            listen: ListenOptions::default(),
            ops_listen: String::new(),
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
            otlp_endpoint: None,
            shadow: shadow::Options::default(),
            keep: None,
            remarks: Vec::new(),
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
    let listeners = Listeners::bind(&settings.listen).await?;
    let ops = bind_tcp(&settings.ops_listen, "ops").await?;
    for remark in &settings.remarks {
        warn!("{remark}");
    }
    let (stop, stopped) = watch::channel(false);
    let (house, service) = House::build(&settings)?;
    let mut doors = Doors::open(&settings, &house, service, (listeners, ops), stopped)?;
    if let Some(keeper) = house.keeper(&settings) {
        keeper.restore();
    }
    // Reading and sorting in a hundred thousand rows takes a while, in which no request should have to wait for
    // the thread.
    let mut sync = Apart::run("replica", house.sync(&settings).run())?;
    let background = house.background(&settings);
    let outcome = tokio::select! {
        () = shutdown => Ok(()),
        fatal = sync.ended() => Err(fatal),
        ended = doors.ended() => Err(ServeError::Start(format!("a listener ended: {ended}"))),
    };
    house.close(&settings, stop, doors, sync, background).await;
    tidy_up(&settings.listen.listen);
    outcome
}

/// Listeners that are being served.
struct Doors {
    door: Arc<Door<AuthorizationService>>,
    grpc: JoinHandle<()>,
    /// Open to the last, so that operators can watch us go.
    ops: JoinHandle<io::Result<()>>,
}

impl Doors {
    fn open(
        settings: &Settings,
        house: &House,
        service: AuthorizationService,
        (listeners, ops): (Listeners, TcpListener),
        stopped: watch::Receiver<bool>,
    ) -> Result<Self, ServeError> {
        let services = Services::new(service, house.others(settings)?, settings.listen.limits);
        let clock = Arc::clone(&settings.clock);
        let stats = Arc::clone(&house.metrics.listen);
        let door = Arc::new(Door::open(&settings.listen, services, stopped, stats, clock)?);
        let grpc = tokio::spawn(listeners.serve(Arc::clone(&door)));
        let ops = axum::serve(ops, house.ops());
        Ok(Self { door, grpc, ops: tokio::spawn(async move { ops.await }) })
    }

    /// The first one that ends, which none should.
    async fn ended(&mut self) -> String {
        tokio::select! {
            ended = &mut self.grpc => format!("{ended:?}"),
            ended = &mut self.ops => format!("{ended:?}"),
        }
    }
}

/// The machines, put together.
struct House {
    replica: Replica,
    usage: Usage,
    memos: Memos,
    shadow: shadow::Report,
    traces: Option<Arc<Traces>>,
    health: Health,
    reporter: HealthReporter,
    metrics: Metrics,
    announcer: Announcer,
    supervisor: Supervisor,
}

impl House {
    fn build(settings: &Settings) -> Result<(Self, AuthorizationService), ServeError> {
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
        let kind = settings.store.kind();
        let (limit, mode) = (settings.gate.max_staleness, settings.gate.mode);
        let health = Health::new(replica.clone(), Arc::clone(clock), limit, kind, mode);
        let shadow = shadow::Report::new(settings.shadow);
        let traces = settings.otlp_endpoint.as_deref().map(Traces::to).transpose();
        let traces =
            traces.map_err(|why| ServeError::Start(format!("--otlp-endpoint: {why}")))?.map(Arc::new);
        let supervisor = Supervisor::default();
        let metrics = Metrics {
            gate: gate.stats(),
            verify,
            replica: replica.clone(),
            usage: usage.clone(),
            memos: memos.clone(),
            listen: Arc::default(),
            supervisor: supervisor.clone(),
            shadow: shadow.clone(),
            traces: traces.as_ref().map(|traces| traces.stats()),
            mode,
            health: health.clone(),
            clock: Arc::clone(clock),
            started: clock.now(),
        };
        let service =
            AuthorizationService::new(gate, Arc::clone(clock), shadow.clone(), settings.ext_authz.clone());
        let reporter = HealthReporter::new();
        let announce = announce::Options {
            interval: Duration::from_secs(10),
            max_staleness: settings.gate.max_staleness,
        };
        let announcer =
            Announcer::new(process_name(), replica.clone(), Arc::clone(&settings.store), announce);
        let spans = traces.clone().map(|traces| -> Arc<dyn Spans> { traces });
        let house =
            Self { replica, usage, memos, shadow, traces, health, reporter, metrics, announcer, supervisor };
        Ok((house, service.with_spans(spans)))
    }

    /// Who keeps the snapshot in a file, if anybody does.
    fn keeper(&self, settings: &Settings) -> Option<Keeper> {
        let (replica, clock) = (self.replica.clone(), Arc::clone(&settings.clock));
        Some(Keeper::new(replica, clock, settings.store.address(), settings.keep.clone()?))
    }

    /// What runs beside requests, for ever and in spite of panics.
    fn background(&self, settings: &Settings) -> Vec<JoinHandle<()>> {
        let (memos, usage, health) = (self.memos.clone(), self.usage.clone(), self.health.clone());
        let (keeper, reporter, announcer) =
            (self.keeper(settings), self.reporter.clone(), self.announcer.clone());
        let (uses, cut) = (settings.usage, settings.prune);
        let [to_memos, to_usage, to_prune, to_shadow] = [(); 4].map(|()| Arc::clone(&settings.store));
        let shadow = self.shadow.clone();
        let certificates = settings.listen.tls.clone();
        let mut parts = vec![
            self.run(Part::Memos, move || memos.clone().run(Arc::clone(&to_memos))),
            self.run(Part::Keep, move || keep_snapshot(keeper.clone())),
            self.run(Part::Usage, move || usage.clone().run(Arc::clone(&to_usage), uses)),
            self.run(Part::Health, move || health.clone().run(reporter.clone())),
            self.run(Part::Announce, move || announcer.clone().run()),
            self.run(Part::Prune, move || prune::run(Arc::clone(&to_prune), cut)),
            self.run(Part::Shadow, move || shadow.clone().run(Arc::clone(&to_shadow))),
        ];
        parts.extend(certificates.map(|tls| self.run(Part::Certificates, move || tls.clone().follow())));
        parts
    }

    fn run<W>(&self, part: Part, begin: impl FnMut() -> W + Send + 'static) -> JoinHandle<()>
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let supervisor = self.supervisor.clone();
        tokio::spawn(async move { supervisor.run(part, begin).await })
    }

    fn sync(&self, settings: &Settings) -> Sync {
        let (store, clock) = (Arc::clone(&settings.store), Arc::clone(&settings.clock));
        Sync::new(self.replica.clone(), store, clock, settings.sync)
    }

    /// What is served beside the check: health, and reflection if it is asked for.
    fn others(&self, settings: &Settings) -> Result<Routes, ServeError> {
        let health = tonic_health::server::HealthService::from_health_reporter(self.reporter.clone());
        let others = Routes::new(tonic_health::pb::health_server::HealthServer::new(health));
        Ok(if settings.reflection { others.add_service(reflection()?) } else { others })
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
                get(move |headers: HeaderMap| async move {
                    let accept =
                        headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
                    let format = Format::wanted(accept);
                    ([(CONTENT_TYPE, format.content_type())], metrics.render(format))
                }),
            )
    }

    /// What saves the next process work: its snapshot and what it need not ask bcrypt.
    async fn last_things(&self, settings: &Settings) {
        if let Some(mut keeper) = self.keeper(settings) {
            keeper.write().await;
        }
        self.memos.flush(settings.store.as_ref()).await;
        self.shadow.flush(settings.store.as_ref()).await;
    }

    /// On a thread that may block, because the library does.
    async fn send_spans(&self) {
        if let Some(traces) = self.traces.clone() {
            let _ = tokio::task::spawn_blocking(move || traces.stop(FLUSH_WITHIN)).await;
        }
    }

    /// Not fit any more, answer who is in, write down what was used.
    async fn close(
        &self,
        settings: &Settings,
        stop: watch::Sender<bool>,
        doors: Doors,
        sync: Apart,
        background: Vec<JoinHandle<()>>,
    ) {
        info!("stopping");
        self.health.drain();
        self.health.report(&self.reporter).await;
        stop.send_replace(true);
        if timeout(DRAIN_WITHIN, doors.door.emptied()).await.is_err() {
            warn!("some connections did not end in time and are cut");
        }
        doors.grpc.abort();
        drop(sync);
        background.iter().for_each(JoinHandle::abort);
        let flush = usage::Options { timeout: FLUSH_WITHIN, ..settings.usage };
        let (_, kept) = tokio::join!(
            timeout(FLUSH_WITHIN, self.last_things(settings)),
            timeout(FLUSH_WITHIN, self.usage.flush(settings.store.as_ref(), flush)),
        );
        // What is left of the time; a row that stays ages out.
        let _ = tokio::join!(
            timeout(FLUSH_WITHIN, self.announcer.retract()),
            timeout(FLUSH_WITHIN, self.send_spans())
        );
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

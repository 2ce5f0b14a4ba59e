//! Starts the server and stops it.
//!
//! Listeners are bound first, so that a port in use is reported at once, and Envoy gets answers before the database is
//! loaded. Then the parts start. The server stops in the opposite order: it reports `NOT_SERVING`, answers remaining
//! requests, ends the connections and flushes all buffers.

mod acceptor;
mod assembly;
mod dedicated_runtime;
mod grpc_services;
mod manage;
mod ops;
mod publishing;
mod tls;
mod worker_pool;

use std::future::Future;
use std::io;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::warn;

use self::acceptor::{Acceptor, Listeners, bind_tcp, bind_unix, remove_sockets};
pub use self::acceptor::{ListenAddress, ListenOptions};
use self::assembly::Assembly;
use self::dedicated_runtime::DedicatedRuntime;
pub use self::manage::{ExplainFn, ExplainedRequest, ManageSettings, manage};
pub use self::tls::{Protocol, Tls, TlsError, TlsFiles};
use crate::batch_writer::Schedule;
use crate::clock::{Clock, SystemClock};
use crate::ext_authz::service::{AuthorizationOptions, AuthorizationService};
use crate::replica::{prune, snapshot_file, sync};
use crate::store::{Store, StoreError};
use crate::transport::Services;
use crate::verify::memo::Peppers;
use crate::{gate, last_used, memo_writer, refusals, shadow, usage, verify};

/// All settings of a server.
pub struct ServerSettings {
    /// The gRPC listeners and their limits.
    pub listen: ListenOptions,
    /// The address of the HTTP listener for operators.
    pub ops_listen: String,
    /// Whether to serve gRPC reflection.
    pub reflection: bool,
    /// The database.
    pub store: Arc<dyn Store>,
    /// How requests are read and answered.
    pub ext_authz: AuthorizationOptions,
    /// How requests are decided.
    pub gate: gate::GateOptions,
    /// How keys are verified.
    pub verify: verify::VerifyOptions,
    /// How the replica polls the database.
    pub sync: sync::SyncOptions,
    /// When uses of keys are written.
    pub last_used: Schedule,
    /// How the change log and usage are pruned, and whether usage is counted.
    pub prune: prune::PruneOptions,
    /// The peppers for memos, and whether a memo is required.
    pub peppers: Peppers,
    /// When memos are written.
    pub memos: Schedule,
    /// When usage is written.
    pub usage: Schedule,
    /// The collector for trace spans, if tracing is enabled.
    pub otlp_endpoint: Option<String>,
    /// When the shadow report is written.
    pub shadow: Schedule,
    /// When rejections are written.
    pub refusals: Schedule,
    /// Where and when the snapshot file is written, if it is enabled.
    pub snapshot_file: Option<snapshot_file::SnapshotFileOptions>,
    /// Warnings about settings that are valid but risky. They are logged once the listeners are bound.
    pub remarks: Vec<String>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

impl ServerSettings {
    /// Returns the defaults, with this store and without listeners.
    #[must_use]
    pub fn on(store: Arc<dyn Store>) -> Self {
        Self {
            listen: ListenOptions::default(),
            ops_listen: String::new(),
            reflection: true,
            store,
            ext_authz: AuthorizationOptions::default(),
            gate: gate::GateOptions::default(),
            verify: verify::VerifyOptions::default(),
            sync: sync::SyncOptions::default(),
            last_used: Schedule::every(last_used::INTERVAL),
            prune: prune::PruneOptions::default(),
            peppers: Peppers::default(),
            memos: Schedule::every(memo_writer::INTERVAL),
            usage: Schedule::every(usage::INTERVAL),
            otlp_endpoint: None,
            shadow: Schedule::every(shadow::INTERVAL),
            refusals: Schedule::every(refusals::INTERVAL),
            snapshot_file: None,
            remarks: Vec::new(),
            clock: Arc::new(SystemClock),
        }
    }
}

/// Why the server did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address cannot be bound.
    #[error("cannot listen on {address}: {why}")]
    Listen {
        /// The address as it was given.
        address: String,
        /// The reason, and what to do.
        why: String,
    },
    /// A part of the server did not start.
    #[error("cannot start: {0}")]
    Start(String),
    /// The database cannot be used without a change by the operator.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Serves until `shutdown` is done, then stops in order.
///
/// # Errors
///
/// An address is in use, a part did not start, or the schema of the database is too old.
pub async fn serve(settings: ServerSettings, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
    let listeners = Listeners::bind(&settings.listen).await?;
    let ops = bind_tcp(&settings.ops_listen, "ops").await?;
    let publish = match &settings.listen.publish {
        Some(path) => Some(bind_unix(path, settings.listen.unix_mode, "publish").await?),
        None => None,
    };
    for remark in &settings.remarks {
        warn!("{remark}");
    }
    let (stop, stopped) = watch::channel(false);
    let (assembly, service) = Assembly::build(&settings)?;
    let mut endpoints = Endpoints::open(&settings, &assembly, service, (listeners, ops), stopped)?;
    if let Some(file) = assembly.snapshot_file(&settings) {
        file.restore();
    }
    // Loading a hundred thousand rows takes a while, during which no request should wait for the thread.
    let mut sync = DedicatedRuntime::run("replica", assembly.sync(&settings).run())?;
    let mut background = assembly.background(&settings);
    background.extend(assembly.publishing(&settings, publish));
    let outcome = tokio::select! {
        () = shutdown => Ok(()),
        fatal = sync.ended() => Err(fatal),
        ended = endpoints.ended() => Err(ServeError::Start(format!("a listener ended: {ended}"))),
    };
    assembly.close(&settings, stop, endpoints, sync, background).await;
    remove_sockets(&settings.listen.listen);
    remove_sockets(&settings.listen.publish.into_iter().map(ListenAddress::Unix).collect::<Vec<_>>());
    outcome
}

/// The listeners that are being served.
struct Endpoints {
    acceptor: Arc<Acceptor<AuthorizationService>>,
    grpc: JoinHandle<()>,
    closing: watch::Sender<bool>,
    /// Stays open until the end, so that operators can observe the stop.
    ops: JoinHandle<io::Result<()>>,
}

impl Endpoints {
    fn open(
        settings: &ServerSettings,
        assembly: &Assembly,
        service: AuthorizationService,
        (listeners, operators): (Listeners, TcpListener),
        stopped: watch::Receiver<bool>,
    ) -> Result<Self, ServeError> {
        let (clock, stats) = (Arc::clone(&settings.clock), Arc::clone(&assembly.metrics.listen));
        let (others, failures) = (assembly.others(settings)?, Arc::clone(&stats.failures));
        let services = Services::new(service, others, settings.listen.limits, failures);
        let acceptor = Arc::new(Acceptor::new(&settings.listen, services, stopped, stats, clock)?);
        let (closing, closed) = watch::channel(false);
        let grpc = tokio::spawn(listeners.serve(Arc::clone(&acceptor), closed));
        let ops = axum::serve(operators, ops::router(assembly.health.clone(), assembly.metrics.clone()));
        Ok(Self { acceptor, grpc, closing, ops: tokio::spawn(async move { ops.await }) })
    }

    /// Closes the gRPC listeners after they have accepted the connections in the queue of the kernel.
    async fn close_listeners(&mut self) {
        self.closing.send_replace(true);
        if !self.grpc.is_finished() {
            let _ = (&mut self.grpc).await;
        }
    }

    /// Waits until a listener ends, which is an error.
    async fn ended(&mut self) -> String {
        tokio::select! {
            ended = &mut self.grpc => format!("{ended:?}"),
            ended = &mut self.ops => format!("{ended:?}"),
        }
    }
}

//! Builds the parts of the server, runs the background tasks, and stops everything in order.
//!
//! The listeners are bound in the parent module.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rand::TryRng as _;
use rand::rngs::SysRng;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::service::Routes;
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

use super::dedicated_runtime::DedicatedRuntime;
use super::grpc_services;
use super::publishing::{self, ModuleListener};
use super::{Endpoints, ServeError, ServerSettings};
use crate::ext_authz::check_span::SpanSink;
use crate::ext_authz::service::AuthorizationService;
use crate::gate::{Gate, ProofSink};
use crate::health::Health;
use crate::last_used::LastUsed;
use crate::memo_writer::MemoWriter;
use crate::publisher::Publisher;
use crate::refusals::Refusals;
use crate::replica::Replica;
use crate::replica::heartbeat::{self, Heartbeat};
use crate::replica::prune;
use crate::replica::snapshot_file::SnapshotFile;
use crate::replica::sync::Sync;
use crate::shadow;
use crate::supervise::{BackgroundTask, Supervisor};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Traces;
use crate::transport::ListenStats;
use crate::usage::Usage;
use crate::verify::Verifier;
use crate::verify::memo::Keyring;

/// The interval of heartbeats in the database.
const HEARTBEAT: Duration = Duration::from_secs(10);

// With these limits, an orderly stop takes at most 10 s.

/// How long requests are still served as usual after health reports `NOT_SERVING`, for clients that have not noticed
/// yet.
const QUIET_WITHIN: Duration = Duration::from_millis(2_500);

/// If no request arrives for this long, the clients have noticed.
const QUIET: Duration = Duration::from_millis(250);

/// How long connections may take to end, including the time for the clients to notice.
const DRAIN_WITHIN: Duration = Duration::from_millis(6_500);

/// How long before that the calls that still wait, for example for a proof, are answered with 503.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// How long connections may take to end that the kernel had accepted before the listeners were closed.
const LAST_WITHIN: Duration = Duration::from_millis(300);

/// How long the last writes to the database may take.
const FLUSH_WITHIN: Duration = Duration::from_millis(1_500);

/// The parts of the server.
pub(super) struct Assembly {
    replica: Replica,
    last_used: LastUsed,
    memos: MemoWriter,
    shadow: shadow::ShadowReport,
    refusals: Refusals,
    usage: Usage,
    traces: Option<Arc<Traces>>,
    pub(super) health: Health,
    reporter: HealthReporter,
    pub(super) metrics: Metrics,
    heartbeat: Heartbeat,
    supervisor: Supervisor,
    publisher: Option<Publisher>,
}

impl Assembly {
    pub(super) fn build(settings: &ServerSettings) -> Result<(Self, AuthorizationService), ServeError> {
        let clock = &settings.clock;
        let (peppers, last_used) = (&settings.peppers, LastUsed::new(settings.last_used));
        let replica = Replica::new(peppers.clone());
        let memos = MemoWriter::new(peppers.clone(), settings.memos);
        let keyring = Keyring::new(peppers.clone())
            .map_err(|e| ServeError::Start(format!("the system has no randomness: {e}")))?;
        let verifier =
            Verifier::start(settings.verify, keyring).map_err(|e| ServeError::Start(e.to_string()))?;
        let verify = verifier.stats();
        let (ours, uses, proofs) = (replica.clone(), last_used.clone(), memos.clone());
        let gate = Gate::new(ours, verifier, uses, proofs, Arc::clone(clock), settings.gate);
        let usage = Usage::new(settings.usage);
        let counted = settings.prune.keep_usage.map(|_| usage.clone());
        let publisher = publisher(settings, &replica, &last_used, counted.clone())?;
        let sink = publisher.clone().map(|publisher| -> Arc<dyn ProofSink> { Arc::new(publisher) });
        let gate = Arc::new(gate.counting(counted).with_proof_sink(sink));
        let kind = settings.store.kind();
        let (limit, mode) = (settings.gate.max_staleness, settings.gate.mode);
        let health = Health::new(replica.clone(), Arc::clone(clock), limit, kind, mode);
        let shadow = shadow::ShadowReport::new(settings.shadow);
        let refusals = Refusals::new(settings.refusals);
        let traces = traces(settings)?;
        let supervisor = Supervisor::default();
        let metrics = Metrics {
            gate: gate.stats(),
            verify,
            replica: replica.clone(),
            last_used: last_used.clone(),
            memos: memos.clone(),
            listen: Arc::new(ListenStats::new(clock)),
            supervisor: supervisor.clone(),
            shadow: shadow.clone(),
            refusals: refusals.clone(),
            usage: usage.clone(),
            traces: traces.as_ref().map(|traces| traces.stats()),
            published: publisher.as_ref().map(Publisher::stats),
            mode,
            health: health.clone(),
            clock: Arc::clone(clock),
            started: clock.now(),
        };
        let service =
            AuthorizationService::new(gate, Arc::clone(clock), shadow.clone(), settings.ext_authz.clone())
                .remembering(refusals.clone());
        let reporter = HealthReporter::new();
        let options = heartbeat::HeartbeatOptions { interval: HEARTBEAT, max_staleness: limit };
        let heartbeat = Heartbeat::new(process_name(), replica.clone(), Arc::clone(&settings.store), options);
        let spans = traces.clone().map(|traces| -> Arc<dyn SpanSink> { traces });
        let assembly = Self {
            replica,
            last_used,
            memos,
            shadow,
            refusals,
            usage,
            traces,
            health,
            reporter,
            metrics,
            heartbeat,
            supervisor,
            publisher,
        };
        Ok((assembly, service.with_spans(spans)))
    }

    /// Returns the writer of the snapshot file; `None` without `--snapshot-file`.
    pub(super) fn snapshot_file(&self, settings: &ServerSettings) -> Option<SnapshotFile> {
        let (replica, clock) = (self.replica.clone(), Arc::clone(&settings.clock));
        Some(SnapshotFile::new(replica, clock, settings.store.address(), settings.snapshot_file.clone()?))
    }

    /// Starts the background tasks. They run until they are aborted, and are restarted after a panic.
    pub(super) fn background(&self, settings: &ServerSettings) -> Vec<JoinHandle<()>> {
        let (memos, last_used, health) = (self.memos.clone(), self.last_used.clone(), self.health.clone());
        let (file, reporter, heartbeat) =
            (self.snapshot_file(settings), self.reporter.clone(), self.heartbeat.clone());
        let (cut, usage) = (settings.prune, self.usage.clone());
        let [to_memos, to_uses, to_prune, to_shadow, to_counts, to_refusals] =
            [(); 6].map(|()| Arc::clone(&settings.store));
        let (shadow, refusals) = (self.shadow.clone(), self.refusals.clone());
        let certificates = settings.listen.tls.clone();
        let mut parts = vec![
            self.run(BackgroundTask::Memos, move || memos.clone().run(Arc::clone(&to_memos))),
            self.run(BackgroundTask::SnapshotFile, move || write_snapshots(file.clone())),
            self.run(BackgroundTask::LastUsed, move || last_used.clone().run(Arc::clone(&to_uses))),
            self.run(BackgroundTask::Usage, move || usage.clone().run(Arc::clone(&to_counts))),
            self.run(BackgroundTask::Health, move || health.clone().run(reporter.clone())),
            self.run(BackgroundTask::Heartbeat, move || heartbeat.clone().run()),
            self.run(BackgroundTask::Prune, move || prune::run(Arc::clone(&to_prune), cut)),
            self.run(BackgroundTask::Refusals, move || refusals.clone().run(Arc::clone(&to_refusals))),
            self.run(BackgroundTask::Shadow, move || shadow.clone().run(Arc::clone(&to_shadow))),
        ];
        parts.extend(
            certificates.map(|tls| self.run(BackgroundTask::Certificates, move || tls.clone().follow())),
        );
        parts
    }

    /// Starts to publish proven keys, if that is enabled.
    pub(super) fn publishing(
        &self,
        settings: &ServerSettings,
        listener: Option<UnixListener>,
    ) -> Vec<JoinHandle<()>> {
        let Some((publisher, listener)) = self.publisher.clone().zip(listener) else { return Vec::new() };
        let modules = ModuleListener::new(
            publisher.clone(),
            listener,
            &settings.listen.unix_peers,
            Arc::clone(&settings.clock),
        );
        vec![
            self.run(BackgroundTask::Publish, move || publisher.clone().run()),
            self.run(BackgroundTask::PublishServe, move || modules.clone().run()),
        ]
    }

    fn run<W>(&self, part: BackgroundTask, begin: impl FnMut() -> W + Send + 'static) -> JoinHandle<()>
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let supervisor = self.supervisor.clone();
        tokio::spawn(async move { supervisor.run(part, begin).await })
    }

    pub(super) fn sync(&self, settings: &ServerSettings) -> Sync {
        let (store, clock) = (Arc::clone(&settings.store), Arc::clone(&settings.clock));
        Sync::new(self.replica.clone(), store, clock, settings.sync)
    }

    /// Returns the gRPC services other than the check.
    pub(super) fn others(&self, settings: &ServerSettings) -> Result<Routes, ServeError> {
        grpc_services::routes(self.health.clone(), &self.reporter, settings.reflection)
    }

    /// Writes the snapshot file and memos, which save work after the next start. Then writes the shadow report and
    /// rejections.
    async fn last_things(&self, settings: &ServerSettings) {
        if let Some(mut file) = self.snapshot_file(settings) {
            file.write().await;
        }
        self.memos.flush(settings.store.as_ref(), FLUSH_WITHIN).await;
        self.shadow.flush(settings.store.as_ref(), FLUSH_WITHIN).await;
        self.refusals.flush(settings.store.as_ref(), FLUSH_WITHIN).await;
    }

    /// Sends the remaining spans, on a thread that may block, because the library blocks.
    async fn send_spans(&self) {
        if let Some(traces) = self.traces.clone() {
            let _ = tokio::task::spawn_blocking(move || traces.stop(FLUSH_WITHIN)).await;
        }
    }

    /// Continues to serve until no request arrives any more, for at most [`QUIET_WITHIN`]: Envoy learns only from its
    /// next health check that this server is about to stop.
    async fn serve_until_quiet(&self, endpoints: &Endpoints) {
        let began = Instant::now();
        while endpoints.acceptor.is_in_use() && began.elapsed() < QUIET_WITHIN {
            let before = self.metrics.gate.decisions();
            sleep(QUIET).await;
            if self.metrics.gate.decisions() == before {
                return;
            }
        }
    }

    /// Stops in order: reports `NOT_SERVING`, answers remaining requests, ends the connections, and flushes all
    /// buffers.
    pub(super) async fn close(
        &self,
        settings: &ServerSettings,
        stop: watch::Sender<bool>,
        mut endpoints: Endpoints,
        sync: DedicatedRuntime,
        background: Vec<JoinHandle<()>>,
    ) {
        info!("stopping");
        self.health.drain();
        self.health.report(&self.reporter).await;
        let drained_by = Instant::now() + DRAIN_WITHIN;
        self.serve_until_quiet(&endpoints).await;
        // New connections are still accepted, and get a GOAWAY at once. Requests that they send meanwhile are answered.
        stop.send_replace(true);
        if timeout_at(drained_by - LAST_ANSWERS, endpoints.acceptor.idle()).await.is_err() {
            endpoints.acceptor.end_waiting();
        }
        let drained = timeout_at(drained_by, endpoints.acceptor.idle()).await;
        endpoints.close_listeners().await;
        let last = timeout(LAST_WITHIN, endpoints.acceptor.idle()).await;
        if drained.is_err() || last.is_err() {
            warn!(
                "connections that did not end in time are closed: their peers ignore GOAWAY or do not read"
            );
        }
        drop(sync);
        background.iter().for_each(JoinHandle::abort);
        let (_, kept, counted) = tokio::join!(
            timeout(FLUSH_WITHIN, self.last_things(settings)),
            timeout(FLUSH_WITHIN, self.last_used.flush(settings.store.as_ref(), FLUSH_WITHIN)),
            timeout(FLUSH_WITHIN, self.usage.flush(settings.store.as_ref(), FLUSH_WITHIN)),
        );
        // In the remaining time. A heartbeat that is not removed expires.
        let _ = tokio::join!(
            timeout(FLUSH_WITHIN, self.heartbeat.retract()),
            timeout(FLUSH_WITHIN, self.send_spans())
        );
        if counted != Ok(0) {
            warn!("usage since the last flush could not be written, it is lost");
        }
        match kept {
            Ok(0) => info!("stopped"),
            Ok(keys) => warn!(keys, "stopped, last_used_at of some keys could not be written"),
            Err(_) => warn!("stopped, last_used_at could not be written in time"),
        }
        endpoints.ops.abort();
    }
}

/// Returns the publisher; `None` without `--publish`.
fn publisher(
    settings: &ServerSettings,
    replica: &Replica,
    last_used: &LastUsed,
    usage: Option<Usage>,
) -> Result<Option<Publisher>, ServeError> {
    if settings.listen.publish.is_none() {
        return Ok(None);
    }
    let mut key = [0; 32];
    let random = SysRng.try_fill_bytes(&mut key);
    random.map_err(|e| ServeError::Start(format!("the system has no randomness: {e}")))?;
    let (clock, options) = (Arc::clone(&settings.clock), publishing::options(settings, key));
    Ok(Some(Publisher::new(replica.clone(), last_used.clone(), usage, clock, options)))
}

/// Returns the exporter of spans; `None` without `--otlp-endpoint`.
fn traces(settings: &ServerSettings) -> Result<Option<Arc<Traces>>, ServeError> {
    let traces = settings.otlp_endpoint.as_deref().map(Traces::to).transpose();
    Ok(traces.map_err(|why| ServeError::Start(format!("--otlp-endpoint: {why}")))?.map(Arc::new))
}

/// Runs the writer of the snapshot file, if it is enabled.
async fn write_snapshots(file: Option<SnapshotFile>) {
    if let Some(file) = file {
        file.run().await;
    }
}

/// Returns the name of this process: host and process id.
fn process_name() -> String {
    let uname = rustix::system::uname();
    format!("{}:{}", uname.nodename().to_string_lossy(), std::process::id())
}

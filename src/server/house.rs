//! Which machines are there, what runs beside requests, and how does it all end?
//!
//! Listeners are not put up here.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

use super::apart::Apart;
use super::{Doors, ServeError, Settings};
use crate::ext_authz::proto::DESCRIPTORS;
use crate::ext_authz::service::AuthorizationService;
use crate::ext_authz::spans::Spans;
use crate::gate::Gate;
use crate::health::Health;
use crate::memos::Memos;
use crate::replica::Replica;
use crate::replica::announce::{self, Announcer};
use crate::replica::keep::Keeper;
use crate::replica::prune;
use crate::replica::sync::Sync;
use crate::shadow;
use crate::supervise::{Part, Supervisor};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Traces;
use crate::usage::{self, Usage};
use crate::verify::Verifier;
use crate::verify::memo::Keyring;

/// How long an orderly stop waits for requests that are under way. A stop is over within 10 s.
const DRAIN_WITHIN: Duration = Duration::from_millis(6_500);

/// How long it waits for last uses to be written down after that.
const FLUSH_WITHIN: Duration = Duration::from_millis(1_500);

/// The machines, put together.
pub(super) struct House {
    replica: Replica,
    usage: Usage,
    memos: Memos,
    shadow: shadow::Report,
    traces: Option<Arc<Traces>>,
    pub(super) health: Health,
    reporter: HealthReporter,
    pub(super) metrics: Metrics,
    announcer: Announcer,
    supervisor: Supervisor,
}

impl House {
    pub(super) fn build(settings: &Settings) -> Result<(Self, AuthorizationService), ServeError> {
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
    pub(super) fn keeper(&self, settings: &Settings) -> Option<Keeper> {
        let (replica, clock) = (self.replica.clone(), Arc::clone(&settings.clock));
        Some(Keeper::new(replica, clock, settings.store.address(), settings.keep.clone()?))
    }

    /// What runs beside requests, for ever and in spite of panics.
    pub(super) fn background(&self, settings: &Settings) -> Vec<JoinHandle<()>> {
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

    pub(super) fn sync(&self, settings: &Settings) -> Sync {
        let (store, clock) = (Arc::clone(&settings.store), Arc::clone(&settings.clock));
        Sync::new(self.replica.clone(), store, clock, settings.sync)
    }

    /// What is served beside the check: health, and reflection if it is asked for.
    pub(super) fn others(&self, settings: &Settings) -> Result<Routes, ServeError> {
        let health = tonic_health::server::HealthService::from_health_reporter(self.reporter.clone());
        let others = Routes::new(tonic_health::pb::health_server::HealthServer::new(health));
        Ok(if settings.reflection { others.add_service(reflection()?) } else { others })
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
    pub(super) async fn close(
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

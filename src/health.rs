//! Readiness of the server.
//!
//! One judgement is reported in three ways: as gRPC health status for Envoy and Kubernetes, at `/readyz` for people and
//! load balancers, and as a log line when it changes. Ready means: loaded once, not older than `--max-staleness`, and
//! not draining. A server is not ready at first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::decision::Freshness;
use crate::ext_authz::service::SERVICE_NAME;
use crate::replica::Replica;
use crate::tenant::Mode;

/// Computes and reports readiness. Cheap to clone.
#[derive(Clone)]
pub struct Health(Arc<Shared>);

struct Shared {
    replica: Replica,
    clock: Arc<dyn Clock>,
    max_staleness: Duration,
    store: &'static str,
    mode: Mode,
    draining: AtomicBool,
}

/// The body of `/readyz`.
#[derive(Clone, Debug, Serialize)]
pub struct Readiness {
    status: &'static str,
    authentication: &'static str,
    database: &'static str,
    store: &'static str,
    keys: usize,
    tenants: usize,
    snapshot_age_ms: Option<u64>,
    /// Whether the server should get requests.
    #[serde(skip)]
    pub ready: bool,
}

impl Health {
    /// Creates the health of a server with this replica.
    #[must_use]
    pub fn new(
        replica: Replica,
        clock: Arc<dyn Clock>,
        max_staleness: Duration,
        store: &'static str,
        mode: Mode,
    ) -> Self {
        let draining = AtomicBool::new(false);
        Self(Arc::new(Shared { replica, clock, max_staleness, store, mode, draining }))
    }

    /// Reports `draining` from now on.
    pub fn drain(&self) {
        self.0.draining.store(true, Relaxed);
    }

    /// Returns the maximum age of the snapshot.
    #[must_use]
    pub fn max_staleness(&self) -> Duration {
        self.0.max_staleness
    }

    /// Returns the current readiness.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let shared = &*self.0;
        let freshness = shared.replica.freshness(shared.clock.as_ref(), shared.max_staleness);
        let (status, ready) = match freshness {
            _ if shared.draining.load(Relaxed) => ("draining", false),
            Freshness::NeverLoaded => ("starting", false),
            Freshness::Fresh => ("ready", true),
            Freshness::Stale => ("stale", true),
            Freshness::TooOld => ("stale", false),
        };
        let snapshot = shared.replica.snapshot();
        let age = shared.replica.age(shared.clock.as_ref());
        Readiness {
            status,
            authentication: match shared.mode {
                Mode::Enforce => "enabled",
                Mode::Shadow => "shadow",
            },
            database: if shared.replica.connected() { "connected" } else { "disconnected" },
            store: shared.store,
            keys: snapshot.key_count(),
            tenants: snapshot.tenant_count(),
            snapshot_age_ms: age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            ready,
        }
    }

    /// Reports every change of readiness, forever. Checks it at every new snapshot and ten times a second.
    pub async fn run(self, reporter: HealthReporter) {
        let mut generation = self.0.replica.generation();
        let (mut before, mut was_ready) = (None, false);
        loop {
            let now = self.readiness();
            if before != Some((now.status, now.ready)) {
                report(&reporter, now.ready).await;
                log(&now, was_ready);
                before = Some((now.status, now.ready));
                was_ready |= now.ready;
            }
            // Both outcomes lead to the next check.
            let _ = timeout(Duration::from_millis(100), generation.changed()).await;
        }
    }

    /// Reports the gRPC health status at once; [`Health::run`] does so within 100 ms.
    pub async fn report(&self, reporter: &HealthReporter) {
        report(reporter, self.readiness().ready).await;
    }
}

async fn report(reporter: &HealthReporter, ready: bool) {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in ["", SERVICE_NAME] {
        reporter.set_service_status(service, status).await;
    }
}

/// Logs a change. A first load that took long makes the snapshot stale at once, but the server is ready.
fn log(now: &Readiness, was_ready: bool) {
    let Readiness { status, store, keys, tenants, snapshot_age_ms: age_ms, .. } = *now;
    match (status, now.ready) {
        (_, true) if !was_ready => info!(store, keys, tenants, "ready"),
        ("starting", _) => {}
        ("stale", true) => {
            warn!(
                status,
                age_ms, "the database cannot be polled, known keys are served, unknown ones get 503"
            );
        }
        ("stale", false) => {
            warn!(
                status,
                age_ms, "the last successful poll is older than --max-staleness, every key gets 503"
            );
        }
        _ => info!(status, "health"),
    }
}

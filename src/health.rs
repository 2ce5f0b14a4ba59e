//! Are we fit to serve?
//!
//! One judgement, said in three ways: gRPC health for Envoy and Kubernetes,
//! `/readyz` for people and load balancers, and a log line when it changes. Fit
//! is who has loaded once, is not older than allowed and is not on its way out;
//! it starts as "not".

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

/// Looks after our fitness. Cheap to clone.
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

/// What `/readyz` says.
#[derive(Clone, Debug, Serialize)]
pub struct Readiness {
    status: &'static str,
    authentication: &'static str,
    database: &'static str,
    store: &'static str,
    keys: usize,
    tenants: usize,
    snapshot_age_ms: Option<u64>,
    /// Whether to send us requests.
    #[serde(skip)]
    pub fit: bool,
}

impl Health {
    /// The health of a server on this replica.
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

    /// From now on we are on our way out.
    pub fn drain(&self) {
        self.0.draining.store(true, Relaxed);
    }

    /// How old the last good look at the database may be.
    #[must_use]
    pub fn max_staleness(&self) -> Duration {
        self.0.max_staleness
    }

    /// How we are.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let shared = &*self.0;
        let freshness = shared.replica.freshness(shared.clock.as_ref(), shared.max_staleness);
        let (status, fit) = match freshness {
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
            fit,
        }
    }

    /// Keeps gRPC health true, for ever. Looks at every new snapshot and ten times a second.
    pub async fn run(self, reporter: HealthReporter) {
        let mut generation = self.0.replica.generation();
        let (mut before, mut was_ready) = (None, false);
        loop {
            let now = self.readiness();
            if before != Some((now.status, now.fit)) {
                report(&reporter, now.fit).await;
                say(&now, was_ready);
                before = Some((now.status, now.fit));
                was_ready |= now.fit;
            }
            // A new snapshot or the time being up are all the same here.
            let _ = timeout(Duration::from_millis(100), generation.changed()).await;
        }
    }

    /// Says at once what [`Health::run`] would say within a tenth of a second.
    pub async fn report(&self, reporter: &HealthReporter) {
        report(reporter, self.readiness().fit).await;
    }
}

async fn report(reporter: &HealthReporter, fit: bool) {
    let status = if fit { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in ["", SERVICE_NAME] {
        reporter.set_service_status(service, status).await;
    }
}

/// A first load that took long is stale at once, and the server ready all the same.
fn say(now: &Readiness, was_ready: bool) {
    let Readiness { status, store, keys, tenants, snapshot_age_ms: age_ms, .. } = *now;
    match (status, now.fit) {
        (_, true) if !was_ready => info!(store, keys, tenants, "ready"),
        ("starting", _) => {}
        ("stale", true) => {
            warn!(
                status,
                age_ms, "no good look at the database, known keys are served, unknown ones get 503"
            );
        }
        ("stale", false) => {
            warn!(status, age_ms, "the last good look is older than --max-staleness, every key gets 503");
        }
        _ => info!(status, "health"),
    }
}

//! Names and labels of all metrics, as Prometheus shows them (<https://prometheus.io/docs/practices/naming/>).
//!
//! The modules that know an event count it with [`crate::stats`]; this module reads the counts at each scrape. The
//! usual facade crates are not used: they look up a metric for each count, and keep the samples of a histogram in
//! memory until the next scrape. Here a count is one atomic addition, and memory does not grow without scrapes. Labels
//! have few fixed values: never a tenant, never a key.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use super::page::{MetricsPage, PageFormat};
use super::{process, traces};
use crate::clock::{Clock, Timestamp};
use crate::decision::{Fault, Grant, Reason};
use crate::health::Health;
use crate::last_used::LastUsed;
use crate::memo_writer::MemoWriter;
use crate::refusals::Refusals;
use crate::replica::Replica;
use crate::stats::Counter;
use crate::supervise::Supervisor;
use crate::tenant::Mode;
use crate::transport::ListenStats;
use crate::usage::Usage;
use crate::{gate, publisher, shadow, verify};

/// The modules whose counts are shown.
#[derive(Clone)]
pub struct Metrics {
    /// Decisions.
    pub gate: Arc<gate::Stats>,
    /// Proofs.
    pub verify: Arc<verify::Stats>,
    /// The replica.
    pub replica: Replica,
    /// `last_used_at`.
    pub last_used: LastUsed,
    /// Memos.
    pub memos: MemoWriter,
    /// Connections.
    pub listen: Arc<ListenStats>,
    /// Restarts of background tasks.
    pub supervisor: Supervisor,
    /// The shadow report.
    pub shadow: shadow::ShadowReport,
    /// Rejections by decision id.
    pub refusals: Refusals,
    /// Usage.
    pub usage: Usage,
    /// Spans, if they are sent anywhere.
    pub traces: Option<Arc<traces::Stats>>,
    /// Decisions of the module inside Envoy; `None` without `--publish`.
    pub published: Option<Arc<publisher::Stats>>,
    /// Whether rejections are enforced.
    pub mode: Mode,
    /// The readiness of the server.
    pub health: Health,
    /// The clock for the age of the replica.
    pub clock: Arc<dyn Clock>,
    /// When the process started.
    pub started: Timestamp,
}

impl Metrics {
    /// Writes the page with all metrics.
    #[must_use]
    pub fn render(&self, format: PageFormat) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self.clone()));
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        format.of(text)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut page = MetricsPage(encoder);
        self.decisions(&mut page)?;
        self.shadow(&mut page)?;
        self.proofs(&mut page)?;
        self.readiness(&mut page)?;
        self.state(&mut page)?;
        self.connections(&mut page)?;
        self.work(&mut page)?;
        process::write(&mut page, self.started)
    }
}

impl Metrics {
    fn decisions(&self, page: &mut MetricsPage<'_>) -> fmt::Result {
        let stats = &self.gate;
        let denied = Reason::ALL.iter().zip(&stats.denied).map(|(r, n)| (("deny", r.as_str()), n.value()));
        let unable = stats.unable.iter().map(Counter::value).sum::<u64>();
        // Read after the sum, and subtracted with saturation: a race never gives a huge number.
        let unable = unable.saturating_sub(stats.shadow_undecided().value());
        let shadow = stats.shadow.iter().map(Counter::value).sum();
        let allowed = [
            ("anonymous", stats.anonymous.value()),
            ("ok", stats.ok.value()),
            ("public", stats.public.value()),
            ("shadow", shadow),
        ];
        let rows: Vec<_> = allowed
            .map(|(reason, n)| (("allow", reason), n))
            .into_iter()
            .chain(denied)
            .chain([(("unable", "unavailable"), unable)])
            .map(|((decision, reason), n)| (vec![("decision", decision), ("reason", reason)], n))
            .chain(self.in_envoy())
            .collect();
        page.counters("tenantgate_decisions", "Decisions by outcome and reason", &rows)?;
        let faults: Vec<_> =
            Fault::ALL.iter().zip(&stats.unable).map(|(f, n)| ([("cause", f.as_str())], n.value())).collect();
        page.counters("tenantgate_unavailable", "Requests that could not be decided, by cause", &faults)?;
        page.histogram(
            "tenantgate_check_duration_seconds",
            "Time from the complete request to the complete answer",
            &stats.latency,
        )
    }

    /// Decisions of the module inside Envoy, which have a label more.
    fn in_envoy(&self) -> Vec<(Vec<(&'static str, &'static str)>, u64)> {
        let Some(stats) = &self.published else { return Vec::new() };
        let denied = Reason::ALL.iter().zip(&stats.denied).map(|(r, n)| ("deny", r.as_str(), n));
        [("allow", Grant::OK, &stats.ok)]
            .into_iter()
            .chain(denied)
            .map(|(decision, reason, n)| {
                (vec![("decision", decision), ("reason", reason), ("path", "module")], n.value())
            })
            .filter(|(_, n)| *n > 0)
            .collect()
    }

    fn shadow(&self, page: &mut MetricsPage<'_>) -> fmt::Result {
        let on = u64::from(self.mode == Mode::Shadow);
        page.gauge("tenantgate_shadow_mode", "1 if rejections are only recorded, not enforced", on)?;
        let reasons = Reason::ALL.iter().map(|reason| reason.as_str()).chain(["unavailable"]);
        let rows: Vec<_> = reasons
            .zip(&self.gate.shadow)
            .map(|(reason, n)| ([("reason", reason)], self.rule_shadow(reason) + n.value()))
            .collect();
        page.counters(
            "tenantgate_shadow",
            "Requests that passed in shadow mode and would be rejected otherwise, by reason",
            &rows,
        )?;
        page.counter(
            "tenantgate_shadow_report_crowded",
            "Requests that the shadow report counts as (others)",
            self.shadow.crowded().value(),
        )
    }

    /// Returns the requests that a rule in shadow mode allowed.
    fn rule_shadow(&self, reason: &str) -> u64 {
        if reason == Reason::Scope.as_str() { self.gate.rule_shadow.value() } else { 0 }
    }

    fn proofs(&self, page: &mut MetricsPage<'_>) -> fmt::Result {
        let stats = &self.verify;
        page.histogram("tenantgate_bcrypt_duration_seconds", "Duration of one bcrypt", &stats.bcrypt)?;
        let verdicts = ["right", "wrong", "failed"];
        let rows: Vec<_> =
            verdicts.iter().zip(&stats.verdicts).map(|(v, n)| ([("verdict", *v)], n.value())).collect();
        page.counters("tenantgate_bcrypt_verdicts", "Results of bcrypt", &rows)?;
        page.gauge(
            "tenantgate_bcrypt_queue_length",
            "First proofs that wait for a thread",
            stats.queued.value(),
        )?;
        page.counter(
            "tenantgate_bcrypt_shed",
            "First proofs rejected because the queue was full",
            stats.shed.value(),
        )
    }

    fn readiness(&self, page: &mut MetricsPage<'_>) -> fmt::Result {
        let ready = u64::from(self.health.readiness().ready);
        page.gauge("tenantgate_ready", "1 if the server is ready, as /readyz", ready)?;
        let connected = u64::from(self.replica.connected());
        page.gauge(
            "tenantgate_database_connected",
            "1 if the last request to the database succeeded",
            connected,
        )?;
        page.gauge_f64(
            "tenantgate_replica_max_staleness_seconds",
            "The age from which every key gets 503, --max-staleness",
            self.health.max_staleness().as_secs_f64(),
        )
    }

    fn state(&self, page: &mut MetricsPage<'_>) -> fmt::Result {
        let snapshot = self.replica.snapshot();
        let skew = self.replica.clock_skew_micros();
        let age = self.replica.age(self.clock.as_ref()).map_or(f64::NAN, |age| age.as_secs_f64());
        page.gauge_f64(
            "tenantgate_replica_age_seconds",
            "Time since the start of the last successful poll of the database",
            age,
        )?;
        page.gauge("tenantgate_replica_keys", "Keys in memory", snapshot.key_count() as u64)?;
        page.gauge(
            "tenantgate_replica_keys_with_memo",
            "Keys that need no bcrypt, because they have a memo made with a known pepper",
            snapshot.remembered as u64,
        )?;
        page.gauge("tenantgate_replica_tenants", "Tenants in memory", snapshot.tenant_count() as u64)?;
        page.gauge(
            "tenantgate_replica_damaged_rows",
            "Damaged rows, whose keys get 503 until the rows are corrected",
            snapshot.damaged as u64,
        )?;
        page.gauge(
            "tenantgate_replica_generation",
            "Snapshots published since the start",
            snapshot.generation,
        )?;
        page.gauge_f64(
            "tenantgate_replica_clock_skew_seconds",
            "The clock of this machine minus the clock of the database",
            std::time::Duration::from_micros(skew.unsigned_abs()).as_secs_f64()
                * if skew < 0 { -1.0 } else { 1.0 },
        )
    }

    fn connections(&self, page: &mut MetricsPage<'_>) -> fmt::Result {
        let stats = &self.listen;
        let rows = [
            ([("result", "accepted")], stats.accepted.value()),
            ([("result", "no_room")], stats.no_room.value()),
            ([("result", "turned_away")], stats.turned_away()),
            ([("result", "not_taking")], stats.not_taking()),
            ([("result", "failed")], stats.failed.value()),
        ];
        page.counters("tenantgate_connections", "Connections by result", &rows)?;
        let failed: Vec<_> =
            stats.failures.connections().map(|(reason, n)| ([("reason", reason)], n)).collect();
        page.counters(
            "tenantgate_connection_failures",
            "Connections that failed before or between calls, by reason",
            &failed,
        )?;
        let failed: Vec<_> = stats.failures.calls().map(|(reason, n)| ([("reason", reason)], n)).collect();
        page.counters("tenantgate_call_failures", "Calls that ended without a decision, by reason", &failed)?;
        page.counter(
            "tenantgate_call_resets",
            "Calls that their callers reset, whether they were answered or not",
            stats.failures.resets().value(),
        )?;
        page.counter(
            "tenantgate_late_answers",
            "Answers to calls that waited, after their callers had given up",
            stats.failures.late_answers(),
        )
    }

    fn work(&self, page: &mut MetricsPage<'_>) -> fmt::Result {
        let replica = self.replica.stats();
        page.counter("tenantgate_replica_loads", "Complete loads of the database", replica.loads.value())?;
        page.counter("tenantgate_replica_polls", "Polls of the change log", replica.polls.value())?;
        page.counter(
            "tenantgate_replica_changed_rows",
            "Changed rows applied",
            replica.changed_rows.value(),
        )?;
        page.counter(
            "tenantgate_replica_lost_sessions",
            "Database sessions that failed",
            replica.lost.value(),
        )?;
        page.counter(
            "tenantgate_database_moves",
            "Times the same database was found in another place",
            replica.moved.value(),
        )?;
        let (name, help) = (
            "tenantgate_replica_went_back",
            "Times the database no longer had a change that was read before",
        );
        page.counter(name, help, replica.went_back.value())?;
        self.flushes(page)?;
        self.restarts(page)?;
        page.info("tenantgate_build", "The running version", &[("version", env!("CARGO_PKG_VERSION"))])
    }

    /// Batches that were written to the database, a file or a collector.
    fn flushes(&self, page: &mut MetricsPage<'_>) -> fmt::Result {
        let replica = self.replica.stats();
        let (uses, memos) = (self.last_used.stats(), self.memos.stats());
        let (shadow, usage) = (self.shadow.stats(), self.usage.stats());
        let refusals = self.refusals.stats();
        for (name, help, written, failed) in [
            (
                "tenantgate_last_used_flushes",
                "Batches of last_used_at by result",
                &uses.written,
                &uses.failed,
            ),
            ("tenantgate_memo_flushes", "Batches of memos by result", &memos.written, &memos.failed),
            (
                "tenantgate_shadow_report_flushes",
                "Batches of the shadow report by result",
                &shadow.written,
                &shadow.failed,
            ),
            (
                "tenantgate_refusal_flushes",
                "Batches of refusals by result",
                &refusals.written,
                &refusals.failed,
            ),
            ("tenantgate_usage_flushes", "Batches of usage by result", &usage.written, &usage.failed),
            (
                "tenantgate_snapshot_file_writes",
                "Writes of the snapshot file by result",
                &replica.kept,
                &replica.not_kept,
            ),
        ] {
            let rows = [([("result", "written")], written.value()), ([("result", "failed")], failed.value())];
            page.counters(name, help, &rows)?;
        }
        let (sent, lost) =
            self.traces.as_ref().map_or((0, 0), |stats| (stats.written.value(), stats.failed.value()));
        page.counters(
            "tenantgate_trace_flushes",
            "Batches of spans by result",
            &[([("result", "written")], sent), ([("result", "failed")], lost)],
        )
    }

    fn restarts(&self, page: &mut MetricsPage<'_>) -> fmt::Result {
        let replica = self.replica.stats();
        let own = [("bcrypt", self.verify.panics.value()), ("replica", replica.panics.value())];
        let restarts: Vec<_> = own
            .into_iter()
            .chain(self.supervisor.restarts())
            .map(|(part, n)| ([("part", part)], n))
            .collect();
        page.counters("tenantgate_restarts", "Restarts of background tasks after a panic, by part", &restarts)
    }
}

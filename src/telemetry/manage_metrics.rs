//! Names and labels of the metrics of `tenantgate manage`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use super::page::{MetricsPage, PageFormat};
use super::process;
use crate::clock::Timestamp;
use crate::stats::{Counter, Histogram};

/// Counts of requests and connections.
#[derive(Debug, Default)]
pub struct ManageStats {
    /// Requests by route, method and status. A route is a path with names for its parts: never a tenant or a key.
    requests: Mutex<BTreeMap<RequestLabels, u64>>,
    /// How long they took.
    pub latency: Histogram,
    /// Connections that came when all were taken.
    pub crowded: Counter,
    /// TLS handshakes that failed.
    pub handshakes: Counter,
}

/// The labels of a count.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct RequestLabels {
    /// The route, such as `/v1/tenants/{ref}`; `other` if there is none for the path.
    pub route: Arc<str>,
    /// The method; `other` for one that no route has.
    pub method: &'static str,
    /// The status.
    pub status: u16,
}

impl ManageStats {
    /// Counts a request.
    pub fn count(&self, counted: RequestLabels) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry(counted).or_default() += 1;
    }

    /// Returns the counts of requests.
    #[must_use]
    pub fn requests(&self) -> BTreeMap<RequestLabels, u64> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Writes the page with all metrics.
#[must_use]
pub fn render(stats: &Arc<ManageStats>, started: Timestamp, format: PageFormat) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ManageMetrics { stats: Arc::clone(stats), started }));
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    format.of(text)
}

#[derive(Debug)]
struct ManageMetrics {
    stats: Arc<ManageStats>,
    started: Timestamp,
}

impl Collector for ManageMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut page = MetricsPage(encoder);
        let requests: Vec<_> = self
            .stats
            .requests()
            .into_iter()
            .map(|(of, n)| {
                let labels = [
                    ("route", of.route.to_string()),
                    ("method", of.method.to_owned()),
                    ("status", of.status.to_string()),
                ];
                (labels, n)
            })
            .collect();
        page.counters("tenantgate_manage_requests", "Requests by route, method and status", &requests)?;
        page.histogram(
            "tenantgate_manage_request_duration_seconds",
            "Time from the header list of a request to its answer",
            &self.stats.latency,
        )?;
        page.counter(
            "tenantgate_manage_connections_crowded",
            "Connections that arrived when the limit was reached",
            self.stats.crowded.value(),
        )?;
        page.counter(
            "tenantgate_manage_tls_failures",
            "TLS handshakes that failed",
            self.stats.handshakes.value(),
        )?;
        process::write(&mut page, self.started)
    }
}

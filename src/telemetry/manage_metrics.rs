//! Names and labels of the metrics of `tenantgate manage`.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use super::page::{Format, Page};
use super::process;
use crate::clock::Timestamp;
use crate::server::ManageStats;

/// Writes the page with all metrics.
#[must_use]
pub fn render(stats: &Arc<ManageStats>, started: Timestamp, format: Format) -> String {
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
        let mut page = Page(encoder);
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

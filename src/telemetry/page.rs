//! Writes the metrics page in one of two formats.
//!
//! `OpenMetrics` is written if the client asks for it, as Prometheus does. All others, such as curl, `promtool check
//! metrics` and small collectors, get the older text format
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>). Both have the same content; only the names of the
//! families differ. What the metrics mean belongs to `metrics`.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::stats::Histogram;

/// The format of the page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PageFormat {
    /// `OpenMetrics` 1.0.
    OpenMetrics,
    /// The text format 0.0.4.
    Text,
}

impl PageFormat {
    /// Chooses the format for this `Accept` header.
    #[must_use]
    pub fn wanted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Text }
    }

    /// Returns the value of the `content-type` header.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Converts a page of `OpenMetrics` to this format.
    pub(super) fn of(self, open_metrics: String) -> String {
        match self {
            Self::OpenMetrics => open_metrics,
            Self::Text => older(&open_metrics),
        }
    }
}

/// Converts to the older format, in which a family has the name of its samples, and `info` is a gauge.
fn older(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 256);
    let mut help = "";
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), _, Some(words)) => help = words,
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    _ => ("", kind),
                };
                text.extend(["# HELP ", name, suffix, " ", help, "\n"]);
                text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
            }
            (Some("#"), ..) => {}
            _ => text.extend([line, "\n"]),
        }
    }
    text
}

/// Writes metrics one after the other. The encoder adds Prometheus' suffixes (`_total`, `_info`).
pub(super) struct MetricsPage<'a>(pub(super) DescriptorEncoder<'a>);

impl MetricsPage<'_> {
    pub(super) fn counter(&mut self, name: &str, help: &str, n: u64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&n, None)
    }

    pub(super) fn counter_f64(&mut self, name: &str, help: &str, n: f64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&n, None)
    }

    pub(super) fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        rows: &[(L, u64)],
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, n) in rows {
            family.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(n, None)?;
        }
        Ok(())
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, n: u64) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&n)
    }

    pub(super) fn gauge_f64(&mut self, name: &str, help: &str, n: f64) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&n)
    }

    pub(super) fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) -> fmt::Result {
        let buckets: Vec<_> = histogram.buckets().collect();
        let count = buckets.iter().map(|(_, n)| n).sum();
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(histogram.sum_seconds(), count, &buckets, None)
    }

    pub(super) fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str); 1]) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_has_the_same_content_under_the_names_of_the_samples() {
        let given = "# HELP a_seconds A\n# TYPE a_seconds gauge\n# UNIT a_seconds seconds\na_seconds 1\n\
                     # HELP b B of b\n# TYPE b counter\nb_total{x=\"# y\"} 2\n\
                     # HELP c C\n# TYPE c info\nc_info{v=\"1\"} 1\n# EOF\n";
        let wanted = "# HELP a_seconds A\n# TYPE a_seconds gauge\na_seconds 1\n\
                      # HELP b_total B of b\n# TYPE b_total counter\nb_total{x=\"# y\"} 2\n\
                      # HELP c_info C\n# TYPE c_info gauge\nc_info{v=\"1\"} 1\n";
        assert_eq!(older(given), wanted);
    }

    #[test]
    fn a_client_that_does_not_ask_for_open_metrics_gets_text() {
        for (accept, format) in [
            (
                "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
                PageFormat::OpenMetrics,
            ),
            ("*/*", PageFormat::Text),
            ("", PageFormat::Text),
        ] {
            assert_eq!(PageFormat::wanted(accept), format, "{accept}");
        }
    }
}

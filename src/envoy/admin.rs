//! Reads Envoy's admin page: version, configuration, hosts and counters.

use http::Method;
use serde_json::Value;

use super::http::{RequestError, Server, send};
use super::json::{is_true, items, text};
use super::{ExpectedConfig, config};
use crate::diagnostics::Finding;

/// The first release that supports error responses: 1.36 replaces them by an empty 403.
const LEAST_VERSION: (u32, u32) = (1, 37);

/// Reads the admin page at `server` and returns findings about this Envoy.
pub async fn examine(server: &Server<'_>, expected: &ExpectedConfig<'_>) -> Vec<Finding> {
    match read(server).await {
        Ok(pages) => pages.findings(expected),
        Err(why) => {
            let what = format!("{}: {why}", server.url);
            vec![Finding::bad(
                "envoy.admin",
                what,
                "give the address of Envoy's admin page with --envoy-admin",
            )]
        }
    }
}

/// The content of the admin page.
struct Pages {
    info: Value,
    dump: Value,
    clusters: Value,
    stats: Value,
}

/// Why a part of the admin page cannot be read.
#[derive(Debug, thiserror::Error)]
enum AdminPageError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("{path} has the status {status}: is this Envoy's admin page?")]
    Status { path: String, status: u16 },
    #[error("{path} is not valid JSON: {error}: is this Envoy's admin page?")]
    Json { path: String, error: serde_json::Error },
}

async fn read(server: &Server<'_>) -> Result<Pages, AdminPageError> {
    Ok(Pages {
        info: page(server, "/server_info").await?,
        dump: page(server, "/config_dump").await?,
        clusters: page(server, "/clusters?format=json").await?,
        stats: page(server, "/stats?format=json&filter=ext_authz").await?,
    })
}

async fn page(server: &Server<'_>, path: &str) -> Result<Value, AdminPageError> {
    let response = send(server, &Method::GET, path, &[]).await?;
    if response.status != 200 {
        return Err(AdminPageError::Status { path: path.to_owned(), status: response.status });
    }
    serde_json::from_str(&response.body)
        .map_err(|error| AdminPageError::Json { path: path.to_owned(), error })
}

impl Pages {
    fn findings(&self, expected: &ExpectedConfig<'_>) -> Vec<Finding> {
        let mut findings = vec![self.version()];
        findings.extend(config::examine(&self.dump, expected));
        let cluster =
            super::json::of_type(&self.dump, "ExtAuthz").into_iter().find_map(super::cluster::called);
        findings.extend(cluster.map(|cluster| self.hosts(cluster)));
        findings.push(self.errors());
        findings
    }

    /// `<commit>/1.40.0/Clean/RELEASE/BoringSSL`
    fn version(&self) -> Finding {
        const CHECK: &str = "envoy.version";
        let version =
            text(&self.info, "/version").and_then(|text| text.split('/').nth(1)).unwrap_or("unknown");
        let mut numbers = version.split(['.', '-']).map(|number| number.parse().unwrap_or(0));
        let known = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let what = format!("Envoy {version}");
        if known >= LEAST_VERSION {
            Finding::ok(CHECK, what)
        } else {
            let what =
                format!("{what}: it replaces the response of `serve --on-unavailable error` by an empty 403");
            Finding::warn(CHECK, what, "use Envoy 1.37 or newer, or `--on-unavailable deny`")
        }
    }

    fn hosts(&self, cluster: &str) -> Finding {
        const CHECK: &str = "envoy.hosts";
        let ours =
            items(&self.clusters, "/cluster_statuses").find(|status| text(status, "/name") == Some(cluster));
        let hosts: Vec<_> = ours.into_iter().flat_map(|status| items(status, "/host_statuses")).collect();
        let unhealthy = |host: &&&Value| {
            let flags = host["health_status"].as_object().into_iter().flatten();
            flags.into_iter().any(|(name, _)| name.starts_with("failed_"))
                || is_true(host, "/health_status/pending_active_hc")
        };
        let healthy = hosts.len() - hosts.iter().filter(unhealthy).count();
        let what = format!("{healthy} of {} hosts of the cluster {cluster} are healthy", hosts.len());
        match healthy {
            0 => Finding::bad(
                CHECK,
                what,
                "run `tenantgate doctor --target` for each host, and see its /readyz",
            ),
            healthy if healthy < hosts.len() => Finding::warn(CHECK, what, "see /readyz of the other hosts"),
            _ => Finding::ok(CHECK, what),
        }
    }

    /// Counts checks without an answer since Envoy was started.
    fn errors(&self) -> Finding {
        const CHECK: &str = "envoy.errors";
        let count = |end: &str| -> u64 {
            let ours = items(&self.stats, "/stats").filter(|stat| {
                text(stat, "/name").is_some_and(|name| name.starts_with("http.") && name.ends_with(end))
            });
            ours.filter_map(|stat| stat["value"].as_u64()).sum()
        };
        let (errors, open) = (count("ext_authz.error"), count("ext_authz.failure_mode_allowed"));
        let all = count("ext_authz.ok") + count("ext_authz.denied") + errors;
        let what = format!("{errors} of {all} checks since Envoy's start got no answer");
        if open > 0 {
            let what = format!("{what}, and {open} requests passed without one");
            Finding::bad(CHECK, what, "set failure_mode_allow: false")
        } else if errors > 0 {
            Finding::warn(
                CHECK,
                what,
                "a 503 without a decision id: tenantgate is down, or slower than the timeout, or the circuit breaker is open",
            )
        } else {
            Finding::ok(CHECK, what)
        }
    }
}

//! Starts one Envoy with a listener for each filter configuration to compare.
//!
//! After the filters, each listener responds with 200 itself (`direct_response`). All configurations therefore run in
//! the same process with the same memory, and no idle one runs beside the one that is measured.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::cost::{Counter, countable};
use crate::support::cli::tenantgate;
use crate::support::transcript::Transcript;
use crate::support::{PATIENCE, envoy, eventually, http};

/// A filter as YAML, indented by ten blanks; may be empty.
pub(crate) type Filter = String;

/// A server that filters call over HTTP/2: its name, `host:port` or `unix:/path`, and whether the cluster retries as the
/// filter of `envoy.yaml` does.
pub(crate) type Cluster<'a> = (&'a str, &'a str, bool);

/// An Envoy with a listener for each filter.
pub(crate) struct Proxy {
    child: Child,
    /// The address of each listener, in order.
    pub(crate) addresses: Vec<String>,
    admin: String,
    counted: Option<PathBuf>,
    _dir: tempfile::TempDir,
}

impl Proxy {
    /// Starts it, optionally under callgrind, which takes a while.
    pub(crate) fn start(filters: &[Filter], clusters: &[Cluster<'_>], is_counted: bool) -> Self {
        let binary = envoy::binary().expect("this bench needs an Envoy: `envoy/get envoy`");
        let binary = binary.as_os_str();
        let dir = tempfile::Builder::new().prefix("tenantgate-bench-").tempdir().expect("a directory");
        let (file, admin) = (dir.path().join("envoy.yaml"), dir.path().join("admin"));
        std::fs::write(&file, configuration(filters, clusters)).expect("written");
        let counted = is_counted.then(|| dir.path().join("callgrind.out"));
        let mut command =
            counted.as_ref().map_or_else(|| Command::new(binary), |file| countable(binary, file));
        command
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "error", "-c"])
            .arg(&file);
        // `cargo build` puts the module beside the program.
        let modules = tenantgate();
        let modules = Path::new(&modules).parent().expect("in a directory");
        command.env("ENVOY_DYNAMIC_MODULES_SEARCH_PATH", modules);
        command.arg("--admin-address-path").arg(&admin).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().expect("envoy starts");
        let stderr = Transcript::of(child.stderr.take().expect("piped"));
        let mut proxy = Self { child, addresses: Vec::new(), admin: String::new(), counted, _dir: dir };
        proxy.admin = eventually("envoy has an admin page", PATIENCE * 10, || {
            let address = std::fs::read_to_string(&admin).unwrap_or_default();
            if address.is_empty() { Err(stderr.text()) } else { Ok(address) }
        });
        eventually("envoy is ready", PATIENCE * 10, || match http::get(&proxy.admin, "/ready") {
            Ok(page) if page.status == 200 => Ok(()),
            _ => Err(stderr.text()),
        });
        let listeners =
            http::get(&proxy.admin, "/listeners?format=json").expect("the admin page answers").body;
        proxy.addresses = (0..filters.len()).map(|n| address_of(&listeners, n)).collect();
        proxy
    }

    /// Returns its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns how many requests the module has allowed.
    pub(crate) fn allowed_by_module(&self) -> u64 {
        let stats =
            http::get(&self.admin, "/stats?filter=tenantgate_allowed").expect("the admin page answers");
        let values = stats.body.lines().filter_map(|line| line.rsplit_once(": "));
        values.map(|(_, value)| value.trim().parse::<u64>().expect("a number")).sum()
    }

    /// Starts a counter of its instructions.
    pub(crate) fn counter(&self) -> Counter {
        Counter::start(self.pid(), self.counted.as_ref().expect("started to be counted"))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the address of the listener of the n-th filter.
fn address_of(listeners: &str, n: usize) -> String {
    let listeners: Value = serde_json::from_str(listeners).expect("JSON");
    let all = listeners["listener_statuses"].as_array().expect("a list");
    let name = Value::String(n.to_string());
    let ours = all.iter().find(|one| one["name"] == name).expect("listens");
    format!("127.0.0.1:{}", ours["local_address"]["socket_address"]["port_value"])
}

fn configuration(filters: &[Filter], clusters: &[Cluster<'_>]) -> String {
    let listeners: String = filters.iter().enumerate().map(|(n, filter)| listener(n, filter)).collect();
    let clusters: String = clusters.iter().map(cluster).collect();
    format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n\
         static_resources:\n  listeners:\n{listeners}  clusters:\n{clusters}"
    )
}

fn listener(n: usize, filter: &Filter) -> String {
    format!(
        r#"  - name: "{n}"
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: "listener{n}"
          route_config:
            virtual_hosts:
            - {{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200}}}}]}}
          http_filters:
{filter}
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"#
    )
}

fn cluster((name, address, retries): &Cluster<'_>) -> String {
    let retries = if *retries { envoy::retries_of_cluster() } else { String::new() };
    let address = if let Some(path) = address.strip_prefix("unix:") {
        format!("{{pipe: {{path: {path}}}}}")
    } else {
        let port = address.rsplit(':').next().expect("a port");
        format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}")
    };
    format!(
        r#"  - name: {name}
    type: STATIC
    load_assignment:
      cluster_name: {name}
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {address}}}}}]}}]
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
{retries}"#
    )
}

//! Starts a real Envoy with `envoy/envoy.yaml`, as users get it, on its own ports.
//!
//! ```text
//! test ──► Envoy ──► Upstream (echoes, and stores what it saw)
//!            │
//!            └─► tenantgate (a `Server` of the test)
//! ```
//!
//! A plan may change the file for a test. The text to replace must occur exactly once, so a test that switches
//! something off fails when there is nothing to switch off any more. Everything else runs as users run it.

mod upstream;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Once};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) use self::upstream::Seen;
use self::upstream::{Log, Upstream};
use super::http::{self, Page};
use super::transcript::Transcript;
use super::{PATIENCE, Server, eventually, left_out};

/// The configuration that users start with.
pub(crate) const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/envoy/envoy.yaml");

/// The same for a Unix socket between Envoy and tenantgate.
pub(crate) const UDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/envoy/plain/uds.yaml");

/// The same with limits by plan.
pub(crate) const LIMITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/envoy/plain/limits.yaml");

/// The same with certificates on both sides.
pub(crate) const MTLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/envoy/plain/mtls.yaml");

/// The retries of a Check in these files.
pub(crate) const RETRIES: &str = "                retry_policy:
                  retry_on: connect-failure,refused-stream,reset,unavailable
                  num_retries: 2
                  retry_back_off: {base_interval: 0.01s, max_interval: 2s}
                  retry_host_predicate:
                  - name: envoy.retry_host_predicates.previous_hosts
                    typed_config:
                      \"@type\": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate
                  host_selection_retry_max_attempts: 5
";

/// Returns the same policy for the `HttpProtocolOptions` of a cluster.
pub(crate) fn retries_of_cluster() -> String {
    let line = |line: &str| format!("{}\n", line.strip_prefix("        ").expect("indented"));
    RETRIES.lines().map(line).collect()
}

static MISSING: Once = Once::new();

/// The Envoy of this machine; `None` with a message if there is none.
pub(crate) fn binary() -> Option<PathBuf> {
    let told = std::env::var_os("TENANTGATE_ENVOY").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("envoy"));
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/envoy");
    let found = told.into_iter().chain(on_path).chain([ours]).find(|envoy| envoy.is_file());
    if found.is_none() {
        left_out(
            &MISSING,
            "everything behind Envoy",
            "no Envoy on this machine (`envoy/get envoy` gets one)",
        );
    }
    found
}

/// The configuration of an Envoy to start.
pub(crate) struct Plan {
    text: String,
    workers: u8,
    /// Where Envoy looks for modules.
    modules: Option<PathBuf>,
}

impl Plan {
    /// Sets the number of worker threads, each of which has its own connection to tenantgate.
    pub(crate) fn workers(self, workers: u8) -> Self {
        Self { workers, ..self }
    }

    /// Lets it load modules from this directory.
    pub(crate) fn modules(self, directory: &Path) -> Self {
        Self { modules: Some(directory.to_owned()), ..self }
    }

    /// The configuration as it is now.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Waits for tenantgate for as long as a busy machine needs, for tests in which every answer counts.
    #[track_caller]
    pub(crate) fn patient(self) -> Self {
        self.with("                timeout: 2s\n", "                timeout: 20s\n")
            .with("max_interval: 2s}", "max_interval: 20s}")
    }

    /// Changes the file. `from` must occur exactly once.
    #[track_caller]
    pub(crate) fn with(mut self, from: &str, to: &str) -> Self {
        assert_eq!(self.text.matches(from).count(), 1, "`{from}` must occur exactly once in the file");
        self.text = self.text.replacen(from, to, 1);
        self
    }

    /// Moves the retries of a Check from the filter to its cluster, where a skipped filter does not cost them.
    #[track_caller]
    pub(crate) fn retrying_in_cluster(self) -> Self {
        const NEXT: &str =
            "            max_outbound_control_frames: 100000\n            max_outbound_frames: 200000\n";
        self.with(RETRIES, "").with(NEXT, &format!("{NEXT}{}", retries_of_cluster()))
    }

    /// Uses tenantgate at `127.0.0.1:port`.
    #[track_caller]
    pub(crate) fn asking(self, address: &str) -> Self {
        self.port(50051, address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port"))
    }

    /// Replaces an address in the file.
    #[track_caller]
    pub(crate) fn port(self, from: u16, to: u16) -> Self {
        let (from, to) = (format!("port_value: {from}}}"), format!("port_value: {to}}}"));
        self.with(&from, &to)
    }

    /// Starts it and waits until it accepts requests; `None` with a message if there is no Envoy.
    #[track_caller]
    pub(crate) fn start(self) -> Option<Envoy> {
        let binary = binary()?;
        let (http_seen, grpc_seen) = (Log::default(), Log::default());
        let (http, grpc) = (Upstream::http(Arc::clone(&http_seen)), Upstream::grpc(Arc::clone(&grpc_seen)));
        let plan = self.port(8080, http.port).port(8081, grpc.port).port(10000, 0).port(9901, 0);
        let dir = tempfile::Builder::new().prefix("tenantgate-envoy-").tempdir().expect("a directory");
        let (file, admin) = (dir.path().join("envoy.yaml"), dir.path().join("admin"));
        std::fs::write(&file, plan.text).expect("written");
        let modules = plan.modules.map(|directory| ("ENVOY_DYNAMIC_MODULES_SEARCH_PATH", directory));
        let mut child = Command::new(binary)
            .envs(modules)
            // Hot restart would share memory with every other Envoy on the machine.
            .args(["--disable-hot-restart", "--log-level", "warning", "--concurrency"])
            .arg(plan.workers.to_string())
            .args(["--file-flush-interval-msec", "10", "-c"])
            .arg(&file)
            .arg("--admin-address-path")
            .arg(&admin)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("envoy starts");
        let access_log = Transcript::of(child.stdout.take().expect("piped"));
        let stderr = Transcript::of(child.stderr.take().expect("piped"));
        let mut envoy = Envoy {
            child,
            access_log,
            stderr,
            address: String::new(),
            admin: String::new(),
            http_seen,
            grpc_seen,
            _behind: (dir, http, grpc),
        };
        envoy.admin = eventually("envoy has an admin page", PATIENCE, || {
            std::fs::read_to_string(&admin)
                .ok()
                .filter(|text| !text.is_empty())
                .ok_or_else(|| envoy.stderr.text())
        });
        eventually("envoy is ready", PATIENCE, || match envoy.ask_admin("/ready") {
            page if page.status == 200 => Ok(()),
            page => Err((page, envoy.stderr.text())),
        });
        envoy.address = envoy.listener();
        Some(envoy)
    }
}

/// A running Envoy and the upstreams behind it.
pub(crate) struct Envoy {
    child: Child,
    /// Its stdout: the access log.
    pub(crate) access_log: Transcript,
    stderr: Transcript,
    /// The address for clients.
    pub(crate) address: String,
    admin: String,
    http_seen: Log,
    grpc_seen: Log,
    _behind: (TempDir, Upstream, Upstream),
}

/// The result of a request: the client's view, and the upstream's if it was reached.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) page: Page,
    pub(crate) seen: Option<Seen>,
}

impl Envoy {
    /// An Envoy with `envoy/envoy.yaml`, which calls the first listener of this server.
    #[track_caller]
    pub(crate) fn before(server: &Server) -> Plan {
        Self::with_file(FILE).asking(&server.grpc[0])
    }

    /// An Envoy with another of our files.
    #[track_caller]
    pub(crate) fn with_file(file: &str) -> Plan {
        let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}"));
        Plan { text, workers: 1, modules: None }
    }

    /// An Envoy with `envoy/envoy.yaml`, which distributes its checks over servers at these addresses.
    #[track_caller]
    pub(crate) fn before_each_of(addresses: &[&str]) -> Plan {
        let endpoint = "- endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 50051}}}";
        let endpoints = addresses.iter().map(|address| {
            let (host, port) = address.rsplit_once(':').expect("host:port");
            endpoint.replace("127.0.0.1", host).replace("50051", port)
        });
        Self::with_file(FILE).with(endpoint, &endpoints.collect::<Vec<_>>().join("\n        "))
    }

    /// Sends one request with exactly these headers (and those that HTTP/1.1 needs), on a new connection.
    #[track_caller]
    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Outcome {
        let headers: Vec<(&str, &[u8])> =
            headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        self.send_bytes(method, path, &headers)
    }

    /// The same with values that need not be text.
    #[track_caller]
    pub(crate) fn send_bytes(&self, method: &str, path: &str, headers: &[(&str, &[u8])]) -> Outcome {
        self.http_seen.lock().expect("no panic under the lock").clear();
        let mut stream = self.open(method, path, headers, "close");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("an answer");
        // Envoy responds only after the upstream, so a request that has not arrived there never will.
        let mut seen = self.http_seen.lock().expect("no panic under the lock");
        assert!(seen.len() <= 1, "one request, one upstream request: {seen:#?}");
        Outcome { page: http::parse(&String::from_utf8_lossy(&bytes)), seen: seen.pop() }
    }

    /// Sends these bytes on a new connection, and returns the response.
    #[track_caller]
    pub(crate) fn exchange(&self, bytes: &[u8]) -> Page {
        let mut stream = TcpStream::connect(&self.address).expect("envoy listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(bytes).expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        http::parse(&String::from_utf8_lossy(&answer))
    }

    /// Sends the head of a request; the caller reads the response.
    #[track_caller]
    pub(crate) fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &[u8])],
        connection: &str,
    ) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("envoy listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nhost: api.example.com\r\nconnection: {connection}\r\n")
                .into_bytes();
        for (name, value) in headers {
            head.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        head.extend(b"\r\n");
        stream.write_all(&head).expect("sent");
        stream
    }

    /// Returns the requests that the HTTP upstream saw since the last call.
    pub(crate) fn http_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.http_seen.lock().expect("no panic under the lock"))
    }

    /// Returns the requests that the gRPC upstream saw since the last call.
    pub(crate) fn grpc_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.grpc_seen.lock().expect("no panic under the lock"))
    }

    /// Returns the line of the access log about the only request for this path.
    #[track_caller]
    pub(crate) fn logged(&self, path: &str) -> Value {
        let parse = |line: &String| serde_json::from_str::<Value>(line).expect("the access log is JSON");
        self.access_log.wait_for(&format!("access log of {path}"), PATIENCE, |lines| {
            lines.iter().map(parse).find(|line| line["path"] == path)
        })
    }

    /// Waits until Envoy's health checks report tenantgate as given.
    #[track_caller]
    pub(crate) fn finds_tenantgate(&self, healthy: bool) {
        self.finds("", healthy);
    }

    /// Waits until Envoy's health checks report tenantgate at this address as given.
    #[track_caller]
    pub(crate) fn finds(&self, address: &str, healthy: bool) {
        let wanted = if healthy { "::health_flags::healthy" } else { "::health_flags::/failed_active_hc" };
        eventually(&format!("envoy sees {address}{wanted}"), PATIENCE, || {
            let clusters = self.ask_admin("/clusters").body;
            let ours = clusters.lines().find(|line| {
                line.starts_with(&format!("tenantgate::{address}")) && line.contains("health_flags")
            });
            if ours.is_some_and(|line| line.contains(wanted)) { Ok(()) } else { Err(clusters) }
        });
    }

    /// Returns a counter or gauge of Envoy.
    #[track_caller]
    pub(crate) fn stat(&self, name: &str) -> u64 {
        let page = self.ask_admin(&format!("/stats?filter=^{name}$")).body;
        let value = page.rsplit(':').next().and_then(|value| value.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no number in {page:?}"))
    }

    /// Returns Envoy's counters about tenantgate that are not zero, for the diagnosis of failures.
    #[track_caller]
    pub(crate) fn story(&self) -> String {
        let page = self.ask_admin("/stats?filter=(cluster.tenantgate|ext_authz|overload)").body;
        let told = page.lines().filter(|line| !line.ends_with(": 0") && !line.contains("No recorded values"));
        told.collect::<Vec<_>>().join("\n")
    }

    /// The address of its admin page.
    pub(crate) fn admin(&self) -> &str {
        &self.admin
    }

    fn ask_admin(&self, path: &str) -> Page {
        http::get(&self.admin, path).expect("the admin page answers")
    }

    /// Reads the address that it has bound.
    fn listener(&self) -> String {
        let said: Value = serde_json::from_str(&self.ask_admin("/listeners?format=json").body).expect("JSON");
        let port = &said["listener_statuses"][0]["local_address"]["socket_address"]["port_value"];
        format!("127.0.0.1:{}", port.as_u64().unwrap_or_else(|| panic!("no port in {said}")))
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "the output of Envoy helps to diagnose a failure")]
            {
                eprintln!("--- output of envoy:\n{}\n{}\n---", self.stderr.text(), self.access_log.text());
            }
        }
    }
}

//! Starts a real Prometheus, and runs promtool.
//!
//! It scrapes the servers of the test every 200 ms and evaluates the alert rules of the repository, as users load them.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;

use serde_json::Value;
use tempfile::TempDir;

use super::link::free_port;
use super::transcript::Transcript;
use super::{PATIENCE, Server, eventually, excused, http, left_out};

/// The alert rules for users.
pub(crate) const ALERTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/envoy/observability/alerts.yml");

static MISSING: Once = Once::new();

/// A program of Prometheus on this machine; `None` with a message if there is none.
fn binary(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join(program));
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin").join(program);
    let found = on_path.chain([ours]).find(|program| program.is_file());
    if found.is_none() && !excused("prometheus") {
        left_out(
            &MISSING,
            "dashboard and alerts with a real Prometheus",
            "no prometheus or promtool on this machine (`envoy/get prometheus` gets both)",
        );
    }
    found
}

/// Runs promtool with these arguments and this input; `None` with a message without promtool.
pub(crate) fn promtool(args: &[&str], input: &str) -> Option<Output> {
    let mut tool = Command::new(binary("promtool")?)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool starts");
    let sent = tool.stdin.take().expect("piped").write_all(input.as_bytes());
    assert!(sent.is_ok() || input.is_empty(), "promtool reads its input: {sent:?}");
    Some(tool.wait_with_output().expect("promtool ends"))
}

/// A running Prometheus; killed with this value.
pub(crate) struct Prometheus {
    child: Child,
    log: Transcript,
    address: String,
    _dir: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes these servers under the job `tenantgate`, and `manage` at this address under its own.
    pub(crate) fn of(servers: &[&Server], manage: &str) -> Option<Self> {
        let program = binary("prometheus")?;
        let dir = tempfile::Builder::new().prefix("tenantgate-prometheus-").tempdir().expect("a directory");
        let file = dir.path().join("prometheus.yml");
        std::fs::write(&file, settings(servers, manage)).expect("written");
        let address = format!("127.0.0.1:{}", free_port());
        let mut child = Command::new(program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("prometheus starts");
        let log = Transcript::of(child.stderr.take().expect("piped"));
        let prometheus = Self { child, log, address, _dir: dir };
        eventually("prometheus is ready", PATIENCE, || match http::get(&prometheus.address, "/-/ready") {
            Ok(page) if page.status == 200 => Ok(()),
            other => Err(format!("{other:?}\n{}", prometheus.log.text())),
        });
        Some(prometheus)
    }

    /// Evaluates an expression now; fails if it is invalid.
    pub(crate) fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let answer = self.get(&format!("/api/v1/query?query={}", encoded(expression)))?;
        answer["result"].as_array().cloned().ok_or_else(|| format!("no vector: {answer}"))
    }

    /// Returns the loaded alert rules with their last evaluation.
    pub(crate) fn rules(&self) -> Vec<Value> {
        let answer = self.get("/api/v1/rules?type=alert").expect("Prometheus returns its rules");
        let groups = answer["groups"].as_array().cloned().unwrap_or_default();
        groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect()
    }

    fn get(&self, path: &str) -> Result<Value, String> {
        let page = http::get(&self.address, path).map_err(|e| e.to_string())?;
        let mut answer: Value = serde_json::from_str(&page.body).map_err(|e| format!("{e}: {page:?}"))?;
        if answer["status"] == "success" { Ok(answer["data"].take()) } else { Err(page.body) }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn settings(servers: &[&Server], manage: &str) -> String {
    let targets: Vec<_> = servers.iter().map(|server| server.ops.as_str()).collect();
    format!(
        "global: {{scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 500ms}}\n\
         rule_files: ['{ALERTS}']\n\
         scrape_configs:\n- job_name: tenantgate\n  static_configs: [{{targets: {targets:?}}}]\n\
         - job_name: tenantgate-manage\n  static_configs: [{{targets: [{manage:?}]}}]\n"
    )
}

/// Percent-encodes text (RFC 3986 §2.1).
fn encoded(text: &str) -> String {
    let byte =
        |b: u8| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") };
    text.bytes().map(byte).collect()
}

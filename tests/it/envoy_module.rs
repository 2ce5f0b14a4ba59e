//! Tests the module inside Envoy: it gives the same answers as a Check, and leaves a request to the Check when in
//! doubt.
//!
//! Two Envoys use one server, one with the module and one without, and their answers are compared. The access log
//! contains all metadata of `ext_authz`, where `via` tells whether the module or the server has decided.

mod answers;
mod damage;
mod life;
mod parity;
mod protocols;
mod routes;
mod soak;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::ask::KEY_HEADER;
use crate::support::envoy::{Envoy, Outcome, Plan, binary};
use crate::support::world::Key;
use crate::support::{Ask, PATIENCE, Server, World, eventually};

/// The directory with the module, which is built on first use.
static MODULES: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = Path::new(env!("CARGO_BIN_EXE_tenantgate")).parent().expect("in a directory").to_owned();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let args = ["build", "--quiet", "--locked", "--package", "tenantgate-envoy"];
    let built = Command::new(cargo).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).status();
    assert!(built.expect("cargo starts").success(), "the module is built");
    directory
});

const FILTER: &str = r#"          - name: tenantgate
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter
              dynamic_module_config: {name: tenantgate_envoy, do_not_close: true}
              filter_name: tenantgate
              filter_config:
                "@type": type.googleapis.com/google.protobuf.StringValue
                value: "unix:SOCKET context_extensions=none clear_route_cache=false"
"#;

const CHECK: &str =
    "          # --- The Check -----------------------------------------------------------------\n";

const SKIPPED: &str = r"              transport_api_version: V3
              filter_enabled_metadata:
                filter: envoy.tenantgate
                path: [{key: decided}]
                value: {bool_match: true}
                invert: true
              grpc_service:
                envoy_grpc:
                  cluster_name: tenantgate
";

/// Adds the metadata of the namespace to the access log.
fn logging(plan: Plan) -> Plan {
    plan.with(
        "%DYNAMIC_METADATA(envoy.filters.http.ext_authz:decision)%",
        "%DYNAMIC_METADATA(envoy.filters.http.ext_authz)%",
    )
}

/// Describes an Envoy with the module, which connects to this socket.
fn with_module(server: &Server, socket: &Path) -> Plan {
    adding_module(logging(Envoy::before(server)), socket).retrying_in_cluster()
}

/// Adds the module to an Envoy, in front of the Check.
pub(crate) fn adding_module(plan: Plan, socket: &Path) -> Plan {
    let before = "              transport_api_version: V3\n              grpc_service:\n                envoy_grpc:\n                  cluster_name: tenantgate\n";
    let filter = FILTER.replace("SOCKET", &socket.display().to_string());
    let plan = plan.with(CHECK, &format!("{filter}{CHECK}"));
    plan.with(before, SKIPPED).modules(&MODULES)
}

/// Starts a server with `--publish`. Returns it and the path of its socket.
pub(crate) fn publishing(world: &World, args: &[&str]) -> (Server, PathBuf, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("publish.sock");
    let address = format!("unix:{}", socket.display());
    let server = Server::on(&world.db).args(&["--publish", &address]).args(args).start();
    (server, socket, directory)
}

/// Sends a request. Returns its outcome and all metadata.
fn ask(envoy: &Envoy, path: &str, headers: &[(&str, &[u8])]) -> (Outcome, Value) {
    let outcome = envoy.send_bytes("GET", path, headers);
    (outcome, envoy.logged(path)["decision"].clone())
}

/// Returns a unique path, to find the request in the access log.
fn path() -> String {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    format!("/v1/{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}

/// Repeats a request until the module decides about it.
#[track_caller]
fn by_module(envoy: &Envoy, headers: &[(&str, &[u8])]) -> (Outcome, Value) {
    eventually("the module decides", PATIENCE, || {
        let (outcome, metadata) = ask(envoy, &path(), headers);
        if metadata["via"] == "module" { Ok((outcome, metadata)) } else { Err(Box::new((outcome, metadata))) }
    })
}

#[track_caller]
fn with_key(envoy: &Envoy, key: &str) -> (Outcome, Value) {
    by_module(envoy, &[(KEY_HEADER, key.as_bytes())])
}

/// Returns what the client and the upstream see, without values that differ between requests.
fn seen(outcome: &Outcome) -> Value {
    let mut headers = outcome.page.headers.clone();
    for name in ["date", "x-envoy-upstream-service-time"] {
        headers.remove(name);
    }
    if let Some(id) = headers.get_mut("x-llmcore-decision-id") {
        *id = format!("{} characters", id.len());
    }
    let upstream = outcome.seen.as_ref().map(|seen| {
        let names: Vec<_> = seen.names("").into_iter().map(str::to_owned).collect();
        let values = |name: &String| {
            let values: Vec<_> = seen.values(name).into_iter().map(str::to_owned).collect();
            (name.clone(), if name == "x-request-id" { vec![] } else { values })
        };
        names.iter().map(values).collect::<Vec<_>>()
    });
    json!({"status": outcome.page.status, "headers": headers, "body": outcome.page.body, "upstream": upstream})
}

/// Returns metadata without the values that differ between decisions.
fn fields(metadata: &Value) -> Value {
    let mut fields = metadata.clone();
    if let Some(fields) = fields.as_object_mut() {
        let id = fields.remove("decision_id");
        assert_eq!(id.and_then(|id| id.as_str().map(str::len)), Some(36), "{metadata}");
        fields.remove("via");
        // Envoy's own field about the call.
        fields.remove("ext_authz_duration");
    }
    fields
}

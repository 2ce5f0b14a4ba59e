//! Runs the documented grpcurl commands with the real grpcurl.
//!
//! Each command is a fenced block with the info string `sh grpcurl`. A shell runs the blocks one after the other
//! against a server with the demo data; only the address is replaced. The expectations below are in the order of the
//! page: a command that is added or removed there fails here until its expectation is updated.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use serde_json::Value;

use crate::support::{Backend, Database, Server, excused, left_out};

/// The page that users read.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/grpcurl.md");

/// The address that the page uses, and the name of the program.
const ADDRESS: &str = "127.0.0.1:50051";
const PROGRAM: &str = "grpcurl";

static MISSING: Once = Once::new();

/// The grpcurl of this machine; `None` with a message if there is none.
fn binary() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join(PROGRAM));
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin").join(PROGRAM);
    let found = on_path.chain([ours]).find(|grpcurl| grpcurl.is_file());
    // grpcurl needs Go, which not every machine has, so tests/run may omit it by name.
    if found.is_none() && !excused(PROGRAM) {
        left_out(
            &MISSING,
            "the grpcurl commands in the docs",
            "no grpcurl on this machine (`envoy/get grpcurl` gets one)",
        );
    }
    found
}

/// Returns the commands of the page, in order.
fn recipes(page: &str) -> Vec<String> {
    let mut blocks =
        page.split("```sh grpcurl\n").map(|rest| rest.split("```").next().expect("split gives one"));
    blocks.next();
    blocks.map(str::to_owned).collect()
}

/// Runs a command as a reader would paste it. Returns its output.
#[track_caller]
fn run(grpcurl: &Path, recipe: &str, address: &str) -> String {
    assert!(recipe.starts_with(PROGRAM), "a recipe is one grpcurl command: {recipe}");
    assert_eq!(recipe.matches(ADDRESS).count(), 1, "a recipe names {ADDRESS} once: {recipe}");
    let line = recipe.replacen(PROGRAM, "\"$0\"", 1).replace(ADDRESS, address);
    let said = Command::new("sh").args(["-c", &line]).arg(grpcurl).output().expect("sh starts");
    assert!(said.status.success(), "{recipe}\n{}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8(said.stdout).expect("UTF-8")
}

/// The row of a `CheckResponse` as grpcurl prints it: `16 401 mismatch`; proto3's JSON leaves zeros out.
#[track_caller]
fn row(printed: &str) -> String {
    let answer: Value = serde_json::from_str(printed).expect("grpcurl prints JSON");
    let http = answer["deniedResponse"]["status"]["code"].as_str().unwrap_or("OK");
    let code = answer["status"]["code"].as_i64().unwrap_or_default();
    format!("{code} {http} {}", answer["dynamicMetadata"]["reason"].as_str().expect("a reason"))
}

#[test]
fn the_commands_have_the_documented_results() {
    let Some(grpcurl) = binary() else { return };
    let database = Database::empty(Backend::Sqlite).expect("SQLite is always there");
    database.json(&["seed-demo"]);
    let server = Server::on(&database).start();
    let recipes = recipes(&std::fs::read_to_string(PAGE).expect("the page is there"));
    let printed: Vec<String> = recipes.iter().map(|recipe| run(&grpcurl, recipe, &server.grpc[0])).collect();
    let [list, describe, health, right, wrong, missing, public, network] = &printed[..] else {
        panic!("the page has other recipes than this test: {recipes:#?}");
    };
    let services: Vec<&str> =
        list.lines().filter(|service| !service.starts_with("grpc.reflection.")).collect();
    assert_eq!(services, ["envoy.service.auth.v3.Authorization", "grpc.health.v1.Health"]);
    assert!(describe.contains("rpc Check ( .envoy.service.auth.v3.CheckRequest )"), "{describe}");
    assert!(health.contains(r#""status": "SERVING""#), "{health}");
    assert_eq!(row(right), "0 OK ok");
    assert!(right.contains("tenant_demo"), "{right}");
    assert_eq!(row(wrong), "16 Unauthorized mismatch");
    assert_eq!(row(missing), "16 Unauthorized missing");
    assert_eq!(row(public), "0 OK public");
    assert!(public.contains(r#""x-llmcore-tenant-id""#), "{public}");
    assert_eq!(row(network), "16 Unauthorized missing");
}

//! Checks the conformance of the listener to RFC 9113 and RFC 7541 with h2spec.

use std::path::Path;
use std::process::Command;
use std::sync::Once;

use crate::support::{Server, World, excused, left_out};

static MISSING: Once = Once::new();

/// A failure that h2spec reports, but that is correct: after an invalid preface, the server closes the connection with
/// unread data, which TCP reports as a reset. h2spec expects another kind of close.
const FINE: [&str; 1] = ["Sends invalid connection preface"];

#[test]
fn h2spec_reports_no_failure() {
    let h2spec = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/h2spec");
    if !h2spec.is_file() {
        if !excused("h2spec") {
            left_out(&MISSING, "HTTP/2 conformance by h2spec", "no h2spec (`envoy/get h2spec` gets one)");
        }
        return;
    }
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let port = server.grpc[0].rsplit_once(':').expect("a port").1;
    let run = Command::new(h2spec)
        .args(["-h", "127.0.0.1", "-p", port, "-o", "10", "generic", "hpack", "http2"])
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&run.stdout);
    let failures = said.split("Failures:").nth(1).unwrap_or_default();
    let failed: Vec<&str> = failures.lines().filter(|line| line.trim_start().starts_with('×')).collect();
    let wrong: Vec<_> = failed.iter().filter(|line| !FINE.iter().any(|fine| line.contains(fine))).collect();
    assert!(said.contains("145 tests, "), "it ran to its end: {said}");
    assert!(wrong.is_empty(), "{wrong:#?}\n{failures}");
}

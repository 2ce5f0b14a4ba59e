//! Does Envoy do what it has to, when it is really asked?
//!
//! Sends a request with forged identity headers and without a key, which must be
//! refused; then, where somebody can tell what arrives behind Envoy, one with a key,
//! of which neither the forged headers nor the key may arrive. Who can tell is an
//! upstream that says its request back, or a sink of our own that a route leads to.

use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use super::Expected;
use super::http::{Answer, Server, send};
use super::verdict::{self, Answerer};
use crate::diagnostics::Finding;

/// How to ask, and who tells what arrived.
#[derive(Debug)]
pub struct Probe<'a> {
    /// Where clients connect.
    pub server: Server<'a>,
    /// The path to ask for.
    pub path: &'a str,
    /// A key that passes.
    pub key: Option<&'a str>,
    /// Where a route leads to that has this path; nothing: the upstream says its request back.
    pub sink: Option<TcpListener>,
}

/// By which our request is known wherever it arrives.
const MARKER: &str = "x-tenantgate-doctor";

impl Probe<'_> {
    /// Asks.
    pub async fn examine(self, expected: &Expected<'_>) -> Vec<Finding> {
        let mut findings = vec![self.refusal(expected).await];
        if let Some(key) = self.key {
            findings.extend(Box::pin(self.passage(key, expected)).await);
        }
        findings
    }

    async fn refusal(&self, expected: &Expected<'_>) -> Finding {
        const CHECK: &str = "envoy.refuses";
        let forged: Vec<_> = expected.identity.iter().map(|name| (*name, "forged")).collect();
        let answer = match send(&self.server, &Method::GET, self.path, &forged).await {
            Ok(answer) => answer,
            Err(why) => {
                let what = format!("{}: {why}", self.server.url);
                return Finding::bad(CHECK, what, "give the address where clients connect with --envoy");
            }
        };
        let verdict = verdict::of(&answer, expected.decision_id);
        let what = format!("{} without a key gets {}: {}", self.path, answer.status, verdict.what);
        if verdict.by == Answerer::Tenantgate && answer.status == 401 {
            Finding::ok(CHECK, what)
        } else {
            Finding::bad(CHECK, what, verdict.look)
        }
    }

    /// What a request with a key brings to the upstream.
    async fn passage(self, key: &str, expected: &Expected<'_>) -> Vec<Finding> {
        const CHECK: &str = "envoy.passes";
        let (marker, forged) = (Uuid::new_v4().to_string(), format!("forged-{}", Uuid::new_v4()));
        let mut headers: Vec<_> = expected.identity.iter().map(|name| (*name, forged.as_str())).collect();
        headers.extend([(expected.key_header, key), (MARKER, marker.as_str())]);
        let by_sink = self.sink.is_some();
        let asked = send(&self.server, &Method::GET, self.path, &headers);
        let (answer, seen) = with_sink(asked, self.sink, &marker).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => return vec![Finding::bad(CHECK, why, "see Envoy's access log")],
        };
        let verdict = verdict::of(&answer, expected.decision_id);
        if verdict.by != Answerer::Upstream {
            let what = format!("a request with the key gets {}: {}", answer.status, verdict.what);
            return vec![Finding::bad(CHECK, what, verdict.look)];
        }
        let passed = Finding::ok(CHECK, format!("a request with the key gets {}", answer.status));
        match seen.or_else(|| said_back(&answer, &marker, by_sink)) {
            Some(seen) => vec![passed, forged_arrive(&seen, &forged, expected), key_arrives(&seen, key)],
            None => vec![passed, unseen(self.path, by_sink)],
        }
    }
}

/// The request as the upstream says it back, if it does.
fn said_back(answer: &Answer, marker: &str, by_sink: bool) -> Option<String> {
    (!by_sink && answer.body.contains(marker)).then(|| answer.body.clone())
}

fn unseen(path: &str, by_sink: bool) -> Finding {
    const CHECK: &str = "envoy.arrives";
    if by_sink {
        let what = format!("the request to {path} did not come to the sink");
        Finding::bad(CHECK, what, format!("add a route for {path} to a cluster with the address of --sink"))
    } else {
        let what = "the upstream does not say its request back: what arrives there cannot be seen";
        Finding::warn(CHECK, what, "--path of an echo, or --sink ADDR and a route to it")
    }
}

fn forged_arrive(seen: &str, forged: &str, expected: &Expected<'_>) -> Finding {
    const CHECK: &str = "envoy.forged_arrive";
    let lower = seen.to_lowercase();
    let missing: Vec<_> = expected.identity.iter().filter(|name| !lower.contains(**name)).copied().collect();
    if seen.contains(forged) {
        Finding::bad(
            CHECK,
            "forged identity headers arrive at the upstream",
            "is ext_authz disabled on this route?",
        )
    } else if missing.is_empty() {
        Finding::ok(CHECK, "forged identity headers do not arrive, tenantgate's do")
    } else {
        let what = format!("{} did not arrive at the upstream", missing.join(", "));
        Finding::bad(CHECK, what, "does something after ext_authz remove it? is the path public?")
    }
}

fn key_arrives(seen: &str, key: &str) -> Finding {
    const CHECK: &str = "envoy.key_arrives";
    if seen.contains(key) {
        Finding::bad(CHECK, "the key arrives at the upstream", "is --key-header the one that serve has?")
    } else {
        Finding::ok(CHECK, "the key does not arrive")
    }
}

/// The answer to a request, and what came to the sink of it.
async fn with_sink(
    asked: impl Future<Output = Result<Answer, String>>,
    sink: Option<TcpListener>,
    marker: &str,
) -> (Result<Answer, String>, Option<String>) {
    let Some(listener) = sink else { return (asked.await, None) };
    let mut seen = None;
    let answer = tokio::select! {
        answer = asked => answer,
        never = take_all(listener, marker, &mut seen) => never,
    };
    (answer, seen)
}

/// Answers whoever comes, and keeps the head of the one request that is ours.
async fn take_all(listener: TcpListener, marker: &str, seen: &mut Option<String>) -> Result<Answer, String> {
    loop {
        let (stream, _) = listener.accept().await.map_err(|e| format!("--sink: {e}"))?;
        let head = take(stream).await.unwrap_or_default();
        if head.contains(marker) {
            *seen = Some(head);
        }
    }
}

/// The head of one request, which is then answered.
async fn take(mut stream: TcpStream) -> std::io::Result<String> {
    const LONGEST: usize = 64 * 1024;
    let (mut head, mut buffer) = (Vec::new(), vec![0; 4096]);
    while head.len() < LONGEST && !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer).await? {
            0 => break,
            read => head.extend_from_slice(&buffer[..read]),
        }
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await?;
    Ok(String::from_utf8_lossy(&head).into_owned())
}

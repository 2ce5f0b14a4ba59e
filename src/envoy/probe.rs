//! Sends real requests through Envoy and checks what happens.
//!
//! A request with forged identity headers and without a key must be rejected. A key that is limited to other networks
//! must be rejected whatever address a header claims. If it is possible to see what arrives behind Envoy, a second
//! request with a key follows: neither the forged headers nor the key may arrive. Either the upstream echoes its
//! request, or a route leads to a sink of this program.

use std::io;
use std::net::IpAddr;

use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::ExpectedConfig;
use super::address::FORGEABLE;
use super::http::{HttpResponse, RequestError, Server, send};
use super::verdict::{self, Answerer};
use crate::client_address::X_FORWARDED_FOR;
use crate::diagnostics::Finding;
use crate::random;

/// The requests to send, and the way to see what arrives.
#[derive(Debug)]
pub struct Probe<'a> {
    /// The address that clients connect to.
    pub server: Server<'a>,
    /// The path of the requests.
    pub path: &'a str,
    /// A valid key.
    pub key: Option<&'a str>,
    /// A valid key that is limited to networks without this machine, and an address in one of them.
    pub limited: Option<(&'a str, IpAddr)>,
    /// The listener that the route of this path leads to; `None` if the upstream echoes its request.
    pub sink: Option<TcpListener>,
}

/// The header that marks the request, to recognize it where it arrives.
const MARKER: &str = "x-tenantgate-doctor";

impl Probe<'_> {
    /// Sends the requests.
    pub async fn examine(self, expected: &ExpectedConfig<'_>) -> Vec<Finding> {
        let mut findings = vec![self.refusal(expected).await];
        if let Some((key, inside)) = self.limited {
            findings.push(self.forged_address(key, inside, expected).await);
        }
        if let Some(key) = self.key {
            findings.extend(Box::pin(self.passage(key, expected)).await);
        }
        findings
    }

    async fn refusal(&self, expected: &ExpectedConfig<'_>) -> Finding {
        const CHECK: &str = "envoy.refuses";
        let forged: Vec<_> = expected.identity.iter().map(|name| (*name, "forged")).collect();
        let response = match send(&self.server, &Method::GET, self.path, &forged).await {
            Ok(response) => response,
            Err(why) => {
                let what = format!("{}: {why}", self.server.url);
                return Finding::bad(CHECK, what, "give the address that clients connect to with --envoy");
            }
        };
        let verdict = verdict::of(&response, expected.decision_id);
        let what = format!("{} without a key gets {}: {}", self.path, response.status, verdict.what);
        if verdict.by == Answerer::Tenantgate && response.status == 401 {
            Finding::ok(CHECK, what)
        } else {
            Finding::bad(CHECK, what, verdict.next)
        }
    }

    /// Checks that no header makes tenantgate believe that a request comes from another address.
    async fn forged_address(&self, key: &str, inside: IpAddr, expected: &ExpectedConfig<'_>) -> Finding {
        const CHECK: &str = "envoy.forged_address";
        let inside = inside.to_string();
        // Enough entries that each position of xff:N is one of them.
        let list = vec![inside.as_str(); 32].join(", ");
        let forwarded = format!("for={inside}");
        let mut forged: Vec<Option<(&str, &str)>> = vec![None, Some((X_FORWARDED_FOR, &list))];
        let names = ["x-envoy-external-address", "x-real-ip", "true-client-ip"];
        let read = expected.client_address.header().or(expected.client_address.metadata());
        let names = names.into_iter().chain(read.filter(|name| *name != X_FORWARDED_FOR));
        forged.extend(names.map(|name| Some((name, inside.as_str()))));
        forged.push(Some(("forwarded", &forwarded)));
        for header in forged {
            let headers: Vec<_> = [(expected.key_header, key)].into_iter().chain(header).collect();
            let response = match send(&self.server, &Method::GET, self.path, &headers).await {
                Ok(response) => response,
                Err(why) => return Finding::bad(CHECK, why.to_string(), "see Envoy's access log"),
            };
            if response.status == 403 && response.body == expected.outside {
                continue;
            }
            let verdict = verdict::of(&response, expected.decision_id);
            return match (header, verdict.by) {
                (None, Answerer::Upstream) => Finding::bad(
                    CHECK,
                    "the key of --limited-key-file passes from here",
                    "use a key that is limited to networks without this machine, and a --path that is not public",
                ),
                (Some((name, _)), Answerer::Upstream) => Finding::bad(
                    CHECK,
                    format!("a client that sends {name}: {inside} counts as being there"),
                    FORGEABLE,
                ),
                _ => {
                    let what = format!("the limited key gets {}: {}", response.status, verdict.what);
                    Finding::bad(CHECK, what, verdict.next)
                }
            };
        }
        Finding::ok(CHECK, "no header makes a client appear to be elsewhere")
    }

    /// Checks what a request with a key carries to the upstream.
    async fn passage(self, key: &str, expected: &ExpectedConfig<'_>) -> Vec<Finding> {
        const CHECK: &str = "envoy.passes";
        let (marker, forged) = (random::new_id().to_string(), format!("forged-{}", random::new_id()));
        let mut headers: Vec<_> = expected.identity.iter().map(|name| (*name, forged.as_str())).collect();
        headers.extend([(expected.key_header, key), (MARKER, marker.as_str())]);
        let by_sink = self.sink.is_some();
        let asked = send(&self.server, &Method::GET, self.path, &headers);
        let (response, seen) = with_sink(asked, self.sink, &marker).await;
        let response = match response {
            Ok(response) => response,
            Err(why) => return vec![Finding::bad(CHECK, why.to_string(), "see Envoy's access log")],
        };
        let verdict = verdict::of(&response, expected.decision_id);
        if verdict.by != Answerer::Upstream {
            let what = format!("a request with the key gets {}: {}", response.status, verdict.what);
            return vec![Finding::bad(CHECK, what, verdict.next)];
        }
        let passed = Finding::ok(CHECK, format!("a request with the key gets {}", response.status));
        match seen.or_else(|| echoed(&response, &marker, by_sink)) {
            Some(seen) => vec![passed, forged_arrive(&seen, &forged, expected), key_arrives(&seen, key)],
            None => vec![passed, unseen(self.path, by_sink)],
        }
    }
}

/// Returns the request as the upstream echoes it; `None` if it does not.
fn echoed(response: &HttpResponse, marker: &str, by_sink: bool) -> Option<String> {
    (!by_sink && response.body.contains(marker)).then(|| response.body.clone())
}

fn unseen(path: &str, by_sink: bool) -> Finding {
    const CHECK: &str = "envoy.arrives";
    if by_sink {
        let what = format!("the request to {path} did not reach the sink");
        Finding::bad(CHECK, what, format!("add a route for {path} to a cluster with the address of --sink"))
    } else {
        let what = "the upstream does not echo its request: what arrives there is unknown";
        Finding::warn(CHECK, what, "use the --path of an echo service, or --sink ADDR with a route to it")
    }
}

fn forged_arrive(seen: &str, forged: &str, expected: &ExpectedConfig<'_>) -> Finding {
    const CHECK: &str = "envoy.forged_arrive";
    let lower = seen.to_lowercase();
    let missing: Vec<_> = expected.always.iter().filter(|name| !lower.contains(**name)).copied().collect();
    if seen.contains(forged) {
        Finding::bad(
            CHECK,
            "forged identity headers arrive at the upstream",
            "check whether ext_authz is disabled on this route",
        )
    } else if missing.is_empty() {
        Finding::ok(CHECK, "forged identity headers do not arrive, those of tenantgate do")
    } else {
        let what = format!("{} did not arrive at the upstream", missing.join(", "));
        Finding::bad(CHECK, what, "check whether a later filter removes it, and whether the path is public")
    }
}

fn key_arrives(seen: &str, key: &str) -> Finding {
    const CHECK: &str = "envoy.key_arrives";
    if seen.contains(key) {
        Finding::bad(
            CHECK,
            "the key arrives at the upstream",
            "check that --key-header is the same as for serve",
        )
    } else {
        Finding::ok(CHECK, "the key does not arrive")
    }
}

/// Why there is no response to a probe.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The listener behind Envoy failed.
    #[error("--sink: {0}")]
    Sink(io::Error),
}

/// Returns the response to a request, and what reached the sink.
async fn with_sink(
    asked: impl Future<Output = Result<HttpResponse, RequestError>>,
    sink: Option<TcpListener>,
    marker: &str,
) -> (Result<HttpResponse, ProbeError>, Option<String>) {
    let Some(listener) = sink else { return (asked.await.map_err(ProbeError::from), None) };
    let mut seen = None;
    let response = tokio::select! {
        response = asked => response.map_err(ProbeError::from),
        never = take_all(listener, marker, &mut seen) => never,
    };
    (response, seen)
}

/// Answers all requests, and keeps the head of the marked one.
async fn take_all(
    listener: TcpListener,
    marker: &str,
    seen: &mut Option<String>,
) -> Result<HttpResponse, ProbeError> {
    loop {
        let (stream, _) = listener.accept().await.map_err(ProbeError::Sink)?;
        let head = take(stream).await.unwrap_or_default();
        if head.contains(marker) {
            *seen = Some(head);
        }
    }
}

/// Reads the head of one request and answers it.
async fn take(mut stream: TcpStream) -> io::Result<String> {
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

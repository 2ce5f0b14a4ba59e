//! A client that creates the load of many Envoys at little cost of its own.
//!
//! It uses HTTP/2 by hand: messages are encoded in advance, and responses are not decoded; only their first field is
//! read. A [`Line`] is one connection, as one worker thread of an Envoy has it.

pub(crate) mod cost;
pub(crate) mod keys;
pub(crate) mod pace;
pub(crate) mod peer;
pub(crate) mod proxy;
pub(crate) mod web;

use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::net::{TcpStream, UnixStream};

const PATH: &str = "http://tenantgate/envoy.service.auth.v3.Authorization/Check";

/// One connection.
#[derive(Clone)]
pub(crate) struct Line(SendRequest<Bytes>);

/// The result of one check.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    pub(crate) allowed: bool,
    pub(crate) took: Duration,
}

impl Line {
    /// Connects to `host:port` or `unix:/path`.
    pub(crate) async fn to(address: &str) -> Self {
        if let Some(path) = address.strip_prefix("unix:") {
            return Self::over(UnixStream::connect(path).await.expect("it listens")).await;
        }
        let stream = TcpStream::connect(address).await.expect("it listens");
        stream.set_nodelay(true).expect("TCP");
        Self::over(stream).await
    }

    async fn over(
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        // The windows of Envoy, so that a response is not split.
        let mut windows = h2::client::Builder::new();
        windows.initial_window_size(1 << 24).initial_connection_window_size(1 << 28);
        let (send, connection) = windows.handshake(stream).await.expect("it speaks HTTP/2");
        tokio::spawn(async move { connection.await.expect("the connection stays") });
        Self(send)
    }

    /// Sends one check. The message must already have its gRPC frame: see [`framed`].
    pub(crate) async fn ask(&self, message: Bytes) -> Heard {
        let request = Request::post(PATH)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", "2S");
        let mut send = self.0.clone().ready().await.expect("room for a stream");
        let asked = Instant::now();
        let (answer, mut stream) =
            send.send_request(request.body(()).expect("a request"), false).expect("sent");
        stream.send_data(message, true).expect("sent");
        let mut body = answer.await.expect("an answer").into_body();
        let mut first = None;
        while let Some(data) = body.data().await {
            let data = data.expect("an answer");
            let _ = body.flow_control().release_capacity(data.len());
            first.get_or_insert(data);
        }
        let trailers = body.trailers().await.expect("an end");
        let status = trailers.as_ref().and_then(|t| t.get("grpc-status")).map(|s| s.as_bytes() == b"0");
        assert_eq!(status, Some(true), "the gRPC status is OK");
        Heard { allowed: first.is_some_and(|data| allows(&data)), took: asked.elapsed() }
    }
}

/// Whether a response allows: its first field, `CheckResponse.status`, is present and contains only zeros.
fn allows(frame: &[u8]) -> bool {
    frame.len() > 6 && frame[5..7] == [0x0a, 0x00]
}

/// Adds the gRPC frame to a message: not compressed, and its length.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let len = u32::try_from(message.len()).expect("a short message").to_be_bytes();
    [&[0], len.as_slice(), message].concat().into()
}

/// Sends the same check many times, over several connections with several streams each. Every response must allow.
pub(crate) async fn ask(address: &str, (lines, streams, checks): (usize, usize, usize), message: &Bytes) {
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..lines {
        let line = Line::to(address).await;
        for _ in 0..streams {
            let (line, message) = (line.clone(), message.clone());
            asking.spawn(async move {
                for _ in 0..checks / lines / streams {
                    assert!(line.ask(message.clone()).await.allowed);
                }
            });
        }
    }
    asking.join_all().await;
}

/// The headers of a browser, and those that another Envoy in front adds.
pub(crate) fn realistic() -> Vec<(&'static str, String)> {
    let cookie = "session=".to_owned() + &"0123456789abcdef".repeat(20);
    let fixed = [
        (
            "user-agent",
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
        ),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"),
        ("accept-language", "en-GB,en;q=0.9,de;q=0.8"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("cookie", &cookie),
        ("referer", "https://console.example.com/projects/4711/models"),
        ("x-forwarded-for", "192.0.2.44, 198.51.100.7"),
        ("x-forwarded-proto", "https"),
        ("x-request-id", "3f0c3b9e-6b0e-4a3c-9f6e-0b8f6c1d2e3a"),
        ("x-envoy-expected-rq-timeout-ms", "15000"),
        ("sec-fetch-dest", "empty"),
        ("sec-fetch-mode", "cors"),
        ("sec-fetch-site", "same-origin"),
        ("cache-control", "no-cache"),
    ];
    fixed.map(|(name, value)| (name, value.to_owned())).to_vec()
}

/// Converts a count for calculations.
pub(crate) fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).expect("few"))
}

/// Returns a percentile of durations.
pub(crate) fn percentile(sorted: &[Duration], percent: f64) -> Duration {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank"
    )]
    let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Converts to milliseconds.
pub(crate) fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

/// Returns the median.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

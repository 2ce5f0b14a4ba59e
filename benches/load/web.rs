//! A client of an Envoy: HTTP/1.1 with keep-alive.
//!
//! The request is encoded in advance, and the response is read up to the end of its head, because a `direct_response`
//! has no body.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Encodes a `GET` with these headers.
pub(crate) fn get(path: &str, headers: &[(&str, String)]) -> Bytes {
    let lines =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<Vec<_>>().concat();
    format!("GET {path} HTTP/1.1\r\nhost: api.example.com\r\n{lines}\r\n").into()
}

/// A connection to an Envoy.
pub(crate) struct Browser(TcpStream);

impl Browser {
    pub(crate) async fn to(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.expect("it listens");
        stream.set_nodelay(true).expect("TCP");
        Self(stream)
    }

    /// Sends one request; the response must be 200.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> Duration {
        let asked = Instant::now();
        self.0.write_all(request).await.expect("sent");
        let (mut buffer, mut read) = ([0; 4096], 0);
        while !buffer[..read].ends_with(b"\r\n\r\n") {
            let more = self.0.read(&mut buffer[read..]).await.expect("an answer");
            assert_ne!(more, 0, "it keeps the connection: {}", String::from_utf8_lossy(&buffer[..read]));
            read += more;
        }
        let took = asked.elapsed();
        let head = &buffer[..read];
        assert!(head.starts_with(b"HTTP/1.1 200 "), "allowed: {}", String::from_utf8_lossy(head));
        took
    }
}

/// Sends many requests over several connections. Returns their durations.
pub(crate) async fn browse(
    address: &str,
    connections: usize,
    requests: usize,
    request: &Bytes,
) -> Vec<Duration> {
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..connections {
        let (mut browser, request) = (Browser::to(address).await, request.clone());
        asking.spawn(async move {
            let mut times = Vec::new();
            for _ in 0..requests / connections {
                times.push(browser.ask(&request).await);
            }
            times
        });
    }
    asking.join_all().await.concat()
}

//! The servers behind Envoy, which record the requests that they get.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_stream::wrappers::TcpListenerStream;

use super::super::{runtime, wait};

/// One request as the upstream saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// `GET /path HTTP/1.1`; only the path for gRPC.
    pub(crate) line: String,
    headers: Vec<(String, String)>,
}

impl Seen {
    /// Every value of a header.
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|header| header.0 == name).map(|header| header.1.as_str()).collect()
    }

    /// The names of the headers with this value.
    pub(crate) fn headers_of(&self, value: &str) -> Vec<&str> {
        self.headers.iter().filter(|header| header.1 == value).map(|header| header.0.as_str()).collect()
    }

    /// Every name with this prefix, in order, as often as it occurred.
    pub(crate) fn names(&self, start: &str) -> Vec<&str> {
        let mut names: Vec<&str> = self.headers.iter().map(|header| header.0.as_str()).collect();
        names.retain(|name| name.starts_with(start));
        names.sort_unstable();
        names
    }
}

pub(super) type Log = Arc<Mutex<Vec<Seen>>>;

/// A server behind Envoy.
pub(super) struct Upstream {
    pub(super) port: u16,
    work: JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.work.abort();
    }
}

impl Upstream {
    fn listener() -> (TcpListener, u16) {
        let listener = wait(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        (listener, port)
    }

    /// HTTP/1.1: responds with `echo`; on a WebSocket, echoes messages.
    pub(super) fn http(log: Log) -> Self {
        let (listener, port) = Self::listener();
        let work = runtime().spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(answer(stream, Arc::clone(&log)));
            }
        });
        Self { port, work }
    }

    /// gRPC: the health service of tonic, which returns SERVING.
    pub(super) fn grpc(log: Log) -> Self {
        let (listener, port) = Self::listener();
        let (_, health) = tonic_health::server::health_reporter();
        let keep = move |request: tonic::Request<()>| {
            let ascii = request.metadata().clone().into_headers();
            let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            let headers = ascii.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
            log.lock().expect("no panic under the lock").push(Seen { line: "grpc".to_owned(), headers });
            Ok(request)
        };
        let service = tonic::service::interceptor::InterceptedService::new(health, keep);
        let server = tonic::transport::Server::builder().add_service(service);
        let work = runtime().spawn(async move {
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("serves until aborted");
        });
        Self { port, work }
    }
}

async fn answer(stream: TcpStream, log: Log) {
    let mut stream = BufReader::new(stream);
    while let Some(seen) = head(&mut stream).await {
        let upgrade = seen.values("upgrade") == ["websocket"];
        // Recorded before the body, which may never come.
        log.lock().expect("no panic under the lock").push(seen.clone());
        if skip_body(&mut stream, &seen).await.is_err() {
            return;
        }
        let reply: &[u8] = if upgrade {
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
        } else if seen.line.starts_with("HEAD ") {
            b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"
        } else {
            b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\necho"
        };
        if stream.write_all(reply).await.is_err() || (upgrade && say_back(&mut stream).await.is_err()) {
            return;
        }
    }
}

/// Reads and discards the body of a request.
async fn skip_body(stream: &mut BufReader<TcpStream>, seen: &Seen) -> std::io::Result<()> {
    let sized = seen.values("content-length").first().and_then(|length| length.parse().ok());
    let mut length: u64 = sized.unwrap_or(0);
    if seen.values("transfer-encoding").contains(&"chunked") {
        length = chunk(stream).await?;
    }
    while length > 0 {
        tokio::io::copy(&mut stream.take(length), &mut tokio::io::sink()).await?;
        length = if sized.is_some() { 0 } else { chunk(stream).await? };
    }
    Ok(())
}

/// Returns the length of the next chunk (RFC 9112 §7.1), after the end of the line before; 0 after the trailers.
async fn chunk(stream: &mut BufReader<TcpStream>) -> std::io::Result<u64> {
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let digits = line.trim().split(';').next().unwrap_or_default();
        match u64::from_str_radix(digits, 16) {
            Ok(0) => {
                while stream.read_line(&mut line).await? > 2 {}
                return Ok(0);
            }
            Ok(length) => return Ok(length),
            Err(_) => {}
        }
    }
}

/// Reads the head of the next request on the connection.
async fn head(stream: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        stream.read_until(b'\n', &mut line).await.ok().filter(|read| *read > 0)?;
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let headers = lines[1..].iter().filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())).collect();
    Some(Seen { line: lines[0].clone(), headers })
}

async fn say_back(stream: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    let mut buffer = [0; 1024];
    while let read @ 1.. = stream.read(&mut buffer).await? {
        stream.write_all(&buffer[..read]).await?;
    }
    Ok(())
}

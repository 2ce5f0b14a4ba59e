//! How is one request sent?
//!
//! HTTP/1.1 over a connection of its own, with or without TLS, within a bounded time
//! and to a bounded size: the least that asking an Envoy takes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Request, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::trust;

/// As long as Envoy lets a request wait that it sets no other limit to.
const PATIENCE: Duration = Duration::from_secs(15);

/// A configuration dump of thousands of clusters has some megabytes.
const LONGEST: usize = 64 * 1024 * 1024;

/// Where requests are sent.
#[derive(Clone, Debug)]
pub struct Server<'a> {
    /// `http://host:port` or `https://host:port`.
    pub url: Uri,
    /// Whom to trust; nothing: whom the system trusts.
    pub ca: Option<&'a Path>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, as text.
    pub body: String,
}

impl Answer {
    /// The first value of a header, as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Reads where a server is: `http://HOST[:PORT]`, `https://HOST[:PORT]` or `HOST:PORT`.
///
/// # Errors
///
/// What an address looks like.
pub fn address(text: &str) -> Result<Uri, String> {
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: Option<Uri> = full.parse().ok();
    let fine = |uri: &Uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some()
            && matches!(uri.path(), "" | "/")
    };
    uri.filter(fine).ok_or_else(|| "an address is http://HOST:PORT, https://HOST:PORT or HOST:PORT".into())
}

/// Sends a request without a body. The headers are sent as they are.
///
/// # Errors
///
/// Nobody answers, not in time, or not in HTTP; says why.
pub async fn send(
    server: &Server<'_>,
    method: &Method,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Answer, String> {
    let host = server.url.authority().map(ToString::to_string).unwrap_or_default();
    let mut request = Request::builder().method(method).uri(path).header("host", host);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::new()).map_err(|e| e.to_string())?;
    timeout(PATIENCE, connect_and_send(server, request))
        .await
        .map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?
}

async fn connect_and_send(server: &Server<'_>, request: Request<Empty<Bytes>>) -> Result<Answer, String> {
    let tls = server.url.scheme_str() == Some("https");
    let host = server.url.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = server.url.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await.map_err(|e| e.to_string())?;
    if !tls {
        return exchange(stream, request).await;
    }
    let connector = TlsConnector::from(Arc::new(trust::client(server.ca, None, "http/1.1")?));
    let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
    exchange(connector.connect(name, stream).await.map_err(|e| e.to_string())?, request).await
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e: hyper::Error| e.to_string())?;
    let answer = async move {
        let (head, body) = sender.send_request(request).await.map_err(|e| e.to_string())?.into_parts();
        let body = Limited::new(body, LONGEST).collect().await.map_err(|e| e.to_string())?.to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    };
    // The connection ends when the sender is gone, which is when the answer is there.
    tokio::join!(answer, connection).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_no_path() {
        for good in ["127.0.0.1:9901", "http://localhost:10000", "https://api.example.com", "http://[::1]:1/"]
        {
            assert!(address(good).is_ok(), "{good}");
        }
        for bad in ["", "ftp://x", "http://", "http://h/path", "a b"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}

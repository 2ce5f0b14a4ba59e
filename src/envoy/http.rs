//! A small HTTP/1.1 client for single requests, with or without TLS, with a time limit and a size limit.

use std::error::Error;
use std::io;
use std::path::Path;
use std::time::Duration;

use http::{HeaderMap, Method, Request, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client_tls::{ClientTls, ConnectError};
use crate::invalid::InvalidValue;

/// The default timeout of a request in Envoy.
const PATIENCE: Duration = Duration::from_secs(15);

/// The largest body. A configuration dump with thousands of clusters has several megabytes.
const LONGEST: usize = 64 * 1024 * 1024;

/// The server that gets the requests.
#[derive(Clone, Debug)]
pub struct Server<'a> {
    /// `http://host:port` or `https://host:port`.
    pub url: Uri,
    /// The file of the trusted authorities; `None` for those of the system.
    pub ca: Option<&'a Path>,
}

/// The response.
#[derive(Debug)]
pub struct HttpResponse {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, as text.
    pub body: String,
}

impl HttpResponse {
    /// Returns the first value of a header, as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The path or a header is invalid.
    #[error(transparent)]
    Request(#[from] http::Error),
    /// The server cannot be reached.
    #[error(transparent)]
    Connect(#[from] io::Error),
    /// There is no TLS connection.
    #[error(transparent)]
    Tls(#[from] ConnectError),
    /// The server does not speak HTTP/1.1, or closed the connection.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The body is too large or incomplete.
    #[error(transparent)]
    Body(Box<dyn Error + Send + Sync>),
    /// The server takes too long.
    #[error("no response within {} s", PATIENCE.as_secs())]
    TimedOut,
}

/// Parses an address: `http://HOST[:PORT]`, `https://HOST[:PORT]` or `HOST:PORT`.
///
/// # Errors
///
/// The address is invalid; the error lists the valid forms.
pub fn address(text: &str) -> Result<Uri, InvalidValue> {
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: Option<Uri> = full.parse().ok();
    let fine = |uri: &Uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some()
            && matches!(uri.path(), "" | "/")
    };
    uri.filter(fine)
        .ok_or_else(|| "invalid address: expected http://HOST:PORT, https://HOST:PORT or HOST:PORT".into())
}

/// Sends a request without a body, with exactly these headers and `host`.
///
/// # Errors
///
/// There is no response in time, or it is not HTTP; the error says why.
pub async fn send(
    server: &Server<'_>,
    method: &Method,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<HttpResponse, RequestError> {
    let host = server.url.authority().map(ToString::to_string).unwrap_or_default();
    let mut request = Request::builder().method(method).uri(path).header("host", host);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::new())?;
    timeout(PATIENCE, connect_and_send(server, request)).await.map_err(|_| RequestError::TimedOut)?
}

async fn connect_and_send(
    server: &Server<'_>,
    request: Request<Empty<Bytes>>,
) -> Result<HttpResponse, RequestError> {
    let tls = server.url.scheme_str() == Some("https");
    let host = server.url.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = server.url.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await?;
    if !tls {
        return exchange(stream, request).await;
    }
    let client = ClientTls { ca: server.ca, own: None, protocol: "http/1.1" };
    exchange(client.connect(host, stream).await?, request).await
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<HttpResponse, RequestError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let response = async move {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, LONGEST).collect().await.map_err(RequestError::Body)?.to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok(HttpResponse { status: head.status.as_u16(), headers: head.headers, body })
    };
    // The connection ends when the sender is dropped, after the response.
    tokio::join!(response, connection).0
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

//! Finds out why a listener cannot be reached.
//!
//! The gRPC client reports "transport error" for everything. This module connects once more, one layer at a time, and
//! names the first layer that fails and what to do about it.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error};

use super::target::{Target, TlsArgs, host_and_port};
use crate::client_tls::{ClientTls, ConnectError, TlsOptionsError};
use crate::ext_authz::service::AuthorizationService;
use crate::transport::Unary as _;

/// The time limit of one layer.
const PATIENCE: Duration = Duration::from_secs(3);

/// What an HTTP/2 client sends first: the preface and empty settings (RFC 9113 §3.4).
const START: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Returns why the target cannot be reached; `None` if all layers below gRPC work.
pub(super) async fn reason(target: &Target, tls: &TlsArgs) -> Option<Unreachable> {
    let why = match timeout(3 * PATIENCE, layers(target, tls)).await {
        Ok(Ok(())) => return None,
        Ok(Err(why)) => why,
        Err(_) => Unreachable::TooSlow,
    };
    // Many servers of HTTP/1.1 close the connection when they read the preface of HTTP/2.
    let maybe_http1 = matches!(why, Unreachable::Closed(_) | Unreachable::Http1 | Unreachable::NotHttp2);
    if maybe_http1
        && !target.has_tls()
        && let Ok(Ok(Some(status))) = timeout(PATIENCE, http1(target)).await
    {
        return Some(Unreachable::NotGrpc(status));
    }
    Some(why)
}

/// The first layer that fails, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreachable {
    /// Continues a sentence about the target, which does answer.
    #[error("answers HTTP {0}, but not gRPC: that is not its gRPC listener")]
    NotGrpc(u16),
    /// The same.
    #[error(
        "rejects the Check itself ({0}): that is a gateway that protects an API, not tenantgate's gRPC listener"
    )]
    Gateway(Box<str>),
    #[error("the server does not respond in time: is that a gRPC listener?")]
    TooSlow,
    #[error("the target has no port")]
    NoPort,
    #[error("{}", unix_error(.0))]
    Unix(io::Error),
    #[error("the host does not respond: check the address and firewalls")]
    Silent,
    #[error("{}", tcp_error(.0))]
    Tcp(io::Error),
    #[error(transparent)]
    Options(TlsOptionsError),
    #[error("{}", tls_error(.0))]
    Tls(io::Error),
    #[error("the server does not offer HTTP/2 by ALPN: is that tenantgate?")]
    NoAlpn,
    #[error("the server closed the connection: {0}")]
    Closed(&'static str),
    #[error("the server speaks HTTP/1.1: that is not its gRPC listener")]
    Http1,
    #[error("the server expects TLS: use https://HOST:PORT, with --ca for its authority")]
    ExpectsTls,
    #[error("the server does not speak HTTP/2")]
    NotHttp2,
}

async fn layers(target: &Target, tls: &TlsArgs) -> Result<(), Unreachable> {
    let url = match target {
        Target::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(Unreachable::Unix)?;
            return http2(stream, "is your user id one of its --unix-peer-uid?").await;
        }
        Target::Url(url) => url,
    };
    let (host, port) = host_and_port(url);
    let port: u16 = port.parse().map_err(|_| Unreachable::NoPort)?;
    let connect = timeout(PATIENCE, TcpStream::connect((host.as_str(), port)));
    let stream = connect.await.map_err(|_| Unreachable::Silent)?.map_err(Unreachable::Tcp)?;
    if !target.has_tls() {
        return http2(stream, "does it expect TLS? then use https://HOST:PORT").await;
    }
    let client = ClientTls { ca: tls.ca.as_deref(), own: tls.own(), protocol: "h2" };
    let stream = client.connect(&host, stream).await.map_err(|error| match error {
        ConnectError::Options(error) => Unreachable::Options(error),
        ConnectError::Handshake(error) => Unreachable::Tls(error),
    })?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(Unreachable::NoAlpn);
    }
    http2(stream, "does the certificate of --client-cert have a name of its --client-san?").await
}

/// Sends the call over HTTP/1.1. Returns the status; `None` if the answer is not HTTP/1.
async fn http1(target: &Target) -> io::Result<Option<u16>> {
    match target {
        Target::Unix(path) => status(UnixStream::connect(path).await?).await,
        Target::Url(url) => {
            let (host, port) = host_and_port(url);
            let port = port.parse().map_err(io::Error::other)?;
            status(TcpStream::connect((host.as_str(), port)).await?).await
        }
    }
}

async fn status(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<Option<u16>> {
    let call = format!(
        "POST {} HTTP/1.1\r\nhost: tenantgate\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\
         connection: close\r\n\r\n",
        AuthorizationService::PATH
    );
    stream.write_all(call.as_bytes()).await?;
    // `HTTP/1.1 404` (RFC 9112 §4).
    let mut line = [0; 12];
    stream.read_exact(&mut line).await?;
    let line = str::from_utf8(&line).ok();
    let is_http1 = |version: &str| version.starts_with("HTTP/1.");
    let status = line.and_then(|line| line.split_once(' ')).filter(|(version, _)| is_http1(version));
    Ok(status.and_then(|(_, status)| status.parse().ok()))
}

/// Starts HTTP/2 and examines the first bytes of the response.
async fn http2(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    if_closed: &'static str,
) -> Result<(), Unreachable> {
    let mut first = [0; 9];
    let exchange = async {
        stream.write_all(START).await?;
        stream.flush().await?;
        let mut read = 0;
        while read < first.len() {
            match stream.read(&mut first[read..]).await? {
                0 => break,
                n => read += n,
            }
        }
        Ok::<_, io::Error>(read)
    };
    let read = timeout(PATIENCE, exchange).await.map_err(|_| Unreachable::NotHttp2)?;
    match read {
        Err(error) if of_tls(&error).is_some() => Err(Unreachable::Tls(error)),
        Err(_) | Ok(0) => Err(Unreachable::Closed(if_closed)),
        Ok(_) if first.starts_with(b"HTTP/1") => Err(Unreachable::Http1),
        Ok(_) if matches!(first, [0x15 | 0x16, 0x03, ..]) => Err(Unreachable::ExpectsTls),
        // SETTINGS come first (RFC 9113 §3.4).
        Ok(9) if first[3] == 4 => Ok(()),
        Ok(_) => Err(Unreachable::NotHttp2),
    }
}

fn tcp_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused: nothing listens there".into(),
        _ => error.to_string(),
    }
}

fn unix_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such socket: is serve running, with this --listen?".into(),
        io::ErrorKind::ConnectionRefused => "nothing listens on this socket: is serve running?".into(),
        io::ErrorKind::PermissionDenied => {
            "permission denied: join the group that owns the socket (see --unix-mode)".into()
        }
        _ => error.to_string(),
    }
}

fn of_tls(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn tls_error(error: &io::Error) -> String {
    let known = match of_tls(error) {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "the server's certificate is of an authority that is not trusted: give its authority with --ca"
        }
        Some(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "the server's certificate is not for this host: use one of the names in it",
        Some(Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => "the server's certificate has expired: renew it",
        Some(Error::InvalidMessage(_)) => "the server does not speak TLS: use HOST:PORT without https://",
        Some(Error::AlertReceived(AlertDescription::CertificateRequired)) => {
            "the server needs a client certificate: use --client-cert and --client-key"
        }
        Some(Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::DecryptError
            | AlertDescription::CertificateUnknown,
        )) => "the server does not accept the certificate of --client-cert: use one of its --client-ca",
        Some(Error::AlertReceived(AlertDescription::CertificateExpired)) => {
            "the certificate of --client-cert has expired: renew it"
        }
        Some(
            Error::AlertReceived(AlertDescription::NoApplicationProtocol) | Error::NoApplicationProtocol,
        ) => "the server does not offer HTTP/2 by ALPN: is that tenantgate?",
        Some(Error::AlertReceived(AlertDescription::ProtocolVersion) | Error::PeerIncompatible(_)) => {
            "the server offers neither TLS 1.2 nor 1.3"
        }
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the server closed the connection during the TLS handshake: is that a TLS listener?"
        }
        _ => return error.to_string(),
    };
    known.into()
}

//! Connects commands to a listener, as Envoy would.
//!
//! Parses the address of the listener and the TLS options: the trusted authority and the client's own certificate.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::Failure;
use crate::client_tls::{ClientTls, Own};
use crate::invalid::InvalidValue;

/// The TLS options of a client.
#[derive(clap::Args, Clone)]
pub(super) struct TlsArgs {
    /// The authority that signed the certificate of the server (PEM); defaults to the system's authorities
    #[arg(long, value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,
    /// The client certificate for a --target that requires one (PEM); needs --client-key
    #[arg(long, value_name = "FILE", requires_all = ["client_key", "target"])]
    client_cert: Option<PathBuf>,
    /// The private key of --client-cert (PEM)
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    client_key: Option<PathBuf>,
}

impl TlsArgs {
    /// The client certificate, if one is given.
    pub(super) fn own(&self) -> Option<Own<'_>> {
        Some(Own { cert: self.client_cert.as_deref()?, key: self.client_key.as_deref()? })
    }
}

/// The address of a server.
#[derive(Clone)]
pub(super) enum Target {
    /// `http://…` or `https://…`.
    Url(String),
    Unix(PathBuf),
}

impl Target {
    pub(super) fn has_tls(&self) -> bool {
        matches!(self, Self::Url(url) if url.starts_with("https://"))
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

pub(super) fn target(text: &str) -> Result<Target, InvalidValue> {
    const FORMS: &str = "expected HOST:PORT, https://HOST:PORT or unix:/path";
    if let Some(path) = text.strip_prefix("unix:") {
        return if path.is_empty() { Err(FORMS.into()) } else { Ok(Target::Unix(path.into())) };
    }
    let (scheme, address) = text.split_once("://").unwrap_or(("http", text));
    let fine =
        address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if fine && ["http", "https"].contains(&scheme) {
        Ok(Target::Url(format!("{scheme}://{address}")))
    } else {
        Err(FORMS.into())
    }
}

/// Connects to a server. The outer error is about the arguments, the inner one about the network.
pub(super) async fn connect(
    target: &Target,
    tls: &TlsArgs,
) -> Result<Result<Channel, tonic::transport::Error>, Failure> {
    let limit = Duration::from_secs(10);
    if tls.own().is_some() && !target.has_tls() {
        return Err(Failure::usage("--client-cert: needs a --target with TLS, https://HOST:PORT"));
    }
    let url = match target.clone() {
        Target::Url(url) => url,
        Target::Unix(path) => return Ok(connect_unix(path, limit).await),
    };
    let usage = |e| Failure::usage(format!("{url}: {}", chain(&e)));
    let mut endpoint =
        Endpoint::from_shared(url.clone()).map_err(usage)?.connect_timeout(limit).timeout(limit);
    if target.has_tls() {
        endpoint = endpoint.tls_config(config(tls)?).map_err(usage)?;
    }
    Ok(endpoint.connect().await)
}

async fn connect_unix(path: PathBuf, limit: Duration) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let endpoint = Endpoint::from_static("http://localhost").connect_timeout(limit).timeout(limit);
    endpoint.connect_with_connector(connector).await
}

fn config(tls: &TlsArgs) -> Result<ClientTlsConfig, Failure> {
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let mut config = match &tls.ca {
        None => ClientTlsConfig::new().with_native_roots(),
        Some(ca) => {
            let pem = read(ca).map_err(|why| Failure::usage(format!("--ca {why}")))?;
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
        }
    };
    if let Some(own) = tls.own() {
        // Reports what is wrong with the files, which tonic does not.
        ClientTls { ca: tls.ca.as_deref(), own: Some(own), protocol: "h2" }
            .config()
            .map_err(Failure::usage)?;
        let [cert, key] = [own.cert, own.key].map(|path| read(path).map_err(Failure::usage));
        config = config.identity(Identity::from_pem(cert?, key?));
    }
    Ok(config)
}

/// Splits a URL into host and port. An IPv6 address loses its brackets.
pub(super) fn host_and_port(url: &str) -> (String, String) {
    let address = url.split_once("://").map_or(url, |(_, address)| address);
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    (host.trim_matches(['[', ']']).to_owned(), port.to_owned())
}

/// Returns the innermost error, because tonic's own text says only that there was one.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

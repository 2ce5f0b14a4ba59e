//! TLS for all commands that connect to a server.
//!
//! A command trusts the given authority and no other, or else the authorities of the system. It shows its own
//! certificate, if it has one, to servers that ask for it. The protocol on top belongs to the caller.

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::ServerCertVerifier as _;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{CertificateError, ClientConfig, Error, RootCertStore};

use crate::clock::Timestamp;

/// The client's own certificate and private key, both PEM.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// The file of the certificate chain.
    pub cert: &'a Path,
    /// The file of the key.
    pub key: &'a Path,
}

impl Own<'_> {
    fn read(self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
        let wrong = |option: &str, path: &Path, e: &dyn Display| format!("{option} {}: {e}", path.display());
        let chain = CertificateDer::pem_file_iter(self.cert).and_then(Iterator::collect);
        let chain = chain.map_err(|e| wrong("--client-cert", self.cert, &e))?;
        let key = PrivateKeyDer::from_pem_file(self.key);
        Ok((chain, key.map_err(|e| wrong("--client-key", self.key, &e))?))
    }
}

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A file or the name of the server is invalid.
    #[error("{0}")]
    Options(String),
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] io::Error),
}

/// The TLS options of a client.
#[derive(Clone, Copy, Debug)]
pub struct ClientTls<'a> {
    /// The file of the trusted authorities; `None` for those of the system.
    pub ca: Option<&'a Path>,
    /// The client's own certificate, if it has one.
    pub own: Option<Own<'a>>,
    /// The protocol to offer by ALPN.
    pub protocol: &'a str,
}

impl ClientTls<'_> {
    /// Performs the handshake on `stream` with the server of this host name or IP address.
    ///
    /// # Errors
    ///
    /// A file or `host` is invalid, or the handshake failed.
    pub async fn connect<S>(self, host: &str, stream: S) -> Result<TlsStream<S>, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connector = TlsConnector::from(Arc::new(self.config().map_err(ConnectError::Options)?));
        Ok(connector.connect(server_name(host).map_err(ConnectError::Options)?, stream).await?)
    }

    /// Reads the files.
    ///
    /// # Errors
    ///
    /// A file cannot be read or is invalid; the error names its option.
    pub fn config(self) -> Result<ClientConfig, String> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
        let builder = builder.with_root_certificates(roots(self.ca)?);
        let mut config = match self.own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let (chain, key) = own.read()?;
                let fits = builder.with_client_auth_cert(chain, key);
                fits.map_err(|e| format!("--client-cert {} with its --client-key: {e}", own.cert.display()))?
            }
        };
        config.alpn_protocols = vec![self.protocol.as_bytes().to_vec()];
        Ok(config)
    }

    /// Returns when the certificate of a server expires whose chain is valid now; `None` if it is valid for another
    /// hundred years.
    ///
    /// # Errors
    ///
    /// The chain is not valid now, or not for `host`; the error says why.
    pub fn expiry(
        self,
        chain: &[CertificateDer<'_>],
        host: &str,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, String> {
        const CENTURY: Duration = Duration::from_hours(100 * 365 * 24);
        let (roots, provider) = (Arc::new(roots(self.ca)?), Arc::new(ring::default_provider()));
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
        let verifier = verifier.map_err(|e| e.to_string())?;
        let (own, others) = chain.split_first().ok_or("the server shows no certificate")?;
        // Verification as of a far later time fails with the time at which the certificate expires.
        let then = Duration::from_micros(u64::try_from(now.0).unwrap_or(0)) + CENTURY;
        let (name, then) = (server_name(host)?, UnixTime::since_unix_epoch(then));
        match verifier.verify_server_cert(own, others, &name, &[], then) {
            Ok(_) => Ok(None),
            Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
                Ok(i64::try_from(not_after.as_secs())
                    .ok()
                    .map(|seconds| Timestamp(seconds.saturating_mul(1_000_000))))
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

fn server_name(host: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    let wrong = |e: &dyn Display| format!("--ca {}: {e}", path.display());
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| wrong(&e))? {
        roots.add(certificate.map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))?;
    }
    Ok(roots)
}

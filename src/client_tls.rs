//! TLS for all commands that connect to a server.
//!
//! A command trusts the given authority and no other, or else the authorities of the system. It shows its own
//! certificate, if it has one, to servers that ask for it. The protocol on top belongs to the caller.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::ServerCertVerifier as _;
use tokio_rustls::rustls::client::{VerifierBuilderError, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, UnixTime,
};
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
    fn read(self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsOptionsError> {
        let chain = CertificateDer::pem_file_iter(self.cert).and_then(Iterator::collect);
        let chain = chain.map_err(|error| TlsOptionsError::pem("--client-cert", self.cert, error))?;
        let key = PrivateKeyDer::from_pem_file(self.key);
        Ok((chain, key.map_err(|error| TlsOptionsError::pem("--client-key", self.key, error))?))
    }
}

/// Why the options of a TLS client cannot be used. The message names the option.
#[derive(Debug, thiserror::Error)]
pub enum TlsOptionsError {
    /// A PEM file cannot be read or is invalid.
    #[error("{option} {}: {error}", path.display())]
    Pem {
        /// The option that names the file.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the parser or of the operating system.
        error: pem::Error,
    },
    /// An authority is not a valid certificate.
    #[error("--ca {}: {error}", path.display())]
    Authority {
        /// The file of the authorities.
        path: PathBuf,
        /// The error of rustls.
        error: Error,
    },
    /// The client's certificate and key do not belong together, or are of an unsupported kind.
    #[error("--client-cert {} with its --client-key: {error}", path.display())]
    Own {
        /// The file of the certificate chain.
        path: PathBuf,
        /// The error of rustls.
        error: Error,
    },
    /// The host is neither a DNS name nor an IP address.
    #[error(transparent)]
    ServerName(#[from] InvalidDnsNameError),
    /// The library of TLS does not support the requested protocols.
    #[error(transparent)]
    Provider(#[from] Error),
}

impl TlsOptionsError {
    fn pem(option: &'static str, path: &Path, error: pem::Error) -> Self {
        Self::Pem { option, path: path.to_owned(), error }
    }
}

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A file or the name of the server is invalid.
    #[error(transparent)]
    Options(#[from] TlsOptionsError),
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] io::Error),
}

/// Why the certificate chain of a server is not valid now.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A file or the name of the server is invalid.
    #[error(transparent)]
    Options(#[from] TlsOptionsError),
    /// The authorities cannot be used to verify a chain.
    #[error(transparent)]
    Verifier(#[from] VerifierBuilderError),
    /// The server sent no certificate.
    #[error("the server shows no certificate")]
    NoCertificate,
    /// The chain is not trusted, has expired, or is for another host.
    #[error(transparent)]
    Rejected(Error),
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
        let connector = TlsConnector::from(Arc::new(self.config()?));
        Ok(connector.connect(server_name(host)?, stream).await?)
    }

    /// Reads the files.
    ///
    /// # Errors
    ///
    /// A file cannot be read or is invalid; the error names its option.
    pub fn config(self) -> Result<ClientConfig, TlsOptionsError> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions()?;
        let builder = builder.with_root_certificates(roots(self.ca)?);
        let mut config = match self.own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let (chain, key) = own.read()?;
                let fits = builder.with_client_auth_cert(chain, key);
                fits.map_err(|error| TlsOptionsError::Own { path: own.cert.to_owned(), error })?
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
    ) -> Result<Option<Timestamp>, ChainError> {
        const CENTURY: Duration = Duration::from_hours(100 * 365 * 24);
        let (roots, provider) = (Arc::new(roots(self.ca)?), Arc::new(ring::default_provider()));
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
        let verifier = verifier?;
        let (own, others) = chain.split_first().ok_or(ChainError::NoCertificate)?;
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
            Err(error) => Err(ChainError::Rejected(error)),
        }
    }
}

fn server_name(host: &str) -> Result<ServerName<'static>, TlsOptionsError> {
    Ok(ServerName::try_from(host.to_owned())?)
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, TlsOptionsError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    let pem = |error| TlsOptionsError::pem("--ca", path, error);
    for certificate in CertificateDer::pem_file_iter(path).map_err(pem)? {
        let added = roots.add(certificate.map_err(pem)?);
        added.map_err(|error| TlsOptionsError::Authority { path: path.to_owned(), error })?;
    }
    Ok(roots)
}

//! With which certificate do we speak, and whose do we accept?
//!
//! The files are read again every few seconds, so that a renewed certificate needs no
//! restart. Files that make no sense leave everything as it was, with a line in the log.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{Error, RootCertStore, ServerConfig, ServerConnection};
use tracing::{error, info};
use webpki::EndEntityCert;

/// Where the certificates are, and who may come.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TlsFiles {
    /// Our certificate chain (PEM).
    pub cert: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
    /// Whose clients may come in (PEM); without, anybody may.
    pub client_ca: Option<PathBuf>,
    /// Names of which a client's certificate must have one (DNS or URI, such as a SPIFFE id); empty: any.
    pub client_sans: Vec<String>,
}

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{0} cannot be read: {1}")]
    Read(PathBuf, std::io::Error),
    /// A file has no certificate or key in it.
    #[error("{0} has no {1} in PEM: {2}")]
    Pem(PathBuf, &'static str, tokio_rustls::rustls::pki_types::pem::Error),
    /// A file has nothing in it.
    #[error("{0} has no certificate in it")]
    Empty(PathBuf),
    /// They do not fit together.
    #[error("the certificate and its key cannot be used: {0}")]
    Config(#[from] Error),
    /// The authorities make no sense.
    #[error("the client authorities cannot be used: {0}")]
    Authorities(#[from] VerifierBuilderError),
}

/// How often the files are read again.
const AGAIN: Duration = Duration::from_secs(5);

/// TLS as it stands. Cheap to clone; all clones change together.
#[derive(Clone)]
pub struct Tls {
    files: Arc<TlsFiles>,
    config: Arc<ArcSwap<ServerConfig>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// What is wrong with them; no key is repeated.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let config = Contents::read(&files)?.config(&files)?;
        Ok(Self { files: Arc::new(files), config: Arc::new(ArcSwap::new(config)) })
    }

    /// What the next connection is taken with.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }

    /// Whether this client's certificate has one of the names that are asked for. That its chain is good was
    /// seen in the handshake.
    pub(super) fn may_come(&self, connection: &ServerConnection) -> bool {
        let sans = &self.files.client_sans;
        if sans.is_empty() {
            return true;
        }
        let certificate = connection.peer_certificates().and_then(<[_]>::first);
        let Some(Ok(certificate)) = certificate.map(EndEntityCert::try_from) else { return false };
        let named = |name: &str| sans.iter().any(|san| san == name);
        certificate.valid_dns_names().any(named) || certificate.valid_uri_names().any(named)
    }

    /// Follows the files, for ever.
    pub(super) async fn follow(self) {
        let mut before = Contents::read(&self.files).ok();
        let mut failing = false;
        loop {
            sleep(AGAIN).await;
            let read = Contents::read(&self.files);
            if read.as_ref().is_ok_and(|now| before.as_ref() == Some(now)) {
                continue;
            }
            match read.and_then(|now| Ok((now.config(&self.files)?, now))) {
                Ok((config, now)) => {
                    self.config.store(config);
                    info!("the certificates were read again, new connections have them");
                    (before, failing) = (Some(now), false);
                }
                // Said once: half a renewal is there for a moment, and a broken one for long.
                Err(error) if !failing => {
                    error!(%error, "the certificates on disk cannot be used, those of before stay");
                    failing = true;
                }
                Err(_) => {}
            }
        }
    }
}

/// What is in the files.
#[derive(Eq, PartialEq)]
struct Contents {
    cert: Vec<u8>,
    key: zeroize::Zeroizing<Vec<u8>>,
    client_ca: Option<Vec<u8>>,
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let read = |path: &PathBuf| std::fs::read(path).map_err(|e| TlsError::Read(path.clone(), e));
        let client_ca = files.client_ca.as_ref().map(read).transpose()?;
        Ok(Self { cert: read(&files.cert)?, key: read(&files.key)?.into(), client_ca })
    }

    fn config(&self, files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
        let chain = certificates(&self.cert, &files.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|e| TlsError::Pem(files.key.clone(), "private key", e))?;
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let builder = match (&self.client_ca, &files.client_ca) {
            (Some(pem), Some(path)) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(pem, path)? {
                    roots.add(certificate)?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(pem: &[u8], path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|e| TlsError::Pem(path.to_owned(), "certificate", e))?;
    if all.is_empty() { Err(TlsError::Empty(path.to_owned())) } else { Ok(all) }
}

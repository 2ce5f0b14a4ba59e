//! TLS of the listeners, with certificates that are reloaded when their files change.
//!
//! The files are read every few seconds, so that a renewed certificate needs no restart. Files that cannot be used are
//! logged, and the certificates loaded before stay.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, Error, PeerIncompatible, RootCertStore, ServerConfig,
    ServerConnection,
};
use tokio_rustls::server::TlsStream;
use tracing::{error, info};
use webpki::EndEntityCert;

use crate::transport::ConnectionFailure;

/// The files of certificates and key, and the clients that may connect.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TlsFiles {
    /// The certificate chain of the server (PEM).
    pub cert: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
    /// The authorities of client certificates (PEM). Without it, clients need no certificate.
    pub client_ca: Option<PathBuf>,
    /// Allowed names (DNS or URI, such as a SPIFFE id): a client's certificate must have one of them. Empty allows all.
    pub client_sans: Vec<String>,
    /// The protocol of the connections.
    pub protocol: Protocol,
}

/// The protocol over TLS, which is also offered by ALPN (RFC 7301).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Protocol {
    /// HTTP/2, for Checks.
    #[default]
    Http2,
    /// HTTP/1.1, for management.
    Http1,
}

impl Protocol {
    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http2 => b"h2",
            Self::Http1 => b"http/1.1",
        }
    }
}

/// Why the certificate files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{0} cannot be read: {1}")]
    Read(PathBuf, io::Error),
    /// A file has no valid certificate or key.
    #[error("{0} has no valid {1} in PEM: {2}")]
    Pem(PathBuf, &'static str, tokio_rustls::rustls::pki_types::pem::Error),
    /// A file is empty.
    #[error("{0} contains no certificate")]
    Empty(PathBuf),
    /// The private key cannot be used.
    #[error("the private key in {0} {1}")]
    Key(PathBuf, &'static str),
    /// The certificate and the key do not belong together.
    #[error("the certificate and its key cannot be used: {0}")]
    Config(#[from] Error),
    /// The file of client authorities is invalid.
    #[error("the client authorities cannot be used: {0}")]
    Authorities(#[from] VerifierBuilderError),
}

/// The pause between two checks of the files.
const AGAIN: Duration = Duration::from_secs(5);

/// The current TLS configuration. Cheap to clone; all clones are reloaded together.
#[derive(Clone)]
pub struct Tls {
    files: Arc<TlsFiles>,
    loaded: Arc<ArcSwap<Loaded>>,
}

/// A configuration, and the contents of the files that it was made from.
struct Loaded {
    contents: Contents,
    config: Arc<ServerConfig>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// A file is missing or invalid. The error never contains a key.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let loaded = Loaded::of(Contents::read(&files)?, &files)?;
        Ok(Self { files: Arc::new(files), loaded: Arc::new(ArcSwap::from_pointee(loaded)) })
    }

    /// Performs the handshake with a client.
    ///
    /// # Errors
    ///
    /// The client is not admitted; the error says why.
    pub(super) async fn accept(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, NotAdmitted> {
        let mut first = [0];
        let Ok(1..) = stream.peek(&mut first).await else { return Err(NotAdmitted::Probe) };
        let acceptor = TlsAcceptor::from(Arc::clone(&self.loaded.load().config));
        let stream = acceptor.accept(stream).await.map_err(|error| {
            let detail = match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    "the client closed the connection during the handshake".into()
                }
                _ => error.to_string(),
            };
            let failure = if let [HANDSHAKE | ALERT] = first {
                failure(&error)
            } else {
                ConnectionFailure::PlaintextOnTls
            };
            NotAdmitted::Failed(failure, Some(detail))
        })?;
        if self.has_allowed_name(stream.get_ref().1) {
            Ok(stream)
        } else {
            Err(NotAdmitted::Failed(ConnectionFailure::ClientSanNotAllowed, None))
        }
    }

    /// Returns whether the client's certificate has one of the allowed names. The handshake has already checked its
    /// chain.
    fn has_allowed_name(&self, connection: &ServerConnection) -> bool {
        let sans = &self.files.client_sans;
        if sans.is_empty() {
            return true;
        }
        let certificate = connection.peer_certificates().and_then(<[_]>::first);
        let Some(Ok(certificate)) = certificate.map(EndEntityCert::try_from) else { return false };
        let named = |name: &str| sans.iter().any(|san| san == name);
        certificate.valid_dns_names().any(named) || certificate.valid_uri_names().any(named)
    }

    /// Reloads the files whenever they change, forever.
    pub(super) async fn follow(self) {
        let mut failing = false;
        loop {
            sleep(AGAIN).await;
            match self.reload() {
                Ok(reloaded) => {
                    if reloaded {
                        info!("certificates reloaded, new connections use them");
                    }
                    failing = false;
                }
                // Logged once: a renewal in progress is invalid for a moment, a broken one for long.
                Err(error) if !failing => {
                    error!(%error, "the certificate files are not valid, the certificates loaded before stay in use");
                    failing = true;
                }
                Err(_) => {}
            }
        }
    }

    /// Reloads the files if they differ from those that are in use. Returns whether they do.
    fn reload(&self) -> Result<bool, TlsError> {
        let contents = Contents::read(&self.files)?;
        if contents == self.loaded.load().contents {
            return Ok(false);
        }
        self.loaded.store(Arc::new(Loaded::of(contents, &self.files)?));
        Ok(true)
    }
}

impl Loaded {
    fn of(contents: Contents, files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self { config: contents.config(files)?, contents })
    }
}

/// The content type of a record of the handshake (RFC 8446 §5.1), with which every TLS connection begins.
const HANDSHAKE: u8 = 0x16;

/// The content type of an alert, which a client may send instead of its first record of the handshake.
const ALERT: u8 = 0x15;

/// Why a client is not admitted.
#[derive(Debug)]
pub(super) enum NotAdmitted {
    /// It closed the connection without a byte, as the probes of load balancers do.
    Probe,
    /// The handshake failed, or the client's certificate has no allowed name. The text is the error of the library.
    Failed(ConnectionFailure, Option<String>),
}

/// Classifies the error of a handshake.
fn failure(error: &io::Error) -> ConnectionFailure {
    use AlertDescription as Alert;
    use PeerIncompatible as Incompatible;
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        Some(Error::NoCertificatesPresented) => ConnectionFailure::ClientCertificateMissing,
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            ConnectionFailure::ClientCertificateUnknownCa
        }
        Some(Error::InvalidCertificate(_)) => ConnectionFailure::ClientCertificateInvalid,
        Some(
            Error::PeerIncompatible(
                Incompatible::Tls12NotOffered
                | Incompatible::Tls12NotOfferedOrEnabled
                | Incompatible::SupportedVersionsExtensionRequired
                // Clients of older versions do not send it, and its absence is noticed before the version.
                | Incompatible::SignatureAlgorithmsExtensionRequired,
            )
            | Error::AlertReceived(Alert::ProtocolVersion),
        ) => ConnectionFailure::TlsVersion,
        Some(Error::NoApplicationProtocol) => ConnectionFailure::NoAlpnH2,
        Some(Error::AlertReceived(
            Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA,
        )) => ConnectionFailure::CertificateRefused,
        _ => ConnectionFailure::TlsError,
    }
}

/// The contents of the files.
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
        let unusable = |why| TlsError::Key(files.key.clone(), why);
        if is_encrypted(&self.key) {
            return Err(unusable(
                "is encrypted: decrypt it, for example by `openssl pkey -in FILE -out NEW_FILE`",
            ));
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|e| TlsError::Pem(files.key.clone(), "private key", e))?;
        if default_provider().key_provider.load_private_key(key.clone_key()).is_err() {
            return Err(unusable(unsupported(key.secret_der())));
        }
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
        let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
            Error::InconsistentKeys(_) => unusable("does not belong to the certificate"),
            other => TlsError::Config(other),
        })?;
        config.alpn_protocols = vec![files.protocol.alpn().to_vec()];
        Ok(Arc::new(config))
    }
}

/// Returns whether a PEM file contains an encrypted key (RFC 5958 §3, RFC 1421 §4.6.1.1).
fn is_encrypted(pem: &[u8]) -> bool {
    let marks: [&[u8]; 2] = [b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED"];
    marks.iter().any(|mark| pem.windows(mark.len()).any(|part| part == *mark))
}

/// Describes why the library does not load a key, by the object identifiers in it (RFC 5480 §2.1.1.1, RFC 8017
/// appendix A.1).
fn unsupported(der: &[u8]) -> &'static str {
    const P_521: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x23];
    const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    const ED_448: &[u8] = &[0x2b, 0x65, 0x71];
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    // The numbers of a key of 2048 bits take over 1,100 bytes.
    const SHORT: usize = 1_100;
    let has = |oid: &[u8]| der.windows(oid.len()).any(|part| part == oid);
    if has(P_521) {
        "uses the curve P-521, which is not supported: use P-256, P-384, Ed25519 or RSA of 2048 to 8192 bits"
    } else if has(EC) || has(ED_448) {
        "uses a curve that is not supported: use P-256, P-384, Ed25519 or RSA of 2048 to 8192 bits"
    } else if has(RSA) && der.len() < SHORT || der.starts_with(&[0x30, 0x82]) && der.len() < SHORT {
        "is shorter than 2048 bits: use RSA of 2048 to 8192 bits, P-256, P-384 or Ed25519"
    } else {
        "is not supported: use P-256, P-384, Ed25519 or RSA of 2048 to 8192 bits"
    }
}

fn certificates(pem: &[u8], path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|e| TlsError::Pem(path.to_owned(), "certificate", e))?;
    if all.is_empty() { Err(TlsError::Empty(path.to_owned())) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(files: &TlsFiles) {
        let made = rcgen::generate_simple_self_signed(["tenantgate.test".to_owned()]).unwrap();
        std::fs::write(&files.cert, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn files_are_compared_with_those_in_use_and_not_with_those_seen_last() {
        let folder = tempfile::tempdir().unwrap();
        let [cert, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
        let protocol = Protocol::default();
        let files = TlsFiles { cert, key, client_ca: None, client_sans: Vec::new(), protocol };
        write(&files);
        let tls = Tls::load(files.clone()).unwrap();
        assert!(!tls.reload().unwrap());
        // Renewed before the files are followed.
        write(&files);
        assert!(tls.reload().unwrap() && !tls.reload().unwrap());
        let good = std::fs::read(&files.cert).unwrap();
        std::fs::write(&files.cert, "half of it").unwrap();
        assert!(tls.reload().is_err() && tls.reload().is_err());
        std::fs::write(&files.cert, good).unwrap();
        assert!(!tls.reload().unwrap(), "what is in use has come back");
    }
}

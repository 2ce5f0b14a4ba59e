//! Whom does a client of ours trust, and who is it?
//!
//! Commands that connect somewhere with TLS trust the authority that was named, and
//! then no other, or those of the system. To who asks for a certificate they show
//! their own, if they have one. What is spoken over the connection is not known here.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::ServerCertVerifier as _;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{CertificateError, ClientConfig, Error, RootCertStore};

use crate::clock::Timestamp;

/// A certificate of ours and its private key, both PEM.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// The file of the certificate, with what leads to its authority.
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

/// The TLS of a client that speaks the protocol of this name (ALPN).
///
/// # Errors
///
/// A file cannot be read, or is not what it should be.
pub fn client(ca: Option<&Path>, own: Option<Own<'_>>, protocol: &str) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
    let builder = builder.with_root_certificates(roots(ca)?);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let (chain, key) = own.read()?;
            let fits = builder.with_client_auth_cert(chain, key);
            fits.map_err(|e| format!("--client-cert {} with its --client-key: {e}", own.cert.display()))?
        }
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Ok(config)
}

/// When a chain that is good now will not be any more, because the server's certificate ends; nothing if not within a
/// hundred years.
///
/// # Errors
///
/// The chain is not good; says why.
pub fn end_of(
    ca: Option<&Path>,
    chain: &[CertificateDer<'_>],
    name: &ServerName<'_>,
    now: Timestamp,
) -> Result<Option<Timestamp>, String> {
    const CENTURY: Duration = Duration::from_hours(100 * 365 * 24);
    let (roots, provider) = (Arc::new(roots(ca)?), Arc::new(ring::default_provider()));
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
    let verifier = verifier.map_err(|e| e.to_string())?;
    let (own, others) = chain.split_first().ok_or("it shows no certificate")?;
    // Whoever verifies as of then is told what ends before.
    let then = Duration::from_micros(u64::try_from(now.0).unwrap_or(0)) + CENTURY;
    match verifier.verify_server_cert(own, others, name, &[], UnixTime::since_unix_epoch(then)) {
        Ok(_) => Ok(None),
        Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            Ok(i64::try_from(not_after.as_secs())
                .ok()
                .map(|seconds| Timestamp(seconds.saturating_mul(1_000_000))))
        }
        Err(error) => Err(error.to_string()),
    }
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

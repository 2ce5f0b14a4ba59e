//! Is the certificate of a listener good, and for how long?
//!
//! Connects as a client that trusts the given authority alone, or those of the system:
//! what rustls says against the certificate is the finding.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::super::target::{TlsArgs, host_and_port};
use crate::clock::{Clock, Timestamp};
use crate::finding::Finding;
use crate::trust;

/// A certificate that ends sooner should have been renewed: those of ACME live for 90 days and are renewed 30
/// days before their end.
const SOON: Duration = Duration::from_hours(14 * 24);

/// How long a server may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Looks at the certificate that is shown at a URL.
pub(super) async fn examine(check: &'static str, url: &str, tls: &TlsArgs, clock: &dyn Clock) -> Finding {
    match timeout(PATIENCE, end_of(url, tls, clock.now())).await {
        Err(_) => Finding::bad(check, format!("{url} does not answer in time"), "is that a TLS listener?"),
        Ok(Err(why)) => {
            Finding::bad(check, format!("{url}: {why}"), "renew it, or give its authority with --ca")
        }
        Ok(Ok(end)) => validity(check, end, clock.now()),
    }
}

async fn end_of(url: &str, tls: &TlsArgs, now: Timestamp) -> Result<Option<Timestamp>, String> {
    let (host, port) = host_and_port(url);
    let connector = TlsConnector::from(Arc::new(trust::client(tls.ca.as_deref(), tls.own(), "h2")?));
    let name = ServerName::try_from(host.clone()).map_err(|e| e.to_string())?;
    let port: u16 = port.parse().map_err(|_| "no port".to_owned())?;
    let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|e| e.to_string())?;
    let stream = connector.connect(name.clone(), stream).await.map_err(|e| e.to_string())?;
    trust::end_of(tls.ca.as_deref(), stream.get_ref().1.peer_certificates().unwrap_or_default(), &name, now)
}

fn validity(check: &'static str, end: Option<Timestamp>, now: Timestamp) -> Finding {
    let Some(end) = end else { return Finding::ok(check, "the certificate is good") };
    let what = format!("the certificate is good until {end}");
    if end < now.after(SOON) {
        Finding::warn(check, what, "renew it: serve sees the new files by itself, within 5 s")
    } else {
        Finding::ok(check, what)
    }
}

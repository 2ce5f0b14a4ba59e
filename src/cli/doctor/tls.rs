//! Checks the certificate of a listener: whether it is valid, and for how long.
//!
//! Connects as a client that trusts only the given authority, or else those of the system. An error of rustls becomes
//! the finding.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::target::{TlsArgs, host_and_port};
use crate::client_tls::{ChainError, ClientTls, ConnectError};
use crate::clock::{Clock, Timestamp};
use crate::diagnostics::Finding;

/// A certificate that expires sooner should have been renewed: those of ACME are valid for 90 days and are renewed 30
/// days before they expire.
const SOON: Duration = Duration::from_hours(14 * 24);

/// The time limit for the server to respond.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Examines the certificate of the listener at a URL.
pub(super) async fn examine(
    check: &'static str,
    url: &str,
    tls: &TlsArgs,
    protocol: &'static str,
    clock: &dyn Clock,
) -> Finding {
    match timeout(PATIENCE, expiry(url, tls, protocol, clock.now())).await {
        Err(_) => {
            Finding::bad(check, format!("{url} does not respond in time"), "check that it is a TLS listener")
        }
        Ok(Err(why)) => Finding::bad(
            check,
            format!("{url}: {why}"),
            "renew the certificate, or give its authority with --ca",
        ),
        Ok(Ok(end)) => validity(check, end, clock.now()),
    }
}

/// Why the certificate is not known to be valid.
#[derive(Debug, thiserror::Error)]
enum CannotExamine {
    #[error("the address has no port")]
    NoPort,
    #[error(transparent)]
    Tcp(#[from] io::Error),
    #[error(transparent)]
    Tls(#[from] ConnectError),
    #[error(transparent)]
    Chain(#[from] ChainError),
}

async fn expiry(
    url: &str,
    tls: &TlsArgs,
    protocol: &'static str,
    now: Timestamp,
) -> Result<Option<Timestamp>, CannotExamine> {
    let (host, port) = host_and_port(url);
    let port: u16 = port.parse().map_err(|_| CannotExamine::NoPort)?;
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    let client = ClientTls { ca: tls.ca.as_deref(), own: tls.own(), protocol };
    let stream = client.connect(&host, stream).await?;
    Ok(client.expiry(stream.get_ref().1.peer_certificates().unwrap_or_default(), &host, now)?)
}

fn validity(check: &'static str, end: Option<Timestamp>, now: Timestamp) -> Finding {
    let Some(end) = end else { return Finding::ok(check, "the certificate is valid") };
    let what = format!("the certificate is valid until {end}");
    if end < now.after(SOON) {
        Finding::warn(check, what, "renew it: the server loads the new files within 5 s, without a restart")
    } else {
        Finding::ok(check, what)
    }
}

//! Checks a listener of `manage`: whether it is the right one, what protects it, and who can reach it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use ::http::{Method, Uri};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::super::target::{Target, TlsArgs, host_and_port};
use super::listener::is_loopback;
use super::tls;
use crate::clock::Clock;
use crate::diagnostics::Finding;
use crate::envoy::http::{self, Server};

const TLS: &str = "manage.tls";
const REACH: &str = "manage.reach";
const ANSWERS: &str = "manage.answers";

/// How long an address of this machine may take to accept a connection.
const ACCEPTS_WITHIN: Duration = Duration::from_secs(1);

/// Examines the listener.
pub(super) async fn examine(target: &Target, args: &TlsArgs, clock: &dyn Clock) -> Vec<Finding> {
    let url = match target {
        Target::Unix(path) => return vec![socket(path)],
        Target::Url(url) => url,
    };
    let here = is_loopback(url);
    let transport = if target.has_tls() {
        tls::examine(TLS, url, args, "http/1.1", clock).await
    } else if here {
        Finding::ok(TLS, "off: management keys are not encrypted on their way within this machine")
    } else {
        let what = "off: management keys cross the network without encryption";
        Finding::bad(TLS, what, "give manage --tls-cert and --tls-key, and --target https://HOST:PORT here")
    };
    let elsewhere = if here { other_address(url).await } else { Some(host_and_port(url).0) };
    vec![transport, reach(elsewhere, target.has_tls()), answers(url, args).await]
}

fn socket(path: &Path) -> Finding {
    match std::fs::metadata(path).map(|meta| meta.permissions().mode()) {
        Err(error) => {
            let what = format!("{}: {error}", path.display());
            Finding::bad(REACH, what, "start manage with --listen unix:PATH, or correct --target")
        }
        Ok(mode) if mode & 0o006 != 0 => {
            let what = format!("all users of this machine can connect to {}", path.display());
            Finding::warn(REACH, what, "start manage with --unix-mode 0600 or 0660")
        }
        Ok(_) => Finding::ok(REACH, "a Unix socket, which only its owner and group can connect to"),
    }
}

/// What to say of a listener that answers at an address beyond this machine.
fn reach(elsewhere: Option<String>, has_tls: bool) -> Finding {
    match elsewhere {
        None => Finding::ok(REACH, "only this machine can connect to it"),
        Some(address) if has_tls => Finding::warn(
            REACH,
            format!("it can be reached beyond this machine, at {address}"),
            "let a firewall admit only the networks of those who manage",
        ),
        Some(address) => Finding::bad(
            REACH,
            format!("it can be reached beyond this machine without TLS, at {address}"),
            "listen on 127.0.0.1 or a Unix socket, or use --tls-cert and --tls-key",
        ),
    }
}

/// An address of this machine that others can reach, if the port of the listener is open there, too.
async fn other_address(url: &str) -> Option<String> {
    let port = host_and_port(url).1.parse().ok()?;
    for address in own_addresses().await {
        let connecting = TcpStream::connect(SocketAddr::new(address, port));
        if matches!(timeout(ACCEPTS_WITHIN, connecting).await, Ok(Ok(_))) {
            return Some(SocketAddr::new(address, port).to_string());
        }
    }
    None
}

/// The addresses from which this machine would send to others. Nothing is sent.
async fn own_addresses() -> Vec<IpAddr> {
    // Reserved for documentation (RFC 5737, RFC 3849): no machine has them.
    let away: [(IpAddr, IpAddr); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    ];
    let mut own = Vec::new();
    for (any, other) in away {
        let Ok(socket) = UdpSocket::bind((any, 0)).await else { continue };
        if socket.connect((other, 9)).await.is_ok()
            && let Ok(address) = socket.local_addr()
            && !address.ip().is_loopback()
        {
            own.push(address.ip());
        }
    }
    own
}

/// Examines whether it is `manage`, and rejects requests without a key.
async fn answers(url: &str, args: &TlsArgs) -> Finding {
    let remedy = "start manage there, or correct --target and --ca";
    let url: Uri = match url.parse() {
        Ok(url) => url,
        Err(error) => return Finding::bad(ANSWERS, format!("{url}: {error}"), remedy),
    };
    let server = Server { url: url.clone(), ca: args.ca.as_deref() };
    match http::send(&server, &Method::GET, "/v1/whoami", &[]).await {
        Err(why) => Finding::bad(ANSWERS, format!("{url}: {why}"), remedy),
        Ok(answer) if answer.status == 401 && answer.header("www-authenticate") == Some("Bearer") => {
            Finding::ok(ANSWERS, format!("{url} refuses a request without a management key"))
        }
        Ok(answer) => {
            let what = format!("{url} answers {} to a request without a management key", answer.status);
            Finding::bad(ANSWERS, what, "check that this is manage, and not a listener of serve or of Envoy")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostics::Level;

    #[test]
    fn beyond_this_machine_without_tls_is_a_fault() {
        let levels = [
            (None, false),
            (None, true),
            (Some("192.0.2.7:1".to_owned()), true),
            (Some("192.0.2.7:1".to_owned()), false),
        ]
        .map(|(elsewhere, tls)| reach(elsewhere, tls).level);
        assert_eq!(levels, [Level::Ok, Level::Ok, Level::Warn, Level::Bad]);
    }
}

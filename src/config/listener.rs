//! The options of `serve` about connections.
//!
//! Each limit protects against something; its help text says what.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::Mistakes;
use super::address::{address, conflict, reaches_beyond_here, same_socket};
use crate::duration;
use crate::invalid::InvalidValue;
use crate::server::{ListenAddress, ListenOptions, Protocol, Tls, TlsFiles};
use crate::transport::Limits;

/// The options about connections, as typed.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Listeners")]
pub struct ListenerArgs {
    /// The address for Envoy's Checks: HOST:PORT or `unix:/path`. Repeatable
    #[arg(long, env = "TENANTGATE_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:50051")]
    pub listen: Vec<String>,

    /// The certificate chain for TCP listeners (PEM); needs --tls-key. Reloaded when the file changes
    #[arg(long, env = "TENANTGATE_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// The private key of --tls-cert (PEM)
    #[arg(long, env = "TENANTGATE_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Reject TCP clients without a certificate of this authority (PEM)
    #[arg(long, env = "TENANTGATE_CLIENT_CA", value_name = "FILE")]
    pub client_ca: Option<PathBuf>,

    /// Reject client certificates without this exact name (DNS or URI, such as a SPIFFE id); needs --client-ca.
    /// Repeatable: one of the names is sufficient
    #[arg(long, env = "TENANTGATE_CLIENT_SAN", value_name = "NAME")]
    pub client_san: Vec<String>,

    /// The mode of Unix sockets
    #[arg(long, env = "TENANTGATE_UNIX_MODE", value_name = "OCTAL", default_value = "0660")]
    pub unix_mode: String,

    /// Reject clients of a Unix socket that run as another user than this one. Repeatable
    #[arg(long, env = "TENANTGATE_UNIX_PEER_UID", value_name = "UID")]
    pub unix_peer_uid: Vec<String>,

    /// The Unix socket for the module inside Envoy, `unix:/path`: shared memory with what is proven, so that Envoy need
    /// not ask. For this user, root and those of --unix-peer-uid
    #[arg(long, env = "TENANTGATE_PUBLISH", value_name = "ADDRESS")]
    pub publish: Option<String>,

    /// The number of threads that answer Checks [default: one for each core]
    #[arg(long, env = "TENANTGATE_WORKERS", value_name = "N")]
    pub workers: Option<String>,

    /// What a client may take.
    #[command(flatten)]
    pub limits: ListenLimitArgs,
}

/// What a client may take.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub struct ListenLimitArgs {
    /// The size limits of a call.
    #[command(flatten)]
    pub size: SizeArgs,

    /// The maximum number of connections: each takes a file descriptor and about 50 KB, used or not
    #[arg(long, env = "TENANTGATE_MAX_CONNECTIONS", value_name = "N", default_value = "4096")]
    pub max_connections: String,

    /// Bytes that all calls together may hold while they wait: for the rest of their message, for a proof, or for
    /// their client to take the response. Beyond it a call gets 503
    #[arg(long, env = "TENANTGATE_MAX_PENDING_BYTES", value_name = "BYTES", default_value = "268435456")]
    pub max_pending_bytes: String,

    /// The maximum duration of a call, even if its caller would wait longer: a key that is not proven by then gets 503
    #[arg(long, env = "TENANTGATE_REQUEST_TIMEOUT", value_name = "DURATION", default_value = "10s")]
    pub request_timeout: String,

    /// The maximum duration of the TLS and HTTP/2 handshakes of a client
    #[arg(long, env = "TENANTGATE_HANDSHAKE_TIMEOUT", value_name = "DURATION", default_value = "5s")]
    pub handshake_timeout: String,

    /// The interval between keepalive pings to a client
    #[arg(long, env = "TENANTGATE_KEEPALIVE_INTERVAL", value_name = "DURATION", default_value = "25s")]
    pub keepalive_interval: String,

    /// How long a client may take to answer a ping before its connection is closed
    #[arg(long, env = "TENANTGATE_KEEPALIVE_TIMEOUT", value_name = "DURATION", default_value = "10s")]
    pub keepalive_timeout: String,

    /// The maximum age of a connection, varied by a tenth; then its client must open another one, so that a new
    /// server gets its share
    #[arg(long, env = "TENANTGATE_MAX_CONNECTION_AGE", value_name = "DURATION", default_value = "30m")]
    pub max_connection_age: String,

    /// How long running calls may continue after that
    #[arg(long, env = "TENANTGATE_MAX_CONNECTION_AGE_GRACE", value_name = "DURATION", default_value = "30s")]
    pub max_connection_age_grace: String,
}

/// The size limits of a call. They must be the same for `serve` and `doctor`.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub struct SizeArgs {
    /// Bytes of the header list of a call; a longer one gets 503. Envoy copies trace headers of its clients into its
    /// calls, so keep it above Envoy's `max_request_headers_kb`
    #[arg(long, env = "TENANTGATE_MAX_HEADER_BYTES", value_name = "BYTES", default_value = "10485760")]
    pub max_header_bytes: String,

    /// Bytes of a message; a larger one gets 503. It holds the request's headers and, with `with_request_body`, its
    /// body: keep it above the sum of Envoy's `max_request_headers_kb` and `max_request_bytes`
    #[arg(long, env = "TENANTGATE_MAX_MESSAGE_BYTES", value_name = "BYTES", default_value = "16777216")]
    pub max_message_bytes: String,
}

impl SizeArgs {
    /// Returns the maximum bytes of a header list and of a message.
    pub(super) fn read(&self, mistakes: &mut Mistakes) -> (u32, u32) {
        let mut count = |option: &'static str, text: &str, range: RangeInclusive<u32>| {
            mistakes.note(option, number(text, range)).unwrap_or_default()
        };
        (
            count("--max-header-bytes", &self.max_header_bytes, 1_024..=64 << 20),
            count("--max-message-bytes", &self.max_message_bytes, 4_096..=256 << 20),
        )
    }
}

impl ListenerArgs {
    /// Returns the options and records mistakes.
    pub(super) fn read(&self, mistakes: &mut Mistakes) -> ListenOptions {
        let tls = self.tls(mistakes);
        let uids = self.unix_peer_uid.iter();
        let unix_peers =
            uids.filter_map(|uid| mistakes.note("--unix-peer-uid", number(uid, 0..=u32::MAX - 1))).collect();
        let workers = self.workers.as_ref().map(|n| mistakes.note("--workers", number(n, 1..=1_024)));
        let connections =
            mistakes.note("--max-connections", number(&self.limits.max_connections, 1..=1_000_000));
        ListenOptions {
            listen: self.addresses(mistakes),
            tls,
            unix_mode: mistakes.note("--unix-mode", mode(&self.unix_mode)).unwrap_or_default(),
            unix_peers,
            connections: connections.unwrap_or_default(),
            workers: workers.flatten().unwrap_or_default(),
            limits: self.limits(mistakes),
            publish: self.publish(mistakes),
        }
    }

    fn addresses(&self, mistakes: &mut Mistakes) -> Vec<ListenAddress> {
        if self.listen.is_empty() {
            mistakes.add("--listen", "at least one address is needed");
        }
        let all: Vec<_> =
            self.listen.iter().filter_map(|text| mistakes.note("--listen", address(text))).collect();
        for (at, one) in all.iter().enumerate() {
            let before = &all[..at];
            let taken = match one {
                ListenAddress::Tcp(text) => before.iter().find_map(|other| conflict(other, text)),
                ListenAddress::Unix(path) => before
                    .iter()
                    .any(|other| same_socket(other, path))
                    .then(|| format!("unix:{}", path.display())),
            };
            if let Some(taken) = taken {
                mistakes.add("--listen", format!("{taken} is given twice: remove one of them"));
            }
        }
        all
    }

    fn publish(&self, mistakes: &mut Mistakes) -> Option<PathBuf> {
        let address = mistakes.note("--publish", address(self.publish.as_deref()?))?;
        let listened = || self.listen.iter().filter_map(|text| self::address(text).ok());
        match address {
            ListenAddress::Unix(path) if !listened().any(|other| same_socket(&other, &path)) => {
                return Some(path);
            }
            ListenAddress::Unix(_) => {
                mistakes.add("--publish", "--listen uses this socket: choose another path");
            }
            ListenAddress::Tcp(_) => {
                mistakes.add(
                    "--publish",
                    "expected unix:/path, because memory is shared with this machine alone",
                );
            }
        }
        None
    }

    fn limits(&self, mistakes: &mut Mistakes) -> Limits {
        let mut span =
            |option: &'static str, text: &str| mistakes.note(option, positive(text)).unwrap_or_default();
        let call = span("--request-timeout", &self.limits.request_timeout);
        let handshake = span("--handshake-timeout", &self.limits.handshake_timeout);
        let interval = span("--keepalive-interval", &self.limits.keepalive_interval);
        let keepalive = (interval, span("--keepalive-timeout", &self.limits.keepalive_timeout));
        let age = span("--max-connection-age", &self.limits.max_connection_age);
        let grace = span("--max-connection-age-grace", &self.limits.max_connection_age_grace);
        let pending =
            mistakes.note("--max-pending-bytes", number(&self.limits.max_pending_bytes, 1 << 20..=u32::MAX));
        let (header_list, message) = self.limits.size.read(mistakes);
        Limits {
            header_list,
            message: message as usize,
            pending: pending.unwrap_or_default() as usize,
            handshake,
            call,
            keepalive,
            age,
            grace,
        }
    }

    /// Loads TLS, if it is enabled.
    fn tls(&self, mistakes: &mut Mistakes) -> Option<Tls> {
        if !self.client_san.is_empty() && self.client_ca.is_none() {
            mistakes.add("--client-san", "needs --client-ca, which authenticates certificates");
        }
        match (&self.tls_cert, &self.tls_key, &self.client_ca) {
            (Some(cert), Some(key), client_ca) => {
                let files = TlsFiles {
                    cert: cert.clone(),
                    key: key.clone(),
                    client_ca: client_ca.clone(),
                    client_sans: self.client_san.clone(),
                    protocol: Protocol::Http2,
                };
                mistakes.note("--tls-cert", Tls::load(files))
            }
            (None, None, None) => None,
            (Some(_), None, _) => mistakes.note("--tls-cert", Err("needs --tls-key")),
            (None, Some(_), _) => mistakes.note("--tls-key", Err("needs --tls-cert")),
            (None, None, Some(_)) => mistakes.note("--client-ca", Err("needs --tls-cert and --tls-key")),
        }
    }

    /// Returns warnings about settings that are valid but risky.
    pub(super) fn remarks(&self) -> Vec<String> {
        let open = self.listen.iter().filter(|text| self.client_ca.is_none() && reaches_beyond_here(text));
        let why = if self.tls_cert.is_some() {
            "without --client-ca, every client that can connect can guess keys"
        } else {
            "without TLS, keys can be read on the network, and every client that can connect can guess keys: use --tls-cert, --tls-key and --client-ca"
        };
        open.map(|address| format!("{address} is reachable from other machines: {why}")).collect()
    }
}

pub(super) fn number<T: FromStr + PartialOrd + Display>(
    text: &str,
    range: RangeInclusive<T>,
) -> Result<T, InvalidValue> {
    let fine = text.parse().ok().filter(|number| range.contains(number));
    fine.ok_or_else(|| {
        format!("invalid number {text:?}: expected a whole number from {} to {}", range.start(), range.end())
            .into()
    })
}

pub(super) fn mode(text: &str) -> Result<u32, InvalidValue> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777 && !text.starts_with('+'));
    mode.ok_or_else(|| format!("invalid mode {text:?}: expected an octal number, such as 0660").into())
}

fn positive(text: &str) -> Result<Duration, InvalidValue> {
    let span = duration::parse(text)?;
    if span.is_zero() { Err(format!("{text} is too short").into()) } else { Ok(span) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_modes_are_within_their_bounds() {
        assert_eq!(number("7", 1..=9), Ok(7));
        for bad in ["0", "10", "-1", "", "x", "1.5", " 7"] {
            assert!(number(bad, 1..=9).is_err(), "{bad:?}");
        }
        assert_eq!((mode("0660"), mode("600")), (Ok(0o660), Ok(0o600)));
        for bad in ["", "0888", "+660", "1777", "rw"] {
            assert!(mode(bad).is_err(), "{bad:?}");
        }
        assert!(positive("0s").is_err() && positive("1ms").is_ok());
    }
}

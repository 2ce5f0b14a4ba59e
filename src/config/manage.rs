//! The options of `manage`.

use std::path::{Path, PathBuf};

use super::address::{address, check_sockets, conflict, reaches_beyond_here, same_socket, tcp_address};
use super::listener::{mode, number};
use super::{Logging, Mistakes, log_filter};
use crate::invalid::InvalidValue;
use crate::permission::Role;
use crate::server::{ListenAddress, Protocol, Tls, TlsFiles};
use crate::telemetry::LogFormat;
use crate::verify::memo::{MemoPolicy, Peppers};

/// The options of `manage` as typed.
#[derive(clap::Args, Clone, Debug)]
pub struct ManageArgs {
    /// The address for management: HOST:PORT, such as 127.0.0.1:9465, or `unix:/path`. One that other machines can reach
    /// needs --tls-cert and --tls-key. Repeatable
    #[arg(
        long,
        env = "TENANTGATE_MANAGE_LISTEN",
        value_name = "ADDRESS",
        value_delimiter = ',',
        default_value = "127.0.0.1:9465"
    )]
    pub listen: Vec<String>,

    /// The certificate chain for TCP listeners (PEM); needs --tls-key. Reloaded when the file changes
    #[arg(long, env = "TENANTGATE_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// The private key of --tls-cert (PEM)
    #[arg(long, env = "TENANTGATE_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// The mode of Unix sockets
    #[arg(long, env = "TENANTGATE_UNIX_MODE", value_name = "OCTAL", default_value = "0660")]
    pub unix_mode: String,

    /// Processes of this user need no management key on a Unix socket, and have this role: owner, operator or viewer.
    /// Repeatable
    #[arg(long, env = "TENANTGATE_TRUST_UID", value_name = "UID=ROLE", value_delimiter = ',')]
    pub trust_uid: Vec<String>,

    /// The address of /livez, /readyz and /metrics over HTTP
    #[arg(
        long,
        env = "TENANTGATE_MANAGE_OPS_LISTEN",
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:9466"
    )]
    pub ops_listen: String,

    /// The log filter, such as `debug` or `info,tenantgate=debug`
    #[arg(long, env = "TENANTGATE_LOG_LEVEL", value_name = "FILTER", default_value = "info")]
    pub log_level: String,

    /// The format of log lines
    #[arg(long, env = "TENANTGATE_LOG_FORMAT", value_name = "text|json", default_value = "text")]
    pub log_format: String,

    /// The file with the peppers for memos.
    #[command(flatten)]
    pub pepper: super::PepperArgs,

    /// Check all options, report every mistake, and exit. Binds no address, so that it can run beside a server
    #[arg(long)]
    pub check_config: bool,
}

/// The parsed options of `manage`.
pub struct ManageOptions {
    /// The addresses for management.
    pub listen: Vec<ListenAddress>,
    /// The mode of Unix sockets.
    pub unix_mode: u32,
    /// TLS for TCP listeners.
    pub tls: Option<Tls>,
    /// Users of this machine and their roles, on Unix sockets.
    pub trusted: Vec<(u32, Role)>,
    /// The address for operators.
    pub ops_listen: String,
    /// The peppers for memos of new keys.
    pub peppers: Peppers,
}

impl ManageArgs {
    /// Reads the options.
    ///
    /// # Errors
    ///
    /// The error lists all mistakes.
    pub fn read(&self) -> Result<(ManageOptions, Logging), Mistakes> {
        let mut mistakes = Mistakes::default();
        let listen = self.addresses(&mut mistakes);
        let tls = self.tls(&mut mistakes);
        let trusted = self.trusted(&listen, &mut mistakes);
        let unix_mode = mistakes.note("--unix-mode", mode(&self.unix_mode)).unwrap_or_default();
        let ops_listen = mistakes.note("--ops-listen", tcp_address(&self.ops_listen)).unwrap_or_default();
        if let Some(taken) = listen.iter().find_map(|one| conflict(one, &ops_listen)) {
            mistakes.add("--ops-listen", format!("{taken} is an address of --listen: choose another one"));
        }
        if self.check_config {
            check_sockets("--listen", ListenAddress::sockets(&listen), &mut mistakes);
        }
        let peppers = mistakes.note("--pepper-file", self.pepper.read(MemoPolicy::default()));
        let filter = mistakes.note("--log-level", log_filter(&self.log_level)).unwrap_or_default();
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        let format = mistakes.one_of("--log-format", &self.log_format, &formats);
        if !mistakes.0.is_empty() {
            return Err(mistakes);
        }
        let options = ManageOptions {
            listen,
            unix_mode,
            tls,
            trusted,
            ops_listen,
            peppers: peppers.unwrap_or_default(),
        };
        Ok((options, Logging { filter, format }))
    }

    fn addresses(&self, mistakes: &mut Mistakes) -> Vec<ListenAddress> {
        let mut listen: Vec<ListenAddress> = Vec::new();
        for text in &self.listen {
            let Some(one) = mistakes.note("--listen", address(text)) else { continue };
            if reaches_beyond_here(text) && self.tls_cert.is_none() {
                mistakes.add(
                    "--listen",
                    format!(
                        "other machines can reach {text}, and management keys would travel in plain text: \
                     give --tls-cert and --tls-key, or listen on 127.0.0.1 or a Unix socket"
                    ),
                );
            }
            let taken = match &one {
                ListenAddress::Tcp(text) => listen.iter().find_map(|other| conflict(other, text)),
                ListenAddress::Unix(path) => {
                    listen.iter().any(|other| same_socket(other, path)).then(|| shown(path))
                }
            };
            if let Some(taken) = taken {
                mistakes.add("--listen", format!("{taken} is given twice: remove one of them"));
            }
            listen.push(one);
        }
        listen
    }

    fn tls(&self, mistakes: &mut Mistakes) -> Option<Tls> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => {
                let files = TlsFiles {
                    cert: cert.clone(),
                    key: key.clone(),
                    client_ca: None,
                    client_sans: Vec::new(),
                    protocol: Protocol::Http1,
                };
                mistakes.note("--tls-cert", Tls::load(files))
            }
            (None, None) => None,
            (Some(_), None) => mistakes.note("--tls-cert", Err("needs --tls-key")),
            (None, Some(_)) => mistakes.note("--tls-key", Err("needs --tls-cert")),
        }
    }

    fn trusted(&self, listen: &[ListenAddress], mistakes: &mut Mistakes) -> Vec<(u32, Role)> {
        let read = |text: &String| {
            let (uid, role) = text.split_once('=').ok_or("expected UID=ROLE, such as 1000=operator")?;
            Ok::<_, InvalidValue>((number(uid, 0..=u32::MAX - 1)?, Role::parse(role)?))
        };
        let all: Vec<_> =
            self.trust_uid.iter().filter_map(|text| mistakes.note("--trust-uid", read(text))).collect();
        let socket = listen.iter().any(|address| matches!(address, ListenAddress::Unix(_)));
        if !self.trust_uid.is_empty() && !socket {
            let why = "needs a Unix socket, because only there the system tells the user of a client: add --listen unix:/path";
            mistakes.add("--trust-uid", why);
        }
        for (at, (uid, _)) in all.iter().enumerate() {
            if all[..at].iter().any(|(other, _)| other == uid) {
                mistakes.add("--trust-uid", format!("{uid} is given twice: give it one role"));
            }
        }
        all
    }
}

fn shown(path: &Path) -> String {
    format!("unix:{}", path.display())
}

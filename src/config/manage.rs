//! The options of `manage`.

use std::path::Path;

use super::listener::{address, conflict};
use super::{Logging, Mistakes, PepperArgs, log_filter};
use crate::server::Address;
use crate::telemetry::LogFormat;

/// The options of `manage` as typed.
#[derive(clap::Args, Clone, Debug)]
pub struct ManageArgs {
    /// The address for management: HOST:PORT of this machine, such as 127.0.0.1:9465, or `unix:/path` (mode 0660).
    /// Repeatable
    #[arg(
        long,
        env = "TENANTGATE_MANAGE_LISTEN",
        value_name = "ADDRESS",
        value_delimiter = ',',
        default_value = "127.0.0.1:9465"
    )]
    pub listen: Vec<String>,

    /// The peppers, by which a request that is sent again shows its new key again.
    #[command(flatten)]
    pub pepper: PepperArgs,

    /// What to log: error, warn, info, debug, trace, or target=level,…
    #[arg(long, env = "TENANTGATE_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,

    /// The format of log lines
    #[arg(long, env = "TENANTGATE_LOG_FORMAT", value_name = "text|json", default_value = "text")]
    pub log_format: String,

    /// Check all options, then exit
    #[arg(long)]
    pub check_config: bool,
}

impl ManageArgs {
    /// Reads the options.
    ///
    /// # Errors
    ///
    /// All mistakes.
    pub fn read(&self) -> Result<(Vec<Address>, Logging), Mistakes> {
        let mut mistakes = Mistakes::default();
        let mut listen: Vec<Address> = Vec::new();
        for text in &self.listen {
            let Some(one) = mistakes.note("--listen", address(text).and_then(on_this_machine)) else {
                continue;
            };
            let taken = match &one {
                Address::Tcp(text) => listen.iter().find_map(|other| conflict(other, text)),
                Address::Unix(path) => listen.contains(&one).then(|| shown(path)),
            };
            if let Some(taken) = taken {
                mistakes.0.push(format!("--listen: {taken} is given twice: remove one of them"));
            }
            listen.push(one);
        }
        let filter = mistakes.note("--log-level", log_filter(&self.log_level)).unwrap_or_default();
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        let format = mistakes.one_of("--log-format", &self.log_format, &formats);
        if mistakes.0.is_empty() { Ok((listen, Logging { filter, format })) } else { Err(mistakes) }
    }
}

fn shown(path: &Path) -> String {
    format!("unix:{}", path.display())
}

/// Management keys travel in plain text here, so they must not leave the machine.
fn on_this_machine(address: Address) -> Result<Address, String> {
    let Address::Tcp(text) = &address else { return Ok(address) };
    let host = text.rsplit_once(':').map_or("", |(host, _)| host);
    let plain = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = plain.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()) || plain == "localhost";
    if loopback {
        Ok(address)
    } else {
        Err(format!(
            "{text} can be reached from other machines, and management keys would travel in plain text: \
             listen on 127.0.0.1 or a Unix socket, and put a proxy with TLS in front"
        ))
    }
}

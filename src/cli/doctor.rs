//! The command `doctor`: checks everything that `serve` relies on.
//!
//! Each adapter examines what it knows, and each finding becomes one line: severity, what was found, what to do.
//! Nothing is changed.
//!
//! ```text
//! database   store::inspect      rows, peppers   a complete load, as a server does it
//! listener   one Check, health, reflection, the certificate
//! manage     the certificate, who can connect, one request without a key
//! envoy      its admin page; requests through it
//! ```

mod listener;
mod manage;
mod rows;
mod tls;

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::http::Uri;
use serde::Serialize;
use tokio::net::TcpListener;
use zeroize::Zeroizing;

use self::rows::RowCounts;
use super::explain::read_key;
use super::target::{Target, TlsArgs, target};
use super::view::{Text, plain};
use super::{CommandSession, Failure, one_line, open_admin};
use crate::client_address::parse_address;
use crate::clock::{Clock, SystemClock};
use crate::config::{self, ExchangeArgs, JudgementArgs, SizeArgs};
use crate::diagnostics::{Finding, Level};
use crate::envoy::probe::Probe;
use crate::envoy::{ExpectedConfig, admin, http};
use crate::ext_authz::header::DECISION_ID_HEADER;
use crate::ext_authz::rejection::OUTSIDE_NETWORKS;
use crate::ext_authz::service::SERVICE_NAME;
use crate::key::format::parse;
use crate::route::RouteTable;
use crate::store::StoreError;
use crate::store::inspect::{Inspect, Purpose};
use crate::verify::memo::Peppers;

/// The options of `doctor`.
#[derive(clap::Args, Clone)]
pub(crate) struct DoctorArgs {
    /// Check the database role for `manage` instead of that for `serve`, and with --target the listener of `manage`: its TLS,
    /// and who can reach it
    #[arg(long, conflicts_with_all = ["envoy_admin", "envoy"])]
    manage: bool,
    /// Also check this server: HOST:PORT, `https://HOST:PORT` or `unix:/path`
    #[arg(long, value_name = "ADDR", value_parser = target)]
    target: Option<Target>,
    /// Also check the Envoy with this admin page: HOST:PORT
    #[arg(long, value_name = "ADDR", value_parser = http::address)]
    envoy_admin: Option<Uri>,
    /// Also send requests through this Envoy: `http://HOST:PORT` or `https://HOST:PORT`
    #[arg(long, value_name = "URL", value_parser = http::address)]
    envoy: Option<Uri>,
    /// The file with a valid key, or `-` for standard input, to check what arrives behind Envoy
    #[arg(long, value_name = "FILE", requires = "envoy")]
    key_file: Option<PathBuf>,
    /// The path of requests through Envoy: not a public one, and with --key-file one whose upstream echoes its request
    #[arg(long, value_name = "P", default_value = "/tenantgate-doctor", requires = "envoy")]
    path: String,
    /// Listen on this address as the upstream of a route of Envoy, and check what arrives
    #[arg(long, value_name = "HOST:PORT", requires = "key_file")]
    sink: Option<String>,
    /// The file with a valid key that is limited to networks without this machine, to check that no header of a client
    /// makes it appear to be in them
    #[arg(long, value_name = "FILE", requires = "envoy")]
    limited_key_file: Option<PathBuf>,
    /// The TLS options.
    #[command(flatten)]
    tls: TlsArgs,
    /// Options that must be the same as for `serve`
    #[command(flatten)]
    pub(crate) judgement: JudgementArgs,
    /// What the server reads from Envoy, and what it tells upstreams
    #[command(flatten)]
    pub(crate) exchange: ExchangeArgs,
    /// The size limits of the server
    #[command(flatten)]
    size: SizeArgs,
}

/// All findings.
pub(super) struct DoctorReport {
    findings: Vec<Finding>,
    /// Whether the database was not reachable.
    no_database: bool,
}

impl DoctorReport {
    /// The result of the command.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        let bad = self.findings.iter().any(|finding| finding.level == Level::Bad);
        match (self.no_database, bad) {
            (true, _) => Err(Failure { code: 3, lines: Vec::new(), locked: false }),
            (false, true) => Err(Failure::denied()),
            (false, false) => Ok(()),
        }
    }
}

/// Examines everything that the arguments name.
pub(super) async fn examine(args: &DoctorArgs, by: &CommandSession) -> Result<DoctorReport, Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mut report = DoctorReport { findings: Vec::new(), no_database: false };
    let peppers = pepper_file(args, &mut report.findings)?;
    let store = config::inspected(&by.database, by.actor.clone())
        .map_err(|why| Failure::usage(format!("{}: {why}", by.database.option())))?;
    let purpose = if args.manage { Purpose::Manage } else { Purpose::Serve };
    match database(store.as_ref(), clock.as_ref(), peppers.as_ref(), purpose).await {
        Ok(findings) => report.findings.extend(findings),
        Err(error) => {
            report.no_database = matches!(error, StoreError::Unavailable(_));
            let remedy = match error {
                StoreError::Credentials(_) => "correct the role or its password where the error says",
                _ => "start the database, or correct --database-url",
            };
            report.findings.push(Finding::bad("database.reachable", error.to_string(), remedy));
        }
    }
    if let Some(target) = &args.target {
        report.findings.extend(if args.manage {
            manage::examine(target, &args.tls, clock.as_ref()).await
        } else {
            listener::examine(target, &args.tls, clock.as_ref()).await?
        });
    }
    // Without the database, only this warning is missing.
    let routes =
        if args.envoy_admin.is_some() { store.routes().await.unwrap_or_default() } else { Vec::new() };
    let rules_of_hosts = RouteTable::of(&routes).has_hosts();
    report.findings.extend(Box::pin(envoy(args, by, rules_of_hosts)).await?);
    Ok(report)
}

/// Examines Envoy, as far as its addresses are given.
async fn envoy(
    args: &DoctorArgs,
    by: &CommandSession,
    rules_of_hosts: bool,
) -> Result<Vec<Finding>, Failure> {
    let key_header = args.judgement.key_header.to_ascii_lowercase();
    let (header_bytes, message_bytes) = config::sizes(&args.size)?;
    let (client_address, identity) = config::exchange(&args.exchange, &key_header)?;
    let names: Vec<_> = identity.names().collect();
    let always: Vec<_> =
        identity.iter().filter(|(field, _)| field.is_always_set()).map(|(_, name)| name).collect();
    let expected = ExpectedConfig {
        identity: &names,
        always: &always,
        client_address: &client_address,
        outside: OUTSIDE_NETWORKS,
        key_header: &key_header,
        bearer: args.judgement.accept_bearer,
        health_service: SERVICE_NAME,
        decision_id: DECISION_ID_HEADER,
        rules_of_hosts: rules_of_hosts && args.judgement.routing.route_default != "deny",
        header_bytes: header_bytes.into(),
        message_bytes: message_bytes.into(),
    };
    let server = |url: &Uri| http::Server { url: url.clone(), ca: args.tls.ca.as_deref() };
    let mut findings = Vec::new();
    if let Some(url) = &args.envoy_admin {
        findings.extend(admin::examine(&server(url), &expected).await);
    }
    let Some(url) = &args.envoy else { return Ok(findings) };
    let key = args.key_file.as_deref().map(|file| read_key("--key-file", file)).transpose()?;
    let limited = match &args.limited_key_file {
        Some(file) => Some(limited_key(file, by).await?),
        None => None,
    };
    let sink = match &args.sink {
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .map_err(|e| Failure::unavailable(format!("--sink {address}: {e}")))?,
        ),
        None => None,
    };
    let key = key.as_ref().map(|key| key.as_str());
    let limited = limited.as_ref().map(|(key, inside)| (key.as_str(), *inside));
    let probe = Probe { server: server(url), path: &args.path, key, limited, sink };
    findings.extend(probe.examine(&expected).await);
    Ok(findings)
}

/// Reads a key that is limited to networks, and returns an address in the first of them.
async fn limited_key(file: &Path, by: &CommandSession) -> Result<(Zeroizing<String>, IpAddr), Failure> {
    const OPTION: &str = "--limited-key-file";
    let key = read_key(OPTION, file)?;
    let wrong = |why: &str| Failure::usage(format!("{OPTION} {}: {why}", file.display()));
    let prefix =
        parse(key.as_bytes()).map_err(|why| wrong(&format!("the key is malformed: it {why}")))?.prefix();
    let admin = open_admin(by, Peppers::default()).await?;
    let networks = admin.key(prefix).await?.terms.networks;
    let first = networks.iter().flat_map(|text| text.split([' ', '/'])).next();
    let inside = first.and_then(|address| parse_address(address.as_bytes()));
    Ok((
        key,
        inside.ok_or_else(|| {
            wrong("the key has no networks: set them with `tenantgate key update --networks`")
        })?,
    ))
}

async fn database(
    store: &dyn Inspect,
    clock: &dyn Clock,
    peppers: Option<&Peppers>,
    purpose: Purpose,
) -> Result<Vec<Finding>, StoreError> {
    let mut findings = store.examine(clock, purpose).await?;
    let loadable =
        findings.iter().all(|finding| finding.level != Level::Bad || finding.check == "database.triggers");
    let schema = findings.iter().find(|finding| finding.check == "database.schema");
    if purpose == Purpose::Serve && loadable && schema.is_some_and(|schema| schema.level == Level::Ok) {
        findings.extend(RowCounts::load(store).await?.findings(peppers));
    }
    Ok(findings)
}

/// Reads the peppers. An invalid file is a finding; invalid options are a usage error.
fn pepper_file(args: &DoctorArgs, findings: &mut Vec<Finding>) -> Result<Option<Peppers>, Failure> {
    const CHECK: &str = "pepper.file";
    let Some(path) = &args.judgement.pepper.pepper_file else {
        return Ok(config::judgement(&args.judgement).map(|(_, peppers)| Some(peppers))?);
    };
    let mode = std::fs::metadata(path).map_or(0, |meta| meta.permissions().mode());
    match config::judgement(&args.judgement) {
        Err(mistakes) => {
            let (pepper, other): (Vec<_>, Vec<_>) =
                mistakes.0.into_iter().partition(|mistake| mistake.option == "--pepper-file");
            if !other.is_empty() {
                return Err(config::Mistakes(other).into());
            }
            let remedy = "correct the file, or create one with `tenantgate pepper new FILE`";
            findings.extend(pepper.iter().map(|mistake| Finding::bad(CHECK, mistake.to_string(), remedy)));
            Ok(None)
        }
        Ok((_, peppers)) => {
            let count = peppers.list().len();
            findings.push(if mode & 0o007 != 0 {
                let what = format!("all users of this machine can read {}", path.display());
                Finding::warn(CHECK, what, format!("chmod 0400 {}", path.display()))
            } else {
                Finding::ok(CHECK, format!("{count} peppers, readable only by owner and group"))
            });
            Ok(Some(peppers))
        }
    }
}

#[derive(Serialize)]
struct FindingView<'a> {
    check: &'a str,
    level: &'static str,
    what: &'a str,
    remedy: Option<&'a str>,
}

impl Serialize for DoctorReport {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.findings.iter().map(|finding| FindingView {
            check: finding.check,
            level: finding.level.as_str(),
            what: &finding.what,
            remedy: finding.remedy.as_deref(),
        }))
    }
}

impl Text for DoctorReport {
    fn text(&self) -> String {
        let line = |finding: &Finding| {
            let remedy = finding.remedy.iter().map(|remedy| format!("; do: {remedy}"));
            let what: String = [finding.what.clone()].into_iter().chain(remedy).collect();
            let what = plain(&one_line(&what));
            format!("{:<4}  {:<22}  {what}", finding.level.as_str(), finding.check)
        };
        self.findings.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

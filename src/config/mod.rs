//! The options of `serve`, and their translation into the options of each module.
//!
//! All mistakes are collected, so that one run shows all of them. Only this module knows the spelling of options.

mod address;
mod args;
mod database;
mod listener;
mod manage;
mod mistakes;

use std::fmt;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use zeroize::Zeroizing;

use self::address::{check_sockets, conflict, tcp_address};
pub use self::args::{ExchangeArgs, JudgementArgs, ModeArgs, PepperArgs, RoutingArgs, ServeArgs};
pub use self::database::{Database, DatabaseArgs, inspected, management, store};
pub use self::listener::{ListenerArgs, SizeArgs};
pub use self::manage::{ManageArgs, ManageOptions};
pub use self::mistakes::{ConfigError, Mistakes};
use crate::audit::Actor;
use crate::client_address::ClientAddress;
use crate::ext_authz::response_fields::{IdentityHeaders, MetadataFields};
use crate::ext_authz::translate::{IDENTITY_HEADERS, OnUnavailable, ResponseOptions};
use crate::invalid::InvalidValue;
use crate::path::PathOptions;
use crate::replica::snapshot_file;
use crate::request::{AUTHORIZATION, PublicPaths};
use crate::server::{ListenAddress, ServerSettings};
use crate::telemetry::LogFormat;
use crate::tenant::Mode;
use crate::verify::memo::{MemoPolicy, Peppers};
use crate::verify::pepper::Pepper;
use crate::{duration, ext_authz, gate, policy, replica, request};

impl ExchangeArgs {
    fn read(&self, key_header: &str, mistakes: &mut Mistakes) -> (ClientAddress, IdentityHeaders) {
        let client_address = mistakes.note("--client-address", ClientAddress::parse(&self.client_address));
        (client_address.unwrap_or_default(), identity(&self.identity_header, key_header, mistakes))
    }
}

impl ModeArgs {
    fn read(&self, mistakes: &mut Mistakes) -> Mode {
        mistakes.one_of("--mode", &self.mode, &Mode::ALL.map(|mode| (mode.as_str(), mode)))
    }
}

impl PepperArgs {
    /// Reads the peppers; without a file there are none.
    ///
    /// # Errors
    ///
    /// The file cannot be read or is invalid. The error does not repeat its content.
    pub fn read(&self, policy: MemoPolicy) -> Result<Peppers, InvalidValue> {
        let Some(path) = &self.pepper_file else { return Ok(Peppers::new(Vec::new(), policy)) };
        let wrong = |why: &dyn fmt::Display| InvalidValue::from(format!("{} {why}", path.display()));
        let text =
            std::fs::read(path).map(Zeroizing::new).map_err(|e| wrong(&format!("cannot be read: {e}")))?;
        let text = std::str::from_utf8(&text).map_err(|_| wrong(&"is not UTF-8 text"))?;
        Ok(Peppers::new(Pepper::parse_all(text).map_err(|error| wrong(&error))?, policy))
    }
}

/// The options of logging.
#[derive(Debug)]
pub struct Logging {
    /// The filter.
    pub filter: EnvFilter,
    /// The format.
    pub format: LogFormat,
}

/// Reads the options of `serve`.
///
/// # Errors
///
/// The error lists all mistakes.
pub fn settings(
    args: &ServeArgs,
    database: &Database,
    actor: Actor,
) -> Result<(ServerSettings, Logging), Mistakes> {
    // A default replaces an invalid value, so that all other options are checked, too.
    let mut mistakes = Mistakes::default();
    let listen = args.listener.read(&mut mistakes);
    let ops_listen =
        mistakes.note("--ops-listen", tcp_address(&args.operation.ops_listen)).unwrap_or_default();
    if let Some(same) = listen.listen.iter().find_map(|address| conflict(address, &ops_listen)) {
        mistakes.add("--ops-listen", format!("{same} is used by --listen: choose another port"));
    }
    if args.check_config {
        check_sockets("--listen", ListenAddress::sockets(&listen.listen), &mut mistakes);
        check_sockets("--publish", &listen.publish, &mut mistakes);
    }
    let ext_authz = ext_authz_options(args, &mut mistakes);
    let policy = policy_options(&args.judgement.routing, &mut mistakes);
    let max_staleness =
        mistakes.note("--max-staleness", max_staleness(&args.sync.max_staleness)).unwrap_or_default();
    let interval =
        mistakes.note("--sync-interval", sync_interval(&args.sync.sync_interval)).unwrap_or_default();
    let keep_usage =
        mistakes.note("--usage-retention", usage_retention(&args.operation.usage_retention)).flatten();
    let mode = args.answers.mode.read(&mut mistakes);
    let peppers = peppers(&args.judgement, &mut mistakes);
    let snapshot_file = snapshot_file(args, max_staleness, &mut mistakes);
    let reflection =
        mistakes.one_of("--reflection", &args.operation.reflection, &[("on", true), ("off", false)]);
    let filter = mistakes.note("--log-level", log_filter(&args.operation.log_level)).unwrap_or_default();
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let format = mistakes.one_of("--log-format", &args.operation.log_format, &formats);
    let otlp_endpoint = args.operation.otlp_endpoint.as_deref().filter(|url| !url.is_empty());
    let otlp_endpoint = otlp_endpoint.and_then(|url| mistakes.note("--otlp-endpoint", collector(url)));
    let store = mistakes.note(database.option(), management(database, actor));
    let Some(store) = store.filter(|_| mistakes.0.is_empty()) else { return Err(mistakes) };
    let settings = ServerSettings {
        listen,
        ops_listen,
        reflection,
        ext_authz,
        gate: gate::GateOptions { max_staleness, mode, policy },
        sync: replica::sync::SyncOptions {
            interval,
            max_staleness,
            migrate: args.sync.migrate,
            ..replica::sync::SyncOptions::default()
        },
        prune: replica::prune::PruneOptions { keep_usage, ..replica::prune::PruneOptions::default() },
        otlp_endpoint,
        peppers,
        snapshot_file,
        remarks: args.remarks(),
        ..ServerSettings::on(store)
    };
    Ok((settings, Logging { filter, format }))
}

fn ext_authz_options(args: &ServeArgs, mistakes: &mut Mistakes) -> ext_authz::service::AuthorizationOptions {
    let request = request_options(&args.judgement, mistakes);
    let words = [("deny", OnUnavailable::Deny), ("error", OnUnavailable::Error)];
    let on_unavailable = mistakes.one_of("--on-unavailable", &args.answers.on_unavailable, &words);
    let (client_address, identity) = args.answers.exchange.read(&request.key_header, mistakes);
    let metadata = metadata(&args.answers.metadata, mistakes);
    ext_authz::service::AuthorizationOptions {
        response: ResponseOptions {
            key_header: request.key_header.clone(),
            keep_key_header: args.answers.keep_key_header,
            on_unavailable,
            identity,
            metadata,
        },
        request,
        client_address,
    }
}

/// Reads what is read from Envoy and told to it.
///
/// # Errors
///
/// All mistakes.
pub fn exchange(args: &ExchangeArgs, key_header: &str) -> Result<(ClientAddress, IdentityHeaders), Mistakes> {
    let mut mistakes = Mistakes::default();
    let exchange = args.read(key_header, &mut mistakes);
    if mistakes.0.is_empty() { Ok(exchange) } else { Err(mistakes) }
}

/// Reads the options that decide about a request.
///
/// # Errors
///
/// The error lists all mistakes.
pub fn judgement(args: &JudgementArgs) -> Result<(request::RequestOptions, Peppers), Mistakes> {
    let mut mistakes = Mistakes::default();
    let judgement = (request_options(args, &mut mistakes), peppers(args, &mut mistakes));
    if mistakes.0.is_empty() { Ok(judgement) } else { Err(mistakes) }
}

/// Reads the size limits of a call: the bytes of its header list and of its message.
///
/// # Errors
///
/// The error lists all mistakes.
pub fn sizes(args: &SizeArgs) -> Result<(u32, u32), Mistakes> {
    let mut mistakes = Mistakes::default();
    let sizes = args.read(&mut mistakes);
    if mistakes.0.is_empty() { Ok(sizes) } else { Err(mistakes) }
}

/// Reads which requests need a key, and how they are matched with rules.
///
/// # Errors
///
/// As for [`judgement`].
pub fn routing(args: &RoutingArgs) -> Result<(request::RequestOptions, policy::PolicyOptions), Mistakes> {
    let mut mistakes = Mistakes::default();
    let (public, preflight) = (public(&args.public, &mut mistakes), args.public_preflight);
    let reading = request::RequestOptions { public, preflight, ..request::RequestOptions::default() };
    let policy = policy_options(args, &mut mistakes);
    if mistakes.0.is_empty() { Ok((reading, policy)) } else { Err(mistakes) }
}

/// Like [`judgement`], and also reads the options of rules and the mode.
///
/// # Errors
///
/// As for [`judgement`].
pub fn judgement_in_mode(
    args: &JudgementArgs,
    mode: &ModeArgs,
) -> Result<(request::RequestOptions, policy::PolicyOptions, Peppers, Mode), Mistakes> {
    let mut mistakes = Mistakes::default();
    let (options, peppers) = (request_options(args, &mut mistakes), peppers(args, &mut mistakes));
    let (policy, mode) = (policy_options(&args.routing, &mut mistakes), mode.read(&mut mistakes));
    if mistakes.0.is_empty() { Ok((options, policy, peppers, mode)) } else { Err(mistakes) }
}

fn request_options(args: &JudgementArgs, mistakes: &mut Mistakes) -> request::RequestOptions {
    let accept_bearer = args.accept_bearer;
    let key_header = mistakes.note("--key-header", key_header(&args.key_header, accept_bearer));
    let public = public(&args.routing.public, mistakes);
    let preflight = args.routing.public_preflight;
    request::RequestOptions { key_header: key_header.unwrap_or_default(), accept_bearer, public, preflight }
}

/// Reads the options of rules. An invalid value is recorded and replaced by `false`.
fn policy_options(args: &RoutingArgs, mistakes: &mut Mistakes) -> policy::PolicyOptions {
    let (refuse, deny) = ([("refuse", false), ("keep", true)], [("allow", false), ("deny", true)]);
    policy::PolicyOptions {
        path: PathOptions {
            keep_encoded_slash: mistakes.one_of("--encoded-slash", &args.encoded_slash, &refuse),
            keep_parameters: mistakes.one_of("--path-parameters", &args.path_parameters, &refuse),
        },
        deny_unmatched: mistakes.one_of("--route-default", &args.route_default, &deny),
    }
}

fn identity(fields: &[String], key_header: &str, mistakes: &mut Mistakes) -> IdentityHeaders {
    let headers = match fields {
        [] => IdentityHeaders::default(),
        [none] if none == "none" => IdentityHeaders::none(),
        fields => {
            let mut headers = IdentityHeaders::none();
            for field in fields {
                mistakes.note("--identity-header", headers.add(field));
            }
            headers
        }
    };
    if headers.names().any(|name| name == key_header) {
        mistakes.add("--identity-header", format!("{key_header} carries the key: choose another name"));
    }
    headers
}

fn metadata(names: &[String], mistakes: &mut Mistakes) -> MetadataFields {
    if names.is_empty() {
        return MetadataFields::default();
    }
    let mut fields = MetadataFields::none();
    for name in names {
        mistakes.note("--metadata", fields.add(name));
    }
    fields
}

fn peppers(args: &JudgementArgs, mistakes: &mut Mistakes) -> Peppers {
    let policies = [("optional", MemoPolicy::Optional), ("required", MemoPolicy::Required)];
    let policy = mistakes.one_of("--memo", &args.memo, &policies);
    if policy == MemoPolicy::Required && args.pepper.pepper_file.is_none() {
        mistakes.add("--memo", "required needs --pepper-file");
    }
    mistakes.note("--pepper-file", args.pepper.read(policy)).unwrap_or_default()
}

/// Headers that HTTP itself needs, or whose values have another syntax than a key.
const OF_HTTP: [&str; 8] =
    ["connection", "content-length", "content-type", "cookie", "host", "te", "transfer-encoding", "upgrade"];

/// Parses a field name (RFC 9110 §5.1) that is neither set by tenantgate nor part of the request line.
fn key_header(name: &str, accept_bearer: bool) -> Result<String, InvalidValue> {
    let name = name.to_ascii_lowercase();
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(format!("invalid header name {name:?}").into());
    }
    if IDENTITY_HEADERS.contains(&name.as_str()) || OF_HTTP.contains(&name.as_str()) {
        return Err(format!("{name} is reserved: choose another header").into());
    }
    if accept_bearer && name == AUTHORIZATION {
        return Err(
            "authorization is already read as a bearer token: omit --accept-bearer or choose another header"
                .into(),
        );
    }
    Ok(name)
}

fn public(rules: &[String], mistakes: &mut Mistakes) -> PublicPaths {
    match rules {
        [] => PublicPaths::default(),
        [none] if none == "none" => PublicPaths::none(),
        rules => {
            let mut public = PublicPaths::none();
            for rule in rules {
                mistakes.note("--public", public.add(rule).map_err(|why| format!("{rule:?} {why}")));
            }
            public
        }
    }
}

/// Checks an address of OTLP over gRPC: a scheme, a host, and no path.
fn collector(url: &str) -> Result<String, InvalidValue> {
    let uri = url.parse::<http::Uri>().ok().filter(|uri| {
        let scheme = uri.scheme_str().is_some_and(|scheme| ["http", "https"].contains(&scheme));
        scheme && uri.path_and_query().is_none_or(|path| path == "/")
    });
    uri.map(|_| url.to_owned()).ok_or_else(|| {
        format!("invalid collector {url:?}: expected OTLP over gRPC, such as http://127.0.0.1:4317").into()
    })
}

/// Parses the log filter. Lines of sqlx about broken connections are omitted unless requested, because tenantgate logs
/// its own.
fn log_filter(text: &str) -> Result<EnvFilter, InvalidValue> {
    let verbose = ["sqlx", "debug", "trace"].iter().any(|word| text.to_ascii_lowercase().contains(word));
    let filter = if verbose { text.to_owned() } else { format!("{text},sqlx=error") };
    EnvFilter::try_new(filter).map_err(|_| {
        format!("invalid filter {text:?}: expected, for example, info or info,tenantgate=debug").into()
    })
}

/// Parses the bound. It must be longer than ordinary pauses between two polls.
fn max_staleness(text: &str) -> Result<Duration, InvalidValue> {
    const LEAST: Duration = Duration::from_secs(1);
    let bound = duration::parse(text)?;
    if bound < LEAST { Err(format!("{text} is too short: use 1s or more").into()) } else { Ok(bound) }
}

fn sync_interval(text: &str) -> Result<Duration, InvalidValue> {
    let interval = duration::parse(text)?;
    let fine = (Duration::from_millis(1)..=Duration::from_secs(1)).contains(&interval);
    if fine { Ok(interval) } else { Err(format!("invalid value {text}: expected 1ms to 1s").into()) }
}

/// Reads how long usage is kept; `None` if it is not counted.
fn usage_retention(text: &str) -> Result<Option<Duration>, InvalidValue> {
    const DAY: Duration = Duration::from_hours(24);
    let keep = if text == "0" { Duration::ZERO } else { duration::parse(text)? };
    match keep {
        Duration::ZERO => Ok(None),
        keep if (DAY..=36_500 * DAY).contains(&keep) => Ok(Some(keep)),
        _ => Err(format!("invalid value {text}: expected 1d to 36500d, or 0 to disable counting").into()),
    }
}

/// Reads the options of the snapshot file; `None` if it is not enabled.
fn snapshot_file(
    args: &ServeArgs,
    max_staleness: Duration,
    mistakes: &mut Mistakes,
) -> Option<snapshot_file::SnapshotFileOptions> {
    let path = args.sync.snapshot_file.clone()?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if args.judgement.pepper.pepper_file.is_none() {
        mistakes.add("--snapshot-file", "needs --pepper-file, which authenticates the file");
    }
    if path.is_dir() || folder.is_some_and(|folder| !folder.is_dir()) {
        mistakes
            .add("--snapshot-file", format!("{} must be a file in an existing directory", path.display()));
    }
    Some(snapshot_file::SnapshotFileOptions { path, interval: Duration::from_secs(10), max_staleness })
}

#[cfg(test)]
mod tests;

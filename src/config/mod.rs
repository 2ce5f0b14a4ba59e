//! The options of `serve`, and their translation into the `Options` of each module.
//!
//! All mistakes are collected, so that one run shows all of them. Only this module knows the spelling of options.

mod database;
mod listener;
mod manage;

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use zeroize::Zeroizing;

pub use self::database::{Database, DatabaseArgs, inspected, management, store};
pub use self::listener::{ListenerArgs, SizeArgs};
use self::listener::{conflict, tcp_address};
pub use self::manage::{ManageArgs, ManageOptions};
use crate::audit::Actor;
use crate::client_address::ClientAddress;
use crate::ext_authz::told::{IdentityHeaders, MetadataFields};
use crate::ext_authz::translate::{IDENTITY_HEADERS, OnUnavailable, Speech};
use crate::path::PathOptions;
use crate::replica::snapshot_file;
use crate::request::{AUTHORIZATION, PublicPaths};
use crate::server::Settings;
use crate::telemetry::LogFormat;
use crate::tenant::Mode;
use crate::verify::memo::{Peppers, Policy};
use crate::verify::pepper::Pepper;
use crate::{duration, ext_authz, gate, policy, replica, request};

/// The options of `serve` as typed. Each has a variable `TENANTGATE_…`, over which the option takes precedence.
#[derive(clap::Args, Clone, Debug)]
pub struct ServeArgs {
    /// Connections.
    #[command(flatten)]
    pub listener: ListenerArgs,

    /// The address of /livez, /readyz and /metrics over HTTP
    #[arg(long, env = "TENANTGATE_OPS_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:9464")]
    pub ops_listen: String,

    /// How requests are read and keys are proven.
    #[command(flatten)]
    pub judgement: JudgementArgs,

    /// What to do when no decision is possible: reject with 503 (deny), or let Envoy's `failure_mode_allow` decide
    /// (error)
    #[arg(long, env = "TENANTGATE_ON_UNAVAILABLE", value_name = "deny|error", default_value = "deny")]
    pub on_unavailable: String,

    /// What is read from Envoy and told to it.
    #[command(flatten)]
    pub exchange: ExchangeArgs,

    /// Leave the key on requests that pass, for a second filter that checks them again
    #[arg(long, env = "TENANTGATE_KEEP_KEY_HEADER", value_parser = clap::builder::BoolishValueParser::new())]
    pub keep_key_header: bool,

    /// A field of the dynamic metadata that Envoy gets about proven callers, such as `tenant_id` or `request_limit`.
    /// Repeatable [default: all]
    #[arg(long, env = "TENANTGATE_METADATA", value_name = "FIELD")]
    pub metadata: Vec<String>,

    /// Whether rejections are enforced.
    #[command(flatten)]
    pub mode: ModeArgs,

    /// The maximum age of the last successful poll of the database; beyond it every key gets 503
    #[arg(long, env = "TENANTGATE_MAX_STALENESS", value_name = "DURATION", default_value = "5m")]
    pub max_staleness: String,

    /// The interval between polls for changes: the longest delay of a change whose notification is lost
    #[arg(long, env = "TENANTGATE_SYNC_INTERVAL", value_name = "DURATION", default_value = "50ms")]
    pub sync_interval: String,

    /// How long counts of requests by day and key are kept, for `tenantgate report usage`; 0 disables counting
    #[arg(long, env = "TENANTGATE_USAGE_RETENTION", value_name = "DURATION", default_value = "400d")]
    pub usage_retention: String,

    /// The file that keeps the last snapshot, for a start without the database; needs --pepper-file
    #[arg(long, env = "TENANTGATE_SNAPSHOT_FILE", value_name = "FILE")]
    pub snapshot_file: Option<PathBuf>,

    /// Whether to offer gRPC reflection, which grpcurl needs
    #[arg(long, env = "TENANTGATE_REFLECTION", value_name = "on|off", default_value = "on")]
    pub reflection: String,

    /// The log filter, such as `debug` or `info,tenantgate=debug`
    #[arg(long, env = "TENANTGATE_LOG_LEVEL", value_name = "FILTER", default_value = "info")]
    pub log_level: String,

    /// The format of log lines
    #[arg(long, env = "TENANTGATE_LOG_FORMAT", value_name = "text|json", default_value = "text")]
    pub log_format: String,

    /// The collector for spans of Checks, as part of Envoy's traces (OTLP over gRPC), such as `http://127.0.0.1:4317`
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,

    /// Migrate an old Postgres schema at the start
    #[arg(long, env = "TENANTGATE_MIGRATE", value_parser = clap::builder::BoolishValueParser::new())]
    pub migrate: bool,

    /// Check all options, report every mistake, and exit
    #[arg(long)]
    pub check_config: bool,
}

/// What is read from Envoy and told to it. It must be the same for `serve` and `doctor`.
#[derive(clap::Args, Clone, Debug)]
pub struct ExchangeArgs {
    /// Where the address of the client is taken from, for the networks of keys, logs and the shadow report: `source`
    /// (the peer of Envoy's connection), `metadata:NAME` (gRPC metadata that Envoy fills by `initial_metadata`; best),
    /// `xff:N` (the N-th from the right in `x-forwarded-for`) or `header:NAME`
    #[arg(long, env = "TENANTGATE_CLIENT_ADDRESS", value_name = "SOURCE", default_value = "source")]
    pub client_address: String,

    /// A field of a proven caller that upstreams get, and its header. FIELD is one of tenant-id, tenant-name,
    /// tenant-schema, key-id, key-prefix, scopes and plan; NAME defaults to x-llmcore-FIELD. Repeatable; replaces the
    /// default, `none` empties the list [default: tenant-id, tenant-name, tenant-schema and key-id]
    #[arg(long, env = "TENANTGATE_IDENTITY_HEADER", value_name = "FIELD[=NAME]")]
    pub identity_header: Vec<String>,
}

impl ExchangeArgs {
    /// Splits variables: repeatable values are separated by commas.
    pub fn split_variables(&mut self, from_variable: impl Fn(&str) -> bool) {
        if from_variable("identity_header") {
            split(&mut self.identity_header);
        }
    }

    fn read(&self, key_header: &str, mistakes: &mut Mistakes) -> (ClientAddress, IdentityHeaders) {
        let client_address = mistakes.note("--client-address", ClientAddress::parse(&self.client_address));
        (client_address.unwrap_or_default(), identity(&self.identity_header, key_header, mistakes))
    }
}

/// The options, besides the database, that decide about a request. They must be the same for `serve` and `explain`.
#[derive(clap::Args, Clone, Debug)]
pub struct JudgementArgs {
    /// The header that carries the key
    #[arg(long, env = "TENANTGATE_KEY_HEADER", value_name = "NAME", default_value = request::DEFAULT_KEY_HEADER)]
    pub key_header: String,

    /// Also take the key from `Authorization: Bearer llmk_…`
    #[arg(long, env = "TENANTGATE_ACCEPT_BEARER", value_parser = clap::builder::BoolishValueParser::new())]
    pub accept_bearer: bool,

    /// A method and a path that need no key. The path is exact, or ends in `/*` for everything below it. Repeatable;
    /// replaces the default, `none` empties the list [default: GET and HEAD of /, /health and /docs]
    #[arg(long, env = "TENANTGATE_PUBLIC", value_name = "METHOD /path")]
    pub public: Vec<String>,

    /// Let CORS preflights pass without a key: OPTIONS with origin and access-control-request-method
    #[arg(long, env = "TENANTGATE_PUBLIC_PREFLIGHT", value_parser = clap::builder::BoolishValueParser::new())]
    pub public_preflight: bool,

    /// What happens to a proven key where no rule matches: it passes (allow), or gets 403 (deny)
    #[arg(long, env = "TENANTGATE_ROUTE_DEFAULT", value_name = "allow|deny", default_value = "allow")]
    pub route_default: String,

    /// Whether a path with %2F is ambiguous (refuse), or %2F is a byte of its segment (keep). Choose keep only if no
    /// upstream decodes it
    #[arg(long, env = "TENANTGATE_ENCODED_SLASH", value_name = "refuse|keep", default_value = "refuse")]
    pub encoded_slash: String,

    /// Whether a path with `;` is ambiguous (refuse), or `;` is a byte of its segment (keep). Choose keep only if no
    /// upstream reads path parameters
    #[arg(long, env = "TENANTGATE_PATH_PARAMETERS", value_name = "refuse|keep", default_value = "refuse")]
    pub path_parameters: String,

    /// The file of peppers.
    #[command(flatten)]
    pub pepper: PepperArgs,

    /// Whether keys without a memo are accepted (optional) or rejected (required). With `required`, an attacker who can
    /// write to the database but has no pepper cannot create a key
    #[arg(long, env = "TENANTGATE_MEMO", value_name = "optional|required", default_value = "optional")]
    pub memo: String,
}

/// Whether rejections are enforced. It must be the same for `serve` and `explain`.
#[derive(clap::Args, Clone, Debug)]
pub struct ModeArgs {
    /// What happens to a request that is not allowed: it is rejected (enforce), or it passes without a tenant and is
    /// counted, logged and reported (shadow)
    #[arg(long, env = "TENANTGATE_MODE", value_name = "enforce|shadow", default_value = "enforce")]
    pub mode: String,
}

impl ModeArgs {
    fn read(&self, mistakes: &mut Mistakes) -> Mode {
        mistakes.one_of("--mode", &self.mode, &Mode::ALL.map(|mode| (mode.as_str(), mode)))
    }
}

/// The file of peppers.
#[derive(clap::Args, Clone, Debug)]
pub struct PepperArgs {
    /// The file with the peppers for memos, which avoid bcrypt after a restart: one per line; the first one writes
    /// memos, all are accepted (see `tenantgate pepper new`)
    #[arg(long, env = "TENANTGATE_PEPPER_FILE", value_name = "FILE")]
    pub pepper_file: Option<PathBuf>,
}

impl PepperArgs {
    /// Reads the peppers; without a file there are none.
    ///
    /// # Errors
    ///
    /// The file cannot be read or is invalid. The error does not repeat its content.
    pub fn read(&self, policy: Policy) -> Result<Peppers, String> {
        let Some(path) = &self.pepper_file else { return Ok(Peppers::new(Vec::new(), policy)) };
        let wrong = |why: String| format!("{} {why}", path.display());
        let text =
            std::fs::read(path).map(Zeroizing::new).map_err(|e| wrong(format!("cannot be read: {e}")))?;
        let text = std::str::from_utf8(&text).map_err(|_| wrong("is not UTF-8 text".into()))?;
        Ok(Peppers::new(Pepper::parse_all(text).map_err(wrong)?, policy))
    }
}

impl ServeArgs {
    /// Returns warnings about settings that are valid but risky.
    fn remarks(&self) -> Vec<String> {
        let mode = |path: &PathBuf| std::fs::metadata(path).map_or(0, |meta| meta.permissions().mode());
        let key_stays = self.keep_key_header.then(|| {
            "--keep-key-header: upstreams see the API keys of their callers; remove the header behind the last filter"
                .into()
        });
        let open = self.judgement.pepper.pepper_file.iter().filter(|path| mode(path) & 0o007 != 0);
        let open =
            open.map(|path| format!("all users of this machine can read {}: run chmod 0400", path.display()));
        let shadow = (self.mode.mode == Mode::Shadow.as_str()).then(|| {
            "shadow mode: no request is rejected; rejections are only counted, see `tenantgate report shadow`".into()
        });
        open.chain(shadow).chain(key_stays).chain(self.listener.remarks()).collect()
    }

    /// Splits variables: repeatable values are separated by commas.
    pub fn split_variables(&mut self, from_variable: impl Fn(&str) -> bool) {
        let listener = &mut self.listener;
        for (name, values) in [
            ("listen", &mut listener.listen),
            ("client_san", &mut listener.client_san),
            ("unix_peer_uid", &mut listener.unix_peer_uid),
            ("metadata", &mut self.metadata),
        ] {
            if from_variable(name) {
                split(values);
            }
        }
        self.exchange.split_variables(&from_variable);
        self.judgement.split_variables(from_variable);
    }
}

impl JudgementArgs {
    /// Splits variables: repeatable values are separated by commas.
    pub fn split_variables(&mut self, from_variable: impl Fn(&str) -> bool) {
        if from_variable("public") {
            split(&mut self.public);
        }
    }
}

fn split(values: &mut Vec<String>) {
    let all = values.iter().flat_map(|v| v.split(',')).map(|v| v.trim().to_owned());
    *values = all.filter(|v| !v.is_empty()).collect();
}

/// All mistakes in the options, one line each.
#[derive(Debug, Default)]
pub struct Mistakes(pub Vec<String>);

impl Mistakes {
    /// Returns the value, or records the mistake with the name of the option.
    fn note<T, E: fmt::Display>(&mut self, option: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|why| self.0.push(format!("{option}: {why}"))).ok()
    }

    fn one_of<T: Copy + Default>(&mut self, option: &str, text: &str, words: &[(&str, T)]) -> T {
        let known = || words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" or ");
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        self.note(option, found.ok_or_else(|| format!("invalid value {text:?}: expected {}", known())))
            .unwrap_or_default()
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
) -> Result<(Settings, Logging), Mistakes> {
    // A default replaces an invalid value, so that all other options are checked, too.
    let mut mistakes = Mistakes::default();
    let listen = args.listener.read(&mut mistakes);
    let ops_listen = mistakes.note("--ops-listen", tcp_address(&args.ops_listen)).unwrap_or_default();
    if let Some(same) = listen.listen.iter().find_map(|address| conflict(address, &ops_listen)) {
        mistakes.0.push(format!("--ops-listen: {same} is used by --listen: choose another port"));
    }
    let ext_authz = ext_authz_options(args, &mut mistakes);
    let policy = policy_options(&args.judgement, &mut mistakes);
    let max_staleness =
        mistakes.note("--max-staleness", max_staleness(&args.max_staleness)).unwrap_or_default();
    let interval = mistakes.note("--sync-interval", sync_interval(&args.sync_interval)).unwrap_or_default();
    let keep_usage = mistakes.note("--usage-retention", usage_retention(&args.usage_retention)).flatten();
    let mode = args.mode.read(&mut mistakes);
    let peppers = peppers(&args.judgement, &mut mistakes);
    let snapshot_file = snapshot_file(args, max_staleness, &mut mistakes);
    let reflection = mistakes.one_of("--reflection", &args.reflection, &[("on", true), ("off", false)]);
    let filter = mistakes.note("--log-level", log_filter(&args.log_level)).unwrap_or_default();
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let format = mistakes.one_of("--log-format", &args.log_format, &formats);
    let otlp_endpoint = args.otlp_endpoint.as_deref().filter(|url| !url.is_empty());
    let otlp_endpoint = otlp_endpoint.and_then(|url| mistakes.note("--otlp-endpoint", collector(url)));
    let store = mistakes.note(database.option(), management(database, actor));
    let Some(store) = store.filter(|_| mistakes.0.is_empty()) else { return Err(mistakes) };
    let settings = Settings {
        listen,
        ops_listen,
        reflection,
        ext_authz,
        gate: gate::Options { max_staleness, mode, policy },
        sync: replica::sync::Options {
            interval,
            max_staleness,
            migrate: args.migrate,
            ..replica::sync::Options::default()
        },
        prune: replica::prune::Options { keep_usage, ..replica::prune::Options::default() },
        otlp_endpoint,
        peppers,
        snapshot_file,
        remarks: args.remarks(),
        ..Settings::on(store)
    };
    Ok((settings, Logging { filter, format }))
}

fn ext_authz_options(args: &ServeArgs, mistakes: &mut Mistakes) -> ext_authz::service::Options {
    let request = request_options(&args.judgement, mistakes);
    let words = [("deny", OnUnavailable::Deny), ("error", OnUnavailable::Error)];
    let on_unavailable = mistakes.one_of("--on-unavailable", &args.on_unavailable, &words);
    let (client_address, identity) = args.exchange.read(&request.key_header, mistakes);
    let metadata = metadata(&args.metadata, mistakes);
    ext_authz::service::Options {
        speech: Speech {
            key_header: request.key_header.clone(),
            keep_key_header: args.keep_key_header,
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
pub fn judgement(args: &JudgementArgs) -> Result<(request::Options, Peppers), Mistakes> {
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

/// Like [`judgement`], and also reads the options of rules and the mode.
///
/// # Errors
///
/// As for [`judgement`].
pub fn judgement_in_mode(
    args: &JudgementArgs,
    mode: &ModeArgs,
) -> Result<(request::Options, policy::Options, Peppers, Mode), Mistakes> {
    let mut mistakes = Mistakes::default();
    let (options, peppers) = (request_options(args, &mut mistakes), peppers(args, &mut mistakes));
    let (policy, mode) = (policy_options(args, &mut mistakes), mode.read(&mut mistakes));
    if mistakes.0.is_empty() { Ok((options, policy, peppers, mode)) } else { Err(mistakes) }
}

fn request_options(args: &JudgementArgs, mistakes: &mut Mistakes) -> request::Options {
    let accept_bearer = args.accept_bearer;
    let key_header = mistakes.note("--key-header", key_header(&args.key_header, accept_bearer));
    let public = public(&args.public, mistakes);
    let preflight = args.public_preflight;
    request::Options { key_header: key_header.unwrap_or_default(), accept_bearer, public, preflight }
}

/// Reads the options of rules. An invalid value is recorded and replaced by `false`.
fn policy_options(args: &JudgementArgs, mistakes: &mut Mistakes) -> policy::Options {
    let (refuse, deny) = ([("refuse", false), ("keep", true)], [("allow", false), ("deny", true)]);
    policy::Options {
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
        mistakes.0.push(format!("--identity-header: {key_header} carries the key: choose another name"));
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
    let policies = [("optional", Policy::Optional), ("required", Policy::Required)];
    let policy = mistakes.one_of("--memo", &args.memo, &policies);
    if policy == Policy::Required && args.pepper.pepper_file.is_none() {
        mistakes.0.push("--memo: required needs --pepper-file".into());
    }
    mistakes.note("--pepper-file", args.pepper.read(policy)).unwrap_or_default()
}

/// Parses a field name (RFC 9110 §5.1) that is neither set by tenantgate nor part of the request line.
fn key_header(name: &str, accept_bearer: bool) -> Result<String, String> {
    let name = name.to_ascii_lowercase();
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(format!("invalid header name {name:?}"));
    }
    if IDENTITY_HEADERS.contains(&name.as_str()) || name == "host" {
        return Err(format!("{name} is reserved: choose another header"));
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
fn collector(url: &str) -> Result<String, String> {
    let uri = url.parse::<http::Uri>().ok().filter(|uri| {
        let scheme = uri.scheme_str().is_some_and(|scheme| ["http", "https"].contains(&scheme));
        scheme && uri.path_and_query().is_none_or(|path| path == "/")
    });
    uri.map(|_| url.to_owned()).ok_or_else(|| {
        format!("invalid collector {url:?}: expected OTLP over gRPC, such as http://127.0.0.1:4317")
    })
}

/// Parses the log filter. Lines of sqlx about broken connections are omitted unless requested, because tenantgate logs
/// its own.
fn log_filter(text: &str) -> Result<EnvFilter, String> {
    let verbose = ["sqlx", "debug", "trace"].iter().any(|word| text.to_ascii_lowercase().contains(word));
    let filter = if verbose { text.to_owned() } else { format!("{text},sqlx=error") };
    EnvFilter::try_new(filter)
        .map_err(|_| format!("invalid filter {text:?}: expected, for example, info or info,tenantgate=debug"))
}

/// Parses the bound. It must be longer than ordinary pauses between two polls.
fn max_staleness(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_secs(1);
    let bound = duration::parse(text)?;
    if bound < LEAST { Err(format!("{text} is too short: use 1s or more")) } else { Ok(bound) }
}

fn sync_interval(text: &str) -> Result<Duration, String> {
    let interval = duration::parse(text)?;
    let fine = (Duration::from_millis(1)..=Duration::from_secs(1)).contains(&interval);
    if fine { Ok(interval) } else { Err(format!("invalid value {text}: expected 1ms to 1s")) }
}

/// Reads how long usage is kept; `None` if it is not counted.
fn usage_retention(text: &str) -> Result<Option<Duration>, String> {
    const DAY: Duration = Duration::from_hours(24);
    let keep = if text == "0" { Duration::ZERO } else { duration::parse(text)? };
    match keep {
        Duration::ZERO => Ok(None),
        keep if (DAY..=36_500 * DAY).contains(&keep) => Ok(Some(keep)),
        _ => Err(format!("invalid value {text}: expected 1d to 36500d, or 0 to disable counting")),
    }
}

/// Reads the options of the snapshot file; `None` if it is not enabled.
fn snapshot_file(
    args: &ServeArgs,
    max_staleness: Duration,
    mistakes: &mut Mistakes,
) -> Option<snapshot_file::Options> {
    let path = args.snapshot_file.clone()?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if args.judgement.pepper.pepper_file.is_none() {
        mistakes.0.push("--snapshot-file: needs --pepper-file, which authenticates the file".into());
    }
    if path.is_dir() || folder.is_some_and(|folder| !folder.is_dir()) {
        mistakes
            .0
            .push(format!("--snapshot-file: {} must be a file in an existing directory", path.display()));
    }
    Some(snapshot_file::Options { path, interval: Duration::from_secs(10), max_staleness })
}

#[cfg(test)]
mod tests;

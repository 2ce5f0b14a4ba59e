//! The options of `serve` as typed.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::listener::ListenerArgs;
use crate::request;
use crate::tenant::Mode;

/// The options of `serve` as typed. Each has a variable `TENANTGATE_…`, over which the option takes precedence.
#[derive(clap::Args, Clone, Debug)]
pub struct ServeArgs {
    /// Connections.
    #[command(flatten)]
    pub listener: ListenerArgs,

    /// How requests are read and keys are proven.
    #[command(flatten)]
    pub judgement: JudgementArgs,

    /// What Envoy, upstreams and clients get.
    #[command(flatten)]
    pub answers: AnswerArgs,

    /// How the database is followed.
    #[command(flatten)]
    pub sync: SyncArgs,

    /// What operators see.
    #[command(flatten)]
    pub operation: OperationArgs,

    /// Check all options, report every mistake, and exit. Binds no address, so that it can run beside a server
    #[arg(long)]
    pub check_config: bool,
}

/// What Envoy, upstreams and clients get.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Answers")]
pub struct AnswerArgs {
    /// Whether rejections are enforced.
    #[command(flatten)]
    pub mode: ModeArgs,

    /// Where the client's address is read from, and which headers upstreams get.
    #[command(flatten)]
    pub exchange: ExchangeArgs,

    /// What to do when no decision is possible: reject with 503 (deny), or let Envoy's `failure_mode_allow` decide
    /// (error)
    #[arg(long, env = "TENANTGATE_ON_UNAVAILABLE", value_name = "deny|error", default_value = "deny")]
    pub on_unavailable: String,

    /// Leave the key on requests that pass, for a second filter that checks them again
    #[arg(long, env = "TENANTGATE_KEEP_KEY_HEADER", value_parser = clap::builder::BoolishValueParser::new())]
    pub keep_key_header: bool,

    /// A field of the dynamic metadata that Envoy gets about proven callers, such as `tenant_id` or `request_limit`.
    /// Repeatable [default: all]
    #[arg(long, env = "TENANTGATE_METADATA", value_name = "FIELD")]
    pub metadata: Vec<String>,
}

/// How the database is followed.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Database")]
pub struct SyncArgs {
    /// The maximum age of the last successful poll of the database; beyond it every key gets 503
    #[arg(long, env = "TENANTGATE_MAX_STALENESS", value_name = "DURATION", default_value = "5m")]
    pub max_staleness: String,

    /// The interval between polls for changes: the longest delay of a change whose notification is lost
    #[arg(long, env = "TENANTGATE_SYNC_INTERVAL", value_name = "DURATION", default_value = "50ms")]
    pub sync_interval: String,

    /// The file that keeps the last snapshot, for a start without the database; needs --pepper-file
    #[arg(long, env = "TENANTGATE_SNAPSHOT_FILE", value_name = "FILE")]
    pub snapshot_file: Option<PathBuf>,

    /// Migrate an old Postgres schema at the start
    #[arg(long, env = "TENANTGATE_MIGRATE", value_parser = clap::builder::BoolishValueParser::new())]
    pub migrate: bool,
}

/// What operators see.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Operation")]
pub struct OperationArgs {
    /// The address of /livez, /readyz and /metrics over HTTP
    #[arg(long, env = "TENANTGATE_OPS_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:9464")]
    pub ops_listen: String,

    /// How long counts of requests by day and key are kept, for `tenantgate report usage`; 0 disables counting
    #[arg(long, env = "TENANTGATE_USAGE_RETENTION", value_name = "DURATION", default_value = "400d")]
    pub usage_retention: String,

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
}

/// Where the client's address is read from, and which headers upstreams get. It must be the same for `serve` and
/// `doctor`.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Answers")]
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
}

/// The options, besides the database, that decide about a request. They must be the same for `serve` and `explain`.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Keys")]
pub struct JudgementArgs {
    /// The header that carries the key
    #[arg(long, env = "TENANTGATE_KEY_HEADER", value_name = "NAME", default_value = request::DEFAULT_KEY_HEADER)]
    pub key_header: String,

    /// Also take the key from `Authorization: Bearer llmk_…`
    #[arg(long, env = "TENANTGATE_ACCEPT_BEARER", value_parser = clap::builder::BoolishValueParser::new())]
    pub accept_bearer: bool,

    /// Which requests need a key, and how they are matched with rules.
    #[command(flatten)]
    pub routing: RoutingArgs,

    /// The file of peppers.
    #[command(flatten)]
    pub pepper: PepperArgs,

    /// Whether keys without a memo are accepted (optional) or rejected (required). With `required`, an attacker who can
    /// write to the database but has no pepper cannot create a key
    #[arg(long, env = "TENANTGATE_MEMO", value_name = "optional|required", default_value = "optional")]
    pub memo: String,
}

/// Which requests need a key, and how they are matched with rules. The options must be the same for `serve`, `explain`
/// and `route test`.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Routes")]
pub struct RoutingArgs {
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
}

/// Whether rejections are enforced. It must be the same for `serve` and `explain`.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Answers")]
pub struct ModeArgs {
    /// What happens to a request that is not allowed: it is rejected (enforce), or it passes without a tenant and is
    /// counted, logged and reported (shadow)
    #[arg(long, env = "TENANTGATE_MODE", value_name = "enforce|shadow", default_value = "enforce")]
    pub mode: String,
}

/// The file of peppers.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Keys")]
pub struct PepperArgs {
    /// The file with the peppers for memos, which avoid bcrypt after a restart: one per line; the first one writes
    /// memos, all are accepted (see `tenantgate pepper new`)
    #[arg(long, env = "TENANTGATE_PEPPER_FILE", value_name = "FILE")]
    pub pepper_file: Option<PathBuf>,
}

impl ServeArgs {
    /// Returns warnings about settings that are valid but risky.
    pub(super) fn remarks(&self) -> Vec<String> {
        let mode = |path: &PathBuf| std::fs::metadata(path).map_or(0, |meta| meta.permissions().mode());
        let key_stays = self.answers.keep_key_header.then(|| {
            "--keep-key-header: upstreams see the API keys of their callers; remove the header behind the last filter"
                .into()
        });
        let open = self.judgement.pepper.pepper_file.iter().filter(|path| mode(path) & 0o007 != 0);
        let open =
            open.map(|path| format!("all users of this machine can read {}: run chmod 0400", path.display()));
        let shadow = (self.answers.mode.mode == Mode::Shadow.as_str()).then(|| {
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
            ("metadata", &mut self.answers.metadata),
        ] {
            if from_variable(name) {
                split(values);
            }
        }
        self.answers.exchange.split_variables(&from_variable);
        self.judgement.routing.split_variables(from_variable);
    }
}

impl RoutingArgs {
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

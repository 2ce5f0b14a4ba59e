//! What can be typed?
//!
//! The commands and their options, apart from those of `serve`, which
//! [`crate::config`] has. What is said here is what `--help` shows.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use super::bulk::{ExportArgs, ImportArgs, KeyExportArgs};
use super::check::CheckArgs;
use super::doctor::DoctorArgs;
use super::explain::ExplainArgs;
use super::ready::ReadyArgs;
use crate::admin::{Criteria, Expiry};
use crate::audit::Actor;
use crate::clock::Timestamp;
use crate::config::{self, DatabaseArgs, PepperArgs, ServeArgs};
use crate::store::Adoption;
use crate::tenant::{Mode, TenantStatus};

/// Tenant-aware API keys for everything behind Envoy.
///
/// tenantgate answers the calls of Envoy's external authorization filter: it finds the API key of a request, proves it against a bcrypt
/// hash in Postgres or SQLite, and tells the upstream which tenant is calling.
#[derive(Parser)]
#[command(name = "tenantgate", version, propagate_version = true, max_term_width = 100, after_help = EXAMPLES)]
pub(super) struct Cli {
    /// The database.
    #[command(flatten)]
    pub(super) database: DatabaseArgs,

    /// Which of its options were given on the command line.
    #[arg(skip)]
    pub(super) database_said: Vec<&'static str>,

    /// How to print results
    #[arg(long, short, global = true, value_enum, default_value = "text")]
    pub(super) output: Output,

    /// In whose name this is done, for the audit log; the user of the operating system by default. For
    /// `audit list`: whose changes to show
    #[arg(long, global = true, env = "TENANTGATE_ACTOR", value_name = "NAME", value_parser = actor)]
    pub(super) actor: Option<Actor>,

    /// Whether the actor was said on the command line.
    #[arg(skip)]
    pub(super) actor_was_said: bool,

    #[command(subcommand)]
    pub(super) command: Command,
}

const EXAMPLES: &str = "Examples:
  tenantgate tenant create 'Acme Corp'           a tenant, on SQLite in this directory
  tenantgate key create tenant_acme_corp --name ci --expires-in 90d
  tenantgate serve                               answers Envoy on 127.0.0.1:50051
  tenantgate check --target 127.0.0.1:50051 --path /v1 --key \"$KEY\"
  tenantgate key revoke llmk_acmecorp7Gk2mQ9x --reason leaked

Exit codes: 0 done, 1 refused or not found, 2 usage, 3 database or network unavailable.";

#[derive(Clone, Copy, Eq, PartialEq, ValueEnum)]
pub(super) enum Output {
    /// For people
    Text,
    /// For programs: one object or array
    Json,
    /// For spreadsheets; reports alone
    Csv,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// Answer Envoy
    Serve(Box<ServeArgs>),
    /// Bring the database schema up to date; adopts the tables of an existing deployment, and restores functions,
    /// triggers and rows that a restore or an operator has lost
    Migrate(MigrateArgs),
    /// Add the demonstration tenant and its well-known key
    SeedDemo {
        /// Also beside other tenants
        #[arg(long)]
        force: bool,
    },
    /// Manage tenants
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Manage API keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// See what was done by the command line, and check that nobody touched the log of it
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Show what somebody should look at
    #[command(subcommand)]
    Report(ReportCommand),
    /// Manage peppers
    #[command(subcommand)]
    Pepper(PepperCommand),
    /// Send one Check to a server and show the answer; exits with 1 if it is a denial
    Check(Box<CheckArgs>),
    /// Ask a server whether it is ready; exits with 1 if it is not
    Ready(ReadyArgs),
    /// Explain the answer that a key gets: walk the table of outcomes against the database
    Explain(Box<ExplainArgs>),
    /// Check what serve relies on, one line each: ok, warn or bad, and what to do; exits with 1 if something is bad
    Doctor(Box<DoctorArgs>),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(clap::Args)]
pub(super) struct MigrateArgs {
    /// Also make the roles `tenantgate_serve`, `tenantgate_admin` and `tenantgate_migrate` (or with another
    /// beginning) and grant each exactly what it needs; Postgres only
    #[arg(long, value_name = "PREFIX", num_args = 0..=1, require_equals = true, default_missing_value = "tenantgate",
          value_parser = role_prefix)]
    pub(super) roles: Option<String>,
    /// Make this copy a database of its own, such as staging from a dump of production: servers of the original
    /// then refuse it
    #[arg(long)]
    new_identity: bool,
    /// Also make the publication `tenantgate` for logical replication; Postgres only
    #[arg(long)]
    publication: bool,
    /// When adopting tables: ignore this column, although its name says that it switches rows off
    #[arg(long, value_name = "NAME")]
    ignore_column: Vec<String>,
    /// When adopting tables: revoke the keys, and suspend the tenants, whose column NAME has this value, such as
    /// `is_active=false`
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    revoke_where: Vec<(String, String)>,
}

impl From<MigrateArgs> for Adoption {
    fn from(args: MigrateArgs) -> Self {
        Self {
            ignore_columns: args.ignore_column,
            revoke_where: args.revoke_where,
            new_identity: args.new_identity,
            publication: args.publication,
        }
    }
}

#[derive(Subcommand)]
pub(super) enum TenantCommand {
    /// Add a tenant and create its schema
    Create {
        /// Its name, 1 to 255 characters
        name: String,
        /// Its schema [default: tenant_ and the name in a-z, 0-9 and _]
        #[arg(long, value_name = "S")]
        schema: Option<String>,
        /// Give it the schema even if that exists and is not empty
        #[arg(long)]
        adopt_schema: bool,
        /// Its status; `pending_provisioning` makes no schema
        #[arg(long, value_name = "S", default_value = "active",
              value_parser = clap::builder::PossibleValuesParser::new(TenantStatus::KNOWN))]
        status: String,
    },
    /// Show all tenants
    List,
    /// Show a tenant
    Show(TenantRef),
    /// Stop serving a tenant: its keys get 403
    Suspend {
        #[command(flatten)]
        tenant: TenantRef,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// What becomes of a tenant's proven keys that are to be refused (revoked, expired, tenant not active)
    Mode {
        #[command(flatten)]
        tenant: TenantRef,
        /// They are refused, pass as nobody and are reported, or what `serve --mode` says
        #[arg(value_enum)]
        mode: TenantMode,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Serve a tenant (again)
    Activate(TenantRef),
    /// Mark a tenant as deleted; its rows stay
    Delete {
        #[command(flatten)]
        tenant: TenantRef,
        /// Yes, delete it
        #[arg(long, required = true)]
        yes: bool,
    },
    /// Take tenants over from a file
    Import(ImportArgs),
    /// Write all tenants into a file
    Export(ExportArgs),
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum TenantMode {
    /// Refused
    Enforce,
    /// Let pass as nobody, and reported
    Shadow,
    /// What `serve --mode` says
    Inherit,
}

impl From<TenantMode> for Option<Mode> {
    fn from(mode: TenantMode) -> Self {
        match mode {
            TenantMode::Enforce => Some(Mode::Enforce),
            TenantMode::Shadow => Some(Mode::Shadow),
            TenantMode::Inherit => None,
        }
    }
}

#[derive(clap::Args)]
pub(super) struct TenantRef {
    /// Id, schema name or exact name of the tenant
    #[arg(value_name = "REF")]
    pub(super) reference: String,
}

#[derive(Subcommand)]
pub(super) enum KeyCommand {
    /// Make a key; it is shown now and never again
    Create {
        /// Id, schema name or exact name of the tenant
        #[arg(value_name = "TENANT_REF")]
        tenant: String,
        /// What to call it
        #[arg(long, value_name = "N")]
        name: Option<String>,
        #[command(flatten)]
        expiry: ExpiryArgs,
        #[command(flatten)]
        pepper: PepperArgs,
    },
    /// Take keys over from a file: whole keys, or hashes that another program made
    Import {
        #[command(flatten)]
        import: ImportArgs,
        #[command(flatten)]
        pepper: PepperArgs,
    },
    /// Write keys into a file; never a whole key
    Export(KeyExportArgs),
    /// Show all keys, or those of one tenant
    List {
        /// Id, schema name or exact name of the tenant
        #[arg(value_name = "TENANT_REF")]
        tenant: Option<String>,
    },
    /// Show a key
    Show(KeyRef),
    /// Take a key back: it gets 401 within a tenth of a second
    Revoke {
        #[command(flatten)]
        key: KeyRef,
        /// Why, for people
        #[arg(long, value_name = "R")]
        reason: Option<String>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Make a successor; the old key goes on working for the grace period
    Rotate {
        #[command(flatten)]
        key: KeyRef,
        /// How long the old key goes on working
        #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = long_duration)]
        grace: Duration,
        #[command(flatten)]
        expiry: ExpiryArgs,
        #[command(flatten)]
        pepper: PepperArgs,
    },
}

#[derive(Subcommand)]
pub(super) enum AuditCommand {
    /// Show what was done, oldest first
    List {
        /// From this instant on (RFC 3339), or from this long ago on, such as 7d
        #[arg(long, value_name = "INSTANT", value_parser = when)]
        since: Option<When>,
        /// Before this instant (RFC 3339), or up to this long ago
        #[arg(long, value_name = "INSTANT", value_parser = when)]
        until: Option<When>,
        /// About this tenant (id, schema, name) or key (id, prefix), or, given the id of a tenant, its keys
        #[arg(long, value_name = "REF")]
        subject: Option<String>,
        /// The newest so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
        limit: Option<i64>,
    },
    /// Follow the chain of hashes from the first row to the last
    Verify {
        /// A hash noted earlier: the chain must pass through it, else it was cut or written anew
        #[arg(long, value_name = "HASH", value_parser = row_hash)]
        expect_head: Option<String>,
    },
}

/// An instant, or how long ago.
#[derive(Clone, Copy)]
pub(super) enum When {
    At(Timestamp),
    Ago(Duration),
}

impl When {
    pub(super) fn instant(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Ago(span) => now.before(span),
        }
    }
}

#[derive(Subcommand)]
pub(super) enum ReportCommand {
    /// Live keys of which any of this holds; without options, all of it with the values in brackets
    Keys(ReportKeysArgs),
    /// Which requests passed in shadow mode that enforcing would refuse, the most frequent first
    Shadow {
        /// Of the days since this instant (RFC 3339), or since this long ago; 30 days are kept
        #[arg(long, value_name = "INSTANT", default_value = "7d", value_parser = when)]
        since: When,
    },
}

#[derive(clap::Args)]
pub(super) struct ReportKeysArgs {
    /// Only the keys of this tenant: id, schema name or exact name
    #[arg(value_name = "TENANT_REF")]
    pub(super) tenant: Option<String>,
    /// Not used for this long, or never, and made this long ago (90d)
    #[arg(long, value_name = "DURATION", value_parser = long_duration)]
    unused_for: Option<Duration>,
    /// Expires within this span (30d)
    #[arg(long, value_name = "DURATION", value_parser = long_duration)]
    expiring_within: Option<Duration>,
    /// Never used
    #[arg(long)]
    never_used: bool,
    /// Never expires
    #[arg(long)]
    without_expiry: bool,
    /// Has no memo, so that after a restart it costs one bcrypt
    #[arg(long)]
    without_memo: bool,
    /// The cost of its hash is lower (12)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(5..=15))]
    cost_below: Option<u8>,
}

impl From<&ReportKeysArgs> for Criteria {
    fn from(args: &ReportKeysArgs) -> Self {
        let asked = Self {
            unused_for: args.unused_for,
            expiring_within: args.expiring_within,
            never_used: args.never_used,
            without_expiry: args.without_expiry,
            without_memo: args.without_memo,
            cost_below: args.cost_below,
        };
        if asked == Self::default() { Self::ALL } else { asked }
    }
}

#[derive(Subcommand)]
pub(super) enum PepperCommand {
    /// Make a pepper: put it on top of a file, or print it as a line for one
    New {
        /// The file of `--pepper-file`; made if it is not there, for its owner alone
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

#[derive(clap::Args)]
pub(super) struct KeyRef {
    /// Id or prefix (llmk_…) of the key
    #[arg(value_name = "REF")]
    pub(super) reference: String,
}

#[derive(clap::Args)]
pub(super) struct WaitArgs {
    /// Come back when every server knows, or say which one does not after this long
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true,
          default_missing_value = "10s", value_parser = long_duration)]
    pub(super) wait: Option<Duration>,
}

#[derive(clap::Args)]
pub(super) struct ExpiryArgs {
    /// It expires after this long, such as 90d (units s, m, h, d, w)
    #[arg(long, value_name = "DURATION", value_parser = long_duration, conflicts_with = "expires_at")]
    pub(super) expires_in: Option<Duration>,
    /// It expires at this instant (RFC 3339), such as 2027-01-31T00:00:00Z
    #[arg(long, value_name = "INSTANT", value_parser = rfc_3339)]
    pub(super) expires_at: Option<Timestamp>,
}

impl From<ExpiryArgs> for Expiry {
    fn from(args: ExpiryArgs) -> Self {
        match (args.expires_in, args.expires_at) {
            (Some(span), _) => Self::In(span),
            (None, Some(at)) => Self::At(at),
            (None, None) => Self::Unsaid,
        }
    }
}

fn actor(text: &str) -> Result<Actor, String> {
    Actor::new(text)
}

fn when(text: &str) -> Result<When, String> {
    let instant = rfc_3339(text).map(When::At);
    instant.or_else(|_| long_duration(text).map(When::Ago)).map_err(|_| {
        "is neither an RFC 3339 instant, such as 2027-01-31T00:00:00Z, nor a duration, such as 7d".into()
    })
}

fn row_hash(text: &str) -> Result<String, String> {
    let hash = text.to_ascii_lowercase();
    let fine = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    fine.then_some(hash).ok_or_else(|| "is no hash of a row: 64 hexadecimal digits".into())
}

fn long_duration(text: &str) -> Result<Duration, String> {
    let no_duration =
        || format!("{text:?} is no duration: write a whole number and a unit (s, m, h, d, w), such as 90d");
    config::duration(text).ok().filter(|_| !text.ends_with("ms")).ok_or_else(no_duration)
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').unwrap_or_default();
    let fine = !name.is_empty() && !value.is_empty();
    fine.then(|| (name.to_owned(), value.to_ascii_lowercase()))
        .ok_or_else(|| "expected NAME=VALUE, such as is_active=false".to_owned())
}

fn role_prefix(text: &str) -> Result<String, String> {
    let tail = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let head = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    let fine = head && text.bytes().all(tail) && text.len() <= 50 && !text.starts_with("pg_");
    let no_prefix =
        || format!("{text:?} is no beginning for names of roles: use a-z, 0-9 and _, such as tenantgate");
    fine.then(|| text.to_owned()).ok_or_else(no_prefix)
}

pub(super) fn rfc_3339(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse_rfc_3339(text)
        .ok_or_else(|| "is no RFC 3339 instant, such as 2027-01-31T00:00:00Z".into())
}

//! The arguments of the command line.
//!
//! Defines the commands and their options; [`crate::config`] defines those of `serve` and `manage`. `--help` shows
//! these doc comments.

use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};

use super::admin_key::AdminKeyCommand;
use super::bulk::{ExportArgs, ImportArgs};
use super::check::CheckArgs;
use super::doctor::DoctorArgs;
use super::explain::ExplainArgs;
use super::key::KeyCommand;
use super::plan::PlanCommand;
use super::ready::ReadyArgs;
use super::route::RouteCommand;
use super::values::{
    Output, WaitArgs, When, actor, long_duration, name_and_value, role_prefix, row_hash, when,
};
use crate::admin::Criteria;
use crate::audit::Actor;
use crate::config::{DatabaseArgs, ManageArgs, ServeArgs};
use crate::plan::PlanName;
use crate::store::{Adoption, UsageBy};
use crate::tenant::{Mode, TenantStatus};

/// Tenant-aware API keys for everything behind Envoy.
///
/// tenantgate answers the calls of Envoy's external authorization filter: it finds the API key of a request, verifies
/// it against a bcrypt hash in Postgres or SQLite, and tells the upstream which tenant is calling.
#[derive(Parser)]
#[command(name = "tenantgate", version, propagate_version = true, max_term_width = 100, after_help = EXAMPLES)]
pub(super) struct Cli {
    /// The database.
    #[command(flatten)]
    pub(super) database: DatabaseArgs,

    /// Which options of the database were given on the command line.
    #[arg(skip)]
    pub(super) database_said: Vec<&'static str>,

    /// The format of results
    #[arg(long, short, global = true, help_heading = "Global options", value_enum, default_value = "text")]
    pub(super) output: Output,

    /// The name that the audit log records for a change; defaults to the user of the operating system. With
    /// `audit list`: show only changes with this name
    #[arg(long, global = true, help_heading = "Global options", env = "TENANTGATE_ACTOR", value_name = "NAME",
          value_parser = actor)]
    pub(super) actor: Option<Actor>,

    /// Whether `--actor` was given on the command line.
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

Exit codes: 0 done, 1 rejected or not found, 2 usage, 3 database or network unavailable.";

/// Returns the definition of the program. The help of a command hides the global options that it does not use.
pub(super) fn program() -> clap::Command {
    const UNUSED: [(&str, &[&str]); 8] = [
        ("serve", &["output", "actor"]),
        ("manage", &["output", "actor"]),
        ("doctor", &["actor"]),
        ("explain", &["actor"]),
        ("report", &["actor"]),
        ("check", &["actor", "database_url", "database_url_file", "database_schema", "lock_timeout"]),
        ("ready", &["actor", "database_url", "database_url_file", "database_schema", "lock_timeout"]),
        (
            "completions",
            &["output", "actor", "database_url", "database_url_file", "database_schema", "lock_timeout"],
        ),
    ];
    let program = Cli::command();
    UNUSED.iter().fold(program.clone(), |all, (name, ids)| {
        let hidden = program.get_arguments().filter(|arg| ids.contains(&arg.get_id().as_str()));
        let hidden: Vec<_> = hidden.map(|arg| arg.clone().hide(true)).collect();
        // A command inherits only the options that it does not have.
        all.mut_subcommand(*name, |command| command.args(hidden))
    })
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// Run the server that answers Envoy
    Serve(Box<ServeArgs>),
    /// Create or update the database schema; adopts the tables of an existing deployment, and restores functions,
    /// triggers and rows that a restore or an operator has lost
    Migrate(MigrateArgs),
    /// Create the demo tenant and its well-known key
    SeedDemo {
        /// Do so even if the database has other tenants
        #[arg(long)]
        force: bool,
    },
    /// Manage tenants
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Manage API keys
    #[command(subcommand)]
    Key(Box<KeyCommand>),
    /// Manage plans: names for limits, which Envoy's rate limits enforce
    #[command(subcommand)]
    Plan(PlanCommand),
    /// Manage rules: which scopes a request needs, by host, method and path
    #[command(subcommand)]
    Route(RouteCommand),
    /// Manage management keys, which give access to management over HTTP
    #[command(subcommand)]
    AdminKey(Box<AdminKeyCommand>),
    /// Run the server for management over HTTP
    Manage(ManageArgs),
    /// Show and verify the audit log: every change, by commands and over HTTP
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Show reports about keys, shadow mode and usage
    #[command(subcommand)]
    Report(ReportCommand),
    /// Manage peppers
    #[command(subcommand)]
    Pepper(PepperCommand),
    /// Send one Check to a server and show the answer; exits with 1 if the request is denied
    Check(Box<CheckArgs>),
    /// Show whether the server on this machine is ready; exits with 1 if it is not
    Ready(ReadyArgs),
    /// Explain which answer a key gets, and why
    Explain(Box<ExplainArgs>),
    /// Check everything that `serve` depends on; exits with 1 if a check is bad
    Doctor(Box<DoctorArgs>),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(clap::Args)]
pub(super) struct MigrateArgs {
    /// Also create the roles `tenantgate_serve`, `tenantgate_admin` and `tenantgate_migrate` (or with another prefix),
    /// each with only the rights that it needs; Postgres only
    #[arg(long, value_name = "PREFIX", num_args = 0..=1, require_equals = true, default_missing_value = "tenantgate",
          value_parser = role_prefix)]
    pub(super) roles: Option<String>,
    /// Make this copy a database of its own, such as staging from a dump of production: servers of the original
    /// then refuse it
    #[arg(long)]
    new_identity: bool,
    /// Also create the publication `tenantgate` for logical replication; Postgres only
    #[arg(long)]
    publication: bool,
    /// When adopting tables: ignore this column, although its name suggests that it disables rows
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
    /// Create a tenant and its schema
    Create {
        /// The name of the tenant, 1 to 255 characters
        name: String,
        /// The schema of the tenant [default: tenant_ and the name in a-z, 0-9 and _]
        #[arg(long, value_name = "S")]
        schema: Option<String>,
        /// Use the schema even if it exists and is not empty
        #[arg(long)]
        adopt_schema: bool,
        /// The status of the tenant; `pending_provisioning` does not create the schema
        #[arg(long, value_name = "S", default_value = "active",
              value_parser = clap::builder::PossibleValuesParser::new(TenantStatus::KNOWN))]
        status: String,
    },
    /// Change the name or the plan of a tenant
    Update {
        #[command(flatten)]
        tenant: TenantRef,
        /// The new name, 1 to 255 characters
        #[arg(long, value_name = "N")]
        name: Option<String>,
        /// The plan of the tenant's keys that have none of their own
        #[arg(long, value_name = "P", value_parser = PlanName::parse, conflicts_with = "no_plan")]
        plan: Option<PlanName>,
        /// No plan
        #[arg(long)]
        no_plan: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Show all tenants
    List,
    /// Show a tenant
    Show(TenantRef),
    /// Suspend a tenant: its keys get 403
    Suspend {
        #[command(flatten)]
        tenant: TenantRef,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Set whether a tenant's proven keys are rejected when they are revoked or expired, or the tenant is not active
    Mode {
        #[command(flatten)]
        tenant: TenantRef,
        /// Reject such requests, let them pass without a tenant and report them, or follow `serve --mode`
        #[arg(value_enum)]
        mode: TenantMode,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Activate a tenant; creates its schema if it is missing
    Activate {
        #[command(flatten)]
        tenant: TenantRef,
        /// Give a pending tenant its schema even if it is not empty
        #[arg(long)]
        adopt_schema: bool,
    },
    /// Mark a tenant as deleted; its rows remain
    Delete {
        #[command(flatten)]
        tenant: TenantRef,
        /// Confirm the deletion
        #[arg(long, required = true)]
        yes: bool,
    },
    /// Import tenants from a file
    Import(ImportArgs),
    /// Export all tenants to a file
    Export(ExportArgs),
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum TenantMode {
    /// Reject them
    Enforce,
    /// Let them pass without a tenant, and report them
    Shadow,
    /// Follow `serve --mode`
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
    /// The id, schema name or exact name of the tenant
    #[arg(value_name = "REF")]
    pub(super) reference: String,
}

#[derive(Subcommand)]
pub(super) enum AuditCommand {
    /// List changes, oldest first
    List {
        /// The earliest time (RFC 3339), or how long ago, such as 7d
        #[arg(long, value_name = "INSTANT", value_parser = when)]
        since: Option<When>,
        /// The end of the period, exclusive (RFC 3339), or how long ago
        #[arg(long, value_name = "INSTANT", value_parser = when)]
        until: Option<When>,
        /// Only changes of this tenant (id, schema, name) or key (id, prefix); the id of a tenant includes its keys
        #[arg(long, value_name = "REF")]
        subject: Option<String>,
        /// Only the newest N changes
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
        limit: Option<i64>,
    },
    /// Verify the chain of hashes from the first row to the last
    Verify {
        /// A head recorded earlier: the chain must contain it, otherwise rows were removed or rewritten
        #[arg(long, value_name = "HASH", value_parser = row_hash)]
        expect_head: Option<String>,
    },
}

#[derive(Subcommand)]
pub(super) enum ReportCommand {
    /// List active keys to which any of the options applies; without options, all of them apply with the values in
    /// parentheses
    Keys(ReportKeysArgs),
    /// List the requests that passed in shadow mode and would be rejected otherwise, the most frequent first
    Shadow {
        /// The earliest day (RFC 3339), or how long ago; 30 days are kept
        #[arg(long, value_name = "INSTANT", default_value = "7d", value_parser = when)]
        since: When,
    },
    /// Show how many requests were made: by day, by key (the busiest first) or by reason (the most frequent first)
    Usage(ReportUsageArgs),
}

#[derive(clap::Args)]
pub(super) struct ReportUsageArgs {
    /// Only requests with keys of this tenant: id, schema name or exact name
    #[arg(value_name = "TENANT_REF")]
    pub(super) tenant: Option<String>,
    /// The first day in UTC (RFC 3339), or how long ago; `serve --usage-retention` sets how many days are kept
    #[arg(long, value_name = "INSTANT", default_value = "30d", value_parser = when)]
    pub(super) since: When,
    /// How requests are grouped
    #[arg(long, value_enum, default_value = "day")]
    pub(super) by: CountBy,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum CountBy {
    /// A line for each day (UTC)
    Day,
    /// A line for each key, and one for requests without a proven key
    Key,
    /// A line for each reason, as in metadata and logs
    Reason,
}

impl From<CountBy> for UsageBy {
    fn from(by: CountBy) -> Self {
        match by {
            CountBy::Day => Self::Day,
            CountBy::Key => Self::Key,
            CountBy::Reason => Self::Reason,
        }
    }
}

#[derive(clap::Args)]
pub(super) struct ReportKeysArgs {
    /// Only the keys of this tenant: id, schema name or exact name
    #[arg(value_name = "TENANT_REF")]
    pub(super) tenant: Option<String>,
    /// Last used at least this long ago, or never used and older than this (90d)
    #[arg(long, value_name = "DURATION", value_parser = long_duration)]
    unused_for: Option<Duration>,
    /// Expires within this time (30d)
    #[arg(long, value_name = "DURATION", value_parser = long_duration)]
    expiring_within: Option<Duration>,
    /// Never used
    #[arg(long)]
    never_used: bool,
    /// Never expires
    #[arg(long)]
    without_expiry: bool,
    /// Has no memo, so it costs one bcrypt after a restart
    #[arg(long)]
    without_memo: bool,
    /// The bcrypt cost of its hash is lower (12)
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
    /// Create a pepper: add it as the first line of a file, or print it
    New {
        /// The file of `--pepper-file`; if it does not exist, it is created with mode 0600
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

//! What did the human type, and what is he told?
//!
//! The only room that prints and that knows exit codes:
//!
//! | code | |
//! |---|---|
//! | 0 | done |
//! | 1 | refused, not found, an old schema: one line on standard error, nothing on standard output |
//! | 2 | usage: an unknown flag, a bad value |
//! | 3 | the database or the network is not there |
//!
//! Whatever is printed on standard error is scrubbed of keys and passwords first,
//! because people paste them into the wrong place.

mod check;
mod view;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use self::check::CheckArgs;
use self::view::{DemoView, IssuedView, KeyView, MigratedView, RotatedView, TenantView, Text};
use crate::admin::{Admin, AdminError, Expiry};
use crate::clock::{SystemClock, Timestamp};
use crate::config::{self, ServeArgs};
use crate::server::{self, ServeError};
use crate::store::StoreError;
use crate::telemetry::{self, scrub::scrub};
use crate::tenant::TenantStatus;

/// Tenant-aware API keys for everything behind Envoy.
///
/// tenantgate answers the calls of Envoy's external authorization filter: it finds the API key of a request, proves it against a bcrypt
/// hash in Postgres or SQLite, and tells the upstream which tenant is calling.
#[derive(Parser)]
#[command(name = "tenantgate", version, propagate_version = true, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    /// Where tenants and keys are: postgres://…, postgresql+asyncpg://… or `sqlite://file`
    #[arg(
        long,
        global = true,
        env = "LLMCORE_AUTH_DATABASE_URL",
        hide_env_values = true,
        value_name = "URL",
        default_value = "sqlite://tenantgate.db"
    )]
    database_url: String,

    /// How to print results
    #[arg(long, short, global = true, value_enum, default_value = "text")]
    output: Output,

    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  tenantgate tenant create 'Acme Corp'           a tenant, on SQLite in this directory
  tenantgate key create tenant_acme_corp --name ci --expires-in 90d
  tenantgate serve                               answers Envoy on 127.0.0.1:50051
  tenantgate check --target 127.0.0.1:50051 --path /v1 --key \"$KEY\"
  tenantgate key revoke llmk_acmecorp7Gk2mQ9x --reason leaked

Exit codes: 0 done, 1 refused or not found, 2 usage, 3 database or network unavailable.";

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs: one object or array
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Answer Envoy
    Serve(Box<ServeArgs>),
    /// Bring the database schema up to date; adopts the tables of an existing deployment
    Migrate,
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
    /// Send one Check to a server and show the answer; exits with 1 if it is a denial
    Check(Box<CheckArgs>),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand)]
enum TenantCommand {
    /// Add a tenant and make its schema stand
    Create {
        /// Its name, 1 to 255 characters
        name: String,
        /// Its schema [default: tenant_ and the name in a-z, 0-9 and _]
        #[arg(long, value_name = "S")]
        schema: Option<String>,
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
    Suspend(TenantRef),
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
}

#[derive(clap::Args)]
struct TenantRef {
    /// Id, schema name or exact name of the tenant
    #[arg(value_name = "REF")]
    reference: String,
}

#[derive(Subcommand)]
enum KeyCommand {
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
    },
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
    },
}

#[derive(clap::Args)]
struct KeyRef {
    /// Id or prefix (llmk_…) of the key
    #[arg(value_name = "REF")]
    reference: String,
}

#[derive(clap::Args)]
struct ExpiryArgs {
    /// It expires after this long, such as 90d (units s, m, h, d, w)
    #[arg(long, value_name = "DURATION", value_parser = long_duration, conflicts_with = "expires_at")]
    expires_in: Option<Duration>,
    /// It expires at this instant (RFC 3339), such as 2027-01-31T00:00:00Z
    #[arg(long, value_name = "INSTANT", value_parser = rfc_3339)]
    expires_at: Option<Timestamp>,
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

fn long_duration(text: &str) -> Result<Duration, String> {
    let short =
        text.ends_with("ms").then(|| "milliseconds make no sense here: use s, m, h, d or w".to_owned());
    short.map_or_else(|| config::duration(text), Err)
}

fn rfc_3339(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse_rfc_3339(text)
        .ok_or_else(|| "is no RFC 3339 instant, such as 2027-01-31T00:00:00Z".into())
}

/// Why a command ends with something other than 0.
#[derive(Debug)]
struct Failure {
    code: u8,
    lines: Vec<String>,
}

impl Failure {
    fn refused(why: impl std::fmt::Display) -> Self {
        Self { code: 1, lines: vec![why.to_string()] }
    }

    fn usage(why: impl std::fmt::Display) -> Self {
        Self { code: 2, lines: vec![why.to_string()] }
    }

    fn unavailable(why: impl std::fmt::Display) -> Self {
        Self { code: 3, lines: vec![why.to_string()] }
    }

    /// The answer was printed, and is no.
    fn denied() -> Self {
        Self { code: 1, lines: Vec::new() }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(why) => Self::unavailable(format!("the database is unavailable: {why}")),
            StoreError::Impostor(why) => Self::unavailable(why),
            other => Self::refused(other),
        }
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::BadRequest(why) => Self::usage(why),
            AdminError::Refused(why) => Self::refused(why),
            AdminError::Store(error) => error.into(),
        }
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::Listen { .. } => Self::unavailable(error),
            ServeError::Start(_) => Self::refused(error),
            ServeError::Store(error) => error.into(),
        }
    }
}

/// Does what `args` say.
pub async fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let (cli, mut out) = match parse(args) {
        Ok(cli) => {
            let out = Out(cli.output);
            (cli, out)
        }
        Err(code) => return code,
    };
    match dispatch(cli, &mut out).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for line in &failure.lines {
                say(&format!("error: {}\n", one_line(line)));
            }
            ExitCode::from(failure.code)
        }
    }
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    let parsed = Cli::command().try_get_matches_from(args).and_then(|matches| {
        let mut cli = Cli::from_arg_matches(&matches)?;
        if let (Command::Serve(args), Some(serve)) = (&mut cli.command, matches.subcommand_matches("serve")) {
            args.split_variables(|name| serve.value_source(name) == Some(ValueSource::EnvVariable));
        }
        Ok(cli)
    });
    parsed.map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            print(&error.render().to_string());
            ExitCode::SUCCESS
        }
        _ => {
            say(&error.render().to_string());
            ExitCode::from(2)
        }
    })
}

async fn dispatch(cli: Cli, out: &mut Out) -> Result<(), Failure> {
    let url = cli.database_url;
    match cli.command {
        Command::Serve(args) => serve(&args, &url).await,
        Command::Check(args) => {
            let answer = check::check(*args).await?;
            out.show(&answer)?;
            if answer.allowed { Ok(()) } else { Err(Failure::denied()) }
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tenantgate", &mut script);
            print(&String::from_utf8_lossy(&script));
            Ok(())
        }
        Command::Migrate => {
            let (applied, current) = admin(&url)?.migrate().await?;
            out.show(&MigratedView { applied, current })
        }
        Command::SeedDemo { force } => {
            let (tenant, issued) = ready(&url).await?.seed_demo(force).await?;
            out.show(&DemoView { tenant: (&tenant).into(), key: (&issued).into() })
        }
        Command::Tenant(command) => tenant(&ready(&url).await?, command, out).await,
        Command::Key(command) => key(&ready(&url).await?, command, out).await,
    }
}

fn admin(url: &str) -> Result<Admin, Failure> {
    let store = config::store(url).map_err(|why| Failure::usage(format!("--database-url: {why}")))?;
    Ok(Admin::new(store, Arc::new(SystemClock)))
}

async fn ready(url: &str) -> Result<Admin, Failure> {
    let admin = admin(url)?;
    admin.prepare().await?;
    Ok(admin)
}

async fn tenant(admin: &Admin, command: TenantCommand, out: &mut Out) -> Result<(), Failure> {
    let tenant = match command {
        TenantCommand::Create { name, schema, status } => {
            admin.create_tenant(&name, schema.as_deref(), TenantStatus::parse(&status)).await?
        }
        TenantCommand::List => {
            let tenants = admin.tenants().await?;
            return out.show(&tenants.iter().map(TenantView::from).collect::<Vec<_>>());
        }
        TenantCommand::Show(tenant) => admin.tenant(&tenant.reference).await?,
        TenantCommand::Suspend(tenant) => admin.suspend_tenant(&tenant.reference).await?,
        TenantCommand::Activate(tenant) => admin.activate_tenant(&tenant.reference).await?,
        TenantCommand::Delete { tenant, yes: _ } => admin.delete_tenant(&tenant.reference).await?,
    };
    out.show(&TenantView::from(&tenant))
}

async fn key(admin: &Admin, command: KeyCommand, out: &mut Out) -> Result<(), Failure> {
    match command {
        KeyCommand::Create { tenant, name, expiry } => {
            let issued = admin.create_key(&tenant, name, expiry.into()).await?;
            out.show(&IssuedView::from(&issued))?;
            out.remark("keep the key now: it is not shown again");
        }
        KeyCommand::List { tenant } => {
            let keys = admin.keys(tenant.as_deref()).await?;
            out.show(&keys.iter().map(|key| KeyView::at(key, admin.now())).collect::<Vec<_>>())?;
        }
        KeyCommand::Show(key) => out.show(&KeyView::at(&admin.key(&key.reference).await?, admin.now()))?,
        KeyCommand::Revoke { key, reason } => {
            let key = admin.revoke_key(&key.reference, reason.as_deref()).await?;
            out.show(&KeyView::at(&key, admin.now()))?;
        }
        KeyCommand::Rotate { key, grace, expiry } => {
            let (old, issued) = admin.rotate_key(&key.reference, grace, expiry.into()).await?;
            out.show(&RotatedView { old: KeyView::at(&old, admin.now()), new: (&issued).into() })?;
            out.remark("keep the new key now: it is not shown again");
        }
    }
    Ok(())
}

async fn serve(args: &ServeArgs, url: &str) -> Result<(), Failure> {
    let settings = config::settings(args, url).map_err(|mistakes| Failure { code: 2, lines: mistakes.0 });
    let (settings, logging) = settings?;
    if args.check_config {
        say("the configuration is fine\n");
        return Ok(());
    }
    telemetry::start_logging(logging.filter, logging.format);
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate()).map_err(Failure::refused)?,
        signal(SignalKind::interrupt()).map_err(Failure::refused)?,
    );
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Ok(server::serve(settings, shutdown).await?)
}

/// Where results go.
struct Out(Output);

impl Out {
    fn show(&mut self, result: &(impl Serialize + Text)) -> Result<(), Failure> {
        let mut text = match self.0 {
            Output::Json => serde_json::to_string(result).map_err(Failure::refused)?,
            Output::Text => result.text(),
        };
        text.push('\n');
        print(&text);
        Ok(())
    }

    /// Something to keep in mind, for people only.
    fn remark(&self, text: &str) {
        if matches!(self.0, Output::Text) {
            say(&format!("{text}\n"));
        }
    }
}

/// To standard output. Whoever closed it does not want to read on.
fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
}

/// To standard error, scrubbed.
fn say(text: &str) {
    let _ = io::stderr().write_all(scrub(text).as_bytes());
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

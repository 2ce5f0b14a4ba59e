//! Runs commands and prints their results.
//!
//! Only this module prints and knows exit codes:
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | rejected, not found, or an old schema: one line on standard error, nothing on standard output |
//! | 2 | usage: an unknown flag or an invalid value |
//! | 3 | the database or the network is not available |
//!
//! Keys and passwords are removed from everything that is printed on standard error, because people paste such output
//! into tickets and chats.

mod admin_key;
mod args;
mod audit;
mod bulk;
mod check;
mod doctor;
mod explain;
mod failure;
mod key;
mod output;
mod pepper;
mod plan;
mod ready;
mod report;
mod route;
mod rows;
mod shadow;
mod target;
#[cfg(test)]
mod tests;
mod unreachable;
mod usage;
mod values;
mod view;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, FromArgMatches as _};
use tokio::signal::unix::{SignalKind, signal};

use self::admin_key::AdminKeyCommand;
use self::args::{Cli, Command, PepperCommand, TenantCommand};
use self::failure::{Failure, unseen};
use self::key::KeyCommand;
use self::output::{Out, check_stdout, one_line, print, print_stderr};
use self::values::{Output, WaitArgs};
use self::view::{DemoView, MigratedView, TenantView};
use crate::admin::{Admin, Setting};
use crate::audit::Actor;
use crate::clock::SystemClock;
use crate::config::{self, Database, ManageArgs, PepperArgs, ServeArgs};
use crate::invalid::InvalidValue;
use crate::server::{self, ManageSettings};
use crate::telemetry;
use crate::tenant::TenantStatus;
use crate::verify::memo::{MemoPolicy, Peppers};

/// Parses `args` and runs the command. Returns its exit code.
pub async fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    telemetry::panics::hide_secrets();
    let (cli, mut out) = match parse(args) {
        Ok(cli) => {
            let out = Out(cli.output);
            (cli, out)
        }
        Err(code) => return code,
    };
    let by = match by(&cli) {
        Ok(by) => by,
        Err(why) => {
            print_stderr(&format!("error: {why}\n"));
            return ExitCode::from(2);
        }
    };
    match dispatch(cli, &by, &mut out).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(mut failure) => {
            if failure.locked
                && let Some(line) = failure.lines.first_mut()
                && let Some(holder) = lock_holder(&by).await
            {
                line.push_str(": ");
                line.push_str(&holder);
            }
            for line in &failure.lines {
                print_stderr(&format!("error: {}\n", one_line(line)));
            }
            ExitCode::from(failure.code)
        }
    }
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    let parsed = args::program().try_get_matches_from(args).and_then(|matches| {
        let mut cli = Cli::from_arg_matches(&matches)?;
        cli.actor_was_said = said(&matches, "actor");
        cli.database_said =
            ["database_url", "database_url_file"].into_iter().filter(|name| said(&matches, name)).collect();
        if let Some((_, matches)) = matches.subcommand() {
            let from_variable = |name: &str| matches.value_source(name) == Some(ValueSource::EnvVariable);
            match &mut cli.command {
                Command::Serve(args) => args.split_variables(from_variable),
                Command::Explain(args) => args.judgement.routing.split_variables(from_variable),
                Command::Doctor(args) => {
                    args.exchange.split_variables(from_variable);
                    args.judgement.routing.split_variables(from_variable);
                }
                Command::Route(command) => {
                    let from_variable = |name: &str| {
                        matches.subcommand().and_then(|(_, matches)| matches.value_source(name))
                            == Some(ValueSource::EnvVariable)
                    };
                    match command {
                        route::RouteCommand::Test(args) => args.routing.split_variables(from_variable),
                        route::RouteCommand::List(args) => args.routing.split_variables(from_variable),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        Ok(cli)
    });
    parsed.map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            print(&error.render().to_string()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
        }
        _ => {
            print_stderr(&error.render().to_string());
            ExitCode::from(2)
        }
    })
}

/// Returns whether a global argument was given on the command line, and not by an environment variable.
fn said(matches: &ArgMatches, name: &str) -> bool {
    let here = matches.value_source(name) == Some(ValueSource::CommandLine);
    here || matches.subcommand().is_some_and(|(_, below)| said(below, name))
}

/// Returns the database and the actor of the command.
fn by(cli: &Cli) -> Result<CommandSession, InvalidValue> {
    let makes = matches!(
        cli.command,
        Command::Serve(_)
            | Command::Migrate(_)
            | Command::SeedDemo { .. }
            | Command::Tenant(TenantCommand::Create { .. })
    );
    let database = cli.database.database(|name| cli.database_said.contains(&name), makes)?;
    Ok(CommandSession { database, actor: cli.actor.clone().unwrap_or_else(os_user) })
}

/// Returns a description of the session that holds a lock; `None` if the database does not tell it.
async fn lock_holder(by: &CommandSession) -> Option<String> {
    let store = config::management(&by.database, by.actor.clone()).ok()?;
    store.lock_holder().await.ok().flatten()
}

async fn dispatch(cli: Cli, by: &CommandSession, out: &mut Out) -> Result<(), Failure> {
    // Checked first, because a command that changes something must be able to show its result.
    if cli.output == Output::Csv && !matches!(cli.command, Command::Report(_)) {
        return Err(Failure::usage("--output csv is for reports only: use text or json"));
    }
    match cli.command {
        Command::Serve(args) => serve(&args, by).await,
        Command::Check(args) => {
            let answer = check::check(*args).await?;
            out.show(&answer)?;
            if answer.allowed { Ok(()) } else { Err(Failure::denied()) }
        }
        Command::Ready(args) => {
            let answer = ready::check(args).await?;
            out.show(&answer)?;
            if answer.ready { Ok(()) } else { Err(Failure::denied()) }
        }
        Command::Doctor(args) => {
            let report = doctor::examine(&args, by).await?;
            out.show(&report)?;
            report.verdict()
        }
        Command::Explain(args) => {
            let (explanation, whole) = explain::explain(&args, by).await?;
            out.show(&explanation)?;
            whole
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut args::program(), "tenantgate", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Command::Migrate(args) => {
            let admin = admin(by, Peppers::default())?;
            let prefix = args.roles.clone();
            let (migrated, current) = admin.migrate(&args.into()).await?;
            let roles = match prefix {
                Some(prefix) => Some(admin.create_roles(&prefix).await?),
                None => None,
            };
            for note in &migrated.notes {
                print_stderr(&format!("note: {note}\n"));
            }
            out.show(&MigratedView::new(migrated, current, roles))
        }
        Command::SeedDemo { force } => {
            let (tenant, issued) = open_admin(by, Peppers::default()).await?.seed_demo(force).await?;
            out.show(&DemoView { tenant: (&tenant).into(), key: (&issued).into() })
        }
        Command::Tenant(command) => tenant(&open_admin(by, Peppers::default()).await?, command, out).await,
        Command::Plan(command) => plan::plan(&open_admin(by, Peppers::default()).await?, command, out).await,
        Command::Route(command) => {
            route::route(&open_admin(by, Peppers::default()).await?, command, out).await
        }
        Command::Key(command) => {
            if matches!(*command, KeyCommand::Create { .. } | KeyCommand::Rotate { .. }) {
                check_stdout()?;
            }
            let peppers = match &*command {
                KeyCommand::Create { pepper, .. }
                | KeyCommand::Import { pepper, .. }
                | KeyCommand::Rotate { pepper, .. } => peppers(pepper)?,
                _ => Peppers::default(),
            };
            key::key(&open_admin(by, peppers).await?, *command, out).await
        }
        Command::AdminKey(command) => {
            if matches!(*command, AdminKeyCommand::Create(_) | AdminKeyCommand::LoginLink(_)) {
                check_stdout()?;
            }
            admin_key::admin_key(&open_admin(by, Peppers::default()).await?, *command, out).await
        }
        Command::Manage(args) => manage(&args, by).await,
        Command::Report(command) => {
            report::report(&open_admin(by, Peppers::default()).await?, &command, out).await
        }
        Command::Audit(command) => {
            let whose = cli.actor.filter(|_| cli.actor_was_said);
            audit::audit(&open_admin(by, Peppers::default()).await?, command, whose, out).await
        }
        Command::Pepper(PepperCommand::New { file: None }) => out.show(&pepper::show()?),
        Command::Pepper(PepperCommand::New { file: Some(file) }) => out.show(&pepper::put_on_top(&file)?),
    }
}

/// The database of a command, and the actor whose name the audit log records.
struct CommandSession {
    database: Database,
    actor: Actor,
}

/// Returns the user of the operating system that runs this process.
fn os_user() -> Actor {
    let name = whoami::username().ok().and_then(|name| Actor::new(&name).ok());
    let number = || Actor::new(&format!("uid {}", rustix::process::getuid().as_raw())).unwrap_or_default();
    name.unwrap_or_else(number)
}

fn admin(by: &CommandSession, peppers: Peppers) -> Result<Admin, Failure> {
    let store = config::management(&by.database, by.actor.clone())
        .map_err(|why| Failure::usage(format!("{}: {why}", by.database.option())))?;
    Ok(Admin::new(store, Arc::new(SystemClock), peppers))
}

fn peppers(args: &PepperArgs) -> Result<Peppers, Failure> {
    args.read(MemoPolicy::default()).map_err(|why| Failure::usage(format!("--pepper-file: {why}")))
}

async fn open_admin(by: &CommandSession, peppers: Peppers) -> Result<Admin, Failure> {
    let admin = admin(by, peppers)?;
    admin.prepare().await?;
    Ok(admin)
}

async fn tenant(admin: &Admin, command: TenantCommand, out: &mut Out) -> Result<(), Failure> {
    let tenant = match command {
        TenantCommand::Create { name, schema, adopt_schema, status } => {
            let status = TenantStatus::parse(&status);
            admin.create_tenant(&name, schema.as_deref(), adopt_schema, status, None).await?
        }
        TenantCommand::Update { tenant, name, plan, no_plan, wait } => {
            let plan = Setting::said(plan, no_plan);
            let tenant = admin.update_tenant(&tenant.reference, name.as_deref(), &plan).await?;
            wait_for_servers(admin, &wait).await?;
            tenant
        }
        TenantCommand::List => {
            let tenants = admin.tenants().await?;
            return out.show(&tenants.iter().map(TenantView::from).collect::<Vec<_>>());
        }
        TenantCommand::Import(args) => return bulk::import_tenants(admin, &args, out).await,
        TenantCommand::Export(args) => return bulk::export_tenants(admin, &args, out).await,
        TenantCommand::Show(tenant) => admin.tenant(&tenant.reference).await?,
        TenantCommand::Suspend { tenant, wait } => {
            let tenant = admin.suspend_tenant(&tenant.reference).await?;
            wait_for_servers(admin, &wait).await?;
            tenant
        }
        TenantCommand::Mode { tenant, mode, wait } => {
            let tenant = admin.set_tenant_mode(&tenant.reference, mode.into()).await?;
            wait_for_servers(admin, &wait).await?;
            tenant
        }
        TenantCommand::Activate { tenant, adopt_schema } => {
            admin.activate_tenant_with(&tenant.reference, adopt_schema).await?
        }
        TenantCommand::Delete { tenant, yes: _ } => admin.delete_tenant(&tenant.reference).await?,
    };
    out.show(&TenantView::from(&tenant))
}

async fn wait_for_servers(admin: &Admin, wait: &WaitArgs) -> Result<(), Failure> {
    match wait.wait {
        Some(limit) => Ok(admin.wait_for_servers(limit).await?),
        None => Ok(()),
    }
}

async fn serve(args: &ServeArgs, by: &CommandSession) -> Result<(), Failure> {
    let (settings, logging) = config::settings(args, &by.database, by.actor.clone())?;
    if args.check_config {
        print_stderr("the configuration is fine\n");
        return Ok(());
    }
    telemetry::start_logging(logging.filter, logging.format);
    Ok(server::serve(settings, asked_to_stop()?).await?)
}

/// The number of database connections of `manage`, shared by the requests of all clients. It is small because each is a
/// backend process of Postgres, and a change takes only milliseconds.
const CONNECTIONS_OF_MANAGE: usize = 4;

async fn manage(args: &ManageArgs, by: &CommandSession) -> Result<(), Failure> {
    let (options, logging) = args.read()?;
    let database = Database { connections: CONNECTIONS_OF_MANAGE, ..by.database.clone() };
    let by = &CommandSession { database, actor: by.actor.clone() };
    let admin = admin(by, options.peppers)?;
    if args.check_config {
        print_stderr("the configuration is fine\n");
        return Ok(());
    }
    telemetry::start_logging(logging.filter, logging.format);
    let settings = ManageSettings {
        listen: options.listen,
        unix_mode: options.unix_mode,
        tls: options.tls,
        trusted: options.trusted,
        ops_listen: options.ops_listen,
        admin,
        explain: explain::for_management(by),
        clock: Arc::new(SystemClock),
    };
    Ok(server::manage(settings, asked_to_stop()?).await?)
}

/// Returns a future that completes when the process gets SIGTERM or SIGINT.
fn asked_to_stop() -> Result<impl Future<Output = ()>, Failure> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate()).map_err(Failure::refused)?,
        signal(SignalKind::interrupt()).map_err(Failure::refused)?,
    );
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

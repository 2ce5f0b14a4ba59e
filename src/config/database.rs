//! The options of the database, which every command has.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::Actor;
use crate::duration;
use crate::invalid::InvalidValue;
use crate::store::inspect::Inspect;
use crate::store::postgres::PostgresStore;
use crate::store::sqlite::SqliteStore;
use crate::store::{AddressError, LOCK_TIMEOUT, Management, Store, UrlSource};

/// The default of `--database-url`.
const DEFAULT_URL: &str = "sqlite://tenantgate.db";

/// Postgres counts milliseconds in 31 bits.
const LONGEST_LOCK_TIMEOUT: Duration = Duration::from_hours(24 * 24);

/// The options that every command takes.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Database")]
pub struct DatabaseArgs {
    /// The database with tenants and keys: postgres://…, postgresql+asyncpg://… or `sqlite://file`
    #[arg(
        long,
        global = true,
        env = "LLMCORE_AUTH_DATABASE_URL",
        hide_env_values = true,
        value_name = "URL",
        default_value = DEFAULT_URL
    )]
    pub database_url: String,

    /// A file whose one line is the database URL, read again at every connect, so that a new password needs no
    /// restart
    #[arg(long, global = true, env = "TENANTGATE_DATABASE_URL_FILE", value_name = "FILE")]
    pub database_url_file: Option<PathBuf>,

    /// The Postgres schema of tenants, `api_keys` and the tables of tenantgate [default: public]
    #[arg(long, global = true, env = "TENANTGATE_DATABASE_SCHEMA", value_name = "NAME")]
    pub database_schema: Option<String>,

    /// How long a command waits for a lock that another session holds before it exits with 3
    #[arg(long, global = true, env = "TENANTGATE_LOCK_TIMEOUT", value_name = "DURATION", default_value = "5s",
          value_parser = lock_timeout)]
    pub lock_timeout: Duration,
}

/// The database of a command.
#[derive(Clone, Debug)]
pub struct Database {
    /// The source of its URL.
    pub source: UrlSource,
    /// The Postgres schema of its tables, if it was given.
    pub schema: Option<String>,
    /// The maximum wait for a lock.
    pub lock_timeout: Duration,
    /// Whether a SQLite file may be created.
    pub may_create: bool,
    /// How many connections are kept for management.
    pub connections: usize,
}

impl Database {
    /// Returns the database at this URL, with default options.
    #[must_use]
    pub fn at(url: &str) -> Self {
        let source = UrlSource::Text(url.to_owned());
        Self { source, schema: None, lock_timeout: LOCK_TIMEOUT, may_create: true, connections: 1 }
    }

    /// Returns the option that its URL comes from.
    #[must_use]
    pub fn option(&self) -> &'static str {
        match self.source {
            UrlSource::Text(_) => "--database-url",
            UrlSource::File(_) => "--database-url-file",
        }
    }
}

impl DatabaseArgs {
    /// Selects the database. `said` returns whether an option was given on the command line.
    ///
    /// # Errors
    ///
    /// Both the URL and the file are given on the command line.
    pub fn database(&self, said: impl Fn(&str) -> bool, may_create: bool) -> Result<Database, InvalidValue> {
        let url = || UrlSource::Text(self.database_url.clone());
        // An option takes precedence over a variable.
        let source = match &self.database_url_file {
            Some(_) if said("database_url") && said("database_url_file") => {
                return Err("--database-url and --database-url-file name two databases: use one".into());
            }
            Some(file) if !said("database_url") => UrlSource::File(file.clone()),
            _ => url(),
        };
        let schema = self.database_schema.clone().filter(|schema| !schema.is_empty());
        Ok(Database { source, schema, lock_timeout: self.lock_timeout, may_create, connections: 1 })
    }
}

/// Opens the store of a database.
///
/// # Errors
///
/// The URL is invalid. The error does not repeat it.
pub fn store(url: &str) -> Result<Arc<dyn Store>, AddressError> {
    Ok(management(&Database::at(url), Actor::default())?)
}

/// Opens a store for the commands of `actor`.
///
/// # Errors
///
/// As for [`store`].
pub fn management(database: &Database, actor: Actor) -> Result<Arc<dyn Management>, AddressError> {
    Ok(inspected(database, actor)?)
}

/// Opens a store that can be examined.
///
/// # Errors
///
/// As for [`store`].
pub fn inspected(database: &Database, actor: Actor) -> Result<Arc<dyn Inspect>, AddressError> {
    let url = database.source.read()?;
    let limit = database.lock_timeout;
    if url.starts_with("sqlite:") {
        if database.schema.is_some() {
            return Err(AddressError::rejected("SQLite has no schemas: omit --database-schema"));
        }
        let store = SqliteStore::new(&url)?.acting_for(actor).giving_up_on_locks_after(limit);
        let store = store.keeping_connections(database.connections);
        return Ok(Arc::new(if database.may_create { store } else { store.of_existing_file() }));
    }
    if !url.contains("://") && !url.contains('=') && !url.starts_with("jdbc:") {
        return Err(AddressError::rejected(
            "the database URL must start with postgres://, postgresql:// or sqlite://",
        ));
    }
    let store = PostgresStore::at(database.source.clone(), database.schema.as_deref())?;
    let store = store.acting_for(actor).giving_up_on_locks_after(limit);
    Ok(Arc::new(store.keeping_connections(database.connections)))
}

fn lock_timeout(text: &str) -> Result<Duration, InvalidValue> {
    let limit = duration::parse(text)?;
    if limit.is_zero() {
        Err("0 would wait forever: give a time, such as 5s".into())
    } else if limit > LONGEST_LOCK_TIMEOUT {
        Err("expected at most 24d, such as 5s".into())
    } else {
        Ok(limit)
    }
}

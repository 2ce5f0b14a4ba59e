//! A database for each test, on either store.
//!
//! On Postgres it is a new database in the shared cluster, on SQLite a file in its own directory. Both are removed
//! after the test. Raw SQL goes through sqlx on a connection that tenantgate does not know, like that of any other
//! program.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _, SqliteConnection};
use tempfile::TempDir;

use super::cli::{Run, run_in};
use super::postgres::{Cluster, ROLE};
use super::wait;

/// The two stores of tenantgate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Postgres,
    Sqlite,
}

/// One database and a working directory, which are removed with this value.
pub(crate) struct Database {
    pub(crate) backend: Backend,
    url: String,
    dir: TempDir,
    cluster: Option<(&'static Cluster, String)>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Database {
    /// An empty database; `None` with a message if the machine has no Postgres.
    pub(crate) fn empty(backend: Backend) -> Option<Self> {
        match backend {
            Backend::Postgres => Some(Self::postgres(Cluster::shared()?, "template1")),
            Backend::Sqlite => Some(Self::sqlite(None)),
        }
    }

    /// A copy of another Postgres database, which must have no connections.
    pub(crate) fn postgres(cluster: &'static Cluster, template: &str) -> Self {
        Self::created(cluster, &format!("TEMPLATE {template}"))
    }

    fn created(cluster: &'static Cluster, options: &str) -> Self {
        let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        cluster.admin(&format!("CREATE DATABASE {name} {options}"));
        Self::of(Backend::Postgres, cluster.url(&name), Some((cluster, name)))
    }

    /// A SQLite file with these bytes, or no file yet.
    pub(crate) fn sqlite(bytes: Option<&[u8]>) -> Self {
        let mut database = Self::of(Backend::Sqlite, String::new(), None);
        let file = database.dir.path().join("tenantgate.db");
        if let Some(bytes) = bytes {
            std::fs::write(&file, bytes).expect("the file is written");
            std::fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("allowed");
        }
        database.url = format!("sqlite://{}", file.display());
        database
    }

    /// A database that the caller manages, by its URL.
    pub(crate) fn at(backend: Backend, url: &str) -> Self {
        Self::of(backend, url.to_owned(), None)
    }

    fn of(backend: Backend, url: String, cluster: Option<(&'static Cluster, String)>) -> Self {
        let dir = tempfile::Builder::new().prefix("tenantgate-it-").tempdir().expect("a directory");
        Self { backend, url, dir, cluster }
    }

    /// The value for `--database-url`.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Creates the least-privilege roles for this Postgres database and allows login as them; returns the
    /// prefix of their names.
    pub(crate) fn with_roles(&self) -> String {
        let prefix = format!("roles_{}", self.name());
        self.cli(&["migrate", &format!("--roles={prefix}")]).ok();
        for role in ["serve", "admin", "migrate"] {
            self.sql(&format!("ALTER ROLE {prefix}_{role} LOGIN"));
        }
        prefix
    }

    /// This Postgres database with the login of a role.
    pub(crate) fn seen_by(&self, role: &str) -> Self {
        Self::at(self.backend, &self.url.replacen(&format!("//{ROLE}:"), &format!("//{role}:"), 1))
    }

    /// Ends all connections to this Postgres database, as an administrator or a failover does.
    pub(crate) fn end_all_sessions(&self) {
        self.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        );
    }

    /// Whether this Postgres database takes connections.
    pub(crate) fn answers(&self) -> bool {
        wait(PgConnection::connect(&self.url)).is_ok()
    }

    /// An empty database in the same cluster.
    pub(crate) fn neighbour(&self) -> Self {
        self.neighbour_with("")
    }

    /// The same, created with these options.
    pub(crate) fn neighbour_with(&self, options: &str) -> Self {
        let (cluster, _) = self.cluster.as_ref().expect("a cluster that tests share");
        Self::created(cluster, options)
    }

    /// The name of the database in its cluster.
    pub(crate) fn name(&self) -> &str {
        self.cluster.as_ref().map_or("", |(_, name)| name)
    }

    /// The port of this Postgres on the loopback.
    pub(crate) fn port(&self) -> u16 {
        let (_, end) = self.url.rsplit_once(':').expect("a URL with a port");
        end.split('/').next().and_then(|port| port.parse().ok()).expect("a port")
    }

    /// The working directory of commands, used only by this test.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs `tenantgate <args> --database-url <this>`.
    pub(crate) fn cli(&self, args: &[&str]) -> Run {
        run_in(self.dir(), &[], &[args, &["--database-url", &self.url]].concat())
    }

    /// Runs a command with JSON output.
    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        self.cli(&[args, &["--output", "json"]].concat()).json()
    }

    /// A connection that stays open.
    pub(crate) fn session(&self) -> Session {
        wait(async {
            match self.backend {
                Backend::Postgres => {
                    Session::Postgres(PgConnection::connect(&self.url).await.expect("postgres is up"))
                }
                Backend::Sqlite => {
                    Session::Sqlite(SqliteConnection::connect(&self.url).await.expect("the file opens"))
                }
            }
        })
    }

    /// Runs statements that must succeed.
    pub(crate) fn sql(&self, sql: &str) {
        self.session().sql(sql);
    }

    /// Runs statements that must fail; returns the error of the database.
    pub(crate) fn refuses(&self, sql: &str) -> String {
        self.session().run(sql).expect_err(sql).to_string()
    }

    /// Returns the first column of every row as text.
    pub(crate) fn texts(&self, sql: &str) -> Vec<Option<String>> {
        self.session().texts(sql)
    }

    /// Returns every row of every table of a Postgres database as text.
    pub(crate) fn everything(&self) -> String {
        let mut session = self.session();
        let tables = session.texts(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables \
             WHERE schemaname NOT IN ('pg_catalog', 'information_schema')",
        );
        let rows = tables
            .iter()
            .flatten()
            .flat_map(|table| session.texts(&format!("SELECT t::text FROM {table} t")));
        rows.flatten().collect::<Vec<String>>().join("\n")
    }

    /// Returns the first column of the only row as text.
    pub(crate) fn text(&self, sql: &str) -> Option<String> {
        let mut rows = self.texts(sql);
        assert_eq!(rows.len(), 1, "{sql}");
        rows.remove(0)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Some((cluster, name)) = &self.cluster else { return };
        let drop_it = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        wait(async {
            if let Ok(mut session) = PgConnection::connect(&cluster.url("postgres")).await {
                let _ = sqlx::raw_sql(AssertSqlSafe(drop_it)).execute(&mut session).await;
            }
        });
    }
}

/// An open connection to either store.
pub(crate) enum Session {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Session {
    /// Runs statements, one transaction each unless they contain BEGIN.
    pub(crate) fn run(&mut self, sql: &str) -> Result<u64, sqlx::Error> {
        let statement = sqlx::raw_sql(AssertSqlSafe(sql));
        wait(async {
            match self {
                Self::Postgres(session) => statement.execute(session).await.map(|done| done.rows_affected()),
                Self::Sqlite(session) => statement.execute(session).await.map(|done| done.rows_affected()),
            }
        })
    }

    /// Runs statements that must succeed.
    pub(crate) fn sql(&mut self, sql: &str) {
        self.run(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// Returns the first column of every row as text.
    pub(crate) fn texts(&mut self, sql: &str) -> Vec<Option<String>> {
        let query = sqlx::query(AssertSqlSafe(sql));
        wait(async {
            match self {
                Self::Postgres(session) => {
                    let rows =
                        query.fetch_all(session).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
                    rows.iter().map(|row| row.get(0)).collect()
                }
                Self::Sqlite(session) => {
                    let query = sqlx::query(AssertSqlSafe(sql));
                    let rows =
                        query.fetch_all(session).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
                    rows.iter().map(|row| row.get_unchecked(0)).collect()
                }
            }
        })
    }
}

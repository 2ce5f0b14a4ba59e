//! A real pooler in front of the database, in transaction or session mode.
//!
//! `PgBouncer` gives a client another backend for each transaction, so session state (LISTEN, settings) does not last.
//! As for a cluster, a small shell between it and the tests ends it when the tests end for any reason.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;

use tempfile::TempDir;

use super::link::free_port;
use super::postgres::{ROLE, become_owner};
use super::{Database, PATIENCE, eventually, excused, left_out};

const PROGRAM: &str = "pgbouncer";

/// Runs the pooler until the standard input ends.
const KEEPER: &str = r#"
"$1" -q "$2" </dev/null >"$2.log" 2>&1 &
cat >/dev/null
kill "$!"
"#;

static MISSING: Once = Once::new();

/// A pooler in front of the cluster of a database; it ends with this value.
pub(crate) struct Pooler {
    port: u16,
    keeper: Child,
    _dir: TempDir,
}

impl Pooler {
    /// Starts a pooler in transaction mode; `None` with a message if the machine has no pooler.
    pub(crate) fn before(database: &Database) -> Option<Self> {
        let ignored = "ignore_startup_parameters = extra_float_digits,options\n";
        Self::in_mode(database, &format!("pool_mode = transaction\n{ignored}"))
    }

    /// Starts a pooler in session mode with its default settings.
    pub(crate) fn in_session_mode(database: &Database) -> Option<Self> {
        Self::in_mode(database, "pool_mode = session\n")
    }

    /// Starts a pooler in session mode with one backend, which it hands on as its last client left it.
    pub(crate) fn that_cleans_nothing(database: &Database) -> Option<Self> {
        let mode = "pool_mode = session\nserver_reset_query =\ndefault_pool_size = 1\n\
            ignore_startup_parameters = extra_float_digits\n";
        Self::in_mode(database, mode)
    }

    fn in_mode(database: &Database, mode: &str) -> Option<Self> {
        let program = binary()?;
        let dir = tempfile::Builder::new().prefix("tenantgate-pool-").tempdir().expect("a directory");
        let (port, file) = (free_port(), dir.path().join("pool.ini"));
        std::fs::write(&file, settings(port, database.port(), mode)).expect("written");
        // A copy, because the user of clusters may not have access to the original.
        std::fs::copy(program, dir.path().join(PROGRAM)).expect("copied");
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "sh"]).arg(dir.path().join(PROGRAM)).arg(&file).stdin(Stdio::piped());
        // It does not run as root, like Postgres.
        become_owner(&mut keeper, dir.path());
        let keeper = keeper.spawn().expect("sh starts");
        let pooler = Self { port, keeper, _dir: dir };
        eventually("the pooler takes connections", PATIENCE, || {
            let log = std::fs::read_to_string(file.with_extension("ini.log"));
            std::net::TcpStream::connect(("127.0.0.1", port)).map(|_| ()).map_err(|error| (error, log))
        });
        Some(pooler)
    }

    /// The port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Accepts every login, and ignores unknown startup parameters.
fn settings(port: u16, to: u16, mode: &str) -> String {
    format!(
        "[databases]\n* = host=127.0.0.1 port={to} user={ROLE}\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
         auth_type = any\n{mode}"
    )
}

/// Returns the path of the program, which Debian installs outside of users' PATH.
fn binary() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join(PROGRAM));
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin").join(PROGRAM);
    let debian = Path::new("/usr/sbin").join(PROGRAM);
    let found = on_path.chain([debian, ours]).find(|program| program.is_file());
    if found.is_none() && !excused(PROGRAM) {
        left_out(
            &MISSING,
            "poolers in transaction mode",
            "no pgbouncer on this machine (`envoy/get pgbouncer` gets one)",
        );
    }
    found
}

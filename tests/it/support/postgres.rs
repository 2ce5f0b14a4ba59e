//! Starts a real Postgres that never outlives the tests.
//!
//! There is one private cluster per test process, with the binaries of the machine, on a free port of the loopback. A
//! small shell stands between the tests and `postgres`: it reads commands on its standard input. When that input ends,
//! because the test process ended for any reason, it stops the server and removes its files.
//!
//! `TENANTGATE_POSTGRES` names the directory of other binaries than those of the machine.

mod recovery;

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{LazyLock, Mutex, Once};

use sqlx::{Connection as _, PgConnection};

use super::link::free_port;
use super::{PATIENCE, eventually, left_out, wait};

/// The role that owns everything in a test cluster.
pub(crate) const ROLE: &str = "tenantgate";

/// The password in every test URL. Nothing checks it (the clusters trust), and nothing may ever print it.
pub(crate) const PASSWORD: &str = "pa55-w0rd-never-printed";

/// Starts and stops `postgres` on command, and cleans up when its standard input ends.
const KEEPER: &str = r#"
bin=$1 dir=$2 port=$3
start() {
    "$bin/postgres" -D "$dir/data" -p "$port" -k "$dir" -c listen_addresses=127.0.0.1 \
        -c fsync=off -c full_page_writes=off -c autovacuum=off -c max_connections=200 \
        -c shared_buffers=32MB -c log_min_messages=error $(cat "$dir/options") >>"$dir/log" 2>&1 </dev/null &
    server=$!
    echo started
}
stop() {
    kill "-$1" "$server"
    wait "$server"
    echo stopped
}
while read -r word; do
    case $word in
        start) start ;;
        stop) stop INT ;;
        kill) stop KILL ;;
    esac
done
stop QUIT >/dev/null 2>&1
rm -rf "$dir"
"#;

/// A private Postgres cluster.
pub(crate) struct Cluster {
    /// Its programs.
    bin: PathBuf,
    port: u16,
    dir: PathBuf,
    keeper: Child,
    pipe: Mutex<(Option<ChildStdin>, BufReader<ChildStdout>)>,
}

static SHARED: LazyLock<Option<Cluster>> = LazyLock::new(Cluster::private);
static MISSING: Once = Once::new();

impl Cluster {
    /// The cluster that all tests share; `None` with a message if the machine has no Postgres.
    pub(crate) fn shared() -> Option<&'static Self> {
        SHARED.as_ref()
    }

    /// A cluster of the caller's own, which it may stop and start.
    pub(crate) fn private() -> Option<Self> {
        Self::of(binaries())
    }

    /// The same, of the oldest version on this machine.
    pub(crate) fn oldest() -> Option<Self> {
        Self::of(all_binaries().pop())
    }

    fn of(bin: Option<PathBuf>) -> Option<Self> {
        let Some(bin) = bin else {
            left_out(&MISSING, "everything on Postgres", "no `initdb` and `postgres` on this machine");
            return None;
        };
        let (user, group) = owner()?;
        let dir = directory(user, group);
        initdb(&bin, &dir, user, group);
        Some(Self::start_in(&bin, &dir, user, group))
    }

    /// A second cluster with the current state of this one, like a standby that is promoted now.
    pub(crate) fn twin(&self) -> Self {
        let (bin, (user, group)) = (binaries().expect("found before"), owner().expect("found before"));
        let dir = directory(user, group);
        self.stop();
        let copied = Command::new("cp").arg("-a").arg(self.dir.join("data")).arg(dir.join("data")).status();
        assert!(copied.expect("cp starts").success(), "the files are copied");
        assert!(self.start());
        Self::start_in(&bin, &dir, user, group)
    }

    /// A cluster of the caller's own that can publish changes.
    pub(crate) fn publisher() -> Option<Self> {
        let cluster = Self::private()?;
        cluster.restart_with("-c wal_level=logical");
        Some(cluster)
    }

    /// Restarts it with these options of `postgres`.
    pub(crate) fn restart_with(&self, options: &str) {
        self.stop();
        std::fs::write(self.dir.join("options"), options).expect("written");
        assert!(self.start());
    }

    /// Its directory: the socket is here, and `data`.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a file that only the server may read.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let file = self.dir.join(name);
        std::fs::write(&file, text).expect("written");
        let (user, group) = owner().expect("found before");
        chown(&file, user, group).expect("the file goes to the owner of the cluster");
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("allowed");
        file
    }

    /// Consumes transaction ids, so that those of this cluster are higher than those of a new one.
    pub(crate) fn use_up_transactions(&self, count: u32) {
        self.admin(&format!(
            "DO $$ BEGIN FOR n IN 1..{count} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
        ));
    }

    /// Dumps a database with `pg_dump`.
    pub(crate) fn dump(&self, database: &str, args: &[&str]) -> String {
        let bin = binaries().expect("found before");
        let mut dump = Command::new(bin.join("pg_dump"));
        let said = dump.args(args).arg(self.url(database)).output().expect("pg_dump starts");
        assert!(said.status.success(), "pg_dump: {}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8(said.stdout).expect("UTF-8")
    }

    /// Creates a database from a dump.
    pub(crate) fn restore(&self, database: &str, dump: &str) {
        self.admin(&format!("CREATE DATABASE {database}"));
        self.restore_over(database, dump);
    }

    /// Runs a dump in a database that exists.
    pub(crate) fn restore_over(&self, database: &str, dump: &str) {
        let mut psql = Command::new(binaries().expect("found before").join("psql"));
        psql.args(["-q", "-v", "ON_ERROR_STOP=1", "-d"]).arg(self.url(database));
        psql.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let mut psql = psql.spawn().expect("psql starts");
        psql.stdin.take().expect("piped").write_all(dump.as_bytes()).expect("psql reads");
        assert!(psql.wait().expect("psql ends").success(), "the dump is restored");
    }

    /// Requires the password of this role from now on.
    pub(crate) fn asks_for_the_password_of(&self, role: &str) {
        self.lets_in(&format!(
            "host all {role} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\nlocal all all trust\n"
        ));
    }

    /// Authenticates clients by these rules from now on.
    pub(crate) fn lets_in(&self, rules: &str) {
        std::fs::write(self.dir.join("data/pg_hba.conf"), rules).expect("written");
        self.admin("SELECT pg_reload_conf()");
    }

    fn start_in(bin: &Path, dir: &Path, user: Option<u32>, group: Option<u32>) -> Self {
        (0..20).find_map(|_| Self::start_at_some_port(bin, dir, user, group)).expect("a free port")
    }

    fn start_at_some_port(bin: &Path, dir: &Path, user: Option<u32>, group: Option<u32>) -> Option<Self> {
        let port = free_port();
        // A copy has those of its original.
        let options = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("options"));
        options.expect("the file is made");
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "sh"]).arg(bin).arg(dir).arg(port.to_string());
        keeper.current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        // Its own process group, so that an interrupt at the terminal ends only the tests, and it can clean up.
        keeper.process_group(0);
        become_user(&mut keeper, user, group);
        let mut keeper = keeper.spawn().expect("sh starts");
        let pipe = (keeper.stdin.take(), BufReader::new(keeper.stdout.take().expect("piped")));
        let (bin, dir) = (bin.to_owned(), dir.to_owned());
        let cluster = Self { bin, port, dir, keeper, pipe: Mutex::new(pipe) };
        cluster.start().then_some(cluster)
    }

    /// Starts the server (again). Returns true once it accepts connections, false if its port is in use.
    pub(crate) fn start(&self) -> bool {
        self.tell("start", "started");
        eventually("postgres takes connections", PATIENCE, || {
            let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            if log.contains("could not bind") {
                return Ok(false);
            }
            wait(PgConnection::connect(&self.url("postgres"))).map(|_| true).map_err(|error| (error, log))
        })
    }

    /// Stops the server as an operator would (`fast`); its files stay.
    pub(crate) fn stop(&self) {
        self.tell("stop", "stopped");
    }

    /// Kills the server, as a power failure would, and waits until none of its processes runs.
    pub(crate) fn kill(&self) {
        let postmaster = std::fs::read_to_string(self.dir.join("data/postmaster.pid")).expect("it runs");
        let children = children(postmaster.lines().next().expect("a process id"));
        self.tell("kill", "stopped");
        eventually("the server's processes are gone", PATIENCE, || {
            let left: Vec<_> = children.iter().filter(|pid| runs(pid)).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
    }

    /// A second cluster that is a streaming standby of this one until it is promoted.
    pub(crate) fn standby(&self) -> Self {
        let (bin, (user, group)) = (binaries().expect("found before"), owner().expect("found before"));
        let dir = directory(user, group);
        self.base_backup(&dir, &["--write-recovery-conf"]);
        std::fs::copy(self.dir.join("options"), dir.join("options")).expect("copied");
        Self::start_in(&bin, &dir, user, group)
    }

    /// Configures the stopped server to start as a standby without a primary.
    pub(crate) fn becomes_a_standby(&self) {
        std::fs::write(self.dir.join("data/standby.signal"), "").expect("written");
    }

    fn tell(&self, word: &str, echo: &str) {
        let mut pipe = self.pipe.lock().expect("no panic while telling");
        writeln!(pipe.0.as_mut().expect("open until dropped"), "{word}").expect("the keeper listens");
        let mut heard = String::new();
        pipe.1.read_line(&mut heard).expect("the keeper answers");
        assert_eq!(heard.trim(), echo, "the keeper of the cluster in {}", self.dir.display());
    }

    /// The port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a database here.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://{ROLE}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// Runs one statement in the maintenance database.
    pub(crate) fn admin(&self, sql: &str) {
        wait(async {
            let mut session = PgConnection::connect(&self.url("postgres")).await.expect("postgres is up");
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut session).await.expect(sql);
            session.close().await.expect("closes");
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.pipe.lock().map(|mut pipe| pipe.0.take()));
        let _ = self.keeper.wait();
    }
}

/// The processes that a process started, by their ids.
fn children(parent: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").expect("Linux").flatten();
    let pids = processes.map(|entry| entry.file_name().to_string_lossy().into_owned());
    pids.filter(|pid| stat(pid).is_some_and(|stat| stat.split(' ').nth(1) == Some(parent))).collect()
}

/// Whether a process exists and is not a zombie.
fn runs(pid: &str) -> bool {
    stat(pid).is_some_and(|stat| !stat.starts_with('Z'))
}

/// Returns the fields of `/proc/PID/stat` from the state on.
fn stat(pid: &str) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.to_owned())
}

/// A directory that the shell of a cluster removes.
fn directory(user: Option<u32>, group: Option<u32>) -> PathBuf {
    let dir = tempfile::Builder::new().prefix("tenantgate-pg-").tempdir().expect("a directory");
    chown(dir.path(), user, group).expect("the directory goes to the owner of the cluster");
    dir.keep()
}

/// The directory with the server's programs.
fn binaries() -> Option<PathBuf> {
    all_binaries().into_iter().next()
}

/// The directories of all versions of the server's programs, the preferred one first.
fn all_binaries() -> Vec<PathBuf> {
    let chosen = std::env::var_os("TENANTGATE_POSTGRES").map(PathBuf::from);
    let told = Command::new("pg_config").arg("--bindir").output().ok();
    let told = told.map(|said| PathBuf::from(String::from_utf8_lossy(&said.stdout).trim()));
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = debian.map(|entry| entry.path().join("bin")).collect();
    found.sort_by_key(|bin| {
        let version = bin.parent().and_then(Path::file_name).unwrap_or_default();
        version.to_string_lossy().parse::<u32>().unwrap_or_default()
    });
    let there = |bin: &PathBuf| bin.join("initdb").exists() && bin.join("postgres").exists();
    let debian = found.into_iter().rev();
    let told = told.filter(|told| !told.starts_with("/usr/lib/postgresql"));
    chosen.into_iter().chain(debian).chain(told).filter(there).collect()
}

/// Returns the user that runs the cluster: the current user or, if that is root, a user that exists on every Debian,
/// because Postgres does not run as root.
fn owner() -> Option<(Option<u32>, Option<u32>)> {
    if id("-u", None) != Some(0) {
        return Some((None, None));
    }
    let user = ["postgres", "nobody"]
        .into_iter()
        .find_map(|name| Some((id("-u", Some(name))?, id("-g", Some(name))?)));
    if user.is_none() {
        left_out(
            &MISSING,
            "everything on Postgres",
            "root may not run it, and there is no user `postgres` or `nobody`",
        );
    }
    user.map(|(user, group)| (Some(user), Some(group)))
}

fn id(what: &str, name: Option<&str>) -> Option<u32> {
    let said = Command::new("id").arg(what).args(name).output().ok()?;
    String::from_utf8_lossy(&said.stdout).trim().parse().ok()
}

fn become_user(command: &mut Command, user: Option<u32>, group: Option<u32>) {
    if let (Some(user), Some(group)) = (user, group) {
        command.uid(user).gid(group);
    }
}

/// Runs a command as the owner of clusters, in a directory that is given to this user.
pub(super) fn become_owner(command: &mut Command, dir: &Path) {
    let (user, group) = owner().expect("the user that runs clusters");
    for entry in std::fs::read_dir(dir).expect("readable").flatten() {
        chown(entry.path(), user, group).expect("the files go to the owner");
    }
    chown(dir, user, group).expect("the directory goes to the owner");
    become_user(command.current_dir(dir), user, group);
}

fn initdb(bin: &Path, dir: &Path, user: Option<u32>, group: Option<u32>) {
    let mut initdb = Command::new(bin.join("initdb"));
    initdb.args(["--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "-U", ROLE, "-D"]);
    initdb.arg(dir.join("data")).current_dir(dir).stdin(Stdio::null());
    become_user(&mut initdb, user, group);
    let said = initdb.output().expect("initdb starts");
    assert!(said.status.success(), "initdb: {}", String::from_utf8_lossy(&said.stderr));
}

//! Starts a server to measure: tenantgate, or one to compare it with.
//!
//! All servers get the same conditions: one worker thread, their own directory, no standard input.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bytes::Bytes;

use super::cost::{self, Counter, countable};
use super::{Line, count};
use crate::support::cli::tenantgate;
use crate::support::transcript::{Transcript, field, says};
use crate::support::{PATIENCE, eventually, wait};

/// A name, a program and its arguments. `unix:NAME` in them stands for a socket in its directory.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) program: OsString,
    pub(crate) args: Vec<String>,
}

impl Peer {
    /// The server that allows everything, at `127.0.0.1:0` or `unix:NAME`, as built by `benches/run`.
    pub(crate) fn stock(name: &'static str, profile: &str, address: &str) -> Self {
        let program = format!("{}/target/stock/{profile}/stock", env!("CARGO_MANIFEST_DIR")).into();
        assert!(Path::new::<OsString>(&program).exists(), "`benches/run` builds the stock server");
        Self { name, program, args: vec![address.to_owned()] }
    }

    /// tenantgate on a database. It polls once a second, because polls are not part of a check.
    pub(crate) fn tenantgate(name: &'static str, database_url: &str, args: &[&str]) -> Self {
        // The same number of workers as the stock server.
        Self::tenantgate_of(1, name, database_url, args)
    }

    /// The same with another number of workers.
    pub(crate) fn tenantgate_of(
        workers: usize,
        name: &'static str,
        database_url: &str,
        args: &[&str],
    ) -> Self {
        let workers = workers.to_string();
        let own = ["serve", "--database-url", database_url, "--ops-listen", "127.0.0.1:0"];
        let paced = ["--sync-interval", "1s", "--workers", &workers];
        let args = own.iter().chain(&paced).chain(args).map(ToString::to_string).collect();
        Self { name, program: tenantgate(), args }
    }

    /// The same with the usual interval of polls, because the module trusts no server that polled a second ago.
    pub(crate) fn polling(mut self) -> Self {
        let at = self.args.iter().position(|arg| arg == "--sync-interval").expect("it is tenantgate");
        self.args.drain(at..at + 2);
        self
    }
}

/// A running server.
pub(crate) struct Running {
    child: Child,
    /// Its addresses, in the order of its output.
    pub(crate) addresses: Vec<String>,
    counted: Option<PathBuf>,
    dir: tempfile::TempDir,
}

impl Running {
    /// Starts it.
    pub(crate) fn start(peer: &Peer) -> Self {
        Self::start_as(peer, false)
    }

    /// Starts it under callgrind, which takes a while.
    pub(crate) fn start_countable(peer: &Peer) -> Self {
        Self::start_as(peer, true)
    }

    fn start_as(peer: &Peer, is_counted: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("tenantgate-bench-").tempdir().expect("a directory");
        let counted = is_counted.then(|| dir.path().join("callgrind.out"));
        let mut command = counted
            .as_ref()
            .map_or_else(|| Command::new(&peer.program), |file| countable(&peer.program, file));
        command.args(peer.args.iter().map(|arg| match arg.strip_prefix("unix:") {
            Some(name) => format!("unix:{}", dir.path().join(name).display()),
            None => arg.clone(),
        }));
        command.current_dir(dir.path()).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let said = Transcript::of(child.stdout.take().expect("piped"));
        let logged = Transcript::of(child.stderr.take().expect("piped"));
        let wanted = peer.args.iter().filter(|arg| *arg == "--listen").count().max(1);
        let addresses = eventually("it listens", PATIENCE * 4, || {
            let addresses = addresses(&said.lines(), &logged.lines());
            if addresses.len() == wanted { Ok(addresses) } else { Err(logged.text()) }
        });
        Self { child, addresses, counted, dir }
    }

    /// The path of a file or socket in its directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The first of its addresses.
    pub(crate) fn address(&self) -> &str {
        &self.addresses[0]
    }

    /// Returns its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Repeats each check until it is allowed: the key is proven then, and everything is set up.
    pub(crate) fn warm_up(&self, messages: &[Bytes]) {
        wait(async {
            let line = Line::to(self.address()).await;
            for message in messages {
                while !line.ask(message.clone()).await.allowed {}
            }
        });
    }

    /// Returns its CPU time so far, in microseconds.
    pub(crate) fn cpu(&self) -> f64 {
        cost::cpu(self.pid())
    }

    /// Starts a counter of its instructions.
    pub(crate) fn counter(&self) -> Counter {
        Counter::start(self.pid(), self.counted.as_ref().expect("started to be counted"))
    }

    /// Returns instructions per check, for these checks in turn over several connections. Warms the server up first.
    pub(crate) fn instructions(&self, lines: usize, checks: usize, messages: &[Bytes]) -> f64 {
        let mut counter = self.counter();
        let lines: Vec<_> = (0..lines).map(|_| wait(Line::to(self.address()))).collect();
        let ask = async |checks| {
            for (message, line) in messages.iter().cycle().zip(lines.iter().cycle()).take(checks) {
                assert!(line.ask(message.clone()).await.allowed);
            }
        };
        // Work per connection and work every few checks is done by then.
        wait(ask(checks / 8));
        counter.zero();
        wait(ask(checks));
        counter.read() / count(checks)
    }

    /// Stops it as an operator would.
    pub(crate) fn stop(mut self) {
        let stopped =
            Command::new("sh").args(["-c", r#"kill -TERM "$0""#, &self.child.id().to_string()]).status();
        assert!(stopped.expect("sh starts").success());
        self.child.wait().expect("it ends");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads the addresses of a server: tenantgate logs them, the stock server prints them.
fn addresses(said: &[String], logged: &[String]) -> Vec<String> {
    let ours = logged
        .iter()
        .filter(|line| says(line, "listening") && field(line, "listener") == Some("grpc"))
        .filter_map(|line| field(line, "address"));
    let stock = said.iter().filter_map(|line| line.strip_prefix("listening "));
    ours.chain(stock).map(str::to_owned).collect()
}

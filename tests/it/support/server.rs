//! Starts the real binary of tenantgate on its own ports.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tenantgate::ext_authz::proto::envoy::service::auth::v3::CheckRequest;
use tonic::Status;

use super::cli::command;
use super::http::{self, Page};
use super::transcript::{Transcript, field, says};
use super::{Client, Database, PATIENCE, VerifiedResponse, eventually, wait};

/// A server to start, with its options.
pub(crate) struct Plan {
    command: Command,
    listeners: usize,
}

/// A running server; killed with this value.
pub(crate) struct Server {
    child: Child,
    pub(crate) stderr: Transcript,
    pub(crate) stdout: Transcript,
    /// The addresses of the gRPC listeners, in the order of their log lines.
    pub(crate) grpc: Vec<String>,
    /// The address of `/livez`, `/readyz` and `/metrics`.
    pub(crate) ops: String,
    client: Client,
}

impl Plan {
    /// Adds an argument for `serve`.
    pub(crate) fn arg(mut self, arg: &str) -> Self {
        self.listeners += usize::from(arg == "--listen");
        self.command.arg(arg);
        self
    }

    /// Adds arguments for `serve`.
    pub(crate) fn args(self, args: &[&str]) -> Self {
        args.iter().fold(self, |plan, arg| plan.arg(arg))
    }

    /// Adds an environment variable.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets the number of gRPC listeners to wait for, if they are not given as flags.
    pub(crate) fn listeners(mut self, listeners: usize) -> Self {
        self.listeners = listeners;
        self
    }

    /// Starts it and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(self) -> Server {
        let server = self.start_unready();
        server.wait_until_ready();
        server
    }

    /// Starts it and waits until its listeners are bound, with or without a database.
    #[track_caller]
    pub(crate) fn start_unready(mut self) -> Server {
        if self.listeners == 0 {
            self = self.args(&["--listen", "127.0.0.1:0"]);
        }
        let listeners = self.listeners;
        let (child, stdout, stderr) = self.spawn();
        // From here on, the child ends with this value in any case.
        let mut server = Server {
            child,
            stderr,
            stdout,
            grpc: Vec::new(),
            ops: String::new(),
            client: Client::to("127.0.0.1:1"),
        };
        let bound = |lines: &[String], kind: &str| -> Vec<String> {
            let of_kind = |line: &&String| says(line, "listening") && field(line, "listener") == Some(kind);
            let addresses = lines.iter().filter(of_kind).filter_map(|line| field(line, "address"));
            addresses.map(str::to_owned).collect()
        };
        server.ops =
            server.stderr.wait_for("listening listener=ops", PATIENCE, |lines| bound(lines, "ops").pop());
        server.grpc = server.stderr.wait_for("listening listener=grpc", PATIENCE, |lines| {
            Some(bound(lines, "grpc")).filter(|addresses| addresses.len() == listeners)
        });
        server.client = Client::to(&server.grpc[0]);
        server
    }

    /// Starts it and waits until it has ended. Returns exit code, stdout and stderr.
    #[track_caller]
    pub(crate) fn run_to_end(mut self) -> (Option<i32>, String, String) {
        if self.listeners == 0 {
            self = self.args(&["--listen", "127.0.0.1:0"]);
        }
        let (mut child, stdout, stderr) = self.spawn();
        let code = exit_code(&mut child, PATIENCE, &stderr);
        (code, stdout.to_the_end(PATIENCE), stderr.to_the_end(PATIENCE))
    }

    fn spawn(&mut self) -> (Child, Transcript, Transcript) {
        let mut child = self.command.spawn().expect("the binary starts");
        let stdout = Transcript::of(child.stdout.take().expect("piped"));
        let stderr = Transcript::of(child.stderr.take().expect("piped"));
        (child, stdout, stderr)
    }
}

impl Server {
    /// `tenantgate serve` on a database, with its ops listener on a free port.
    pub(crate) fn on(database: &Database) -> Plan {
        Self::plan(database.dir(), &["--database-url", database.url(), "--ops-listen", "127.0.0.1:0"])
    }

    /// `tenantgate serve` with only these arguments, in this directory.
    pub(crate) fn plan(dir: &Path, args: &[&str]) -> Plan {
        let mut command = command(dir);
        command.arg("serve").args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        Plan { command, listeners: 0 }
    }

    /// Waits for the line `ready`.
    #[track_caller]
    pub(crate) fn wait_until_ready(&self) {
        self.stderr
            .wait_for("ready", PATIENCE, |lines| lines.iter().any(|line| says(line, "ready")).then_some(()));
    }

    /// Returns a client of its first listener.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Sends one Check.
    #[track_caller]
    pub(crate) fn check(&self, request: impl Into<CheckRequest>) -> VerifiedResponse {
        self.client.check(request)
    }

    /// Sends one Check with bytes that no encoder writes.
    pub(crate) fn check_bytes(&self, bytes: Vec<u8>) -> Result<VerifiedResponse, Status> {
        self.client.check_bytes(bytes)
    }

    /// Returns HTTP status and reason of one Check, such as `401 mismatch`.
    #[track_caller]
    pub(crate) fn row(&self, request: impl Into<CheckRequest>) -> String {
        self.check(request).row()
    }

    /// Repeats a Check until its result is the wanted one. Returns the time that took.
    #[track_caller]
    pub(crate) fn row_becomes(
        &self,
        wanted: &str,
        deadline: Duration,
        request: impl Into<CheckRequest>,
    ) -> Duration {
        let (request, start) = (request.into(), Instant::now());
        eventually(&format!("the row `{wanted}`"), deadline, || {
            let row = self.row(request.clone());
            if row == wanted { Ok(start.elapsed()) } else { Err(row) }
        })
    }

    /// Sends `GET path` to the ops listener.
    #[track_caller]
    pub(crate) fn http(&self, path: &str) -> Page {
        http::get(&self.ops, path).expect("the ops listener answers")
    }

    /// Returns the value of a metric: the sum of all samples whose `name{labels}` contains all of these.
    #[track_caller]
    pub(crate) fn metric(&self, parts: &[&str]) -> f64 {
        let samples = http::samples(&self.http("/metrics").body);
        let ours = samples.iter().filter(|(name, _)| parts.iter().all(|part| name.contains(part)));
        ours.map(|(_, value)| value).sum()
    }

    /// Waits until the first proof of a key is in progress: a Check with a short timeout then says so.
    #[track_caller]
    pub(crate) fn wait_until_proving(&self, request: impl Into<CheckRequest>) {
        let request = request.into();
        eventually("the proof is under way", PATIENCE, || {
            match wait(self.client.ask_within(Duration::from_millis(40), request.clone())) {
                Ok(answer) if answer.row() == "503 unavailable" => Ok(()),
                seen => Err(format!("{seen:?}")),
            }
        });
    }

    /// Returns the number of completed bcrypt runs.
    #[track_caller]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    pub(crate) fn bcrypts(&self) -> u64 {
        self.metric(&["bcrypt", "_count"]) as u64
    }

    /// Sends a signal by name, `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("sh")
            .args(["-c", r#"kill -"$0" "$1""#, name, &self.child.id().to_string()])
            .status()
            .expect("sh starts");
        assert!(sent.success(), "the signal {name} is delivered");
    }

    /// The id of its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended. Returns its exit code.
    #[track_caller]
    pub(crate) fn exit_code(&mut self, deadline: Duration) -> Option<i32> {
        exit_code(&mut self.child, deadline, &self.stderr)
    }
}

fn exit_code(child: &mut Child, deadline: Duration, stderr: &Transcript) -> Option<i32> {
    let end = eventually("the server ends", deadline, || {
        child.try_wait().expect("the child is ours").ok_or_else(|| stderr.lines().pop())
    });
    end.code()
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "the log of the server helps to diagnose a failure")]
            {
                eprintln!("--- log of the server:\n{}\n---", self.stderr.text());
            }
        }
    }
}

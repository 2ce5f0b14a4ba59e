//! Runs the program as a command.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::postgres::PASSWORD;

/// The binary under test: the one that cargo built, or the one in `TENANTGATE_BINARY`.
pub(crate) fn tenantgate() -> OsString {
    std::env::var_os("TENANTGATE_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_tenantgate").into())
}

/// The variable with the database URL.
pub(crate) const DATABASE_URL: &str = "LLMCORE_AUTH_DATABASE_URL";

/// One run of the program: its arguments and its result.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) args: Vec<String>,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The program without the caller's environment.
pub(crate) fn command(dir: &Path) -> Command {
    let mut command = Command::new(tenantgate());
    let ours = |name: &str| {
        [
            "TENANTGATE_",
            "OTEL_",
            "LLMCORE_",
            "PG",
            "RUST_LOG",
            "DATABASE_URL",
            "COLUMNS",
            "SSL_CERT",
            "NO_COLOR",
            "CLICOLOR",
        ]
        .iter()
        .any(|start| name.starts_with(start))
    };
    for (name, _) in std::env::vars_os() {
        if ours(&name.to_string_lossy()) {
            command.env_remove(&name);
        }
    }
    command.current_dir(dir).stdin(Stdio::null());
    command
}

/// Runs the program in a directory with these variables and arguments, until it ends.
pub(crate) fn run_in(dir: &Path, env: &[(&str, &str)], args: &[&str]) -> Run {
    let said = command(dir).envs(env.iter().copied()).args(args).output().expect("the binary starts");
    let run = Run {
        args: args.iter().map(ToString::to_string).collect(),
        code: said.status.code(),
        stdout: String::from_utf8(said.stdout).expect("stdout is UTF-8"),
        stderr: String::from_utf8(said.stderr).expect("stderr is UTF-8"),
    };
    run.repeats_no_secret(env);
    run
}

impl Run {
    /// Asserts exit code 0; returns stdout.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.stdout
    }

    /// Asserts exit code 0 and one JSON value on stdout; returns it.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        assert_eq!(self.code, Some(0), "{self:#?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// Asserts exit code 1, an empty stdout and exactly one line on stderr; returns the line.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        self.one_line(1)
    }

    /// Asserts exit code 1, an empty stdout and some lines on stderr; returns them.
    #[track_caller]
    pub(crate) fn refused_lines(self) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (Some(1), ""), "{self:#?}");
        self.stderr
    }

    /// Asserts exit code 2 and a message; returns it.
    #[track_caller]
    pub(crate) fn usage(self) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (Some(2), ""), "{self:#?}");
        assert!(!self.stderr.trim().is_empty(), "a usage error says what is wrong: {self:#?}");
        self.stderr
    }

    /// Asserts exit code 3 and an empty stdout; returns the message.
    #[track_caller]
    pub(crate) fn unavailable(self) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (Some(3), ""), "{self:#?}");
        assert!(!self.stderr.trim().is_empty(), "an unavailable database is reported: {self:#?}");
        self.stderr
    }

    #[track_caller]
    fn one_line(self, code: i32) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (Some(code), ""), "{self:#?}");
        assert_eq!(self.stderr.trim_end_matches('\n').lines().count(), 1, "exactly one line: {self:#?}");
        self.stderr.trim_end().to_owned()
    }

    /// Asserts that no message repeats a full key or a database password.
    #[track_caller]
    fn repeats_no_secret(&self, env: &[(&str, &str)]) {
        let given = self.args.iter().map(String::as_str).chain(env.iter().map(|(_, value)| *value));
        for secret in given.filter_map(secret_in).chain([PASSWORD]) {
            assert!(!self.stdout.contains(secret), "stdout repeats `{secret}`: {self:#?}");
            assert!(!self.stderr.contains(secret), "stderr repeats `{secret}`: {self:#?}");
        }
    }
}

/// Returns the secret part of a key in an argument, if there is one.
fn secret_in(argument: &str) -> Option<&str> {
    let key = &argument[argument.find("llmk_")?..];
    let (_, secret) = key["llmk_".len()..].split_once('_')?;
    (secret.len() >= 8).then_some(secret)
}

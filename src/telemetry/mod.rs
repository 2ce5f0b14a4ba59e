//! How do we speak to operators?
//!
//! Log lines on standard error, numbers at `/metrics`, and spans for who keeps
//! traces. `docs/reference/log-lines.md` lists the fields of log lines. Nothing that goes out of here can hold a key: see
//! [`scrub`].

pub mod metrics;
pub mod page;
pub mod panics;
mod process;
pub mod scrub;
pub mod traces;

use std::io::{self, IsTerminal as _, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    #[default]
    Text,
}

/// Starts logging to standard error. Does nothing if that was done before.
pub fn start_logging(filter: EnvFilter, format: LogFormat) {
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(ScrubbedStderr);
    // Whoever started logging first has the say; in tests that is another test.
    let _ = match format {
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).try_init(),
    };
}

/// Standard error, scrubbed. Each line arrives in one piece.
#[derive(Clone, Copy, Debug)]
struct ScrubbedStderr;

impl MakeWriter<'_> for ScrubbedStderr {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

impl Write for ScrubbedStderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(scrub::scrub(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

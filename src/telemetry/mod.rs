//! Log lines on standard error, metrics at `/metrics`, and trace spans when tracing is enabled.
//!
//! `docs/reference/log-lines.md` lists the fields of log lines. Everything that is written here is cleaned of keys and
//! passwords first: see [`scrub`].

pub mod manage_metrics;
pub mod metrics;
pub mod page;
pub mod panics;
mod process;
pub mod scrub;
pub mod traces;

use std::io::{self, IsTerminal as _, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Text for people.
    #[default]
    Text,
}

/// Starts logging to standard error. Does nothing if logging was started before.
pub fn start_logging(filter: EnvFilter, format: LogFormat) {
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(ScrubbedStderr);
    // An error means that it was started before, in tests by another test.
    let _ = match format {
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).try_init(),
    };
}

/// Standard error behind [`scrub`]. Each line arrives in one piece.
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

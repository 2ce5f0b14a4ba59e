//! Prints to standard output and standard error.

use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;

use serde::Serialize;

use super::failure::Failure;
use super::values::Output;
use super::view::Text;
use crate::telemetry::scrub::scrub;

/// Prints results in the chosen format.
pub(super) struct Out(pub(super) Output);

impl Out {
    pub(super) fn show(&mut self, result: &(impl Serialize + Text)) -> Result<(), Failure> {
        print(&self.rendered(result)?)
    }

    /// Prints a result that is never shown again. Unlike in [`Self::show`], a closed pipe is an error, because the
    /// result is then lost.
    pub(super) fn show_once(&mut self, result: &(impl Serialize + Text)) -> Result<(), Failure> {
        write_out(&self.rendered(result)?).map_err(not_written)
    }

    fn rendered(&self, result: &(impl Serialize + Text)) -> Result<String, Failure> {
        let mut text = match self.0 {
            Output::Json => serde_json::to_string(result).map_err(Failure::refused)?,
            Output::Text | Output::Csv => result.text(),
        };
        text.push('\n');
        Ok(text)
    }

    /// Prints a hint on standard error, in text format only.
    pub(super) fn remark(&self, text: &str) {
        if matches!(self.0, Output::Text) {
            print_stderr(&format!("{text}\n"));
        }
    }
}

/// Prints to standard output. A closed pipe is not an error, because the reader has what it wants.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    match write_out(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(not_written(error)),
        _ => Ok(()),
    }
}

/// Checks that a result which is never shown again can be printed.
///
/// At the start of a process, Rust opens `/dev/null` for reading and writing in place of a closed standard output. A
/// shell's `>/dev/null` opens it for writing only, and is what the operator wants.
pub(super) fn check_stdout() -> Result<(), Failure> {
    let null = |path: &str| std::fs::metadata(path).map(|meta| meta.rdev()).ok();
    let flags = std::fs::read_to_string("/proc/self/fdinfo/1").unwrap_or_default();
    let flags = flags.lines().find_map(|line| line.strip_prefix("flags:"));
    let both = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).is_some_and(|f| f & 3 == 2);
    let same = null("/proc/self/fd/1").is_some_and(|device| Some(device) == null("/dev/null"));
    if both && same {
        return Err(Failure::refused(
            "standard output is closed, and the new key would be lost: nothing was done",
        ));
    }
    Ok(())
}

fn write_out(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())?;
    io::stdout().flush()
}

#[expect(clippy::needless_pass_by_value, reason = "it maps errors")]
fn not_written(error: io::Error) -> Failure {
    Failure::refused(format!("done, but the result could not be written: {error}"))
}

/// Prints to standard error, without keys and passwords.
pub(super) fn print_stderr(text: &str) {
    let _ = io::stderr().write_all(scrub(text).as_bytes());
}

pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

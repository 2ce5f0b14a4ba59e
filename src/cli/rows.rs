//! How are many rows shown?
//!
//! One after the other, as they come: a line each for people, elements of one array for
//! programs. Nothing is printed before there is a row, so that what fails at once leaves
//! standard output empty.

use std::io::{self, BufWriter, Stdout, Write as _};

use serde::Serialize;

use super::Failure;
use super::args::Output;

/// A row for people.
pub(super) trait Line {
    /// The row as one line, without its end.
    fn line(&self) -> String;
}

/// Rows on their way to standard output.
pub(super) struct Rows {
    output: Output,
    to: BufWriter<Stdout>,
    written: u64,
}

impl Rows {
    pub(super) fn new(output: Output) -> Self {
        Self { output, to: BufWriter::new(io::stdout()), written: 0 }
    }

    pub(super) fn row(&mut self, row: &(impl Serialize + Line)) -> Result<(), Failure> {
        let written = match self.output {
            Output::Text => writeln!(self.to, "{}", row.line()),
            Output::Json => {
                let json = serde_json::to_string(row).map_err(Failure::refused)?;
                write!(self.to, "{}{json}", if self.written == 0 { "[" } else { ",\n" })
            }
        };
        self.written += 1;
        written.map_err(|error| unwritten(&error))
    }

    /// The end; for people who would otherwise see nothing, `nothing`.
    pub(super) fn finish(mut self, nothing: &str) -> Result<(), Failure> {
        let end = match (self.output, self.written) {
            (Output::Text, 0) => writeln!(self.to, "{nothing}"),
            (Output::Text, _) => Ok(()),
            (Output::Json, 0) => writeln!(self.to, "[]"),
            (Output::Json, _) => writeln!(self.to, "]"),
        };
        end.and_then(|()| self.to.flush()).map_err(|error| unwritten(&error))
    }
}

fn unwritten(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::closed(),
        _ => Failure::refused(format!("the result could not be written: {error}")),
    }
}

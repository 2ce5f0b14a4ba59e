//! Prints many rows as they are read.
//!
//! Rows are lines of text, elements of one JSON array, or CSV records. Nothing is printed before the first row or the
//! end, so that a command that fails at once leaves standard output empty.

use std::io::{self, BufWriter, Stdout, Write as _};

use serde::Serialize;

use super::Failure;
use super::values::Output;

/// A row of a result.
pub(super) trait PrintRow: Serialize {
    /// The names of [`PrintRow::cells`], in their order.
    const COLUMNS: &'static [&'static str] = &[];

    /// Returns the line above all rows of text; `None` if there is none.
    fn head() -> Option<String> {
        None
    }

    /// Returns the row as one line of text, without its newline.
    fn line(&self) -> String;

    /// Returns the row as the cells of a CSV record.
    fn cells(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Prints rows to standard output.
pub(super) struct RowPrinter {
    output: Output,
    to: BufWriter<Stdout>,
    written: u64,
}

impl RowPrinter {
    pub(super) fn new(output: Output) -> Self {
        Self { output, to: BufWriter::new(io::stdout()), written: 0 }
    }

    pub(super) fn row<R: PrintRow>(&mut self, row: &R) -> Result<(), Failure> {
        let first = self.written == 0;
        self.written += 1;
        self.write(row, first).map_err(|error| unwritten(&error))
    }

    fn write<R: PrintRow>(&mut self, row: &R, first: bool) -> io::Result<()> {
        match self.output {
            Output::Text => {
                if let Some(head) = R::head().filter(|_| first) {
                    writeln!(self.to, "{head}")?;
                }
                writeln!(self.to, "{}", row.line())
            }
            Output::Json => {
                write!(self.to, "{}", if first { "[" } else { ",\n" })?;
                serde_json::to_writer(&mut self.to, row).map_err(io::Error::other)
            }
            Output::Csv => {
                let head = first.then(|| record(R::COLUMNS)).transpose()?.unwrap_or_default();
                self.to.write_all(&head)?;
                let cells: Vec<_> = row.cells().iter().map(|cell| guard(cell)).collect();
                self.to.write_all(&record(&cells)?)
            }
        }
    }

    /// Ends the output. Without any row, text output is `nothing`.
    pub(super) fn finish<R: PrintRow>(mut self, nothing: &str) -> Result<(), Failure> {
        let end = match (self.output, self.written) {
            (Output::Text, 0) => writeln!(self.to, "{nothing}"),
            (Output::Json, 0) => writeln!(self.to, "[]"),
            (Output::Csv, 0) => record(R::COLUMNS).and_then(|head| self.to.write_all(&head)),
            (Output::Text | Output::Csv, _) => Ok(()),
            (Output::Json, _) => writeln!(self.to, "]"),
        };
        end.and_then(|()| self.to.flush()).map_err(|error| unwritten(&error))
    }
}

/// Formats a CSV record (RFC 4180).
pub(super) fn record<T: AsRef<[u8]>>(cells: &[T]) -> io::Result<Vec<u8>> {
    let mut record = csv::Writer::from_writer(Vec::new());
    record.write_record(cells)?;
    record.into_inner().map_err(csv::IntoInnerError::into_error)
}

/// Escapes a cell that a spreadsheet would run as a formula: puts a `'` in front of it. A cell that already begins with
/// `'` and a formula gets one more, so that [`unguard`] restores it.
/// <https://owasp.org/www-community/attacks/CSV_Injection>
pub(super) fn guard(cell: &str) -> String {
    let quote = if begins_like_a_formula(cell) { "'" } else { "" };
    format!("{quote}{cell}")
}

/// Reverses [`guard`].
pub(super) fn unguard(cell: &str) -> &str {
    cell.strip_prefix('\'').filter(|rest| begins_like_a_formula(rest)).unwrap_or(cell)
}

fn begins_like_a_formula(cell: &str) -> bool {
    cell.trim_start_matches('\'').starts_with(['=', '+', '-', '@', '\t', '\r'])
}

pub(super) fn unwritten(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::closed(),
        _ => Failure::refused(format!("the result could not be written: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_that_look_like_formulas_are_escaped_and_restored() {
        for (cell, guarded) in [
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@a", "'@a"),
            ("\t=1", "'\t=1"),
            ("'=1", "''=1"),
            ("'a", "'a"),
            ("", ""),
            ("a=1", "a=1"),
            ("'", "'"),
        ] {
            assert_eq!((guard(cell).as_str(), unguard(guarded)), (guarded, cell));
        }
    }

    #[test]
    fn a_record_quotes_what_must_be_quoted() {
        let cells = ["a", "b,c", "d\"e", "two\nlines", ""];
        let record = String::from_utf8(record(&cells).unwrap()).unwrap();
        assert_eq!(record, "a,\"b,c\",\"d\"\"e\",\"two\nlines\",\n");
    }
}

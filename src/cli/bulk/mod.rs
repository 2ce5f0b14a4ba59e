//! The commands that import and export keys and tenants in bulk.
//!
//! Reads a file row by row and passes the rows to the use case in batches. Each rejected row is reported with its line
//! number as soon as it is known: in text format on standard error, in JSON format inside the one object on standard
//! output.

mod export;
mod progress;
mod source;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

pub(super) use self::export::{ExportArgs, KeyExportArgs, export_keys, export_tenants};
use self::progress::ImportProgress;
pub(super) use self::source::FileFormat;
use self::source::{FileRows, ReadRow, is_stream, measure};
use super::values::Output;
use super::{Failure, Out, print};
use crate::admin::bulk::{Import, KeyRow, Numbered, Outcome, Source, TenantRow};
use crate::admin::{Admin, AdminError};
use crate::store::TENANT_COLUMNS;
use crate::telemetry::scrub::scrub;

/// The options of all imports.
#[derive(clap::Args)]
pub(super) struct ImportArgs {
    /// The file: .csv, .jsonl or .ndjson; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The format of the file, if its name does not tell it
    #[arg(long, value_enum)]
    format: Option<FileFormat>,
    /// Check every row, but change nothing
    #[arg(long)]
    dry_run: bool,
    /// Import nothing if any row would be rejected; reads the file twice
    #[arg(long)]
    all_or_nothing: bool,
}

impl ImportArgs {
    fn format(&self) -> Result<FileFormat, Failure> {
        let known = self.format.or_else(|| FileFormat::of(&self.file));
        known.ok_or_else(|| {
            Failure::usage("the name of the file does not end in .csv or .jsonl: add --format")
        })
    }

    fn rows<R: FileRow>(&self) -> Result<FileRows, Failure> {
        FileRows::open(&self.file, self.format()?, R::COLUMNS, R::NEEDED)
    }
}

/// The kinds of rows that a file can contain.
trait FileRow: DeserializeOwned {
    const COLUMNS: &'static [&'static str];
    /// For each of these lists, a CSV file must have at least one of the columns.
    const NEEDED: &'static [&'static [&'static str]];
    /// The maximum number of rows in a batch.
    const BATCH: usize;

    /// Returns whether importing the row takes long.
    fn is_slow(&self) -> bool;

    async fn import(
        admin: &Admin,
        import: &mut Import,
        rows: Vec<Numbered<Self>>,
    ) -> Result<Outcome, AdminError>;
}

impl FileRow for KeyRow {
    /// Those of an exported file, and the whole key. First the columns of which a file needs one.
    const COLUMNS: &'static [&'static str] = &[
        "key",
        "hashed_key",
        "key_prefix",
        "tenant",
        "tenant_id",
        "id",
        "name",
        "created_at",
        "expires_at",
        "last_used_at",
        "revoked_at",
        "revocation_reason",
        "replaced_by",
        "disabled_at",
        "not_before",
        "scopes",
        "networks",
        "plan",
        "labels",
    ];
    const NEEDED: &'static [&'static [&'static str]] = &[&["key", "hashed_key"], &["tenant", "tenant_id"]];
    const BATCH: usize = 1_000;

    /// A whole key must be hashed with bcrypt.
    fn is_slow(&self) -> bool {
        self.key.is_some()
    }

    async fn import(
        admin: &Admin,
        import: &mut Import,
        rows: Vec<Numbered<Self>>,
    ) -> Result<Outcome, AdminError> {
        admin.import_keys(import, rows).await
    }
}

impl FileRow for TenantRow {
    const COLUMNS: &'static [&'static str] = &TENANT_COLUMNS;
    const NEEDED: &'static [&'static [&'static str]] = &[&["name"]];
    /// Small, because each row creates a schema.
    const BATCH: usize = 250;

    fn is_slow(&self) -> bool {
        false
    }

    async fn import(
        admin: &Admin,
        import: &mut Import,
        rows: Vec<Numbered<Self>>,
    ) -> Result<Outcome, AdminError> {
        admin.import_tenants(import, rows).await
    }
}

/// The maximum number of slow rows in a batch: each takes a quarter of a second, and an interrupted batch is lost.
const SLOW_BATCH: usize = 32;

/// Imports keys.
pub(super) async fn import_keys(admin: &Admin, args: &ImportArgs, out: &Out) -> Result<(), Failure> {
    import::<KeyRow>(admin, args, out).await
}

/// Imports tenants.
pub(super) async fn import_tenants(admin: &Admin, args: &ImportArgs, out: &Out) -> Result<(), Failure> {
    import::<TenantRow>(admin, args, out).await
}

async fn import<R: FileRow>(admin: &Admin, args: &ImportArgs, out: &Out) -> Result<(), Failure> {
    args.format()?;
    let known = measure(&args.file)?;
    if args.all_or_nothing && known.is_none() {
        return Err(Failure::usage("--all-or-nothing reads the file twice: name a file, not a stream"));
    }
    let file =
        if is_stream(&args.file) { "-".into() } else { scrub(&args.file.display().to_string()).into() };
    let source = Source { file, sha256: known.as_ref().map(|(_, sha256)| sha256.clone()) };
    let bytes = known.map(|(bytes, _)| bytes);
    let mut report = ImportReport::new(out.0, args.dry_run);
    if args.all_or_nothing && !args.dry_run {
        let mut rehearsal = ImportReport::new(out.0, true);
        pass::<R>(admin, args.rows::<R>()?, Import::new(source.clone(), true), bytes, &mut rehearsal).await?;
        if rehearsal.refused > 0 {
            rehearsal.imported = 0;
            return rehearsal.finish(false);
        }
    }
    let import = Import::new(source, args.dry_run);
    let done = pass::<R>(admin, args.rows::<R>()?, import, bytes, &mut report).await;
    // Prints the summary of the imported rows, even if a later row failed.
    match done {
        Err(failure) if report.read == 0 => Err(failure),
        done => {
            let whole = report.finish(args.dry_run);
            done.and(whole)
        }
    }
}

/// Reads all rows and imports them in batches.
async fn pass<R: FileRow>(
    admin: &Admin,
    mut rows: FileRows,
    mut import: Import,
    bytes: Option<u64>,
    report: &mut ImportReport,
) -> Result<(), Failure> {
    let mut progress = ImportProgress::new(bytes);
    let mut batch = Batch::default();
    let done = loop {
        let row = match rows.next::<R>() {
            Ok(row) => row,
            // The rows before the failure are still imported.
            Err(failure) => break Err(failure),
        };
        let Some(row) = row else { break Ok(()) };
        if batch.is_full() {
            report.add(&batch.import(admin, &mut import).await?, &progress)?;
            progress.at(report.read, rows.position());
        }
        report.read += 1;
        batch.push(row);
    };
    if done.is_ok() {
        import.has_sha256(rows.sha256());
    }
    report.add(&batch.import(admin, &mut import).await?, &progress)?;
    progress.finish();
    done
}

/// Rows that are passed to the use case together.
struct Batch<R> {
    rows: Vec<Numbered<R>>,
    /// Rows that could not be parsed, with the reason.
    bad: Vec<Numbered<String>>,
    slow: usize,
}

impl<R> Default for Batch<R> {
    fn default() -> Self {
        Self { rows: Vec::new(), bad: Vec::new(), slow: 0 }
    }
}

impl<R: FileRow> Batch<R> {
    fn is_full(&self) -> bool {
        self.rows.len() + self.bad.len() >= R::BATCH || self.slow >= SLOW_BATCH
    }

    fn push(&mut self, (line, row): ReadRow<R>) {
        match row {
            Ok(row) => {
                self.slow += usize::from(row.is_slow());
                self.rows.push((line, row));
            }
            Err(why) => self.bad.push((line, why.into())),
        }
    }

    /// Imports the batch and empties it.
    async fn import(&mut self, admin: &Admin, import: &mut Import) -> Result<Outcome, AdminError> {
        let Self { rows, bad, .. } = std::mem::take(self);
        let mut outcome = R::import(admin, import, rows).await?;
        outcome.refused.extend(bad);
        outcome.refused.sort_by_key(|(line, _)| *line);
        Ok(outcome)
    }
}

/// Prints rejected rows, counts the others, and prints the summary.
struct ImportReport {
    output: Output,
    dry_run: bool,
    read: u64,
    imported: u64,
    already_there: u64,
    refused: u64,
}

impl ImportReport {
    fn new(output: Output, dry_run: bool) -> Self {
        Self { output, dry_run, read: 0, imported: 0, already_there: 0, refused: 0 }
    }

    fn add(&mut self, outcome: &Outcome, progress: &ImportProgress) -> Result<(), Failure> {
        self.imported += outcome.imported;
        self.already_there += outcome.already_there;
        outcome.refused.iter().try_for_each(|(line, why)| self.refuse(*line, why, progress))
    }

    fn refuse(&mut self, line: u64, why: &str, progress: &ImportProgress) -> Result<(), Failure> {
        self.refused += 1;
        let why = scrub(why);
        if self.output == Output::Json {
            let open = if self.refused == 1 { "{\"refused\":[" } else { "," };
            let row = serde_json::json!({ "line": line, "reason": why });
            return print(&format!("{open}{row}"));
        }
        progress.line(&format!("line {line}: {}\n", super::view::plain(&why)));
        Ok(())
    }

    /// Prints the summary.
    ///
    /// # Errors
    ///
    /// A row was rejected, which is exit code 1 without a message; or the summary could not be written.
    fn finish(&self, dry_run: bool) -> Result<(), Failure> {
        let Self { read, imported, already_there, refused, .. } = self;
        let text = if self.output == Output::Json {
            let open = if *refused == 0 { "{\"refused\":[" } else { "" };
            let dry_run = self.dry_run;
            format!(
                "{open}],\"read\":{read},\"imported\":{imported},\"already_there\":{already_there},\"dry_run\":{dry_run}}}\n"
            )
        } else {
            let done = if dry_run { "would be imported" } else { "imported" };
            format!("{read} rows: {imported} {done}, {already_there} already there, {refused} refused\n")
        };
        print(&text)?;
        if *refused == 0 { Ok(()) } else { Err(Failure::denied()) }
    }
}

/// Returns whether the name of a file means standard output.
fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

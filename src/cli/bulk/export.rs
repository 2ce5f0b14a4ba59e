//! Exports keys and tenants.
//!
//! Writes row by row to standard output or to a file, which appears only when it is complete. An export never contains
//! a whole key, because the database has none. It contains hashes only on request, and never on a terminal. An export
//! with hashes can be imported again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::value::RawValue;

use super::super::rows::{guard, record, unwritten};
use super::super::{Failure, Out};
use super::source::FileFormat;
use super::{FileRow, is_stdout};
use crate::admin::Admin;
use crate::admin::bulk::TenantRow;
use crate::labels::Labels;
use crate::store::StoredKey;
use crate::tenant::{Mode, Tenant};

/// The options of all exports.
#[derive(clap::Args)]
pub(in crate::cli) struct ExportArgs {
    /// The file: .csv, .jsonl or .ndjson; `-` is standard output
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// The format of the file, if its name does not tell it [default: csv]
    #[arg(long, value_enum)]
    format: Option<FileFormat>,
}

#[derive(clap::Args)]
pub(in crate::cli) struct KeyExportArgs {
    #[command(flatten)]
    to: ExportArgs,
    /// Only the keys of this tenant: id, schema name or exact name
    #[arg(long, value_name = "TENANT_REF")]
    tenant: Option<String>,
    /// Include the bcrypt hashes, so that the file can be imported again. Protect the file like the database
    #[arg(long)]
    with_hashes: bool,
}

/// Exports keys.
pub(in crate::cli) async fn export_keys(
    admin: &Admin,
    args: &KeyExportArgs,
    out: &Out,
) -> Result<(), Failure> {
    if args.with_hashes && is_stdout(&args.to.file) && io::stdout().is_terminal() {
        return Err(Failure::refused(
            "hashes are not shown on a terminal: name a file, or redirect the output",
        ));
    }
    let mut columns = KEY_COLUMNS.to_vec();
    columns.extend(args.with_hashes.then_some("hashed_key"));
    let mut sink = Sink::open(&args.to, &columns)?;
    let write = |key: &StoredKey| sink.row(&ExportedKey::of(key, args.with_hashes), |row| row.cells());
    admin.export_keys(args.tenant.as_deref(), write).await?;
    sink.finish(out, "keys")
}

/// Exports tenants.
pub(in crate::cli) async fn export_tenants(
    admin: &Admin,
    args: &ExportArgs,
    out: &Out,
) -> Result<(), Failure> {
    let mut sink = Sink::open(args, TenantRow::COLUMNS)?;
    let write = |tenant: &Tenant| sink.row(&ExportedTenant::from(tenant), |row| row.cells());
    admin.export_tenants(write).await?;
    sink.finish(out, "tenants")
}

/// The columns of the file: those of `api_keys`, but without the memo, which is worthless without its pepper, with the
/// hash only on request, and with the schema of the tenant for human readers.
const KEY_COLUMNS: [&str; 17] = [
    "id",
    "key_prefix",
    "name",
    "tenant_id",
    "tenant",
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

#[derive(Serialize)]
struct ExportedKey<'a> {
    id: String,
    key_prefix: &'a str,
    name: Option<&'a str>,
    tenant_id: String,
    tenant: &'a str,
    created_at: String,
    expires_at: Option<String>,
    last_used_at: Option<String>,
    revoked_at: Option<String>,
    revocation_reason: Option<&'a str>,
    replaced_by: Option<String>,
    disabled_at: Option<String>,
    not_before: Option<String>,
    scopes: Option<&'a str>,
    networks: Option<&'a str>,
    plan: Option<&'a str>,
    labels: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hashed_key: Option<&'a str>,
}

impl<'a> ExportedKey<'a> {
    fn of(key: &'a StoredKey, with_hash: bool) -> Self {
        let details = &key.details;
        Self {
            id: details.id.0.to_string(),
            key_prefix: &details.prefix,
            name: details.name.as_deref(),
            tenant_id: details.tenant_id.0.to_string(),
            tenant: &key.tenant_schema,
            created_at: details.created_at.to_string(),
            expires_at: details.expires_at.map(|at| at.to_string()),
            last_used_at: details.last_used_at.map(|at| at.to_string()),
            revoked_at: details.revoked_at.map(|at| at.to_string()),
            revocation_reason: details.revocation_reason.as_deref(),
            replaced_by: details.replaced_by.map(|id| id.0.to_string()),
            disabled_at: details.disabled_at.map(|at| at.to_string()),
            not_before: details.terms.not_before.map(|at| at.to_string()),
            scopes: details.terms.scopes.as_deref(),
            networks: details.terms.networks.as_deref(),
            plan: details.terms.plan.as_deref(),
            labels: labels(&details.terms.labels),
            hashed_key: with_hash.then_some(key.hash.as_str()),
        }
    }

    fn cells(&self) -> Vec<&str> {
        let mut cells = vec![
            self.id.as_str(),
            self.key_prefix,
            self.name.unwrap_or_default(),
            &self.tenant_id,
            self.tenant,
            &self.created_at,
            self.expires_at.as_deref().unwrap_or_default(),
            self.last_used_at.as_deref().unwrap_or_default(),
            self.revoked_at.as_deref().unwrap_or_default(),
            self.revocation_reason.unwrap_or_default(),
            self.replaced_by.as_deref().unwrap_or_default(),
            self.disabled_at.as_deref().unwrap_or_default(),
            self.not_before.as_deref().unwrap_or_default(),
            // An empty cell is NULL, which grants everything; a blank is an empty list, which grants nothing.
            self.scopes.map_or("", |scopes| if scopes.is_empty() { " " } else { scopes }),
            self.networks.unwrap_or_default(),
            self.plan.unwrap_or_default(),
            self.labels.as_deref().map(RawValue::get).unwrap_or_default(),
        ];
        cells.extend(self.hashed_key);
        cells
    }
}

/// Returns the labels as a JSON object; `None` if there are no labels.
fn labels(labels: &Labels) -> Option<Box<RawValue>> {
    if labels.is_empty() { None } else { RawValue::from_string(labels.to_string()).ok() }
}

#[derive(Serialize)]
struct ExportedTenant<'a> {
    id: String,
    name: &'a str,
    db_schema_name: &'a str,
    status: &'a str,
    mode: Option<&'static str>,
    plan: Option<&'a str>,
    created_at: String,
}

impl<'a> From<&'a Tenant> for ExportedTenant<'a> {
    fn from(tenant: &'a Tenant) -> Self {
        Self {
            id: tenant.id.0.to_string(),
            name: &tenant.name,
            db_schema_name: &tenant.schema,
            status: tenant.status.as_str(),
            mode: tenant.mode.map(Mode::as_str),
            plan: tenant.plan.as_deref(),
            created_at: tenant.created_at.to_string(),
        }
    }
}

impl ExportedTenant<'_> {
    fn cells(&self) -> Vec<&str> {
        let mode = self.mode.unwrap_or_default();
        let plan = self.plan.unwrap_or_default();
        vec![&self.id, self.name, self.db_schema_name, self.status, mode, plan, &self.created_at]
    }
}

/// The destination of an export.
struct Sink {
    to: BufWriter<Box<dyn Write>>,
    format: FileFormat,
    /// The file and the temporary file beside it, which is renamed when it is complete. `None` for standard output.
    file: Option<(PathBuf, PathBuf)>,
    written: u64,
}

impl Sink {
    fn open(args: &ExportArgs, columns: &[&str]) -> Result<Self, Failure> {
        let format = args.format.or_else(|| FileFormat::of(&args.file)).unwrap_or(FileFormat::Csv);
        let (to, file): (Box<dyn Write>, _) = if is_stdout(&args.file) {
            (Box::new(io::stdout()), None)
        } else {
            let beside = args.file.with_added_extension("new");
            let failed = |error| unwritten_file(&args.file, &error);
            (Box::new(create(&beside).map_err(failed)?), Some((args.file.clone(), beside)))
        };
        let mut sink = Self { to: BufWriter::new(to), format, file, written: 0 };
        if format == FileFormat::Csv {
            sink.write(|to| to.write_all(&record(columns)?))?;
        }
        Ok(sink)
    }

    fn row<'a, R: Serialize>(
        &mut self,
        row: &'a R,
        cells: impl Fn(&'a R) -> Vec<&'a str>,
    ) -> Result<(), Failure> {
        self.written += 1;
        let format = self.format;
        self.write(|to| match format {
            FileFormat::Csv => {
                let cells: Vec<_> = cells(row).into_iter().map(guard).collect();
                to.write_all(&record(&cells)?)
            }
            FileFormat::Jsonl => {
                serde_json::to_writer(&mut *to, row)?;
                to.write_all(b"\n")
            }
        })
    }

    fn write(
        &mut self,
        write: impl FnOnce(&mut BufWriter<Box<dyn Write>>) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let file = &self.file;
        write(&mut self.to).map_err(|error| match file {
            Some((file, _)) => unwritten_file(file, &error),
            None => unwritten(&error),
        })
    }

    fn finish(mut self, out: &Out, what: &str) -> Result<(), Failure> {
        self.write(Write::flush)?;
        let Some((file, beside)) = self.file.take() else { return Ok(()) };
        fs::rename(&beside, &file).map_err(|error| unwritten_file(&file, &error))?;
        out.remark(&format!("{} {what} are in {}", self.written, file.display()));
        Ok(())
    }
}

/// Removes the temporary file of an export that failed.
impl Drop for Sink {
    fn drop(&mut self) {
        if let Some((_, beside)) = &self.file {
            let _ = fs::remove_file(beside);
        }
    }
}

/// Creates a file that only its owner can read.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn unwritten_file(path: &Path, error: &io::Error) -> Failure {
    Failure::refused(format!("{} cannot be written: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::admin::bulk::KeyRow;
    use crate::store;

    #[test]
    fn exported_and_imported_files_have_the_columns_of_the_table() {
        let exported: BTreeSet<_> = KEY_COLUMNS.into_iter().chain(["hashed_key"]).collect();
        let stored = store::KEY_COLUMNS.into_iter().filter(|column| *column != "key_memo");
        assert_eq!(exported, stored.chain(["tenant"]).collect());
        let imported: BTreeSet<_> = KeyRow::COLUMNS.iter().copied().collect();
        assert_eq!(imported, exported.into_iter().chain(["key"]).collect());
    }
}

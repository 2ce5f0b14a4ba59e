//! Imports and exports keys and tenants in bulk.
//!
//! Works in batches: validates each row, compares it with the database, and inserts the new ones in one transaction,
//! together with an entry of the audit log. An interrupted import loses at most one batch, and repeating it imports the
//! rest: rows that exist are counted and not changed, rows that contradict existing ones are rejected.
//!
//! Depends on: no file format.

mod key_row;
mod keys;
mod tenants;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};

use serde::Serialize;
use uuid::Uuid;

pub use self::key_row::KeyRow;
pub use self::tenants::TenantRow;
use super::AdminError;
use crate::audit::{Action, Draft};
use crate::clock::Timestamp;
use crate::invalid::{Invalid, InvalidValue};
use crate::random;
use crate::store::{StoreError, StoredKey};
use crate::tenant::{Tenant, TenantId};

/// A row, after its line number in the file.
pub type Numbered<R> = (u64, R);

/// The result of a batch.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The number of rows that were inserted, or would be in a dry run.
    pub imported: u64,
    /// The number of rows that existed already.
    pub already_there: u64,
    /// The rejected rows, with the reason.
    pub refused: Vec<Numbered<String>>,
}

impl Outcome {
    fn refuse(&mut self, line: u64, why: impl Into<String>) {
        self.refused.push((line, why.into()));
    }

    fn add(&mut self, other: Self) {
        self.imported += other.imported;
        self.already_there += other.already_there;
        self.refused.extend(other.refused);
    }
}

/// One import, from its first batch to its last.
pub struct Import {
    /// Identifies the import in the audit log.
    id: Uuid,
    source: Source,
    dry_run: bool,
    hasher: RandomState,
    /// Hashes of the unique values that a dry run has seen: eight bytes each.
    seen: HashSet<u64>,
    /// A cache of tenants by their references.
    tenants: HashMap<String, Result<TenantId, keys::NoTenant>>,
}

/// The file of an import, for the audit log.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Source {
    /// The name of the file.
    pub file: String,
    /// Its SHA-256; `None` until it is known.
    pub sha256: Option<String>,
}

/// The audit entry of a batch.
#[derive(Serialize)]
struct Imported<'a> {
    #[serde(flatten)]
    source: &'a Source,
    first_line: u64,
    last_line: u64,
    rows: usize,
    first_id: String,
    last_id: String,
}

impl Import {
    /// Starts an import. A dry run changes nothing.
    #[must_use]
    pub fn new(source: Source, dry_run: bool) -> Self {
        let (hasher, seen, tenants) = (RandomState::new(), HashSet::new(), HashMap::new());
        Self { id: random::new_id(), source, dry_run, hasher, seen, tenants }
    }

    /// Sets the digest of the file, which is known only after its end was read.
    pub fn has_sha256(&mut self, sha256: String) {
        self.source.sha256 = Some(sha256);
    }

    fn draft(&self, action: Action, lines: &[u64], ids: &[Uuid]) -> Draft {
        let id = |id: Option<&Uuid>| id.map(ToString::to_string).unwrap_or_default();
        let imported = Imported {
            source: &self.source,
            first_line: lines.first().copied().unwrap_or_default(),
            last_line: lines.last().copied().unwrap_or_default(),
            rows: ids.len(),
            first_id: id(ids.first()),
            last_id: id(ids.last()),
        };
        Draft::of(action, format!("import {}", self.id), None::<&()>, &imported)
    }

    /// Returns whether a dry run sees a unique value for the first time.
    fn is_new(&mut self, what: &str) -> bool {
        let hash = self.hasher.hash_one(what);
        self.seen.insert(hash)
    }
}

/// Splits rows so that no two rows of a part share a unique value. An earlier row is then in the database when a later
/// one is compared with it.
fn split_at_duplicates<R>(rows: Vec<R>, unique: impl Fn(&R) -> Vec<String>) -> Vec<Vec<R>> {
    let (mut parts, mut part, mut taken) = (Vec::new(), Vec::new(), HashSet::new());
    for row in rows {
        let names = unique(&row);
        if names.iter().any(|name| taken.contains(name)) {
            parts.push(std::mem::take(&mut part));
            taken.clear();
        }
        taken.extend(names);
        part.push(row);
    }
    parts.push(part);
    parts
}

fn instant(column: &str, text: Option<&str>) -> Result<Option<Timestamp>, InvalidValue> {
    let wrong = || {
        format!("invalid {column}: expected an instant with its zone, such as 2027-01-31T00:00:00Z").into()
    };
    text.map(|text| Timestamp::parse_zoned(text).ok_or_else(wrong)).transpose()
}

/// Parses `expires_at`, where Postgres writes `infinity` for a key that never expires.
fn expiry(text: Option<&str>) -> Result<Option<Timestamp>, InvalidValue> {
    instant("expires_at", text.filter(|text| *text != "infinity"))
}

/// Parses the text of a column, if it is set.
fn read<T>(
    text: Option<&str>,
    parse: impl Fn(&str) -> Result<T, Invalid>,
) -> Result<Option<T>, InvalidValue> {
    Ok(text.map(parse).transpose()?)
}

fn uuid(column: &str, text: Option<&str>) -> Result<Option<Uuid>, InvalidValue> {
    text.map(|text| Uuid::parse_str(text).map_err(|_| format!("{column} is not a UUID").into())).transpose()
}

impl super::Admin {
    /// Rejects rows whose plan does not exist.
    async fn with_known_plans<R>(
        &self,
        rows: Vec<R>,
        of: fn(&R) -> (u64, Option<&str>),
        outcome: &mut Outcome,
    ) -> Result<Vec<R>, AdminError> {
        if rows.iter().all(|row| of(row).1.is_none()) {
            return Ok(rows);
        }
        let known: HashSet<_> = self.store.plans().await?.into_iter().map(|plan| plan.name).collect();
        let (known, unknown): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| of(row).1.is_none_or(|plan| known.contains(plan)));
        for row in &unknown {
            let (line, plan) = of(row);
            outcome.refuse(line, format!("there is no plan {:?}", plan.unwrap_or_default()));
        }
        Ok(known)
    }

    /// Passes every key of all tenants or of one tenant to `sink`, including its hash.
    ///
    /// # Errors
    ///
    /// As [`super::Admin::tenant`]; the database is not available; a row cannot be exported as it is; or `sink` fails.
    pub async fn export_keys<E: From<AdminError>>(
        &self,
        tenant: Option<&str>,
        mut sink: impl FnMut(&StoredKey) -> Result<(), E>,
    ) -> Result<(), E> {
        let filter = self.keys_of(tenant).await?;
        self.each_key(&filter, None, |key| {
            if let Some(column) = key.details.unreadable {
                let (table, row, why) =
                    ("api_keys", key.details.id.0.to_string(), column.error().to_string());
                return Err(AdminError::Store(StoreError::Inconsistent { table, row, why }).into());
            }
            sink(key).map(|()| true)
        })
        .await
    }

    /// Passes every tenant to `sink`.
    ///
    /// # Errors
    ///
    /// The database is not available, or `sink` fails.
    pub async fn export_tenants<E: From<AdminError>>(
        &self,
        mut sink: impl FnMut(&Tenant) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut after = None;
        loop {
            let page = self.store.tenants_page(after, super::report::PAGE).await.map_err(AdminError::from)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.id);
            page.iter().try_for_each(&mut sink)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_split_before_a_value_that_repeats() {
        let cut = |rows: &[&str]| {
            let rows = rows.iter().map(ToString::to_string).collect();
            split_at_duplicates(rows, |row: &String| row.split(' ').map(ToOwned::to_owned).collect())
        };
        assert_eq!(cut(&["a x", "b y"]), [["a x", "b y"]]);
        assert_eq!(cut(&["a x", "b x", "c z"]), [vec!["a x"], vec!["b x", "c z"]]);
        assert_eq!(cut(&["a", "a", "a"]), [["a"], ["a"], ["a"]]);
    }

    #[test]
    fn a_dry_run_remembers_what_it_would_have_done() {
        let mut import = Import::new(Source::default(), true);
        assert!(import.is_new("llmk_a") && import.is_new("llmk_b") && !import.is_new("llmk_a"));
    }

    #[test]
    fn only_an_expiry_may_be_infinite() {
        assert_eq!(expiry(Some("infinity")), Ok(None));
        assert_eq!(expiry(None), Ok(None));
        assert!(expiry(Some("2027-01-31T00:00:00Z")).unwrap().is_some());
        // A key that is never valid, or was revoked at the end of time, must not become one that passes.
        for column in ["not_before", "revoked_at", "disabled_at"] {
            let error = instant(column, Some("infinity")).unwrap_err().to_string();
            assert!(error.starts_with(&format!("invalid {column}: expected an instant")), "{error}");
        }
    }
}

//! Imports keys in bulk.
//!
//! A row has either a whole key, which is hashed here, or a hash that another program made. All cores hash, because
//! each hash takes a quarter of a second.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::available_parallelism;

use serde::{Deserialize, Deserializer};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::super::key_changes::check_key_name;
use super::super::{Admin, AdminError};
use super::{Import, Numbered, Outcome, expiry, instant, read, split_at_duplicates, uuid};
use crate::audit::Action;
use crate::clock::Timestamp;
use crate::key::format::{self, holds_key, is_stored_prefix};
use crate::key::{KeyId, PlainKey};
use crate::labels::Labels;
use crate::network::Networks;
use crate::plan::PlanName;
use crate::random;
use crate::record::{KeyTerms, SecretHash};
use crate::scope::Scopes;
use crate::store::{ImportedKey, NewKey, StoreError, StoredKey};
use crate::tenant::{Tenant, TenantId};
use crate::verify::bcrypt;

/// A key in a file: unchecked texts.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRow {
    /// The whole key; excludes `hashed_key`.
    pub key: Option<String>,
    /// Its bcrypt hash; needs `key_prefix`.
    pub hashed_key: Option<String>,
    /// Its prefix, including `llmk_`.
    pub key_prefix: Option<String>,
    /// Its tenant: id, schema name or exact name.
    pub tenant: Option<String>,
    /// The id of its tenant.
    pub tenant_id: Option<String>,
    /// Its id; `None` for a new one.
    pub id: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// When it was created; `None` for now.
    pub created_at: Option<String>,
    /// When it expires; `None` for never.
    pub expires_at: Option<String>,
    /// When it was last used.
    pub last_used_at: Option<String>,
    /// When it was revoked.
    pub revoked_at: Option<String>,
    /// Why it was revoked.
    pub revocation_reason: Option<String>,
    /// The id of its successor.
    pub replaced_by: Option<String>,
    /// When it was disabled.
    pub disabled_at: Option<String>,
    /// From when it is valid; `None` for at once.
    pub not_before: Option<String>,
    /// What it grants; `None` for everything.
    pub scopes: Option<String>,
    /// Where it may be used from; `None` for anywhere.
    pub networks: Option<String>,
    /// Its plan.
    pub plan: Option<String>,
    /// Its labels, as a JSON object.
    #[serde(deserialize_with = "labels", default)]
    pub labels: Option<String>,
}

/// Reads labels: an object in JSON, the text of an object in CSV.
fn labels<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(match Option::<serde_json::Value>::deserialize(from)? {
        None => None,
        Some(serde_json::Value::String(text)) => Some(text),
        Some(other) => Some(other.to_string()),
    })
}

/// The secret of a row.
enum Proof {
    Plain(Arc<PlainKey>),
    Hash(SecretHash),
}

/// A valid row.
struct Candidate {
    line: u64,
    row: KeyRow,
    prefix: String,
    proof: Proof,
    id: Option<Uuid>,
    created_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    last_used_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
    replaced_by: Option<Uuid>,
    disabled_at: Option<Timestamp>,
    terms: KeyTerms,
    tenant_id: TenantId,
}

impl Candidate {
    /// Validates a row, except for its tenant.
    fn read(line: u64, mut row: KeyRow) -> Result<Self, String> {
        let (prefix, proof) = proof(&mut row)?;
        check_key_name(row.name.as_deref()).map_err(|error| error.to_string())?;
        if row.revocation_reason.as_deref().is_some_and(holds_key) {
            return Err("revocation_reason must not hold a key".into());
        }
        Ok(Self {
            line,
            prefix,
            proof,
            id: uuid("id", row.id.as_deref())?,
            created_at: instant("created_at", row.created_at.as_deref())?,
            expires_at: expiry(row.expires_at.as_deref())?,
            last_used_at: instant("last_used_at", row.last_used_at.as_deref())?,
            revoked_at: instant("revoked_at", row.revoked_at.as_deref())?,
            replaced_by: uuid("replaced_by", row.replaced_by.as_deref())?,
            disabled_at: instant("disabled_at", row.disabled_at.as_deref())?,
            terms: terms(&row)?,
            tenant_id: TenantId(Uuid::nil()),
            row,
        })
    }

    /// Returns the values that must be unique.
    fn names(&self) -> Vec<String> {
        let hash = match &self.proof {
            Proof::Hash(hash) => Some(hash.text().as_str().to_owned()),
            Proof::Plain(_) => None,
        };
        let id = self.id.map(|id| id.to_string());
        [Some(self.prefix.clone()), id, hash].into_iter().flatten().collect()
    }

    /// Returns the column, other than the key itself, in which the row contradicts the existing key. Missing values
    /// contradict nothing.
    fn contradiction(&self, there: &StoredKey) -> Option<&'static str> {
        let differs = |said: Option<Timestamp>, is: Option<Timestamp>| said.is_some() && said != is;
        let (row, key) = (&self.row, &there.details);
        let differing = [
            (self.tenant_id != key.tenant_id, "tenant"),
            (self.id.is_some_and(|id| id != key.id.0), "id"),
            (row.name.is_some() && row.name != key.name, "name"),
            (differs(self.created_at, Some(key.created_at)), "created_at"),
            (differs(self.expires_at, key.expires_at), "expires_at"),
            (differs(self.revoked_at, key.revoked_at), "revoked_at"),
            (
                row.revocation_reason.is_some() && row.revocation_reason != key.revocation_reason,
                "revocation_reason",
            ),
            (differs(self.disabled_at, key.disabled_at), "disabled_at"),
            (differs(self.terms.not_before, key.terms.not_before), "not_before"),
            (row.scopes.is_some() && self.terms.scopes != key.terms.scopes, "scopes"),
            (row.networks.is_some() && self.terms.networks != key.terms.networks, "networks"),
            (row.plan.is_some() && self.terms.plan != key.terms.plan, "plan"),
            (row.labels.is_some() && self.terms.labels != key.terms.labels, "labels"),
        ];
        differing.into_iter().find_map(|(differs, column)| differs.then_some(column))
    }
}

/// Parses what the key may do.
fn terms(row: &KeyRow) -> Result<KeyTerms, String> {
    Ok(KeyTerms {
        not_before: instant("not_before", row.not_before.as_deref())?,
        scopes: read(row.scopes.as_deref(), Scopes::parse)?.map(|scopes| scopes.to_string()),
        networks: read(row.networks.as_deref(), Networks::parse)?.map(|networks| networks.to_string()),
        plan: read(row.plan.as_deref(), PlanName::parse)?.map(|plan| plan.to_string()),
        labels: read(row.labels.as_deref(), Labels::parse_json)?.unwrap_or_default(),
    })
}

/// Returns the prefix, and the whole key or the hash.
fn proof(row: &mut KeyRow) -> Result<(String, Proof), String> {
    match (row.key.take().map(Zeroizing::new), &row.hashed_key, &row.key_prefix) {
        (Some(_), Some(_), _) => Err("has both key and hashed_key: give only one".into()),
        (Some(key), None, said) => {
            let key = format::parse(key.as_bytes()).map_err(|error| format!("key {error}"))?.to_plain();
            if said.as_deref().is_some_and(|said| said != key.prefix()) {
                return Err("key_prefix is not that of key".into());
            }
            Ok((key.prefix().to_owned(), Proof::Plain(Arc::new(key))))
        }
        (None, Some(hash), Some(prefix)) => {
            if !is_stored_prefix(prefix) {
                return Err("key_prefix is not llmk_ and 1 to 48 letters, digits or hyphens".into());
            }
            let hash = SecretHash::parse(hash).ok_or(
                "invalid hashed_key: expected a bcrypt hash ($2a$, $2b$ or $2y$) of a cost from 4 to 14",
            )?;
            Ok((prefix.clone(), Proof::Hash(hash)))
        }
        (None, Some(_), None) => Err("has hashed_key, but no key_prefix".into()),
        (None, None, _) => Err("has neither key nor hashed_key".into()),
    }
}

/// The number of attempts for a batch whose keys another command changes at the same time.
const TRIES: usize = 3;

impl Admin {
    /// Imports a batch of keys. Rejected rows are part of the outcome.
    ///
    /// # Errors
    ///
    /// The database is not available, or rejects the whole batch.
    pub async fn import_keys(
        &self,
        import: &mut Import,
        rows: Vec<Numbered<KeyRow>>,
    ) -> Result<Outcome, AdminError> {
        let mut outcome = Outcome::default();
        let mut candidates = Vec::with_capacity(rows.len());
        for (line, row) in rows {
            match Candidate::read(line, row) {
                Ok(candidate) => candidates.push(candidate),
                Err(why) => outcome.refuse(line, why),
            }
        }
        self.look_up_tenants(import, &candidates).await?;
        let mut owned = Vec::with_capacity(candidates.len());
        for mut candidate in candidates {
            match tenant_of(import, &candidate.row) {
                Ok(id) => {
                    candidate.tenant_id = id;
                    owned.push(candidate);
                }
                Err(why) => outcome.refuse(candidate.line, why),
            }
        }
        let owned =
            self.with_known_plans(owned, |row| (row.line, row.terms.plan.as_deref()), &mut outcome).await?;
        for part in split_at_duplicates(owned, Candidate::names) {
            outcome.add(self.import_part(import, part).await?);
        }
        Ok(outcome)
    }

    /// Looks up the tenants of rows and caches them.
    async fn look_up_tenants(&self, import: &mut Import, rows: &[Candidate]) -> Result<(), AdminError> {
        /// Limits the cache, so that memory does not grow with the file.
        const REMEMBERED: usize = 10_000;
        if import.tenants.len() > REMEMBERED {
            import.tenants.clear();
        }
        let called = rows.iter().flat_map(|c| [&c.row.tenant, &c.row.tenant_id]).flatten();
        let mut unknown: Vec<_> =
            called.filter(|name| !import.tenants.contains_key(*name)).cloned().collect();
        unknown.sort_unstable();
        unknown.dedup();
        if unknown.is_empty() {
            return Ok(());
        }
        let found = self.store.tenants_named(&unknown).await?;
        import.tenants.extend(unknown.into_iter().map(|name| {
            let tenant = tenant_named(&name, &found);
            (name, tenant)
        }));
        Ok(())
    }

    /// Imports rows of which no two have a unique value in common.
    async fn import_part(&self, import: &mut Import, part: Vec<Candidate>) -> Result<Outcome, AdminError> {
        let (mut outcome, mut rest) = (Outcome::default(), part);
        let mut made = HashMap::new();
        for _ in 0..TRIES {
            rest = self.compare(rest, &mut outcome).await?;
            if import.dry_run {
                rest.retain(|candidate| {
                    let new = candidate.names().iter().filter(|name| !import.is_new(name)).count() == 0;
                    if !new {
                        outcome
                            .refuse(candidate.line, format!("{} occurs twice in the file", candidate.prefix));
                    }
                    new
                });
                outcome.imported += rest.len() as u64;
                return Ok(outcome);
            }
            if rest.is_empty() {
                return Ok(outcome);
            }
            self.hash_all(&rest, &mut made).await?;
            let keys: Vec<_> = rest.iter().map(|candidate| self.imported(candidate, &made)).collect();
            let lines: Vec<_> = rest.iter().map(|candidate| candidate.line).collect();
            let ids: Vec<_> = keys.iter().map(|key| key.new.id.0).collect();
            match self.store.import_keys(&keys, import.draft(Action::KeyImport, &lines, &ids)).await {
                // Another command created one of the keys: compare again.
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
                Ok(()) => {
                    outcome.imported += keys.len() as u64;
                    return Ok(outcome);
                }
            }
        }
        for candidate in rest {
            outcome.refuse(
                candidate.line,
                "another command changes the same keys at the same time: import the file again",
            );
        }
        Ok(outcome)
    }

    /// Compares rows with the database. Returns those that do not exist yet.
    async fn compare(
        &self,
        part: Vec<Candidate>,
        outcome: &mut Outcome,
    ) -> Result<Vec<Candidate>, AdminError> {
        let names: Vec<_> = part.iter().flat_map(Candidate::names).collect();
        let there = self.store.keys_named(&names).await?;
        let mut new = Vec::with_capacity(part.len());
        for candidate in part {
            let Some(key) = there.iter().find(|key| key.details.prefix == candidate.prefix) else {
                match taken(&candidate, &there) {
                    None => new.push(candidate),
                    Some(why) => outcome.refuse(candidate.line, why),
                }
                continue;
            };
            let same = match candidate.contradiction(key) {
                None => same_key(&candidate.proof, &key.hash).await?.then_some(()).ok_or("key or hash"),
                Some(column) => Err(column),
            };
            match same {
                Ok(()) => outcome.already_there += 1,
                Err(column) => {
                    let why = format!("{} already exists with another {column}", candidate.prefix);
                    outcome.refuse(candidate.line, why);
                }
            }
        }
        Ok(new)
    }

    /// Hashes the whole keys among the rows, each once, on all cores. `made` has the hashes by line.
    async fn hash_all(&self, rows: &[Candidate], made: &mut HashMap<u64, String>) -> Result<(), AdminError> {
        let cores = Arc::new(Semaphore::new(available_parallelism().map_or(1, Into::into)));
        let mut hashing = JoinSet::new();
        for candidate in rows.iter().filter(|candidate| !made.contains_key(&candidate.line)) {
            let Proof::Plain(key) = &candidate.proof else { continue };
            let (line, key) = (candidate.line, Arc::clone(key));
            let core = Arc::clone(&cores).acquire_owned().await;
            hashing.spawn_blocking(move || {
                let hash = bcrypt::hash(&key, bcrypt::DEFAULT_COST);
                drop(core);
                (line, hash)
            });
        }
        while let Some(done) = hashing.join_next().await {
            let (line, hash) =
                done.map_err(|e| AdminError::Refused(format!("hashing was interrupted: {e}")))?;
            made.insert(line, hash.map_err(|e| AdminError::Refused(e.to_string()))?);
        }
        Ok(())
    }

    fn imported(&self, candidate: &Candidate, made: &HashMap<u64, String>) -> ImportedKey {
        let id = KeyId(candidate.id.unwrap_or_else(random::new_id));
        let (hash, memo) = match &candidate.proof {
            Proof::Hash(hash) => (hash.text().as_str().to_owned(), None),
            Proof::Plain(key) => {
                let hash = made.get(&candidate.line).cloned().unwrap_or_default();
                let memo = self.memo(id, candidate.tenant_id, &hash, key);
                (hash, memo)
            }
        };
        let new = NewKey {
            id,
            prefix: candidate.prefix.clone(),
            hash,
            tenant_id: candidate.tenant_id,
            name: candidate.row.name.clone(),
            created_at: candidate.created_at.unwrap_or_else(|| self.now()),
            expires_at: candidate.expires_at,
            memo,
            terms: candidate.terms.clone(),
        };
        ImportedKey {
            new,
            last_used_at: candidate.last_used_at,
            revoked_at: candidate.revoked_at,
            revocation_reason: candidate.row.revocation_reason.clone(),
            replaced_by: candidate.replaced_by.map(KeyId),
            disabled_at: candidate.disabled_at,
        }
    }
}

/// Returns why a row cannot be imported because another key has its id or hash.
fn taken(candidate: &Candidate, there: &[StoredKey]) -> Option<String> {
    let same_id = |key: &&StoredKey| Some(key.details.id.0) == candidate.id;
    let same_hash =
        |key: &&StoredKey| matches!(&candidate.proof, Proof::Hash(hash) if hash.text().as_str() == key.hash);
    let other = |what: &str, key: &StoredKey| format!("its {what} belongs to {}", key.details.prefix);
    let id = there.iter().find(same_id).map(|key| other("id", key));
    id.or_else(|| there.iter().find(same_hash).map(|key| other("hashed_key", key)))
}

async fn same_key(proof: &Proof, stored: &str) -> Result<bool, AdminError> {
    let key = match proof {
        Proof::Hash(hash) => return Ok(hash.text().as_str() == stored),
        Proof::Plain(key) => Arc::clone(key),
    };
    let Some(hash) = SecretHash::parse(stored) else { return Ok(false) };
    let verified = tokio::task::spawn_blocking(move || bcrypt::verify(&key, &hash)).await;
    let verified = verified.map_err(|e| AdminError::Refused(format!("hashing was interrupted: {e}")))?;
    Ok(verified.unwrap_or(false))
}

fn tenant_of(import: &Import, row: &KeyRow) -> Result<TenantId, String> {
    let meant = |called: &String| import.tenants.get(called).cloned();
    let by_id = row.tenant_id.as_ref().and_then(meant).transpose()?;
    let by_name = row.tenant.as_ref().and_then(meant).transpose()?;
    match (by_id, by_name) {
        (Some(id), Some(other)) if id != other => Err("tenant and tenant_id mean different tenants".into()),
        (Some(id), _) | (None, Some(id)) => Ok(id),
        (None, None) => Err("has neither tenant nor tenant_id".into()),
    }
}

/// Returns the tenant with this id, schema name or name. An id takes precedence.
fn tenant_named(name: &str, found: &[Tenant]) -> Result<TenantId, String> {
    if let Some(tenant) = found.iter().find(|t| t.id.0.to_string().eq_ignore_ascii_case(name)) {
        return Ok(tenant.id);
    }
    let mut called = found.iter().filter(|t| t.schema == name || t.name == name);
    match (called.next(), called.next()) {
        (Some(tenant), None) => Ok(tenant.id),
        (None, _) => Err(format!("there is no tenant {name:?}")),
        (Some(_), Some(_)) => Err(format!("{name:?} means more than one tenant: name it by its id")),
    }
}

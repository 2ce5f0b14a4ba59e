//! Imports keys in bulk.
//!
//! A row has either a whole key, which is hashed here, or a hash that another program made. All cores hash, because
//! each hash takes a quarter of a second.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::super::{Admin, AdminError};
use super::key_row::{Candidate, ImportedSecret, KeyRow};
use super::{Import, Numbered, Outcome, split_at_duplicates};
use crate::audit::Action;
use crate::key::KeyId;
use crate::random;
use crate::record::SecretHash;
use crate::store::{ImportedKey, NewKey, StoreError, StoredKey};
use crate::tenant::{Tenant, TenantId};
use crate::verify::bcrypt;

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
                Err(why) => outcome.refuse(candidate.line, why.to_string()),
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
            let ImportedSecret::Plain(key) = &candidate.proof else { continue };
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
            ImportedSecret::Hash(hash) => (hash.text().as_str().to_owned(), None),
            ImportedSecret::Plain(key) => {
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
    let same_hash = |key: &&StoredKey| matches!(&candidate.proof, ImportedSecret::Hash(hash) if hash.text().as_str() == key.hash);
    let other = |what: &str, key: &StoredKey| format!("its {what} belongs to {}", key.details.prefix);
    let id = there.iter().find(same_id).map(|key| other("id", key));
    id.or_else(|| there.iter().find(same_hash).map(|key| other("hashed_key", key)))
}

async fn same_key(proof: &ImportedSecret, stored: &str) -> Result<bool, AdminError> {
    let key = match proof {
        ImportedSecret::Hash(hash) => return Ok(hash.text().as_str() == stored),
        ImportedSecret::Plain(key) => Arc::clone(key),
    };
    let Some(hash) = SecretHash::parse(stored) else { return Ok(false) };
    let verified = tokio::task::spawn_blocking(move || bcrypt::verify(&key, &hash)).await;
    let verified = verified.map_err(|e| AdminError::Refused(format!("hashing was interrupted: {e}")))?;
    Ok(verified.unwrap_or(false))
}

/// Why a row has no tenant.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum NoTenant {
    #[error("there is no tenant {0:?}")]
    Missing(String),
    #[error("{0:?} means more than one tenant: name it by its id")]
    Ambiguous(String),
    #[error("tenant and tenant_id mean different tenants")]
    Contradiction,
    #[error("has neither tenant nor tenant_id")]
    Unnamed,
}

fn tenant_of(import: &Import, row: &KeyRow) -> Result<TenantId, NoTenant> {
    let meant = |called: &String| import.tenants.get(called).cloned();
    let by_id = row.tenant_id.as_ref().and_then(meant).transpose()?;
    let by_name = row.tenant.as_ref().and_then(meant).transpose()?;
    match (by_id, by_name) {
        (Some(id), Some(other)) if id != other => Err(NoTenant::Contradiction),
        (Some(id), _) | (None, Some(id)) => Ok(id),
        (None, None) => Err(NoTenant::Unnamed),
    }
}

/// Returns the tenant with this id, schema name or name. An id takes precedence.
fn tenant_named(name: &str, found: &[Tenant]) -> Result<TenantId, NoTenant> {
    if let Some(tenant) = found.iter().find(|t| t.id.0.to_string().eq_ignore_ascii_case(name)) {
        return Ok(tenant.id);
    }
    let mut called = found.iter().filter(|t| t.schema == name || t.name == name);
    match (called.next(), called.next()) {
        (Some(tenant), None) => Ok(tenant.id),
        (None, _) => Err(NoTenant::Missing(name.to_owned())),
        (Some(_), Some(_)) => Err(NoTenant::Ambiguous(name.to_owned())),
    }
}

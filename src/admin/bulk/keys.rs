//! Imports keys in bulk.
//!
//! A row has either a whole key, which we hash, or a hash that another program made.
//! Hashing takes a quarter of a second each, so all cores do it.

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
use super::{Import, Numbered, Outcome, cut_at_doubles, instant, read, uuid};
use crate::audit::Action;
use crate::clock::Timestamp;
use crate::key::format::{self, holds_key, is_stored_prefix};
use crate::key::{KeyId, PlainKey};
use crate::labels::Labels;
use crate::network::Networks;
use crate::plan::PlanName;
use crate::record::{KeyTerms, SecretHash};
use crate::scope::Scopes;
use crate::store::{ImportedKey, NewKey, StoreError, StoredKey};
use crate::tenant::{Tenant, TenantId};
use crate::verify::bcrypt;

/// A key as a file has it: everything text, nothing checked.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRow {
    /// The whole key; or
    pub key: Option<String>,
    /// its hash, and
    pub hashed_key: Option<String>,
    /// its prefix, `llmk_` and all.
    pub key_prefix: Option<String>,
    /// Whose it is: id, schema name or exact name; or
    pub tenant: Option<String>,
    /// the id alone.
    pub tenant_id: Option<String>,
    /// Its id; nothing: a new one.
    pub id: Option<String>,
    /// What people call it.
    pub name: Option<String>,
    /// When it was made; nothing: now.
    pub created_at: Option<String>,
    /// When it expires; nothing: never.
    pub expires_at: Option<String>,
    /// When it was last used.
    pub last_used_at: Option<String>,
    /// When it was taken back.
    pub revoked_at: Option<String>,
    /// Why.
    pub revocation_reason: Option<String>,
    /// The id of its successor.
    pub replaced_by: Option<String>,
    /// When it was disabled.
    pub disabled_at: Option<String>,
    /// When it begins to be valid; nothing: at once.
    pub not_before: Option<String>,
    /// What it grants; nothing: everything.
    pub scopes: Option<String>,
    /// Where it may be used from; nothing: anywhere.
    pub networks: Option<String>,
    /// Its plan.
    pub plan: Option<String>,
    /// Its labels, as a JSON object.
    #[serde(deserialize_with = "labels", default)]
    pub labels: Option<String>,
}

/// An object in JSON lines, the text of one in CSV.
fn labels<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(match Option::<serde_json::Value>::deserialize(from)? {
        None => None,
        Some(serde_json::Value::String(text)) => Some(text),
        Some(other) => Some(other.to_string()),
    })
}

/// What proves that somebody has the key.
enum Proof {
    Plain(Arc<PlainKey>),
    Hash(SecretHash),
}

/// A row that makes sense.
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
    /// The row, apart from whose it is.
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
            expires_at: instant("expires_at", row.expires_at.as_deref())?,
            last_used_at: instant("last_used_at", row.last_used_at.as_deref())?,
            revoked_at: instant("revoked_at", row.revoked_at.as_deref())?,
            replaced_by: uuid("replaced_by", row.replaced_by.as_deref())?,
            disabled_at: instant("disabled_at", row.disabled_at.as_deref())?,
            terms: terms(&row)?,
            tenant_id: TenantId(Uuid::nil()),
            row,
        })
    }

    /// What must be unique.
    fn names(&self) -> Vec<String> {
        let hash = match &self.proof {
            Proof::Hash(hash) => Some(hash.text().as_str().to_owned()),
            Proof::Plain(_) => None,
        };
        let id = self.id.map(|id| id.to_string());
        [Some(self.prefix.clone()), id, hash].into_iter().flatten().collect()
    }

    /// Where the row contradicts what is there, the key itself aside; what it does not say contradicts nothing.
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

/// What the key may do.
fn terms(row: &KeyRow) -> Result<KeyTerms, String> {
    Ok(KeyTerms {
        not_before: instant("not_before", row.not_before.as_deref())?,
        scopes: read(row.scopes.as_deref(), Scopes::parse)?.map(|scopes| scopes.to_string()),
        networks: read(row.networks.as_deref(), Networks::parse)?.map(|networks| networks.to_string()),
        plan: read(row.plan.as_deref(), PlanName::parse)?.map(|plan| plan.to_string()),
        labels: read(row.labels.as_deref(), Labels::parse_json)?.unwrap_or_default(),
    })
}

/// A whole key, or a prefix and a hash.
fn proof(row: &mut KeyRow) -> Result<(String, Proof), String> {
    match (row.key.take().map(Zeroizing::new), &row.hashed_key, &row.key_prefix) {
        (Some(_), Some(_), _) => Err("has both key and hashed_key: say one".into()),
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
                "hashed_key is no bcrypt hash that is accepted: $2a$, $2b$ or $2y$, cost 4 to 14, as an encoder writes it",
            )?;
            Ok((prefix.clone(), Proof::Hash(hash)))
        }
        (None, Some(_), None) => Err("has hashed_key and no key_prefix".into()),
        (None, None, _) => Err("has neither key nor hashed_key".into()),
    }
}

/// How often a batch is looked at again, when somebody else adds the same keys at the same time.
const TRIES: usize = 3;

impl Admin {
    /// Takes a batch of keys over.
    ///
    /// # Errors
    ///
    /// The database cannot be asked or refuses all of it. Rows that are refused are no error.
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
        for part in cut_at_doubles(owned, Candidate::names) {
            outcome.add(self.import_part(import, part).await?);
        }
        Ok(outcome)
    }

    /// Remembers who is meant by what rows call their tenants.
    async fn look_up_tenants(&self, import: &mut Import, rows: &[Candidate]) -> Result<(), AdminError> {
        /// More are looked up again: memory does not grow with the file.
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
            let tenant = the_one(&name, &found);
            (name, tenant)
        }));
        Ok(())
    }

    /// Rows of which no two have a name in common.
    async fn import_part(&self, import: &mut Import, part: Vec<Candidate>) -> Result<Outcome, AdminError> {
        let (mut outcome, mut rest) = (Outcome::default(), part);
        let mut made = HashMap::new();
        for _ in 0..TRIES {
            rest = self.compare(rest, &mut outcome).await?;
            if import.dry_run {
                rest.retain(|candidate| {
                    let new = candidate.names().iter().filter(|name| !import.is_new(name)).count() == 0;
                    if !new {
                        outcome.refuse(candidate.line, format!("{} is in the file twice", candidate.prefix));
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
                // Somebody was faster with one of them.
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
                Ok(()) => {
                    outcome.imported += keys.len() as u64;
                    return Ok(outcome);
                }
            }
        }
        for candidate in rest {
            outcome.refuse(candidate.line, "somebody else changes the same keys at the same time: try again");
        }
        Ok(outcome)
    }

    /// Sorts out what is there; returns what is not.
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
                    let why = format!("{} is there already, with another {column}", candidate.prefix);
                    outcome.refuse(candidate.line, why);
                }
            }
        }
        Ok(new)
    }

    /// Hashes the whole keys among the rows, each once.
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
        let id = KeyId(candidate.id.unwrap_or_else(Uuid::new_v4));
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

/// Whether a row has something that another key has.
fn taken(candidate: &Candidate, there: &[StoredKey]) -> Option<String> {
    let same_id = |key: &&StoredKey| Some(key.details.id.0) == candidate.id;
    let same_hash =
        |key: &&StoredKey| matches!(&candidate.proof, Proof::Hash(hash) if hash.text().as_str() == key.hash);
    let other = |what: &str, key: &StoredKey| format!("its {what} is that of {}", key.details.prefix);
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

/// The tenant that is called so: an id means one, whatever else is called like it.
fn the_one(name: &str, found: &[Tenant]) -> Result<TenantId, String> {
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

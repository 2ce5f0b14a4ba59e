//! The rows of a file of keys, and their validation.

use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::super::key_changes::check_key_name;
use super::{expiry, instant, read, uuid};
use crate::clock::Timestamp;
use crate::invalid::InvalidValue;
use crate::key::PlainKey;
use crate::key::format::{self, holds_key, is_stored_prefix};
use crate::labels::Labels;
use crate::network::Networks;
use crate::plan::PlanName;
use crate::record::{KeyTerms, SecretHash};
use crate::scope::Scopes;
use crate::store::StoredKey;
use crate::tenant::TenantId;

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
    /// Its scopes; `None` grants everything.
    pub scopes: Option<String>,
    /// Its networks; `None` allows every address.
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
pub(super) enum ImportedSecret {
    Plain(Arc<PlainKey>),
    Hash(SecretHash),
}

/// A valid row.
pub(super) struct Candidate {
    pub(super) line: u64,
    pub(super) row: KeyRow,
    pub(super) prefix: String,
    pub(super) proof: ImportedSecret,
    pub(super) id: Option<Uuid>,
    pub(super) created_at: Option<Timestamp>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) last_used_at: Option<Timestamp>,
    pub(super) revoked_at: Option<Timestamp>,
    pub(super) replaced_by: Option<Uuid>,
    pub(super) disabled_at: Option<Timestamp>,
    pub(super) terms: KeyTerms,
    pub(super) tenant_id: TenantId,
}

impl Candidate {
    /// Validates a row, except for its tenant.
    pub(super) fn read(line: u64, mut row: KeyRow) -> Result<Self, InvalidValue> {
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
    pub(super) fn names(&self) -> Vec<String> {
        let hash = match &self.proof {
            ImportedSecret::Hash(hash) => Some(hash.text().as_str().to_owned()),
            ImportedSecret::Plain(_) => None,
        };
        let id = self.id.map(|id| id.to_string());
        [Some(self.prefix.clone()), id, hash].into_iter().flatten().collect()
    }

    /// Returns the column, other than the key itself, in which the row contradicts the existing key. Missing values
    /// contradict nothing.
    pub(super) fn contradiction(&self, there: &StoredKey) -> Option<&'static str> {
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
fn terms(row: &KeyRow) -> Result<KeyTerms, InvalidValue> {
    Ok(KeyTerms {
        not_before: instant("not_before", row.not_before.as_deref())?,
        scopes: read(row.scopes.as_deref(), Scopes::parse)?.map(|scopes| scopes.to_string()),
        networks: read(row.networks.as_deref(), Networks::parse)?.map(|networks| networks.to_string()),
        plan: read(row.plan.as_deref(), PlanName::parse)?.map(|plan| plan.to_string()),
        labels: read(row.labels.as_deref(), Labels::parse_json)?.unwrap_or_default(),
    })
}

/// Returns the prefix, and the whole key or the hash.
fn proof(row: &mut KeyRow) -> Result<(String, ImportedSecret), InvalidValue> {
    match (row.key.take().map(Zeroizing::new), &row.hashed_key, &row.key_prefix) {
        (Some(_), Some(_), _) => Err("has both key and hashed_key: give only one".into()),
        (Some(key), None, said) => {
            let key = format::parse(key.as_bytes()).map_err(|error| format!("key {error}"))?.to_plain();
            if said.as_deref().is_some_and(|said| said != key.prefix()) {
                return Err("key_prefix is not that of key".into());
            }
            Ok((key.prefix().to_owned(), ImportedSecret::Plain(Arc::new(key))))
        }
        (None, Some(hash), Some(prefix)) => {
            if !is_stored_prefix(prefix) {
                return Err("key_prefix is not llmk_ and 1 to 48 letters, digits or hyphens".into());
            }
            let hash = SecretHash::parse(hash).ok_or(
                "invalid hashed_key: expected a bcrypt hash ($2a$, $2b$ or $2y$) of a cost from 4 to 14",
            )?;
            Ok((prefix.clone(), ImportedSecret::Hash(hash)))
        }
        (None, Some(_), None) => Err("has hashed_key, but no key_prefix".into()),
        (None, None, _) => Err("has neither key nor hashed_key".into()),
    }
}

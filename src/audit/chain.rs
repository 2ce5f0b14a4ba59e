//! The chain of hashes: an entry, the head of the log, and the verification. The hash is defined in [`crate::audit`].

use sha2::{Digest as _, Sha256};

use super::{Author, Draft};
use crate::clock::Timestamp;

/// A row of `tenantgate_audit_log`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuditEntry {
    /// 1, 2, 3 and so on.
    pub seq: i64,
    /// The time, by the clock of the database.
    pub at: Timestamp,
    /// The author.
    pub actor: String,
    /// The kind of the change.
    pub action: String,
    /// The changed object: usually the id of a tenant or key.
    pub subject: String,
    /// Its fields before, as JSON.
    pub before: Option<String>,
    /// Its fields after, as JSON.
    pub after: Option<String>,
    /// The id of the request over HTTP that made the change.
    pub request_id: Option<String>,
    /// The IP address of its client.
    pub address: Option<String>,
    /// The hash over this row and all rows before it.
    pub hash: String,
}

impl AuditEntry {
    fn digest(&self, previous: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(previous);
        let (seq, at) = (self.seq.to_string(), self.at.to_string());
        let (before, after) = (self.before.as_deref(), self.after.as_deref());
        let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
        let net = |field: &str| format!("{}:{field},", field.len());
        for field in [&seq, &at, &self.actor, &self.action, &self.subject, before, after] {
            hash.update(net(field));
        }
        if self.request_id.is_some() || self.address.is_some() {
            for field in [&self.request_id, &self.address] {
                hash.update(net(field.as_deref().unwrap_or_default()));
            }
        }
        hex(&hash.finalize())
    }
}

/// Encodes lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// The end of a log: the number of rows, and the last hash.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogHead {
    /// The number of the last row, which is the number of rows.
    pub seq: i64,
    /// Its hash.
    pub hash: String,
}

/// The head of an empty log.
impl Default for LogHead {
    fn default() -> Self {
        Self { seq: 0, hash: "0".repeat(64) }
    }
}

impl LogHead {
    /// Creates the next row, which becomes the head.
    pub fn append(&mut self, at: Timestamp, author: &Author, draft: Draft) -> AuditEntry {
        let Draft { action, subject, before, after } = draft;
        let mut entry = AuditEntry {
            seq: self.seq + 1,
            at,
            actor: author.actor.as_str().to_owned(),
            action: action.as_str().to_owned(),
            subject,
            before,
            after,
            request_id: author.request_id.clone(),
            address: author.address.clone(),
            hash: String::new(),
        };
        entry.hash = entry.digest(&self.hash);
        *self = Self { seq: entry.seq, hash: entry.hash.clone() };
        entry
    }

    /// Verifies the next row of an existing log.
    ///
    /// # Errors
    ///
    /// A row is missing, or this one was changed.
    pub fn follow(&mut self, entry: &AuditEntry) -> Result<(), BrokenChain> {
        let seq = self.seq + 1;
        if entry.seq != seq {
            return Err(BrokenChain::Missing(seq));
        }
        if entry.hash != entry.digest(&self.hash) {
            return Err(BrokenChain::Changed(seq));
        }
        *self = Self { seq, hash: entry.hash.clone() };
        Ok(())
    }
}

/// The first row of a log that was changed or removed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BrokenChain {
    /// The hash does not match the fields and the row before.
    #[error("row {0} of the audit log was changed: its hash does not match it and the row before")]
    Changed(i64),
    /// The row is missing, but later ones exist.
    #[error("row {0} of the audit log is missing")]
    Missing(i64),
}

//! Reads and verifies the audit log, page by page, so that its size does not matter.

use super::{Admin, AdminError, refused};
use crate::audit::{AuditEntry, LogHead};
use crate::store::AuditFilter;

/// The number of rows of a page: some hundred kilobytes.
const PAGE: i64 = 1_000;

/// The result of verifying an intact log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verified {
    /// The end of the log.
    pub head: LogHead,
    /// The number of rows after the row whose hash was expected; `None` if no hash was given.
    pub since_expected: Option<i64>,
}

impl Admin {
    /// Passes the entries that match the filter to `sink`, page by page, oldest first. With a limit, only the newest
    /// ones.
    ///
    /// # Errors
    ///
    /// The database is not available, or `sink` fails.
    pub async fn audit<E: From<AdminError>>(
        &self,
        filter: &AuditFilter,
        limit: Option<i64>,
        mut sink: impl FnMut(&[AuditEntry]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut after = match limit {
            Some(count) => self.store.audit_before_newest(filter, count).await.map_err(AdminError::from)?,
            None => 0,
        };
        loop {
            let page = self.store.audit_entries(filter, after, PAGE).await.map_err(AdminError::from)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.seq;
            sink(&page)?;
        }
    }

    /// Verifies the chain of hashes from the first row to the last. If a hash is expected, a row must have it.
    ///
    /// # Errors
    ///
    /// A row is missing or was changed; the error names the first such row. Or no row has the expected hash.
    pub async fn verify_audit(&self, expected: Option<&str>) -> Result<Verified, AdminError> {
        let mut head = LogHead::default();
        let mut seen_at = expected.filter(|hash| *hash == head.hash).map(|_| 0);
        let follow = |page: &[AuditEntry]| {
            for entry in page {
                head.follow(entry).map_err(|broken| AdminError::Refused(broken.to_string()))?;
                if expected == Some(entry.hash.as_str()) {
                    seen_at = Some(entry.seq);
                }
            }
            Ok::<_, AdminError>(())
        };
        self.audit(&AuditFilter::default(), None, follow).await?;
        match (expected, seen_at) {
            (Some(_), None) => refused(format!(
                "no row of the audit log has this hash: rows were removed or rewritten; the log now has {} rows, and its head is {}",
                head.seq, head.hash
            )),
            _ => Ok(Verified { since_expected: seen_at.map(|seq| head.seq - seq), head }),
        }
    }
}

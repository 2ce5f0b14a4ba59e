//! Reads and verifies the audit log.
//!
//! The log is read a page at a time, however long it is.

use super::{Admin, AdminError, refused};
use crate::audit::{Entry, Head};
use crate::store::AuditFilter;

/// Rows that are read at once: some hundred kilobytes.
const PAGE: i64 = 1_000;

/// What is known of a log that nobody touched.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verified {
    /// Its end.
    pub head: Head,
    /// Rows after the one whose hash was expected, if one was.
    pub since_expected: Option<i64>,
}

impl Admin {
    /// Gives what the log has to `sink`, page by page, oldest first; with a limit the newest of it.
    ///
    /// # Errors
    ///
    /// The database cannot be asked, or `sink` wants no more.
    pub async fn audit<E: From<AdminError>>(
        &self,
        filter: &AuditFilter,
        limit: Option<i64>,
        mut sink: impl FnMut(&[Entry]) -> Result<(), E>,
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

    /// Follows the chain from the first row to the last, through the row whose hash is `expected`.
    ///
    /// # Errors
    ///
    /// A row is missing or is not what was written, the first of which is named; or no row has that hash.
    pub async fn verify_audit(&self, expected: Option<&str>) -> Result<Verified, AdminError> {
        let mut head = Head::default();
        let mut seen_at = expected.filter(|hash| *hash == head.hash).map(|_| 0);
        let follow = |page: &[Entry]| {
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
                "no row of the audit log has that hash: it was cut or written anew; it has {} rows now, and its head is {}",
                head.seq, head.hash
            )),
            _ => Ok(Verified { since_expected: seen_at.map(|seq| head.seq - seq), head }),
        }
    }
}

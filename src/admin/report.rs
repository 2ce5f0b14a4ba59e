//! Reports live keys that need attention: unused, expiring soon or never, or with a weak hash or no memo.
//!
//! Revoked and expired keys are not reported. Keys are read page by page, ordered by id, so that their number does not
//! matter.

use std::time::Duration;

use super::{Admin, AdminError};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::record::{KeyState, SecretHash};
use crate::store::{KeyFilter, StoredKey};

/// The number of keys of a page: some hundred kilobytes.
pub(super) const PAGE: i64 = 1_000;

/// A finding about a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyFinding {
    /// It expires soon.
    Expiring,
    /// Its hash has a low bcrypt cost.
    LowCost,
    /// It was never used.
    NeverUsed,
    /// It was not used for a long time.
    Unused,
    /// It never expires.
    WithoutExpiry,
    /// It has no memo, so it costs one bcrypt after a restart.
    WithoutMemo,
}

impl KeyFinding {
    /// Returns the word in reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expiring => "expiring",
            Self::LowCost => "low_cost",
            Self::NeverUsed => "never_used",
            Self::Unused => "unused",
            Self::WithoutExpiry => "without_expiry",
            Self::WithoutMemo => "without_memo",
        }
    }
}

/// The report to create.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Criteria {
    /// Last used at least this long ago, or never used and older than this.
    pub unused_for: Option<Duration>,
    /// Expires within this span.
    pub expiring_within: Option<Duration>,
    /// Never used.
    pub never_used: bool,
    /// Never expires.
    pub without_expiry: bool,
    /// Has no memo.
    pub without_memo: bool,
    /// The bcrypt cost of its hash is lower.
    pub cost_below: Option<u8>,
}

impl Criteria {
    /// All criteria: unused for 90 days, expiring within 30 days, and a bcrypt cost below that of new keys.
    pub const ALL: Self = Self {
        unused_for: Some(Duration::from_hours(90 * 24)),
        expiring_within: Some(Duration::from_hours(30 * 24)),
        never_used: true,
        without_expiry: true,
        without_memo: true,
        cost_below: Some(12),
    };

    /// Returns the findings about a key at `now`, in the order of the options.
    #[must_use]
    pub fn findings(&self, key: &StoredKey, now: Timestamp) -> Vec<KeyFinding> {
        let details = &key.details;
        if details.state(now) != KeyState::Active {
            return Vec::new();
        }
        let last_sign_of_life = details.last_used_at.unwrap_or(details.created_at);
        let soon = |span| details.expires_at.is_some_and(|at| at <= now.after(span));
        let cheap = |cost| SecretHash::parse(&key.hash).is_some_and(|hash| hash.cost() < cost);
        let all = [
            (self.unused_for.is_some_and(|span| last_sign_of_life <= now.before(span)), KeyFinding::Unused),
            (self.expiring_within.is_some_and(soon), KeyFinding::Expiring),
            (self.never_used && details.last_used_at.is_none(), KeyFinding::NeverUsed),
            (self.without_expiry && details.expires_at.is_none(), KeyFinding::WithoutExpiry),
            (self.without_memo && details.memo.is_none(), KeyFinding::WithoutMemo),
            (self.cost_below.is_some_and(cheap), KeyFinding::LowCost),
        ];
        all.into_iter().filter_map(|(holds, finding)| holds.then_some(finding)).collect()
    }
}

impl Admin {
    /// Passes every key with findings to `sink`, together with its findings.
    ///
    /// # Errors
    ///
    /// As [`Admin::tenant`]; the database is not available; or `sink` fails.
    pub async fn report_keys<E: From<AdminError>>(
        &self,
        tenant: Option<&str>,
        criteria: &Criteria,
        mut sink: impl FnMut(&StoredKey, &[KeyFinding]) -> Result<(), E>,
    ) -> Result<(), E> {
        let now = self.now();
        let filter = self.keys_of(tenant).await?;
        self.each_key(&filter, None, |key| {
            match criteria.findings(key, now).as_slice() {
                [] => {}
                findings => sink(key, findings)?,
            }
            Ok(true)
        })
        .await
    }

    /// Returns the filter for all keys, or for those of one tenant.
    pub(super) async fn keys_of(&self, tenant: Option<&str>) -> Result<KeyFilter, AdminError> {
        let tenant = match tenant {
            Some(reference) => Some(self.tenant(reference).await?.id),
            None => None,
        };
        Ok(KeyFilter { tenant, ..KeyFilter::default() })
    }

    /// Passes the keys that match the filter to `sink`, ordered by id, until it returns `false`.
    pub(super) async fn each_key<E: From<AdminError>>(
        &self,
        filter: &KeyFilter,
        after: Option<KeyId>,
        mut sink: impl FnMut(&StoredKey) -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut after = after;
        loop {
            let page = self.store.keys_page(filter, after, PAGE).await.map_err(AdminError::from)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.details.id);
            for key in &page {
                if !sink(key)? {
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::clock::MICROS_PER_DAY as DAY;
    use crate::record::{KeyDetails, KeyTerms, PepperId};
    use crate::tenant::TenantId;

    const NOW: Timestamp = Timestamp(1_000 * DAY);

    /// A key without findings.
    fn fine() -> StoredKey {
        let details = KeyDetails {
            id: KeyId(Uuid::nil()),
            prefix: "llmk_fine".into(),
            name: None,
            tenant_id: TenantId(Uuid::nil()),
            created_at: Timestamp(NOW.0 - 500 * DAY),
            expires_at: Some(Timestamp(NOW.0 + 31 * DAY)),
            last_used_at: Some(Timestamp(NOW.0 - 89 * DAY)),
            revoked_at: None,
            revocation_reason: None,
            replaced_by: None,
            memo: Some(PepperId([0; 4])),
            disabled_at: None,
            terms: KeyTerms::default(),
            unreadable: None,
        };
        let hash = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232".into();
        StoredKey { details, tenant_schema: "tenant_a".into(), hash }
    }

    fn found(change: impl Fn(&mut StoredKey)) -> Vec<&'static str> {
        let mut key = fine();
        change(&mut key);
        let all = Criteria::ALL.findings(&key, NOW);
        all.into_iter().map(KeyFinding::as_str).collect()
    }

    #[test]
    fn each_finding_is_found_at_its_edge_and_not_before() {
        let none: [&str; 0] = [];
        assert_eq!(found(|_| ()), none);
        assert_eq!(found(|k| k.details.last_used_at = Some(Timestamp(NOW.0 - 90 * DAY))), ["unused"]);
        assert_eq!(found(|k| k.details.expires_at = Some(Timestamp(NOW.0 + 30 * DAY))), ["expiring"]);
        assert_eq!(found(|k| k.details.expires_at = None), ["without_expiry"]);
        assert_eq!(found(|k| k.details.memo = None), ["without_memo"]);
        assert_eq!(found(|k| k.hash = k.hash.replace("$12$", "$11$")), ["low_cost"]);
        assert_eq!(found(|k| k.hash = "damaged".into()), none);
        assert_eq!(found(|k| k.details.last_used_at = None), ["unused", "never_used"]);
        let young = |k: &mut StoredKey| {
            (k.details.last_used_at, k.details.created_at) = (None, Timestamp(NOW.0 - DAY));
        };
        assert_eq!(found(young), ["never_used"], "a key of yesterday is not unused for 90 days");
    }

    #[test]
    fn a_revoked_or_expired_key_is_not_reported() {
        assert!(found(|k| (k.details.revoked_at, k.details.memo) = (Some(NOW), None)).is_empty());
        assert!(found(|k| (k.details.expires_at, k.details.memo) = (Some(NOW), None)).is_empty());
    }

    #[test]
    fn only_the_requested_findings_are_returned() {
        let mut key = fine();
        (key.details.last_used_at, key.details.expires_at, key.details.memo) = (None, None, None);
        let criteria = Criteria { never_used: true, cost_below: Some(13), ..Criteria::default() };
        assert_eq!(criteria.findings(&key, NOW), [KeyFinding::NeverUsed, KeyFinding::LowCost]);
    }

    #[test]
    fn debug_does_not_show_the_hash() {
        assert!(!format!("{:?}", fine()).contains("$2b$"));
    }
}

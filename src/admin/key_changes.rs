//! Changes and revokes existing keys.

use std::time::Duration;

use super::{Admin, AdminError, Setting, unfit};
use crate::audit::Action;
use crate::clock::Timestamp;
use crate::invalid::InvalidValue;
use crate::key::KeyId;
use crate::key::format::holds_key;
use crate::labels::Labels;
use crate::network::Networks;
use crate::plan::PlanName;
use crate::record::{KeyDetails, KeyState, KeyTerms, has_expired};
use crate::scope::Scopes;
use crate::store::{KeyFilter, StoredKey};
use crate::tenant::is_tenant_name;

/// When a key expires.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Expiry {
    /// At this instant.
    At(Timestamp),
    /// This long from now.
    In(Duration),
    /// Never.
    Never,
    /// Not given: never for a new key, unchanged for an existing one.
    #[default]
    Unsaid,
}

impl Expiry {
    /// Returns the new instant; unset for never.
    ///
    /// # Errors
    ///
    /// The instant is in the past.
    pub(super) fn instant(self, now: Timestamp) -> Result<Setting<Timestamp>, AdminError> {
        let at = match self {
            Self::At(at) => at,
            Self::In(span) => now.after(span),
            Self::Never => return Ok(Setting::Unset),
            Self::Unsaid => return Ok(Setting::Keep),
        };
        if has_expired(Some(at), now) {
            let part = if matches!(self, Self::In(_)) { "expires_in" } else { "expires_at" };
            Err(unfit(part, format!("{at} is in the past: choose a later expiry")))
        } else {
            Ok(Setting::Set(at))
        }
    }
}

/// Changes of a key, or the fields of a new one.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeyUpdate {
    /// The name, for human readers.
    pub name: Setting<String>,
    /// When it expires.
    pub expiry: Expiry,
    /// From when it is valid.
    pub not_before: Setting<Timestamp>,
    /// Its scopes.
    pub scopes: Setting<Scopes>,
    /// Its networks.
    pub networks: Setting<Networks>,
    /// Its plan.
    pub plan: Setting<PlanName>,
    /// Labels to add or replace, as `name=value`.
    pub labels: Vec<String>,
    /// Whether all labels are removed first.
    pub clear_labels: bool,
    /// Names of labels to remove.
    pub remove_labels: Vec<String>,
}

impl KeyUpdate {
    /// Applies the changes to a key, at `now`.
    ///
    /// # Errors
    ///
    /// The key would expire in the past or before it becomes valid, or have an invalid label or too many.
    pub fn apply(&self, key: &mut KeyDetails, now: Timestamp) -> Result<(), InvalidValue> {
        self.name.change(&mut key.name, Clone::clone);
        let expiry = self.expiry.instant(now).map_err(|error| error.to_string())?;
        expiry.change(&mut key.expires_at, |at| *at);
        self.change_terms(&mut key.terms)?;
        check_span(&key.terms, key.expires_at)
    }

    /// Applies the changes of what a key may do.
    pub(super) fn change_terms(&self, terms: &mut KeyTerms) -> Result<(), InvalidValue> {
        self.not_before.change(&mut terms.not_before, |at| *at);
        self.scopes.change(&mut terms.scopes, ToString::to_string);
        self.networks.change(&mut terms.networks, ToString::to_string);
        self.plan.change(&mut terms.plan, ToString::to_string);
        if self.clear_labels {
            terms.labels = Labels::default();
        }
        for name in &self.remove_labels {
            terms.labels.remove(name);
        }
        self.labels.iter().try_for_each(|label| terms.labels.add(label)).map_err(Into::into)
    }
}

/// Checks the name of a key.
pub(super) fn check_key_name(name: Option<&str>) -> Result<(), AdminError> {
    match name {
        Some(name) if !is_tenant_name(name) => Err(AdminError::BadRequest(
            "a key's name has 1 to 255 characters and no control characters".into(),
        )),
        Some(name) if holds_key(name) => {
            Err(AdminError::BadRequest("a key's name must not contain a key".into()))
        }
        _ => Ok(()),
    }
}

/// Rejects a key that expires before it becomes valid.
pub(super) fn check_span(terms: &KeyTerms, expires_at: Option<Timestamp>) -> Result<(), InvalidValue> {
    match (terms.not_before, expires_at) {
        (Some(from), Some(until)) if from >= until => {
            Err(format!("the key would be valid from {from} and expire at {until}: choose a later expiry")
                .into())
        }
        _ => Ok(()),
    }
}

/// The keys of a tenant that would be revoked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ToRevoke {
    /// The keys of the tenant that are not revoked.
    pub keys: Vec<KeyId>,
    /// How many of them were used in the last day.
    pub used: i64,
}

impl Admin {
    /// Changes a key.
    ///
    /// # Errors
    ///
    /// As [`Admin::create_key`] and [`Admin::key`]; or there is nothing to change.
    pub async fn update_key(&self, reference: &str, asked: &KeyUpdate) -> Result<KeyDetails, AdminError> {
        if *asked == KeyUpdate::default() {
            return Err(AdminError::BadRequest("nothing to change: name at least one option".into()));
        }
        self.patch_key(reference, asked).await
    }

    /// Like [`Admin::update_key`], but without an error if there is nothing to change.
    ///
    /// # Errors
    ///
    /// As [`Admin::update_key`].
    pub async fn patch_key(&self, reference: &str, asked: &KeyUpdate) -> Result<KeyDetails, AdminError> {
        check_key_name(asked.name.value().map(String::as_str))?;
        let now = self.now();
        let key = self.key(reference).await?;
        asked.expiry.instant(now)?;
        self.check_plan(asked.plan.value().map(PlanName::as_str)).await?;
        // A conflict with the key as it is now is an error of the request. In the transaction below it is a race.
        asked.change_terms(&mut key.terms.clone()).map_err(|why| unfit("labels", why))?;
        asked.apply(&mut key.clone(), now).map_err(|why| unfit("not_before", why))?;
        let change = |key: &mut KeyDetails| {
            self.judge_key(key)?;
            Ok(asked.apply(key, now)?)
        };
        self.one_key(key.id, Action::KeyUpdate, &change).await
    }

    /// Disables a key until it is enabled. Idempotent.
    ///
    /// # Errors
    ///
    /// As [`Admin::key`]; the key is revoked.
    pub async fn disable_key(&self, reference: &str) -> Result<KeyDetails, AdminError> {
        let (key, now) = (self.key(reference).await?, self.now());
        let change = |key: &mut KeyDetails| {
            self.judge_key(key)?;
            not_revoked(key)?;
            key.disabled_at = key.disabled_at.or(Some(now));
            Ok(())
        };
        self.one_key(key.id, Action::KeyDisable, &change).await
    }

    /// Enables a disabled key. Idempotent.
    ///
    /// # Errors
    ///
    /// As [`Admin::key`]; the key is revoked.
    pub async fn enable_key(&self, reference: &str) -> Result<KeyDetails, AdminError> {
        let key = self.key(reference).await?;
        let change = |key: &mut KeyDetails| {
            self.judge_key(key)?;
            not_revoked(key)?;
            key.disabled_at = None;
            Ok(())
        };
        self.one_key(key.id, Action::KeyEnable, &change).await
    }

    /// Revokes keys, all or none. Idempotent: the first time and reason remain.
    ///
    /// # Errors
    ///
    /// As [`Admin::key`]; or the reason contains a key.
    pub async fn revoke_keys(
        &self,
        references: &[String],
        reason: Option<&str>,
    ) -> Result<Vec<KeyDetails>, AdminError> {
        let mut ids = Vec::with_capacity(references.len());
        check_reason(reason)?;
        for reference in references {
            let id = self.key(reference).await?.id;
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        self.revoke(&ids, reason).await
    }

    /// Revokes keys by their ids, as [`Admin::revoke_keys`] does.
    ///
    /// # Errors
    ///
    /// As [`Admin::revoke_keys`].
    pub async fn revoke(&self, ids: &[KeyId], reason: Option<&str>) -> Result<Vec<KeyDetails>, AdminError> {
        check_reason(reason)?;
        let now = self.now();
        let change = |key: &mut KeyDetails| {
            self.judge_key(key)?;
            if key.revoked_at.is_none() {
                key.revoked_at = Some(now);
                key.revocation_reason = reason.map(str::to_owned);
            }
            Ok(())
        };
        Ok(self.store.change_keys(ids, Action::KeyRevoke, &change).await?)
    }

    /// Returns the keys of a tenant that are not revoked.
    ///
    /// # Errors
    ///
    /// As [`Admin::tenant`].
    pub async fn keys_to_revoke(&self, tenant: &str) -> Result<ToRevoke, AdminError> {
        const DAY: Duration = Duration::from_hours(24);
        let (tenant, mut keys) = (self.tenant(tenant).await?.id, Vec::new());
        let filter = KeyFilter { tenant: Some(tenant), ..KeyFilter::default() };
        self.each_key(&filter, None, |key: &StoredKey| {
            keys.extend(key.details.revoked_at.is_none().then_some(key.details.id));
            Ok::<_, AdminError>(true)
        })
        .await?;
        Ok(ToRevoke { keys, used: self.store.count_used(tenant, self.now().before(DAY)).await? })
    }

    /// Passes at most `limit` keys that match the filter to `sink`, ordered by id.
    ///
    /// # Errors
    ///
    /// The database is not available, or `sink` fails.
    pub async fn list_keys<E: From<AdminError>>(
        &self,
        filter: &KeyFilter,
        after: Option<KeyId>,
        limit: Option<u64>,
        mut sink: impl FnMut(&StoredKey) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = limit.unwrap_or(u64::MAX);
        self.each_key(filter, after, |key| {
            if left == 0 {
                return Ok(false);
            }
            left -= 1;
            sink(key)?;
            Ok(left > 0)
        })
        .await
    }

    async fn one_key(
        &self,
        id: KeyId,
        action: Action,
        change: crate::store::KeyChange<'_>,
    ) -> Result<KeyDetails, AdminError> {
        let mut changed = self.store.change_keys(&[id], action, change).await?;
        changed.pop().ok_or_else(|| AdminError::Missing(format!("key {} is gone", id.0)))
    }
}

fn not_revoked(key: &KeyDetails) -> Result<(), InvalidValue> {
    let revoked = key.revoked_at.is_some();
    if revoked { Err(format!("key {} is {}", key.prefix, KeyState::Revoked.as_str()).into()) } else { Ok(()) }
}

fn check_reason(reason: Option<&str>) -> Result<(), AdminError> {
    if reason.is_some_and(holds_key) {
        // An entry of the audit log can never be removed.
        return Err(AdminError::BadRequest("a reason must not contain a key: give its prefix".into()));
    }
    Ok(())
}

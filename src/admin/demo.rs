//! Creates the demonstration tenant and its key, which is public.

use uuid::Uuid;

use super::keys::hashed;
use super::{Admin, AdminError, Issued, refused};
use crate::audit::Action;
use crate::clock::Timestamp;
use crate::key::{KeyId, PlainKey, format};
use crate::record::KeyTerms;
use crate::store::{NewKey, NewTenant};
use crate::tenant::{Tenant, TenantId, TenantStatus};

/// The demonstration tenant.
pub const DEMO_TENANT: TenantId = TenantId(Uuid::from_u128(0x550e_8400_e29b_41d4_a716_4466_5544_0000));
/// The demonstration key.
pub const DEMO_KEY: KeyId = KeyId(Uuid::from_u128(0x660e_8400_e29b_41d4_a716_4466_5544_0001));
/// The key is public: it must never be part of a migration, nor be created beside other tenants unless requested.
const DEMO_KEY_TEXT: &str = "llmk_demo_secret123";

impl Admin {
    /// Creates the demonstration tenant and its key if they do not exist.
    ///
    /// # Errors
    ///
    /// The database contains other tenants and `force` is not set.
    pub async fn seed_demo(&self, force: bool) -> Result<(Tenant, Issued), AdminError> {
        let tenants = self.store.tenants().await?;
        if !force && tenants.iter().any(|t| t.id != DEMO_TENANT) {
            return refused(
                "this database contains other tenants, and the demo key is public: use --force to create it anyway",
            );
        }
        let tenant = match tenants.into_iter().find(|t| t.id == DEMO_TENANT) {
            Some(tenant) => tenant,
            None => self.provision(demo_tenant(), false, Action::SeedDemo).await?,
        };
        let key = demo_key()?;
        let details = match self.store.find_key(&DEMO_KEY.0.to_string()).await? {
            Some(details) => details,
            None => {
                self.store.insert_key(&demo_row(&tenant, &key, self.now()).await?, Action::SeedDemo).await?
            }
        };
        Ok((tenant, Issued { details, key }))
    }
}

fn demo_tenant() -> NewTenant {
    NewTenant {
        id: DEMO_TENANT,
        name: "Demo Tenant".into(),
        schema: "tenant_demo".into(),
        status: TenantStatus::Active,
        plan: None,
    }
}

fn demo_key() -> Result<PlainKey, AdminError> {
    let key = format::parse(DEMO_KEY_TEXT.as_bytes()).map_err(|e| AdminError::Refused(e.to_string()))?;
    Ok(key.to_plain())
}

async fn demo_row(tenant: &Tenant, key: &PlainKey, now: Timestamp) -> Result<NewKey, AdminError> {
    Ok(NewKey {
        id: DEMO_KEY,
        prefix: key.prefix().to_owned(),
        hash: hashed(demo_key()?).await?,
        tenant_id: tenant.id,
        name: Some("Demo key".into()),
        created_at: now,
        expires_at: None,
        // Its secret is public and too short for a memo.
        memo: None,
        terms: KeyTerms::default(),
    })
}

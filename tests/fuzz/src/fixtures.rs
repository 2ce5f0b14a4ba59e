//! The tenants and keys, the same for every target.

/// A tenant.
#[derive(Debug)]
pub struct Tenant {
    /// `tenants.id`.
    pub id: u128,
    /// `tenants.name`.
    pub name: &'static str,
    /// The encoded name in the header.
    pub encoded_name: &'static str,
    /// `tenants.db_schema_name`.
    pub schema: &'static str,
    /// `tenants.status`.
    pub status: &'static str,
}

/// The state of a key, apart from its tenant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Valid.
    Live,
    /// Revoked.
    Revoked,
    /// Expired.
    Expired,
}

/// A key.
#[derive(Debug)]
pub struct Key {
    /// `api_keys.id`.
    pub id: u128,
    /// The whole key.
    pub text: &'static str,
    /// The tenant, as an index in [`TENANTS`].
    pub tenant: usize,
    /// Its state.
    pub state: State,
}

impl Key {
    /// `llmk_<prefix>`.
    pub fn prefix(&self) -> &'static str {
        let end = self.text[5..].find('_').expect("a whole key") + 5;
        &self.text[..end]
    }

    /// Its tenant.
    pub fn tenant(&self) -> &'static Tenant {
        &TENANTS[self.tenant]
    }
}

/// Two active tenants and one that is not active.
pub const TENANTS: [Tenant; 3] = [
    Tenant {
        id: 0xa1,
        name: "Acme & Söhne",
        encoded_name: "Acme%20&%20S%C3%B6hne",
        schema: "tenant_acme",
        status: "active",
    },
    Tenant { id: 0xb2, name: "B", encoded_name: "B", schema: "tenant_b", status: "active" },
    Tenant { id: 0xc3, name: "Idle", encoded_name: "Idle", schema: "tenant_idle", status: "suspended" },
];

/// Prefixes that contain one another, similar secrets, and the longest possible key.
pub const KEYS: [Key; 7] = [
    Key { id: 1, text: "llmk_live_Secret-0123456789", tenant: 0, state: State::Live },
    Key { id: 2, text: "llmk_live1_Secret-0123456789", tenant: 1, state: State::Live },
    Key { id: 3, text: "llmk_l_ive_Secret-0123456789", tenant: 1, state: State::Live },
    Key {
        id: 4,
        text: "llmk_longest1_Secret-71Secret-71Secret-71Secret-71Secret-71Secret-71Sec",
        tenant: 0,
        state: State::Live,
    },
    Key { id: 5, text: "llmk_gone_Secret-0123456789", tenant: 0, state: State::Revoked },
    Key { id: 6, text: "llmk_old_Secret-0123456789", tenant: 1, state: State::Expired },
    Key { id: 7, text: "llmk_idle_Secret-0123456789", tenant: 2, state: State::Live },
];

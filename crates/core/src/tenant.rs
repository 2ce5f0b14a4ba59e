//! Tenants: their status, and their mode.
//!
//! Words only: nothing here knows where a tenant is kept or how it is shown.

use std::fmt;

use uuid::Uuid;

use crate::clock::Timestamp;
use crate::plan::PlanName;

/// The identity of a tenant: `tenants.id`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TenantId(pub Uuid);

/// Whether a tenant may be served: `tenants.status`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TenantStatus {
    /// Served.
    Active,
    /// Deleted; the rows stay.
    Deleted,
    /// Its schema does not stand yet.
    PendingProvisioning,
    /// Not served for the time being.
    Suspended,
    /// Something we have no word for. Not served.
    Other(Box<str>),
}

impl TenantStatus {
    /// Every status that the database accepts.
    pub const KNOWN: [&'static str; 4] = ["active", "suspended", "pending_provisioning", "deleted"];

    /// Reads `tenants.status`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "active" => Self::Active,
            "deleted" => Self::Deleted,
            "pending_provisioning" => Self::PendingProvisioning,
            "suspended" => Self::Suspended,
            other => Self::Other(other.into()),
        }
    }

    /// As `tenants.status` spells it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Active => "active",
            Self::Deleted => "deleted",
            Self::PendingProvisioning => "pending_provisioning",
            Self::Suspended => "suspended",
            Self::Other(text) => text,
        }
    }
}

impl fmt::Display for TenantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What becomes of a request that is to be refused: `--mode`, and `tenants.mode`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// It is refused.
    #[default]
    Enforce,
    /// It passes as nobody, and is written down.
    Shadow,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 2] = [Self::Enforce, Self::Shadow];

    /// Reads `tenants.mode`. What makes no sense lets nobody pass.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if text == "shadow" { Self::Shadow } else { Self::Enforce }
    }

    /// As options, metrics and `tenants.mode` spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Shadow => "shadow",
        }
    }
}

/// A row of `tenants`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tenant {
    /// `tenants.id`.
    pub id: TenantId,
    /// `tenants.name`, of 1 to 255 characters. Not unique.
    pub name: String,
    /// `tenants.db_schema_name`. Rows of others may hold anything: ask [`is_schema_name`].
    pub schema: String,
    /// `tenants.status`.
    pub status: TenantStatus,
    /// `tenants.mode`; nothing: the server's.
    pub mode: Option<Mode>,
    /// `tenants.plan`, for keys without one of their own.
    pub plan: Option<Box<str>>,
    /// `tenants.created_at`.
    pub created_at: Timestamp,
}

impl Tenant {
    /// Whether its row makes sense: a name to show the upstream, a schema and a plan that can be ones.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let has_plan = self.plan.as_deref().is_none_or(|plan| PlanName::parse(plan).is_ok());
        !self.name.is_empty() && is_schema_name(&self.schema) && has_plan
    }
}

/// The longest name of a Postgres object.
/// <https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-IDENTIFIERS>
const MAX_SCHEMA_BYTES: usize = 63;

/// Whether `name` is one that a tenant's schema may have: `^[a-z_][a-z0-9_]{0,62}$`, and not Postgres' own.
#[must_use]
pub fn is_schema_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    first
        && name.len() <= MAX_SCHEMA_BYTES
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && !name.starts_with("pg_")
        && !["public", "information_schema"].contains(&name)
}

/// The schema of a tenant that asked for none: `tenant_` and its name in `[a-z0-9_]`.
#[must_use]
pub fn default_schema_name(tenant_name: &str) -> String {
    let mut schema = String::from("tenant");
    let lower = tenant_name.to_ascii_lowercase();
    for word in lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()) {
        schema.push('_');
        schema.push_str(word);
    }
    schema.truncate(MAX_SCHEMA_BYTES);
    schema
}

/// Whether `name` is one that a tenant may have: 1 to 255 characters, none of them a control character.
#[must_use]
pub fn is_tenant_name(name: &str) -> bool {
    !name.is_empty() && name.chars().count() <= 255 && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_names_are_plain_lower_case_words_and_not_those_of_postgres() {
        for good in ["tenant_demo", "_", "a", "a1", &"x".repeat(63)] {
            assert!(is_schema_name(good), "{good}");
        }
        for bad in [
            "",
            "1a",
            "Tenant",
            "a-b",
            "a b",
            "x\"; drop schema public; --",
            "a\r\nb",
            "é",
            "public",
            "information_schema",
            "pg_catalog",
            "pg_",
            &"x".repeat(64),
        ] {
            assert!(!is_schema_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn the_default_schema_is_the_name_in_plain_letters() {
        for (name, schema) in [
            ("Acme Corp", "tenant_acme_corp"),
            ("demo", "tenant_demo"),
            ("  Söhne & Co.  ", "tenant_s_hne_co"),
            ("日本", "tenant"),
        ] {
            assert_eq!(default_schema_name(name), schema);
            assert!(is_schema_name(schema));
        }
        assert_eq!(default_schema_name(&"x".repeat(300)).len(), 63);
    }

    #[test]
    fn every_status_survives_the_round_trip() {
        for text in TenantStatus::KNOWN.into_iter().chain(["frozen"]) {
            assert_eq!(TenantStatus::parse(text).as_str(), text);
        }
    }
}

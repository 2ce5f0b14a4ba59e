//! Tenants, with their status and mode, and the grammars of their names and schema names.

use std::fmt;

use uuid::Uuid;

use crate::clock::Timestamp;
use crate::plan::PlanName;

/// The id of a tenant: `tenants.id`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TenantId(pub Uuid);

/// The status of a tenant, `tenants.status`: only requests of active tenants are allowed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TenantStatus {
    /// Requests are allowed.
    Active,
    /// Deleted; its rows remain.
    Deleted,
    /// Its schema has not been created yet.
    PendingProvisioning,
    /// Suspended until it is activated again.
    Suspended,
    /// A status that tenantgate does not know. Its requests are denied.
    Other(Box<str>),
}

impl TenantStatus {
    /// Every status that the database accepts.
    pub const KNOWN: [&'static str; 4] = ["active", "suspended", "pending_provisioning", "deleted"];

    /// Parses `tenants.status`.
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

    /// Returns the status as `tenants.status` stores it.
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

/// What happens to rejected requests: `--mode`, and `tenants.mode`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// They are rejected.
    #[default]
    Enforce,
    /// They are allowed without an identity, and recorded.
    Shadow,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 2] = [Self::Enforce, Self::Shadow];

    /// Parses `tenants.mode`. Unknown values mean [`Mode::Enforce`].
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if text == "shadow" { Self::Shadow } else { Self::Enforce }
    }

    /// Returns the name that options, metrics and `tenants.mode` use.
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
    /// `tenants.db_schema_name`. May be invalid in rows that other programs wrote: check [`is_schema_name`].
    pub schema: String,
    /// `tenants.status`.
    pub status: TenantStatus,
    /// `tenants.mode`; `None` means the server's mode.
    pub mode: Option<Mode>,
    /// `tenants.plan`, for keys without one of their own.
    pub plan: Option<Box<str>>,
    /// `tenants.created_at`.
    pub created_at: Timestamp,
}

impl Tenant {
    /// Returns whether its row is valid: the name is not empty, and schema name and plan name have their grammar.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damage().is_none()
    }

    /// Returns which column of its row is invalid, as the subject of a sentence; `None` if it is valid.
    #[must_use]
    pub fn damage(&self) -> Option<&'static str> {
        if self.name.is_empty() {
            Some("name is empty")
        } else if !is_schema_name(&self.schema) {
            Some("db_schema_name is not a valid schema name")
        } else if self.plan.as_deref().is_some_and(|plan| PlanName::parse(plan).is_err()) {
            Some("plan is not a valid name of a plan")
        } else {
            None
        }
    }
}

/// The most bytes of an identifier in Postgres.
///
/// Source: <https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-IDENTIFIERS>
const MAX_SCHEMA_BYTES: usize = 63;

/// Returns whether a tenant's schema may have this name: `^[a-z_][a-z0-9_]{0,62}$`, except for names that Postgres
/// uses itself (`pg_…`, `public`, `information_schema`).
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

/// Returns the default schema name of a tenant: `tenant_` and its name in `[a-z0-9_]`, at most 63 bytes.
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

/// Returns whether a tenant may have this name: 1 to 255 characters, none of them a control character.
#[must_use]
pub fn is_tenant_name(name: &str) -> bool {
    !name.is_empty() && name.chars().count() <= 255 && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_names_have_their_grammar_and_are_not_names_of_postgres() {
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
    fn the_default_schema_is_made_from_the_letters_and_digits_of_the_name() {
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
    fn every_status_is_parsed_from_its_text() {
        for text in TenantStatus::KNOWN.into_iter().chain(["frozen"]) {
            assert_eq!(TenantStatus::parse(text).as_str(), text);
        }
    }
}

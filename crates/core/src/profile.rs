//! Profiles of keys: their scopes, networks and plan.
//!
//! Keys with the same values share one profile and refer to it by a number, so that a million keys with a few thousand
//! distinct profiles take little memory.

use crate::invalid::{self, Invalid};
use crate::network::Networks;
use crate::plan::PlanName;
use crate::scope::Scopes;

/// The columns of `api_keys` that make a profile, unparsed.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct ProfileRow {
    /// `scopes`; `None` grants everything.
    pub scopes: Option<Box<str>>,
    /// `networks`; `None` allows any address.
    pub networks: Option<Box<str>>,
    /// `plan`; `None` means the tenant's plan.
    pub plan: Option<Box<str>>,
    /// Another column whose value cannot be read, so that the row is damaged. Only SQLite has such values.
    pub unreadable: Option<Unreadable>,
}

/// A column of `api_keys` whose value cannot be read.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Unreadable {
    /// `id`.
    Id,
    /// `tenant_id`.
    TenantId,
    /// `expires_at`.
    ExpiresAt,
    /// `not_before`.
    NotBefore,
}

impl Unreadable {
    /// Every column.
    pub const ALL: [Self; 4] = [Self::Id, Self::TenantId, Self::ExpiresAt, Self::NotBefore];

    /// Returns the name of the column.
    #[must_use]
    pub fn column(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::TenantId => "tenant_id",
            Self::ExpiresAt => "expires_at",
            Self::NotBefore => "not_before",
        }
    }

    /// Returns the column with this name; `None` if there is none.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|column| column.column() == name)
    }

    /// Returns what is expected instead of the value.
    #[must_use]
    pub fn error(self) -> Invalid {
        let expected = match self {
            Self::Id | Self::TenantId => "a UUID",
            Self::ExpiresAt | Self::NotBefore => "an instant such as 2027-01-31T12:00:00Z, or infinity",
        };
        Invalid::new(self.column(), 0, expected)
    }
}

impl ProfileRow {
    /// Returns whether all columns are NULL, as in rows from before these columns existed.
    #[must_use]
    pub fn is_free(&self) -> bool {
        *self == Self::default()
    }

    /// Parses the columns.
    ///
    /// # Errors
    ///
    /// Returns the first column that is invalid.
    pub fn compile(&self) -> Result<Profile, Damage> {
        let damage = |part| move |error| Damage { part, error };
        if let Some(unreadable) = self.unreadable {
            return Err(damage(unreadable.column())(unreadable.error()));
        }
        Ok(Profile {
            scopes: self.scopes.as_deref().map(Scopes::parse).transpose().map_err(damage("scopes"))?,
            networks: self
                .networks
                .as_deref()
                .map(Networks::parse)
                .transpose()
                .map_err(damage("networks"))?,
            plan: self.plan.as_deref().map(PlanName::parse).transpose().map_err(damage("plan"))?,
        })
    }
}

/// A valid profile.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Profile {
    /// The granted scopes; `None` grants everything.
    pub scopes: Option<Scopes>,
    /// The networks that clients may use the key from; `None` allows any address.
    pub networks: Option<Networks>,
    /// The plan; `None` means the tenant's plan.
    pub plan: Option<PlanName>,
}

/// Why the profile of a row is invalid: an invalid column of `api_keys`.
pub type Damage = invalid::Damage<&'static str>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_valid_if_all_its_columns_are() {
        let row = |scopes: Option<&str>, networks: Option<&str>, plan: Option<&str>| ProfileRow {
            scopes: scopes.map(Into::into),
            networks: networks.map(Into::into),
            plan: plan.map(Into::into),
            unreadable: None,
        };
        let free = row(None, None, None);
        assert!(free.is_free());
        assert_eq!(free.compile(), Ok(Profile::default()));
        let whole = row(Some("a"), Some("10.0.0.0/8"), Some("gold")).compile().unwrap();
        assert!(whole.scopes.is_some() && whole.networks.is_some() && whole.plan.is_some());
        for (bad, column) in [
            (row(Some("é"), None, None), "scopes"),
            (row(None, Some(""), None), "networks"),
            (row(None, None, Some("")), "plan"),
        ] {
            let damage = bad.compile().unwrap_err();
            assert_eq!(damage.part, column);
            assert!(damage.to_string().contains(": expected "), "{damage}");
            assert!(!bad.is_free());
        }
    }

    #[test]
    fn a_column_that_cannot_be_read_is_named() {
        for column in Unreadable::ALL {
            let row = ProfileRow { unreadable: Some(column), ..ProfileRow::default() };
            let damage = row.compile().unwrap_err();
            assert!(!row.is_free() && damage.to_string().contains(column.column()), "{damage}");
            assert_eq!(Unreadable::named(damage.part), Some(column));
        }
        assert_eq!(Unreadable::named("scopes"), None);
    }
}

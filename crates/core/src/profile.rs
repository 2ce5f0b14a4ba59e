//! What many keys have in common: what they are granted, from where, and on which plan.
//!
//! A key names a profile by a number, so a million keys with a few thousand profiles take no more room for them.

use std::fmt;

use crate::invalid::Invalid;
use crate::network::Networks;
use crate::plan::PlanName;
use crate::scope::Scopes;

/// The profile of a key as its row has it: `api_keys.scopes`, `networks` and `plan`.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct ProfileRow {
    /// `scopes`; `None`: everything.
    pub scopes: Option<Box<str>>,
    /// `networks`; `None`: from anywhere.
    pub networks: Option<Box<str>>,
    /// `plan`; `None`: that of the tenant.
    pub plan: Option<Box<str>>,
}

impl ProfileRow {
    /// Whether it says nothing, as rows that were there before.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.scopes.is_none() && self.networks.is_none() && self.plan.is_none()
    }

    /// Reads the row.
    ///
    /// # Errors
    ///
    /// The first column that makes no sense.
    pub fn compile(&self) -> Result<Profile, Damage> {
        let damage = |column| move |error| Damage { column, error };
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

/// A profile that makes sense.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Profile {
    /// What is granted; `None`: everything.
    pub scopes: Option<Scopes>,
    /// From where; `None`: from anywhere.
    pub networks: Option<Networks>,
    /// The plan; `None`: that of the tenant.
    pub plan: Option<PlanName>,
}

/// Why a row has no profile.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Damage {
    /// The column of `api_keys`.
    pub column: &'static str,
    /// What is wrong there.
    pub error: Invalid,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_a_profile_if_all_of_it_makes_sense() {
        let row = |scopes: Option<&str>, networks: Option<&str>, plan: Option<&str>| ProfileRow {
            scopes: scopes.map(Into::into),
            networks: networks.map(Into::into),
            plan: plan.map(Into::into),
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
            assert_eq!(bad.compile().unwrap_err().column, column);
            assert!(!bad.is_free());
        }
    }
}

//! The operator's decisions about the columns of existing tables, and which columns need one.

mod disabling;

use self::disabling::{Off, off};
use super::{KEY_COLUMNS, TENANT_COLUMNS};

/// How to adopt existing tables, and what else `migrate` is to do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Adoption {
    /// Columns that disable rows, and whose values are ignored.
    pub ignore_columns: Vec<String>,
    /// Columns and values that disable a row: such keys are revoked, such tenants are suspended.
    pub revoke_where: Vec<(String, String)>,
    /// Whether the database gets a new identity.
    pub new_identity: bool,
    /// Whether to create a publication for logical replication.
    pub publication: bool,
}

impl Adoption {
    /// Returns all columns that it names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.ignore_columns.iter().chain(self.revoke_where.iter().map(|(name, _)| name)).map(String::as_str)
    }

    /// Returns the advice for a column that may disable rows and that the operator did not mention.
    pub(super) fn unsaid(&self, table: &str, column: &str) -> Option<String> {
        let off = off(table, column)?;
        let said = |said: &str| said == column || said.split_once('.') == Some((table, column));
        if self.names().any(said) {
            return None;
        }
        let end = if table == "tenants" { "suspend such tenants" } else { "set expires_at of such keys" };
        let (revoke, ignore) = (for_shell(&format!("{column}={}", off.value())), for_shell(column));
        let what = format!("{table}.{column} is a column that tenantgate does not read");
        Some(match off {
            Off::When(_) | Off::Named(_) => format!(
                "{what}, rows that it switches off would be live: say --revoke-where {revoke} (or the other value), or \
                 --ignore-column {ignore}"
            ),
            Off::Filled => format!(
                "{what}, rows that it switches off would be live: say --revoke-where {revoke} (any value), or \
                 --ignore-column {ignore}"
            ),
            Off::Dated => format!(
                "{what}, rows that it ends would be live: {end} with SQL, and then say --ignore-column {ignore}"
            ),
        })
    }

    /// Returns the names that are not columns of either table.
    pub(super) fn unknown(&self, known: impl Fn(&str, &str) -> bool) -> impl Iterator<Item = String> {
        let there = move |said: &str| match said.split_once('.') {
            Some((table, column)) => known(table, column),
            None => known("tenants", said) || known("api_keys", said),
        };
        let unknown = self.names().filter(move |said| !there(said));
        unknown.map(|name| format!("{name} is not a column of tenants or api_keys"))
    }

    /// Returns the columns and values of `--revoke-where` that are about this table: whole, column, value.
    pub(super) fn revoked_in<'a>(
        &'a self,
        table: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a str, &'a str)> {
        self.revoke_where.iter().filter_map(move |(name, value)| match name.split_once('.') {
            Some((only, column)) => (only == table).then_some((name.as_str(), column, value.as_str())),
            None => Some((name.as_str(), name.as_str(), value.as_str())),
        })
    }
}

/// The value that means every value except NULL.
pub(super) const ANY: &str = "*";

/// The maximum number of values that a text lists.
pub(super) const MOST_VALUES: usize = 10;

/// Words for a boolean.
const BOOLEANS: [(bool, [&str; 6]); 2] =
    [(true, ["1", "true", "t", "yes", "y", "on"]), (false, ["0", "false", "f", "no", "n", "off"])];

/// Reads a boolean as Postgres does, without regard to case.
pub(super) fn boolean(text: &str) -> Option<bool> {
    let lower = text.trim().to_lowercase();
    BOOLEANS.iter().find(|(_, words)| words.contains(&lower.as_str())).map(|(is, _)| *is)
}

/// Returns the words for a boolean, in lower case.
pub(super) fn words_for(boolean: bool) -> [&'static str; 6] {
    BOOLEANS[usize::from(!boolean)].1
}

/// The fault of a value of `--revoke-where` that no row has.
pub(super) fn no_such_value(
    (name, value): (&str, &str),
    (table, column): (&str, &str),
    there: &[String],
) -> String {
    let (more, there) = (there.len() > MOST_VALUES, &there[..there.len().min(MOST_VALUES)]);
    let values: Vec<_> = there.iter().map(|value| format!("{value:?}")).collect();
    format!(
        "--revoke-where {} matches no row: {table}.{column} has {}{}",
        for_shell(&format!("{name}={value}")),
        if values.is_empty() { "only NULL".to_owned() } else { values.join(", ") },
        if more { " and others" } else { "" }
    )
}

/// Quotes an argument for a shell if it contains a blank or a quote.
fn for_shell(argument: &str) -> String {
    if argument.chars().any(|c| c.is_whitespace() || "'\"$`\\;&|<>()".contains(c)) {
        format!("'{}'", argument.replace('\'', r"'\''"))
    } else {
        argument.to_owned()
    }
}

/// Returns whether the column is one of tenantgate itself, whatever its name suggests.
pub(super) fn is_ours(table: &str, column: &str) -> bool {
    match table {
        "tenants" => TENANT_COLUMNS.contains(&column),
        "api_keys" => KEY_COLUMNS.contains(&column),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_that_may_switch_rows_off_is_known_by_its_name() {
        for (advice, columns) in [
            (
                "=false",
                "is_active enabled isActive Active ACTIVE active_flag isactive key_active enabled_flag|is active|approved allowed \
                 Enabled_Flag IsValid allow_login is_not_deleted",
            ),
            (
                "=true",
                "is_revoked isRevoked IsDeleted not_active isNotActive withdrawn paused frozen soft_deleted softdeleted expired \
                 is_expired inactive isinactive cancelled IS_BLOCKED key_disabled deactivated",
            ),
            (
                "=*",
                "deleted_at deletedAt revokedAt disabledAt DeletedAt revoked_on removed_at cancelled_at terminated_at deletedat \
                 revokedat block_reason revoked_by deletion_date suspended_since",
            ),
            ("=revoked", "status state key_status keyStatus keystatus State lifecycle"),
            (
                "expires_at of such keys",
                "valid_until expiry validUntil expiration_date expiresAt expiresat active_at approved_at valid_to expired_at",
            ),
            (
                "",
                "revoked_at disabled_at owner email description created_by team_id env last_seen usage_count revocation_reason",
            ),
        ] {
            for column in columns.split('|').flat_map(|part| {
                if part == "is active" { vec![part] } else { part.split_whitespace().collect() }
            }) {
                let said = Adoption::default().unsaid("api_keys", column);
                let fits = said
                    .as_ref()
                    .map_or(advice.is_empty(), |said| !advice.is_empty() && said.contains(advice));
                assert!(fits, "{column}: {said:?}, expected {advice}");
            }
        }
        for column in ["state", "account_status", "revoked_at", "isActive"] {
            assert!(off("tenants", column).is_some(), "{column}");
        }
        assert_eq!(off("tenants", "status"), None);
        let said = Adoption::default().unsaid("api_keys", "is active").unwrap();
        assert!(said.contains("--revoke-where 'is active=false'"), "{said}");
    }

    #[test]
    fn booleans_are_read_without_regard_to_case() {
        for (text, is) in [("False", Some(false)), ("T", Some(true)), ("off", Some(false)), ("perhaps", None)]
        {
            assert_eq!(boolean(text), is, "{text}");
        }
    }
}

//! The operator's decisions about the columns of existing tables, and which columns need one.

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
        (!self.names().any(said)).then(|| {
            let other = if off == "*" { "any value" } else { "or the other value" };
            format!(
                "{table}.{column} is a column that tenantgate does not read, rows that it switches off would be live: \
                 say --revoke-where {column}={off} ({other}), or --ignore-column {column}"
            )
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
}

/// The value that means every value except NULL.
pub(super) const ANY: &str = "*";

/// Returns the value with which a column of this name disables a row.
fn off(table: &str, column: &str) -> Option<&'static str> {
    const WORDS: [(&str, &str); 13] = [
        ("active", "false"),
        ("enabled", "false"),
        ("valid", "false"),
        ("inactive", "true"),
        ("disabled", "true"),
        ("revoked", "true"),
        ("deleted", "true"),
        ("blocked", "true"),
        ("banned", "true"),
        ("suspended", "true"),
        ("archived", "true"),
        ("locked", "true"),
        ("deactivated", "true"),
    ];
    if table == "api_keys" && ["status", "state"].contains(&column) {
        return Some("revoked");
    }
    if let Some(word) = column.strip_suffix("_at") {
        // These two belong to tenantgate.
        let ours = ["revoked", "disabled"].contains(&word);
        return WORDS.iter().any(|(name, off)| *name == word && *off == "true" && !ours).then_some(ANY);
    }
    let word = column.strip_prefix("is_").unwrap_or(column);
    WORDS.iter().find(|(name, _)| *name == word).map(|(_, off)| *off)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_that_may_switch_rows_off_is_known_by_its_name() {
        for (table, column, wanted) in [
            ("api_keys", "is_active", Some("false")),
            ("tenants", "enabled", Some("false")),
            ("api_keys", "is_revoked", Some("true")),
            ("api_keys", "deleted_at", Some("*")),
            ("api_keys", "status", Some("revoked")),
            ("tenants", "status", None),
            ("api_keys", "revoked_at", None),
            ("api_keys", "disabled_at", None),
            ("api_keys", "active_at", None),
            ("api_keys", "owner", None),
        ] {
            assert_eq!(off(table, column), wanted, "{table}.{column}");
        }
    }
}

//! What did the migrations make?
//!
//! Read out of the migrations themselves, so that what a database is held against
//! can never be another thing than what made it.

use std::collections::BTreeMap;

use super::migrations::Set;

/// What is there under a name, in the words of the migration that made it last.
pub(super) type Named = BTreeMap<&'static str, &'static str>;

/// Every trigger that stands after all migrations, from `CREATE TRIGGER` to before `end`.
pub(super) fn triggers(set: Set, end: &str) -> Named {
    let mut triggers = Named::new();
    for (.., sql) in set {
        for (at, _) in sql.match_indices("TRIGGER ") {
            let (before, rest) = (&sql[..at], &sql[at + "TRIGGER ".len()..]);
            let name =
                rest.trim_start_matches("IF EXISTS ").split(|c: char| !is_word(c)).next().unwrap_or("");
            if before.ends_with("DROP ") {
                triggers.remove(name);
            } else if before.ends_with("CREATE ") {
                let start = at - "CREATE ".len();
                triggers.insert(name, sql[start..].split(end).next().unwrap_or_default());
            }
        }
    }
    triggers
}

/// The triggers that are to fire whatever the session says of itself.
pub(super) fn is_always(set: Set, trigger: &str) -> bool {
    let wanted = format!("ENABLE ALWAYS TRIGGER {trigger};");
    set.iter().any(|(.., sql)| sql.contains(&wanted))
}

/// The body of every function.
pub(super) fn functions(set: Set) -> Named {
    let mut functions = Named::new();
    for (.., sql) in set {
        for (at, _) in sql.match_indices("FUNCTION ") {
            let before = &sql[..at];
            if !before.ends_with("CREATE ") && !before.ends_with("CREATE OR REPLACE ") {
                continue;
            }
            let rest = &sql[at + "FUNCTION ".len()..];
            let name = rest.split(|c: char| !is_word(c)).next().unwrap_or_default();
            functions.extend(body(rest).map(|body| (name, body)));
        }
    }
    functions
}

/// What stands between the dollar quotes after `AS`.
fn body(definition: &'static str) -> Option<&'static str> {
    let (_, quoted) = definition.split_once("AS $")?;
    let (tag, rest) = quoted.split_once('$')?;
    rest.split(&format!("${tag}$")).next()
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// A text without regard to how it is laid out.
pub(super) fn words(sql: &str) -> Vec<String> {
    sql.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::super::migrations::{POSTGRES, SQLITE};
    use super::*;

    #[test]
    fn what_was_made_last_is_what_is_expected() {
        let triggers = triggers(POSTGRES, ";");
        assert!(triggers.len() >= 6 && triggers["auth_key_updated"].contains("new.key_memo"));
        assert!(is_always(POSTGRES, "auth_key_updated") && !is_always(POSTGRES, "auth_key"));
        let functions = functions(POSTGRES);
        assert!(functions["auth_mark"].contains("RETURN pg_current_xact_id();"));
        assert!(functions["auth_refuse_truncate"].contains("RAISE EXCEPTION"));
        assert!(functions.len() >= 5);
    }

    #[test]
    fn a_trigger_of_sqlite_is_read_to_its_end() {
        let triggers = triggers(SQLITE, "END;");
        assert!(triggers["auth_key_updated"].contains("key_memo ON api_keys"));
        assert!(triggers["auth_tenant_update_replaces"].ends_with("db_schema_name);\n"));
        assert!(triggers.len() >= 10);
    }
}

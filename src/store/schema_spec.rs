//! The functions and triggers that a database must have, parsed from the SQL that creates them.

use std::collections::BTreeMap;

/// Definitions by name.
pub(super) type Named = BTreeMap<&'static str, &'static str>;

/// Returns every trigger, from `CREATE TRIGGER` up to `end`, without `end`.
pub(super) fn triggers(objects: &'static str, end: &str) -> Named {
    let definition = |(at, _): (usize, &str)| {
        let rest = &objects[at..];
        (name(&rest["CREATE TRIGGER ".len()..]), rest.split(end).next().unwrap_or_default())
    };
    objects.match_indices("CREATE TRIGGER ").map(definition).collect()
}

/// Returns the expected `pg_trigger.tgenabled` of a trigger: `A` (always), `R` (replica) or `O` (origin).
pub(super) fn enabled(objects: &str, trigger: &str) -> &'static str {
    let says = |how: &str| objects.contains(&format!("ENABLE {how} TRIGGER {trigger};"));
    if says("ALWAYS") {
        "A"
    } else if says("REPLICA") {
        "R"
    } else {
        "O"
    }
}

/// Returns the body of every function.
pub(super) fn functions(objects: &'static str) -> Named {
    let start = "CREATE OR REPLACE FUNCTION ";
    let definition = |(at, _): (usize, &str)| {
        let rest: &'static str = &objects[at + start.len()..];
        body(rest).map(|body| (name(rest), body))
    };
    objects.match_indices(start).filter_map(definition).collect()
}

/// Returns the first word of a definition.
fn name(definition: &'static str) -> &'static str {
    definition.split(|c: char| !is_word(c)).next().unwrap_or_default()
}

/// Returns the text between the dollar quotes after `AS`.
fn body(definition: &'static str) -> Option<&'static str> {
    let (_, quoted) = definition.split_once("AS $")?;
    let (tag, rest) = quoted.split_once('$')?;
    rest.split(&format!("${tag}$")).next()
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Splits SQL into words, so that texts with different layout are equal.
pub(super) fn words(sql: &str) -> Vec<String> {
    sql.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::super::migrations::{POSTGRES_OBJECTS, SQLITE_OBJECTS};
    use super::*;

    #[test]
    fn functions_and_triggers_of_postgres_are_read() {
        let triggers = triggers(POSTGRES_OBJECTS, ";");
        assert!(triggers.len() >= 15 && triggers["tenantgate_key_updated"].contains("new.key_memo"));
        assert_eq!(enabled(POSTGRES_OBJECTS, "tenantgate_key_updated"), "A");
        assert_eq!(enabled(POSTGRES_OBJECTS, "tenantgate_change_replicated"), "R");
        assert_eq!(enabled(POSTGRES_OBJECTS, "tenantgate_key"), "O");
        let functions = functions(POSTGRES_OBJECTS);
        assert!(functions["tenantgate_mark"].contains("RETURN pg_current_xact_id();"));
        assert!(functions["tenantgate_refuse_truncate"].contains("RAISE EXCEPTION"));
        assert!(functions.len() >= 8);
    }

    #[test]
    fn a_trigger_of_sqlite_is_read_to_its_end() {
        let triggers = triggers(SQLITE_OBJECTS, "END;");
        assert!(triggers["tenantgate_key_updated"].contains("plan ON api_keys"));
        assert!(triggers["tenantgate_tenant_update_replaces"].ends_with("db_schema_name);\n"));
        assert!(triggers.len() >= 10);
    }
}

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

/// Returns whether a function runs with the privileges of its owner, and its `pg_proc.provolatile`.
pub(super) fn attributes(objects: &str, function: &str) -> (bool, &'static str) {
    let start = format!("FUNCTION {function}(");
    let header = objects.split(&start).nth(1).and_then(|rest| rest.split(" AS $").next()).unwrap_or_default();
    let volatility = if header.contains(" IMMUTABLE") {
        "i"
    } else if header.contains(" STABLE") {
        "s"
    } else {
        "v"
    };
    (header.contains(" SECURITY DEFINER"), volatility)
}

/// What a dump can lose of a table of tenantgate.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct TableSpec {
    pub(super) name: &'static str,
    /// Columns and their defaults.
    pub(super) defaults: Vec<(&'static str, &'static str)>,
    /// Columns that are numbered.
    pub(super) identities: Vec<&'static str>,
    /// The columns of the primary key (`true`) and of UNIQUE constraints.
    pub(super) keys: Vec<(bool, &'static str)>,
}

/// Returns the tables that a migration creates under names of tenantgate.
pub(super) fn tables(sql: &'static str) -> Vec<TableSpec> {
    let parse = |rest: &'static str| {
        let name = name(rest);
        let (_, lines) = rest.split_once('\n')?;
        // A partition has no columns of its own.
        rest[name.len()..].starts_with(" (").then_some(())?;
        let mut table = TableSpec { name, ..TableSpec::default() };
        for line in lines.lines().take_while(|line| !line.starts_with(')')).map(str::trim) {
            let inside = |start: &str| line.strip_prefix(start).and_then(|rest| rest.split(')').next());
            if let Some(columns) = inside("PRIMARY KEY (") {
                table.keys.push((true, columns));
            } else if let Some(columns) = inside("UNIQUE (") {
                table.keys.push((false, columns));
            } else if line.starts_with(|c: char| c.is_ascii_lowercase()) {
                let (column, rest) = line.split_once(' ').unwrap_or((line, ""));
                let column = column.trim_end_matches(',');
                if rest.contains("PRIMARY KEY") {
                    table.keys.push((true, column));
                } else if rest.contains(" UNIQUE") {
                    table.keys.push((false, column));
                }
                if rest.contains("AS IDENTITY") {
                    table.identities.push(column);
                }
                if let Some((_, default)) = rest.split_once(" DEFAULT ") {
                    let ends = [" CHECK", " CONSTRAINT", " REFERENCES", " NOT NULL", " UNIQUE", " --"];
                    let default =
                        ends.iter().fold(default, |text, end| text.split(end).next().unwrap_or(text));
                    table.defaults.push((column, default.trim_end_matches(',').trim()));
                }
            }
        }
        Some(table)
    };
    sql.split("CREATE TABLE ")
        .skip(1)
        .filter(|rest| rest.starts_with("tenantgate_"))
        .filter_map(parse)
        .collect()
}

/// Returns the statements that create indexes, by the names of the indexes.
pub(super) fn indexes(sql: &'static str) -> Named {
    let definition = |(at, start): (usize, &str)| {
        let rest = &sql[at..];
        let named = rest[start.len()..].trim_start_matches("IF NOT EXISTS ");
        (name(named), rest.split(';').next().unwrap_or_default())
    };
    sql.match_indices("CREATE INDEX ").map(definition).collect()
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
    use super::super::migrations::{POSTGRES, POSTGRES_OBJECTS, SQLITE_OBJECTS};
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
    fn what_a_dump_can_lose_is_read() {
        assert_eq!(attributes(POSTGRES_OBJECTS, "tenantgate_prune"), (true, "v"));
        assert_eq!(attributes(POSTGRES_OBJECTS, "tenantgate_refuse_truncate"), (false, "v"));
        let all: Vec<TableSpec> = POSTGRES.iter().flat_map(|(_, _, sql)| tables(sql)).collect();
        let of = |name: &str| all.iter().find(|table| table.name == name).unwrap_or_else(|| panic!("{name}"));
        let change = of("tenantgate_change");
        assert_eq!(change.defaults, [("xid", "pg_current_xact_id()"), ("at", "now()")]);
        assert_eq!((&*change.identities, &*change.keys), (&["id"][..], &[(true, "id")][..]));
        assert_eq!(of("tenantgate_change_floor").defaults, [("one", "true"), ("xid", "'0'")]);
        assert_eq!(of("tenantgate_usage").keys, [(true, "day, key_id, reason")]);
        assert_eq!(of("tenantgate_route").keys, [(true, "id"), (false, "name")]);
        assert!(all.iter().all(|table| table.keys.iter().any(|(primary, _)| *primary)), "{all:#?}");
        let indexes: Named = POSTGRES.iter().flat_map(|(_, _, sql)| indexes(sql)).collect();
        assert!(indexes["tenantgate_change_xid"].ends_with("ON tenantgate_change (xid)"));
        assert!(indexes.contains_key("idx_api_keys_prefix") && indexes.len() >= 14, "{indexes:#?}");
    }

    #[test]
    fn a_trigger_of_sqlite_is_read_to_its_end() {
        let triggers = triggers(SQLITE_OBJECTS, "END;");
        assert!(triggers["tenantgate_key_updated"].contains("plan ON api_keys"));
        assert!(triggers["tenantgate_tenant_update_replaces"].ends_with("db_schema_name);\n"));
        assert!(triggers.len() >= 10);
    }
}

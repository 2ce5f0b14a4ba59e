//! Compares the triggers and functions of the database with the SQL that creates them.
//!
//! Postgres reformats the definition of a trigger, so definitions are compared word by word, without the words that
//! Postgres adds.

use std::collections::BTreeMap;

use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use crate::diagnostics::{Finding, Level};
use crate::store::migrations::POSTGRES_OBJECTS;
use crate::store::{StoreError, schema_spec};

/// A trigger as the database has it.
struct Trigger {
    definition: String,
    enabled: String,
}

/// The remedy for every fault.
const REMEDY: &str = "run `tenantgate migrate` as the owner of the tables";

/// Returns the faults of functions and triggers, one sentence each.
pub(super) async fn wrong(connection: &mut PgConnection, schema: &str) -> Result<Vec<String>, StoreError> {
    let mut findings = triggers(&mut *connection).await?;
    findings.extend(functions(connection, schema).await?);
    Ok(findings
        .into_iter()
        .filter(|finding| finding.level != Level::Ok)
        .map(|finding| finding.what)
        .collect())
}

/// Returns a finding for each fault of the triggers, or one finding that there is none.
pub(super) async fn triggers(connection: &mut PgConnection) -> Result<Vec<Finding>, StoreError> {
    let sql = "SELECT tgname::text, pg_get_triggerdef(oid, true), tgenabled::text FROM pg_trigger
               WHERE NOT tgisinternal AND tgparentid = 0 AND tgrelid IN (
                   SELECT c.oid FROM pg_class c JOIN pg_class ours USING (relnamespace)
                   WHERE ours.oid = to_regclass('api_keys'))";
    let mut there = BTreeMap::new();
    for row in sqlx::query(sql).fetch_all(connection).await? {
        let trigger = Trigger { definition: row.try_get(1)?, enabled: row.try_get(2)? };
        there.insert(row.try_get::<String, _>(0)?, trigger);
    }
    let expected = schema_spec::triggers(POSTGRES_OBJECTS, ";");
    let count = expected.len();
    let wrong: Vec<_> =
        expected.into_iter().filter_map(|(name, sql)| wrong_trigger(name, sql, there.get(name))).collect();
    let fine = || vec![Finding::ok("database.triggers", format!("{count} triggers match the migrations"))];
    Ok(if wrong.is_empty() { fine() } else { wrong })
}

/// Returns the fault of a trigger, if it has one.
fn wrong_trigger(name: &str, expected: &str, there: Option<&Trigger>) -> Option<Finding> {
    const CHECK: &str = "database.triggers";
    const UNSEEN: &str = "replicas may miss changes";
    let Some(trigger) = there else {
        return Some(Finding::bad(CHECK, format!("the trigger {name} is missing: {UNSEEN}"), REMEDY));
    };
    if spelled(&trigger.definition) != spelled(expected) {
        return Some(Finding::bad(
            CHECK,
            format!("the trigger {name} differs from the migrations: {UNSEEN}"),
            REMEDY,
        ));
    }
    let wanted = schema_spec::enabled(POSTGRES_OBJECTS, name);
    match trigger.enabled.as_str() {
        enabled if enabled == wanted => None,
        "O" if wanted == "A" => {
            let what = format!(
                "the trigger {name} does not fire under session_replication_role = replica: replicated or restored rows are not logged"
            );
            Some(Finding::bad(CHECK, what, REMEDY))
        }
        _ => Some(Finding::bad(CHECK, format!("the trigger {name} is disabled: {UNSEEN}"), REMEDY)),
    }
}

/// Returns the words of a trigger, sorted, without those that Postgres adds or removes: schemas, casts, and how it
/// compares two rows (column by column). Other operators are kept.
fn spelled(definition: &str) -> Vec<String> {
    const LOOSE: [&str; 9] =
        ["row", "text", "character", "varying", "is", "distinct", "from", "or", "public"];
    let plain = definition.to_lowercase();
    let part_of_word = |c: char| c.is_ascii_alphanumeric() || "_.<>=".contains(c);
    let word = |word: &str| match word.rsplit_once('.') {
        Some(("old" | "new", _)) | None => word.to_owned(),
        // Before any other dot is a schema.
        Some((_, name)) => name.to_owned(),
    };
    let words = plain.split(|c: char| !part_of_word(c)).map(word);
    let mut words: Vec<_> =
        words.filter(|word| !word.is_empty() && !LOOSE.contains(&word.as_str())).collect();
    words.sort_unstable();
    words
}

/// A function as the database has it.
struct Function {
    source: String,
    pinned: bool,
    everybodys: bool,
}

/// Returns a finding for each fault of the functions, or one finding that there is none.
pub(super) async fn functions(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<Vec<Finding>, StoreError> {
    const CHECK: &str = "database.functions";
    let sql = "SELECT p.proname::text, p.prosrc,
                   coalesce(p.proconfig @> ARRAY['search_path=pg_catalog, ' || quote_ident($1) || ', pg_temp'], false),
                   p.proacl IS NULL OR EXISTS (SELECT FROM aclexplode(p.proacl) a WHERE a.grantee = 0)
               FROM pg_proc p
               WHERE p.pronamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('api_keys'))";
    let mut there = BTreeMap::new();
    for row in sqlx::query(sql).bind(schema).fetch_all(connection).await? {
        let function =
            Function { source: row.try_get(1)?, pinned: row.try_get(2)?, everybodys: row.try_get(3)? };
        there.insert(row.try_get::<String, _>(0)?, function);
    }
    let expected = schema_spec::functions(POSTGRES_OBJECTS);
    let wrong = |(name, body): (&str, &str)| {
        let what = match there.get(name) {
            Some(function) if schema_spec::words(&function.source) != schema_spec::words(body) => {
                format!("the function {name} differs from the migrations")
            }
            Some(function) if !function.pinned => {
                format!("the function {name} may find tables outside {schema}: changes may fail or be lost")
            }
            Some(function) if function.everybodys => {
                format!("every role may call the function {name}")
            }
            Some(_) => return None,
            None => format!("the function {name} is missing"),
        };
        Some(Finding::bad(CHECK, what, REMEDY))
    };
    let count = expected.len();
    let wrong: Vec<_> = expected.into_iter().filter_map(wrong).collect();
    let fine = || vec![Finding::ok(CHECK, format!("{count} functions match the migrations"))];
    Ok(if wrong.is_empty() { fine() } else { wrong })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trigger_is_recognized_in_every_form_that_postgres_shows() {
        let made = "CREATE TRIGGER t AFTER UPDATE ON api_keys FOR EACH ROW
            WHEN ((old.id, old.key_prefix) IS DISTINCT FROM (new.id, new.key_prefix)) EXECUTE FUNCTION f()";
        let told = |when: &str| {
            format!(
                "CREATE TRIGGER t AFTER UPDATE ON public.api_keys FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION public.f()"
            )
        };
        let columns = "(old.id IS DISTINCT FROM new.id) OR ((old.key_prefix)::text IS DISTINCT FROM (new.key_prefix)::text)";
        let rows = "ROW(old.id, old.key_prefix) IS DISTINCT FROM ROW(new.id, new.key_prefix)";
        assert_eq!(spelled(&told(columns)), spelled(made));
        assert_eq!(spelled(&told(rows)), spelled(made));
        for other in [
            "old.id IS DISTINCT FROM new.id",
            "(old.id <> new.id) OR (old.key_prefix IS DISTINCT FROM new.key_prefix)",
            "(old.id IS DISTINCT FROM new.id) AND (old.key_prefix IS DISTINCT FROM new.key_prefix)",
        ] {
            assert_ne!(spelled(&told(other)), spelled(made), "{other}");
        }
    }
}

//! Compares triggers and functions with the file that makes them.
//!
//! Postgres shows a trigger in words of its own, so definitions are compared word by word, without those that it adds.

use std::collections::BTreeMap;

use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use crate::diagnostics::{Finding, Level};
use crate::store::migrations::POSTGRES_OBJECTS;
use crate::store::{StoreError, expected};

/// A trigger as the database has it.
struct Trigger {
    definition: String,
    enabled: String,
}

/// What to do about all of it.
const REMEDY: &str = "run `tenantgate migrate` as the owner of the tables";

/// What is wrong with functions and triggers, one sentence each.
pub(super) async fn wrong(connection: &mut PgConnection, schema: &str) -> Result<Vec<String>, StoreError> {
    let mut findings = triggers(&mut *connection).await?;
    findings.extend(functions(connection, schema).await?);
    Ok(findings
        .into_iter()
        .filter(|finding| finding.level != Level::Ok)
        .map(|finding| finding.what)
        .collect())
}

/// What is wrong with the triggers; or that nothing is.
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
    let expected = expected::triggers(POSTGRES_OBJECTS, ";");
    let count = expected.len();
    let wrong: Vec<_> =
        expected.into_iter().filter_map(|(name, sql)| wrong_trigger(name, sql, there.get(name))).collect();
    let fine =
        || vec![Finding::ok("database.triggers", format!("{count} triggers as the migrations made them"))];
    Ok(if wrong.is_empty() { fine() } else { wrong })
}

/// What is wrong with a trigger, if anything is.
fn wrong_trigger(name: &str, expected: &str, there: Option<&Trigger>) -> Option<Finding> {
    const CHECK: &str = "database.triggers";
    const UNSEEN: &str = "changes may go unseen";
    let Some(trigger) = there else {
        return Some(Finding::bad(CHECK, format!("the trigger {name} is missing: {UNSEEN}"), REMEDY));
    };
    if spelled(&trigger.definition) != spelled(expected) {
        return Some(Finding::bad(CHECK, format!("the trigger {name} is another one: {UNSEEN}"), REMEDY));
    }
    let wanted = expected::enabled(POSTGRES_OBJECTS, name);
    match trigger.enabled.as_str() {
        enabled if enabled == wanted => None,
        "O" if wanted == "A" => {
            let what = format!(
                "the trigger {name} does not fire under session_replication_role = replica: what is replicated or restored goes unseen"
            );
            Some(Finding::bad(CHECK, what, REMEDY))
        }
        _ => Some(Finding::bad(CHECK, format!("the trigger {name} is disabled: {UNSEEN}"), REMEDY)),
    }
}

/// The words of a trigger, sorted, without those that Postgres adds or drops when it tells of one: schemas, casts,
/// and how it spells that one row differs from another (column by column). An operator in its place counts.
fn spelled(definition: &str) -> Vec<String> {
    const LOOSE: [&str; 9] =
        ["row", "text", "character", "varying", "is", "distinct", "from", "or", "public"];
    let plain = definition.to_lowercase();
    let part_of_word = |c: char| c.is_ascii_alphanumeric() || "_.<>=".contains(c);
    let word = |word: &str| match word.rsplit_once('.') {
        Some(("old" | "new", _)) | None => word.to_owned(),
        // What stands before any other dot is a schema.
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

/// What is wrong with the functions; or that nothing is.
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
    let expected = expected::functions(POSTGRES_OBJECTS);
    let wrong = |(name, body): (&str, &str)| {
        let what = match there.get(name) {
            Some(function) if expected::words(&function.source) != expected::words(body) => {
                format!("the function {name} is another one")
            }
            Some(function) if !function.pinned => {
                format!(
                    "the function {name} does not look names up in {schema} alone: changes fail or go astray"
                )
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
    let fine = || vec![Finding::ok(CHECK, format!("{count} functions as the migrations made them"))];
    Ok(if wrong.is_empty() { fine() } else { wrong })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trigger_is_known_however_postgres_spells_it() {
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

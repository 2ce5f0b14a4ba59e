//! Are triggers and functions still what the migrations made them?
//!
//! What they ought to be is read out of the migrations ([`expected`]). Postgres tells of a
//! trigger in words of its own, so definitions are compared word by word, without those
//! that it adds.

use std::collections::BTreeMap;

use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use crate::finding::Finding;
use crate::store::migrations::POSTGRES;
use crate::store::{StoreError, expected};

/// A trigger as the database has it.
struct Trigger {
    definition: String,
    enabled: String,
}

/// What is wrong with the triggers; or that nothing is.
pub(super) async fn triggers(connection: &mut PgConnection) -> Result<Vec<Finding>, StoreError> {
    let sql = "SELECT tgname::text, pg_get_triggerdef(oid), tgenabled::text FROM pg_trigger
               WHERE NOT tgisinternal AND tgrelid IN (
                   SELECT c.oid FROM pg_class c JOIN pg_class ours USING (relnamespace)
                   WHERE ours.oid = to_regclass('api_keys'))";
    let mut there = BTreeMap::new();
    for row in sqlx::query(sql).fetch_all(connection).await? {
        let trigger = Trigger { definition: row.try_get(1)?, enabled: row.try_get(2)? };
        there.insert(row.try_get::<String, _>(0)?, trigger);
    }
    let expected = expected::triggers(POSTGRES, ";");
    let count = expected.len();
    let wrong: Vec<_> =
        expected.into_iter().filter_map(|(name, sql)| wrong(name, sql, there.get(name))).collect();
    let fine =
        || vec![Finding::ok("database.triggers", format!("{count} triggers as the migrations made them"))];
    Ok(if wrong.is_empty() { fine() } else { wrong })
}

/// What is wrong with a trigger, if anything is.
fn wrong(name: &str, expected: &str, there: Option<&Trigger>) -> Option<Finding> {
    const CHECK: &str = "database.triggers";
    const UNSEEN: &str = "what changes may go unseen";
    let Some(trigger) = there else {
        let remedy =
            format!("make it again, as its migration has it: {}", expected::words(expected).join(" "));
        return Some(Finding::bad(CHECK, format!("the trigger {name} is missing: {UNSEEN}"), remedy));
    };
    let table = table_of(expected);
    let enable = format!("ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}");
    if spelled(&trigger.definition) != spelled(expected) {
        let remedy = format!("drop it, and make it again: {}", expected::words(expected).join(" "));
        return Some(Finding::bad(CHECK, format!("the trigger {name} is another one: {UNSEEN}"), remedy));
    }
    match trigger.enabled.as_str() {
        "A" => None,
        "O" if !expected::is_always(POSTGRES, name) => None,
        "O" => {
            let what = format!("the trigger {name} is silent under session_replication_role = replica");
            Some(Finding::warn(CHECK, what, enable))
        }
        _ => Some(Finding::bad(CHECK, format!("the trigger {name} is disabled: {UNSEEN}"), enable)),
    }
}

fn table_of(trigger: &str) -> &str {
    let (_, rest) = trigger.split_once(" ON ").unwrap_or_default();
    rest.split_whitespace().next().unwrap_or_default()
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

/// What is wrong with the functions; or that nothing is.
pub(super) async fn functions(connection: &mut PgConnection) -> Result<Vec<Finding>, StoreError> {
    let sql = "SELECT p.proname::text, p.prosrc FROM pg_proc p
               WHERE p.pronamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('api_keys'))";
    let mut there = BTreeMap::new();
    for row in sqlx::query(sql).fetch_all(connection).await? {
        there.insert(row.try_get::<String, _>(0)?, row.try_get::<String, _>(1)?);
    }
    let expected = expected::functions(POSTGRES);
    let wrong = |(name, body): (&str, &str)| {
        let same = there.get(name).is_some_and(|source| expected::words(source) == expected::words(body));
        let what = format!("the function {name} is missing or another one");
        (!same).then(|| Finding::bad("database.functions", what, "make it again, as its migration has it"))
    };
    let count = expected.len();
    let wrong: Vec<_> = expected.into_iter().filter_map(wrong).collect();
    let fine =
        || vec![Finding::ok("database.functions", format!("{count} functions as the migrations made them"))];
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

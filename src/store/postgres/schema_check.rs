//! Compares the triggers and functions of the database with the SQL that creates them.
//!
//! Postgres reformats the definition of a trigger, so definitions are compared word by word, without the words that
//! Postgres adds.

use std::collections::BTreeMap;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use crate::diagnostics::{Finding, Level};
use crate::store::migrations::{self, POSTGRES, POSTGRES_OBJECTS};
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
        "O" | "A" if wanted == "R" => {
            let what = format!(
                "the trigger {name} fires for every change, and not for replicated ones alone: what is written here is lost"
            );
            Some(Finding::bad(CHECK, what, REMEDY))
        }
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
#[expect(clippy::struct_excessive_bools, reason = "each is a column of the catalogue")]
struct Function {
    source: String,
    pinned: bool,
    everybodys: bool,
    definer: bool,
    volatility: String,
    /// Whether it has no other settings.
    plain: bool,
    /// A table that it uses, and its owner may not.
    denied: Option<String>,
}

/// Returns what ALTER FUNCTION or another owner has changed of a function.
fn altered(name: &str, function: &Function) -> Option<String> {
    let (definer, volatility) = schema_spec::attributes(POSTGRES_OBJECTS, name);
    if let Some(table) = &function.denied {
        Some(format!("the owner of the function {name} may not use {table}: changes fail"))
    } else if function.definer != definer {
        let whose = if function.definer { "owner" } else { "caller" };
        Some(format!("the function {name} runs with the privileges of its {whose}, unlike in the migrations"))
    } else if function.volatility != volatility {
        Some(format!(
            "the function {name} has another volatility than in the migrations: calls may be omitted"
        ))
    } else if !function.plain {
        Some(format!(
            "the function {name} has settings (ALTER FUNCTION … SET) that the migrations do not have"
        ))
    } else {
        None
    }
}

/// Returns the statements that make the owner of `tenantgate_change` that of each function which may not use its tables.
async fn owners(connection: &mut PgConnection) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT format('ALTER FUNCTION %s OWNER TO %I', p.oid::regprocedure, pg_get_userbyid(log.relowner))
        FROM pg_proc p JOIN pg_class log ON log.oid = to_regclass('tenantgate_change') AND log.relnamespace = p.pronamespace
        WHERE p.proname LIKE 'tenantgate\\_%' AND p.proowner <> log.relowner
          AND NOT has_table_privilege(p.proowner, log.oid, 'INSERT')";
    let rows = sqlx::query(sql).fetch_all(connection).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// A part of a table that is missing, and the statement that creates it again; `None` if that is for the operator.
pub(super) struct LostPart {
    what: String,
    sql: Option<String>,
    remedy: String,
}

/// Returns what the tables of tenantgate have lost: keys, defaults, indexes and partitions.
async fn lost(connection: &mut PgConnection) -> Result<Vec<LostPart>, StoreError> {
    let mut lost = Vec::new();
    let mut add = |what: String, sql: String| {
        lost.push(LostPart { what, sql: Some(sql), remedy: REMEDY.to_owned() });
    };
    let keys = "SELECT c.relname::text, i.indisprimary, (
            SELECT string_agg(a.attname, ', ' ORDER BY k.at) FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (num, at)
            JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.num)
        FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
        WHERE i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
          AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('api_keys'))
          AND c.relname LIKE 'tenantgate\\_%'";
    let mut unique = Vec::new();
    for row in sqlx::query(keys).fetch_all(&mut *connection).await? {
        unique.push((
            row.try_get::<String, _>(0)?,
            row.try_get::<bool, _>(1)?,
            row.try_get::<Option<String>, _>(2)?.unwrap_or_default(),
        ));
    }
    let columns = "SELECT c.relname::text, a.attname::text, a.attidentity::text, (
            SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d WHERE d.adrelid = c.oid AND d.adnum = a.attnum)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('api_keys'))
          AND c.relname LIKE 'tenantgate\\_%' AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped";
    let mut there = BTreeMap::new();
    for row in sqlx::query(columns).fetch_all(&mut *connection).await? {
        let name: (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let column: (String, Option<String>) = (row.try_get(2)?, row.try_get(3)?);
        there.insert(name, column);
    }
    // sqlx creates the table of migrations.
    let migrations = schema_spec::TableSpec {
        name: migrations::TABLE,
        keys: vec![(true, "version")],
        ..schema_spec::TableSpec::default()
    };
    for table in POSTGRES.iter().flat_map(|(_, _, sql)| schema_spec::tables(sql)).chain([migrations]) {
        let name = table.name;
        for (primary, columns) in table.keys {
            let same = |(of, is_primary, is): &(String, bool, String)| {
                of == name && is == columns && (*is_primary || !primary)
            };
            if !unique.iter().any(same) {
                let kind = if primary { "PRIMARY KEY" } else { "UNIQUE" };
                add(
                    format!("{name} has lost its {kind} ({columns})"),
                    format!("ALTER TABLE {name} ADD {kind} ({columns})"),
                );
            }
        }
        for (column, default) in table.defaults {
            let Some((_, is)) = there.get(&(name.to_owned(), column.to_owned())) else { continue };
            let plain = |text: &str| text.split("::").next().unwrap_or_default().to_owned();
            if is.as_deref().map(plain) != Some(plain(default)) {
                add(
                    format!("{name}.{column} has lost its default {default}"),
                    format!("ALTER TABLE {name} ALTER COLUMN {column} SET DEFAULT {default}"),
                );
            }
        }
        for column in table.identities {
            if there.get(&(name.to_owned(), column.to_owned())).is_some_and(|(identity, _)| identity != "a") {
                add(
                    format!("{name}.{column} has lost its numbers (GENERATED ALWAYS AS IDENTITY)"),
                    format!(
                        "ALTER TABLE {name} ALTER COLUMN {column} DROP IDENTITY IF EXISTS, ALTER COLUMN {column} DROP DEFAULT, \
                         ALTER COLUMN {column} ADD GENERATED ALWAYS AS IDENTITY; \
                         SELECT setval(pg_get_serial_sequence('{name}', '{column}'), (SELECT coalesce(max({column}), 1) FROM {name}))"
                    ),
                );
            }
        }
    }
    let indexes =
        "SELECT c.relname::text, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('api_keys'))";
    let mut valid = BTreeMap::new();
    for row in sqlx::query(indexes).fetch_all(&mut *connection).await? {
        valid.insert(row.try_get::<String, _>(0)?, row.try_get::<bool, _>(1)?);
    }
    for (name, sql) in POSTGRES.iter().flat_map(|(_, _, sql)| schema_spec::indexes(sql)) {
        match valid.get(name) {
            Some(true) => {}
            Some(false) => add(format!("the index {name} is invalid"), format!("DROP INDEX {name}; {sql}")),
            None => add(format!("the index {name} is missing"), sql.to_owned()),
        }
    }
    lost.extend(detached(connection).await?);
    Ok(lost)
}

/// Returns the months of usage that are not partitions any more, so that reports do not count them.
async fn detached(connection: &mut PgConnection) -> Result<Vec<LostPart>, StoreError> {
    let sql = "SELECT c.relname::text, format('ALTER TABLE tenantgate_usage ATTACH PARTITION %I %s', c.relname,
            CASE WHEN c.relname = 'tenantgate_usage_default' THEN 'DEFAULT' ELSE
                format('FOR VALUES FROM (%L) TO (%L)', first, (first + interval '1 month')::date) END)
        FROM pg_class c, LATERAL (SELECT CASE WHEN c.relname ~ '[0-9]{4}_(0[1-9]|1[0-2])$'
            THEN to_date(right(c.relname, 7), 'YYYY_MM') END AS first) AS f
        WHERE c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('api_keys'))
          AND c.relname ~ '^tenantgate_usage_([0-9]{4}_(0[1-9]|1[0-2])|default)$' AND c.relkind = 'r' AND NOT c.relispartition
        ORDER BY 1";
    let lost = |row: &sqlx::postgres::PgRow| {
        let (name, attach): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        Ok(LostPart {
            what: format!("{name} is not a partition of tenantgate_usage: reports do not count its requests"),
            sql: None,
            remedy: format!("run {attach}"),
        })
    };
    sqlx::query(sql).fetch_all(connection).await?.iter().map(lost).collect()
}

/// Returns a finding for each part that the tables have lost, or one finding that there is none.
pub(super) async fn parts(connection: &mut PgConnection) -> Result<Vec<Finding>, StoreError> {
    const CHECK: &str = "database.parts";
    let lost = lost(connection).await?;
    let fine = || vec![Finding::ok(CHECK, "keys, defaults, indexes and partitions match the migrations")];
    let bad = |lost: LostPart| Finding::bad(CHECK, lost.what, lost.remedy);
    Ok(if lost.is_empty() { fine() } else { lost.into_iter().map(bad).collect() })
}

/// Creates again what the tables have lost, and gives functions an owner that may use the tables. Returns what was wrong.
pub(super) async fn mend_parts(connection: &mut PgConnection) -> Result<Vec<String>, StoreError> {
    for sql in owners(&mut *connection).await? {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
    }
    let mut mended = Vec::new();
    for LostPart { what, sql, .. } in lost(&mut *connection).await? {
        let Some(sql) = sql else { continue };
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
        mended.push(what);
    }
    Ok(mended)
}

/// Returns a finding for each fault of the functions, or one finding that there is none.
pub(super) async fn functions(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<Vec<Finding>, StoreError> {
    const CHECK: &str = "database.functions";
    let sql = "SELECT p.proname::text, p.prosrc,
                   coalesce(p.proconfig @> ARRAY['search_path=pg_catalog, ' || quote_ident($1) || ', pg_temp'], false),
                   p.proacl IS NULL OR EXISTS (SELECT FROM aclexplode(p.proacl) a WHERE a.grantee = 0),
                   p.prosecdef, p.provolatile::text, coalesce(cardinality(p.proconfig), 0) <= 1,
                   (SELECT c.relname::text FROM pg_class c
                    WHERE p.prosecdef AND c.relnamespace = p.pronamespace AND c.relkind IN ('r', 'p')
                      AND c.relname LIKE 'tenantgate\\_%' AND strpos(p.prosrc, c.relname) > 0
                      AND NOT (has_table_privilege(p.proowner, c.oid, 'SELECT') AND has_table_privilege(p.proowner, c.oid, 'INSERT'))
                    ORDER BY 1 LIMIT 1)
               FROM pg_proc p
               WHERE p.pronamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('api_keys'))";
    let mut there = BTreeMap::new();
    for row in sqlx::query(sql).bind(schema).fetch_all(connection).await? {
        let function = Function {
            source: row.try_get(1)?,
            pinned: row.try_get(2)?,
            everybodys: row.try_get(3)?,
            definer: row.try_get(4)?,
            volatility: row.try_get(5)?,
            plain: row.try_get(6)?,
            denied: row.try_get(7)?,
        };
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
            Some(function) => match altered(name, function) {
                Some(what) => what,
                None => return None,
            },
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

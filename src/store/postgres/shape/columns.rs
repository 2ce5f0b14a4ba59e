//! The columns that tenantgate needs in the two tables, and those that existing tables have.

use std::collections::BTreeMap;

use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use crate::store::StoreError;

/// The type that a column must have.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum ColumnKind {
    Uuid,
    Text,
    Instant,
    Json,
}

impl ColumnKind {
    pub(super) fn wanted(self) -> &'static str {
        match self {
            Self::Uuid => "uuid",
            Self::Text => "text or varchar",
            Self::Instant => "timestamptz",
            Self::Json => "jsonb",
        }
    }

    fn fits(self, name: &str) -> bool {
        match self {
            Self::Uuid => name == "uuid",
            Self::Text => ["text", "varchar"].contains(&name),
            // `timestamp` is converted.
            Self::Instant => ["timestamptz", "timestamp"].contains(&name),
            Self::Json => name == "jsonb",
        }
    }
}

/// A column that tenantgate uses: table, name, type, whether it must be NOT NULL, whether it must be UNIQUE, and
/// whether an adopted table must already have it.
pub(super) type RequiredColumn = (&'static str, &'static str, ColumnKind, bool, bool, bool);

/// The columns of [`crate::store::TENANT_COLUMNS`] and [`crate::store::KEY_COLUMNS`], in the order in which wrong ones
/// are reported.
pub(super) const REQUIRED_COLUMNS: [RequiredColumn; 25] = [
    ("tenants", "id", ColumnKind::Uuid, true, true, true),
    ("tenants", "name", ColumnKind::Text, true, false, true),
    ("tenants", "db_schema_name", ColumnKind::Text, true, true, true),
    ("tenants", "created_at", ColumnKind::Instant, true, false, true),
    ("tenants", "status", ColumnKind::Text, true, false, true),
    ("api_keys", "id", ColumnKind::Uuid, true, true, true),
    ("api_keys", "hashed_key", ColumnKind::Text, true, true, true),
    ("api_keys", "key_prefix", ColumnKind::Text, true, true, true),
    ("api_keys", "tenant_id", ColumnKind::Uuid, true, false, true),
    ("api_keys", "created_at", ColumnKind::Instant, true, false, true),
    ("api_keys", "expires_at", ColumnKind::Instant, false, false, true),
    ("api_keys", "last_used_at", ColumnKind::Instant, false, false, true),
    ("api_keys", "name", ColumnKind::Text, false, false, false),
    ("api_keys", "revoked_at", ColumnKind::Instant, false, false, false),
    ("api_keys", "revocation_reason", ColumnKind::Text, false, false, false),
    ("api_keys", "replaced_by", ColumnKind::Uuid, false, false, false),
    ("api_keys", "key_memo", ColumnKind::Text, false, false, false),
    ("tenants", "mode", ColumnKind::Text, false, false, false),
    ("tenants", "plan", ColumnKind::Text, false, false, false),
    ("api_keys", "disabled_at", ColumnKind::Instant, false, false, false),
    ("api_keys", "not_before", ColumnKind::Instant, false, false, false),
    ("api_keys", "scopes", ColumnKind::Text, false, false, false),
    ("api_keys", "networks", ColumnKind::Text, false, false, false),
    ("api_keys", "plan", ColumnKind::Text, false, false, false),
    ("api_keys", "labels", ColumnKind::Json, false, false, false),
];

/// Columns whose texts have a length that tenantgate chooses, and the longest.
const LENGTHS: [(&str, &str, i32); 4] = [
    ("tenants", "db_schema_name", 63),
    ("tenants", "status", 20),
    ("api_keys", "hashed_key", 60),
    ("api_keys", "key_prefix", 25),
];

/// A column as the database has it.
#[expect(clippy::struct_excessive_bools, reason = "each is a column of the catalogue")]
pub(super) struct Column {
    pub(super) type_name: String,
    pub(super) shown: String,
    /// `pg_type.typcategory`: B boolean, N number.
    pub(super) category: String,
    pub(super) is_enum: bool,
    pub(super) not_null: bool,
    pub(super) has_default: bool,
    /// The expression of the default.
    pub(super) default: Option<String>,
    /// Whether the value is computed from other columns.
    pub(super) is_generated: bool,
    pub(super) unique: bool,
    /// The most characters it takes, if it is limited.
    pub(super) length: Option<i32>,
    /// Whether texts that differ may be equal.
    pub(super) vague: bool,
}

/// Columns by table and name.
pub(super) type Columns = BTreeMap<(String, String), Column>;

pub(super) fn wanted(table: &str, name: &str) -> Option<&'static RequiredColumn> {
    REQUIRED_COLUMNS.iter().find(|(t, n, ..)| *t == table && *n == name)
}

pub(super) async fn columns(connection: &mut PgConnection) -> Result<Columns, StoreError> {
    let sql = "SELECT c.relname::text, a.attname::text, t.typname::text, format_type(a.atttypid, a.atttypmod), t.typtype = 'e',
            a.attnotnull, a.atthasdef OR a.attidentity <> '',
            EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid
                    AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indnkeyatts = 1
                    AND i.indkey[0] = a.attnum),
            CASE WHEN t.typname = 'varchar' AND a.atttypmod > 4 THEN a.atttypmod - 4 END,
            EXISTS (SELECT FROM pg_collation l WHERE l.oid = a.attcollation AND NOT l.collisdeterministic),
            (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d WHERE d.adrelid = c.oid AND d.adnum = a.attnum),
            a.attgenerated <> '', t.typcategory::text
         FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type t ON t.oid = a.atttypid
         WHERE c.oid IN (to_regclass('tenants'), to_regclass('api_keys')) AND a.attnum > 0 AND NOT a.attisdropped";
    let mut columns = Columns::new();
    for row in sqlx::query(sql).fetch_all(connection).await? {
        let column = Column {
            type_name: row.try_get(2)?,
            shown: row.try_get(3)?,
            is_enum: row.try_get(4)?,
            not_null: row.try_get(5)?,
            has_default: row.try_get(6)?,
            default: row.try_get(10)?,
            is_generated: row.try_get(11)?,
            category: row.try_get(12)?,
            unique: row.try_get(7)?,
            length: row.try_get(8)?,
            vague: row.try_get(9)?,
        };
        columns.insert((row.try_get(0)?, row.try_get(1)?), column);
    }
    Ok(columns)
}

/// Returns the length that a column must have in characters; `None` if it is long enough.
fn too_short(table: &str, name: &str, column: &Column) -> Option<i32> {
    let (.., least) = LENGTHS.iter().find(|(t, n, _)| *t == table && *n == name)?;
    column.length.filter(|length| length < least).map(|_| *least)
}

pub(super) fn wrong_columns(tables: &BTreeMap<String, String>, columns: &Columns) -> Vec<String> {
    let mut wrong = Vec::new();
    for (table, name, kind, always, unique, theirs) in
        REQUIRED_COLUMNS.into_iter().filter(|(table, ..)| tables.contains_key(*table))
    {
        let Some(column) = columns.get(&(table.to_owned(), name.to_owned())) else {
            if theirs {
                wrong.push(format!("{table}.{name} is missing: must be {}", kind.wanted()));
            }
            continue;
        };
        if !kind.fits(&column.type_name) {
            let what = if column.is_enum { " (an enum)" } else { "" };
            wrong.push(format!("{table}.{name} is {}{what}: must be {}", column.shown, kind.wanted()));
        } else if column.is_generated {
            wrong.push(format!("{table}.{name} is GENERATED: must be an ordinary column"));
        } else if column.vague {
            wrong.push(format!(
                "{table}.{name} has a nondeterministic collation: must compare texts byte by byte"
            ));
        } else if let Some(least) = too_short(table, name, column) {
            wrong.push(format!("{table}.{name} is {}: must take {least} characters", column.shown));
        } else if always && !column.not_null {
            wrong.push(format!("{table}.{name} may be NULL: must be NOT NULL"));
        } else if unique && !column.unique {
            wrong.push(format!("{table}.{name} is not UNIQUE: must have a UNIQUE constraint of its own"));
        } else if !always && column.not_null {
            // A default is not enough: tenantgate writes NULL.
            wrong.push(format!("{table}.{name} is NOT NULL: must allow NULL"));
        } else if ["revoked_at", "disabled_at"].contains(&name) && column.has_default {
            wrong.push(format!(
                "{table}.{name} has a default: must have none, because every new key would be switched off"
            ));
        }
    }
    for ((table, name), column) in columns {
        if wanted(table, name).is_none() && column.not_null && !column.has_default {
            wrong.push(format!(
                "{table}.{name} is NOT NULL without a default: must have a default, because tenantgate inserts rows without it"
            ));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{KEY_COLUMNS, TENANT_COLUMNS};

    #[test]
    fn every_column_has_a_required_type() {
        for (table, all) in [("tenants", TENANT_COLUMNS.to_vec()), ("api_keys", KEY_COLUMNS.to_vec())] {
            let of_table = REQUIRED_COLUMNS.iter().filter(|(of, ..)| *of == table);
            let mut required: Vec<_> = of_table.map(|(_, name, ..)| *name).collect();
            let mut all = all;
            required.sort_unstable();
            all.sort_unstable();
            assert_eq!(required, all, "{table}");
        }
    }
}

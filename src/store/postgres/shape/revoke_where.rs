//! `--revoke-where`: the rows of existing tables that an application had switched off in columns of its own.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::columns::{Column, Columns, columns};
use crate::store::adoption::{ANY, MOST_VALUES, boolean, is_ours, no_such_value, words_for};
use crate::store::postgres::connection::quoted;
use crate::store::{Adoption, StoreError};

/// Returns a condition for the rows whose column has this value, as its type reads it; the values to bind. `None` if it
/// is not a value of the type.
///
/// `False` and `f` are the same boolean, and `true` is 1; texts and enums are compared letter by letter.
fn matches(name: &str, column: &Column, value: &str) -> Option<(String, Vec<String>)> {
    let name = quoted(name);
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    if value == ANY {
        return Some((format!("{name} IS NOT NULL AND $1::text[] IS NOT NULL"), Vec::new()));
    }
    let values = match column.category.as_str() {
        "B" => texts(&[words_for(boolean(value)?)[1]]),
        "N" => match value.parse::<f64>() {
            Ok(number) if number.is_finite() => texts(&[value]),
            _ => texts(&[words_for(boolean(value)?)[0]]),
        },
        _ => return Some((format!("{name}::text = ANY ($1::text[])"), texts(&[value]))),
    };
    Some((format!("{name} = ANY ($1::text[]::{}[])", column.shown), values))
}

/// Returns the faults of the values of `--revoke-where`: those that no row has, although there are rows. A boolean cannot be
/// misspelled, so it may be absent.
pub(super) async fn wrong_values(
    connection: &mut PgConnection,
    adoption: &Adoption,
    columns: &Columns,
) -> Result<Vec<String>, StoreError> {
    let mut wrong = Vec::new();
    for table in ["tenants", "api_keys"] {
        for (name, column, value) in adoption.revoked_in(table) {
            let Some(is) = columns.get(&(table.to_owned(), column.to_owned())) else { continue };
            let Some((condition, values)) = matches(column, is, value) else {
                wrong.push(format!(
                    "--revoke-where {name}={value}: {table}.{column} is {}, and {value:?} is not a value of it",
                    is.shown
                ));
                continue;
            };
            // `status` is meant to be the column of `api_keys`, if there is one.
            let other = if table == "tenants" { "api_keys" } else { "tenants" };
            let is_others = name == column
                && is_ours(table, column)
                && columns.contains_key(&(other.to_owned(), column.to_owned()));
            if value == ANY || is.category == "B" || is_others {
                continue;
            }
            let sql = format!(
                "SELECT EXISTS (SELECT FROM {table} WHERE {condition}), EXISTS (SELECT FROM {table})"
            );
            let row = sqlx::query(AssertSqlSafe(sql)).bind(values).fetch_one(&mut *connection).await?;
            let (found, any): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
            if any && !found {
                let there = values_of(&mut *connection, table, column).await?;
                wrong.push(no_such_value((name, value), (table, column), &there));
            }
        }
    }
    Ok(wrong)
}

/// Returns the values of a column, one more than are listed.
async fn values_of(
    connection: &mut PgConnection,
    table: &str,
    column: &str,
) -> Result<Vec<String>, StoreError> {
    let column = quoted(column);
    let sql = format!(
        "SELECT DISTINCT left({column}::text, 40) FROM {table} WHERE {column} IS NOT NULL ORDER BY 1 LIMIT {}",
        MOST_VALUES + 1
    );
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(connection).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Revokes the keys and suspends the tenants that `--revoke-where` selects. Returns how many.
pub(in crate::store::postgres) async fn revoke(
    connection: &mut PgConnection,
    adoption: &Adoption,
) -> Result<Vec<String>, StoreError> {
    let columns = columns(&mut *connection).await?;
    let mut notes = Vec::new();
    for (table, sql, verb) in [
        (
            "api_keys",
            "UPDATE api_keys SET revoked_at = now(), revocation_reason = $2 WHERE revoked_at IS NULL",
            "revoked",
        ),
        (
            "tenants",
            "UPDATE tenants SET status = 'suspended' WHERE status = 'active' AND $2 <> ''",
            "suspended",
        ),
    ] {
        for (name, column, value) in adoption.revoked_in(table) {
            let is = columns.get(&(table.to_owned(), column.to_owned()));
            let Some((condition, values)) = is.and_then(|is| matches(column, is, value)) else { continue };
            let sql = format!("{sql} AND {condition}");
            let reason = format!("{name} = {value} when the table was adopted");
            let done =
                sqlx::query(AssertSqlSafe(sql)).bind(values).bind(reason).execute(&mut *connection).await?;
            notes.push(format!("{verb} {} rows of {table} where {column} is {value}", done.rows_affected()));
        }
    }
    Ok(notes)
}

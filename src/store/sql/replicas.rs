//! Reads which servers hold the keys, and which of them have applied a change.

use super::connection::{Link, query};
use super::row::SqlRow;
use crate::store::{Announced, Laggard, StoreError};

/// Adds a mark to the change log, and returns its position.
///
/// The mark is a separate transaction: a server that sees it sees everything that was committed before it began.
pub(super) async fn mark(link: &mut Link<'_>) -> Result<String, StoreError> {
    query(link.dialect().mark).fetch_one(link).await?.get("mark")
}

/// Returns all servers that have announced themselves, by name.
pub(super) async fn all(link: &mut Link<'_>) -> Result<Vec<Announced>, StoreError> {
    let sql = "SELECT id, name, seen_at, serves_until FROM tenantgate_replica ORDER BY name, id";
    let announced = |row: &SqlRow| {
        Ok(Announced {
            id: row.id("id", "tenantgate_replica")?,
            name: row.get("name")?,
            seen_at: row.instant("seen_at")?.unwrap_or_default(),
            serves_until: row.instant("serves_until")?.unwrap_or_default(),
        })
    };
    query(sql).fetch_all(link).await?.iter().map(announced).collect()
}

/// Returns the servers that have not applied everything before a mark.
pub(super) async fn laggards(link: &mut Link<'_>, mark: &str) -> Result<Vec<Laggard>, StoreError> {
    let behind = link.dialect().behind;
    let sql = format!("SELECT name, seen_at FROM tenantgate_replica WHERE {behind} ORDER BY name");
    let laggard = |row: &SqlRow| {
        let seen_at = row.instant("seen_at")?.unwrap_or_default();
        Ok(Laggard { name: row.get("name")?, seen_at })
    };
    query(sql).bind(mark).fetch_all(link).await?.iter().map(laggard).collect()
}

/// Returns the number of live servers that have applied everything before a mark.
pub(super) async fn caught_up(link: &mut Link<'_>, mark: &str) -> Result<u64, StoreError> {
    let (live, behind) = (link.dialect().live, link.dialect().behind);
    let sql = format!("SELECT count(*) AS caught_up FROM tenantgate_replica WHERE {live} AND NOT ({behind})");
    let count: i64 = query(sql).bind(mark).fetch_one(link).await?.get("caught_up")?;
    Ok(u64::try_from(count).unwrap_or(0))
}

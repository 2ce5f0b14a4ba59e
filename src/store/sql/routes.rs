//! Reads and writes the rules of routes.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use uuid::Uuid;

use super::Sets;
use super::connection::{Link, query};
use super::row::SqlRow;
use super::value::SqlValue;
use crate::route::{RouteId, RouteRow};
use crate::store::{RoutesChange, StoreError};

const ROUTE: &str = "id, name, host, method, path, mode, scopes, shadow";

fn route_of(row: &SqlRow) -> Result<RouteRow, StoreError> {
    let (id, mode) = match row.id("id", "tenantgate_route") {
        Ok(id) => (id, row.get("mode")?),
        // The rule stays, under an id that stands for the text, without a mode: it is damaged, and no weaker rule wins.
        Err(StoreError::Inconsistent { row: text, .. }) => (stand_in(&text), String::new()),
        Err(error) => return Err(error),
    };
    Ok(RouteRow {
        id: RouteId(id),
        name: row.get("name")?,
        host: row.get("host")?,
        method: row.get("method")?,
        path: row.get("path")?,
        mode,
        scopes: row.get("scopes")?,
        shadow: row.get("shadow")?,
    })
}

/// Returns an id for a text that is not a UUID; the same one for the same text.
fn stand_in(text: &str) -> Uuid {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    Uuid::from_u64_pair(hasher.finish(), 0)
}

pub(in crate::store) async fn all(link: &mut Link<'_>) -> Result<Vec<RouteRow>, StoreError> {
    let sql = format!("SELECT {ROUTE} FROM tenantgate_route ORDER BY host, path, method, id");
    query(sql).fetch_all(link).await?.iter().map(route_of).collect()
}

pub(in crate::store) async fn find(link: &mut Link<'_>, id: RouteId) -> Result<Option<RouteRow>, StoreError> {
    let sql = format!("SELECT {ROUTE} FROM tenantgate_route WHERE id = $1");
    query(sql).bind(id.0).fetch_optional(link).await?.as_ref().map(route_of).transpose()
}

/// Reads the table and locks it against changes until the transaction ends.
pub(super) async fn to_change(link: &mut Link<'_>) -> Result<Vec<RouteRow>, StoreError> {
    if let Some(lock) = link.dialect().lock_routes {
        link.run(lock).await?;
    }
    all(link).await
}

pub(super) async fn write(link: &mut Link<'_>, change: &RoutesChange) -> Result<(), StoreError> {
    if !change.removed.is_empty() {
        let ids: Vec<_> = change.removed.iter().map(|route| route.id.0).collect();
        let sql = format!("DELETE FROM tenantgate_route WHERE id {}", link.dialect().any(1));
        query(sql).bind(ids).execute(link).await?;
    }
    // Names are unique. They are cleared first, because two rules may exchange their names.
    for (before, _) in change.changed.iter().filter(|(before, after)| before.name != after.name) {
        Sets::default().set("name", true, None::<&str>).run("tenantgate_route", before.id.0, link).await?;
    }
    for (before, after) in &change.changed {
        Sets::default()
            .set("name", before.name != after.name, &after.name)
            .set("mode", before.mode != after.mode, &after.mode)
            .set("scopes", before.scopes != after.scopes, &after.scopes)
            .set("shadow", before.shadow != after.shadow, after.shadow)
            .run("tenantgate_route", before.id.0, link)
            .await?;
    }
    if change.added.is_empty() {
        return Ok(());
    }
    let columns = ["id", "name", "host", "method", "path", "mode", "scopes", "shadow"];
    let values = |route: &RouteRow| -> [SqlValue; 8] {
        [
            route.id.0.into(),
            (&route.name).into(),
            (&route.host).into(),
            (&route.method).into(),
            (&route.path).into(),
            (&route.mode).into(),
            (&route.scopes).into(),
            route.shadow.into(),
        ]
    };
    link.insert("tenantgate_route", columns, change.added.iter().map(values).collect()).await
}

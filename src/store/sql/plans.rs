//! Reads and writes plans.

use std::collections::BTreeMap;

use super::Sets;
use super::connection::{Link, Query, query};
use super::row::SqlRow;
use crate::audit::{Action, Draft};
use crate::plan::{LimitKind, PlanRow};
use crate::store::{Check, PlanChange, PlanUses, StoreError};

const PLAN: &str = "name, request_limit, total_limit, input_limit, output_limit";

fn plan_of(row: &SqlRow) -> Result<PlanRow, StoreError> {
    let [request, total, input, output] = LimitKind::ALL.map(|counted| row.get(counted.as_str()));
    Ok(PlanRow { name: row.get("name")?, limits: [request?, total?, input?, output?] })
}

/// Returns a plan in the audit log: its name and the limits that are set, by column.
fn shown(plan: &PlanRow) -> BTreeMap<&'static str, &str> {
    let limits = LimitKind::ALL.iter().zip(&plan.limits);
    let limits = limits.filter_map(|(counted, limit)| Some((counted.as_str(), limit.as_deref()?)));
    limits.chain([("name", plan.name.as_str())]).collect()
}

pub(in crate::store) async fn all(link: &mut Link<'_>) -> Result<Vec<PlanRow>, StoreError> {
    let sql = format!("SELECT {PLAN} FROM tenantgate_plan ORDER BY name");
    query(sql).fetch_all(link).await?.iter().map(plan_of).collect()
}

pub(in crate::store) async fn find(link: &mut Link<'_>, name: &str) -> Result<Option<PlanRow>, StoreError> {
    let sql = format!("SELECT {PLAN} FROM tenantgate_plan WHERE name = $1");
    query(sql).bind(name).fetch_optional(link).await?.as_ref().map(plan_of).transpose()
}

pub(super) async fn insert(link: &mut Link<'_>, plan: &PlanRow) -> Result<Draft, StoreError> {
    let sql = format!("INSERT INTO tenantgate_plan ({PLAN}) VALUES ($1, $2, $3, $4, $5)");
    let query = plan.limits.iter().fold(query(sql).bind(&plan.name), Query::bind);
    query.execute(link).await?;
    Ok(Draft::of(Action::PlanCreate, plan.name.clone(), None::<&()>, &shown(plan)))
}

/// Reads a plan and locks its row until the transaction ends.
async fn to_change(link: &mut Link<'_>, name: &str) -> Result<Option<PlanRow>, StoreError> {
    let sql = format!("SELECT {PLAN} FROM tenantgate_plan WHERE name = $1{}", link.dialect().lock);
    query(sql).bind(name).fetch_optional(link).await?.as_ref().map(plan_of).transpose()
}

pub(super) async fn change(
    link: &mut Link<'_>,
    name: &str,
    make: PlanChange<'_>,
) -> Result<Option<(PlanRow, Option<Draft>)>, StoreError> {
    let Some(before) = to_change(link, name).await? else { return Ok(None) };
    let mut after = before.clone();
    make(&mut after)?;
    let changed = LimitKind::ALL.iter().zip(&before.limits).zip(&after.limits);
    let sets =
        changed.fold(Sets::default(), |sets, ((counted, was), is)| sets.set(counted.as_str(), was != is, is));
    sets.run_where("tenantgate_plan", "name", name, link).await?;
    let draft = Draft::of(Action::PlanUpdate, after.name.clone(), Some(&shown(&before)), &shown(&after));
    let draft = (before != after).then_some(draft);
    Ok(Some((after, draft)))
}

pub(super) async fn uses(link: &mut Link<'_>, name: &str) -> Result<PlanUses, StoreError> {
    let sql = "SELECT (SELECT count(*) FROM tenants WHERE plan = $1) AS tenants,
                      (SELECT count(*) FROM api_keys WHERE plan = $1) AS keys";
    let row = query(sql).bind(name).fetch_one(link).await?;
    Ok(PlanUses { tenants: row.get("tenants")?, keys: row.get("keys")? })
}

pub(super) async fn delete(
    link: &mut Link<'_>,
    name: &str,
    check: Check<'_, PlanRow>,
) -> Result<Option<(PlanRow, Draft)>, StoreError> {
    let Some(plan) = to_change(link, name).await? else { return Ok(None) };
    check(&plan)?;
    query("DELETE FROM tenantgate_plan WHERE name = $1").bind(name).execute(link).await?;
    let draft = Draft::of_removed(Action::PlanDelete, plan.name.clone(), &shown(&plan));
    Ok(Some((plan, draft)))
}

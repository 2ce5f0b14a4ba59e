//! The handlers of usage.

use axum::extract::{Path, RawQuery, State};
use axum::{Extension, Json};

use super::seen_by;
use crate::admin::Admin;
use crate::admin::view::UsageView;
use crate::clock::{MICROS_PER_DAY, Timestamp};
use crate::permission::{About, Permission, Reach};
use crate::server::manage::access::check;
use crate::server::manage::problem::{FieldError, Problem};
use crate::server::manage::query::{ListPage, ListQuery};
use crate::server::manage::{CallerExtension, JsonResult, PlaneState};
use crate::store::{UsageBy, UsageFilter, UsagePart, UsageRow};

const DAYS: i64 = 30;

/// Counts the requests of all keys that the caller may see, by day, key or reason.
pub(in crate::server::manage) async fn usage(
    State(plane): PlaneState,
    Extension(caller): CallerExtension,
    RawQuery(query): RawQuery,
) -> JsonResult<ListPage<UsageView>> {
    check(&caller, Permission::UsageRead, About::Shared)?;
    let query = ListQuery::read(query.as_deref(), "usage", &["from", "to", "group_by", "tenant", "key"])?;
    let admin = seen_by(&plane, &caller);
    let mut filter = filter(&query, admin.now(), caller.creator.authority.reach.clone())?;
    if let Some(reference) = query.filter(3) {
        filter.tenant = Some(admin.tenant_by_id(reference).await?.id);
    }
    if let Some(reference) = query.filter(4) {
        filter.key = Some(admin.key(reference).await?.id);
    }
    part(&admin, &query, filter).await
}

/// Counts the requests of one key.
pub(in crate::server::manage) async fn usage_of_key(
    State(plane): PlaneState,
    Extension(caller): CallerExtension,
    Path(reference): Path<String>,
    RawQuery(query): RawQuery,
) -> JsonResult<ListPage<UsageView>> {
    check(&caller, Permission::UsageRead, About::Shared)?;
    let list = format!("usage of {reference}");
    let query = ListQuery::read(query.as_deref(), &list, &["from", "to", "group_by"])?;
    let admin = seen_by(&plane, &caller);
    let mut filter = filter(&query, admin.now(), caller.creator.authority.reach.clone())?;
    filter.key = Some(admin.key(&reference).await?.id);
    part(&admin, &query, filter).await
}

fn filter(query: &ListQuery, now: Timestamp, reach: Reach) -> Result<UsageFilter, Problem> {
    let mut errors = Vec::new();
    let mut day = |at: usize, name: &str, default: Timestamp| {
        let Some(text) = query.filter(at) else { return default };
        let midnight = (text.len() == "2026-01-31".len()).then(|| format!("{text}T00:00:00Z"));
        midnight.and_then(|text| Timestamp::parse_rfc_3339(&text)).unwrap_or_else(|| {
            let why = "expected a day (UTC), such as 2027-01-31";
            errors.push(FieldError::new(format!("/{name}"), "invalid_value", why));
            default
        })
    };
    let to = day(1, "to", now);
    let from = day(0, "from", Timestamp(to.0 - (DAYS - 1) * MICROS_PER_DAY));
    let by = match query.filter(2) {
        None | Some("day") => UsageBy::Day,
        Some("key") => UsageBy::Key,
        Some("reason") => UsageBy::Reason,
        Some(_) => {
            let why = "expected one of day, reason, key";
            errors.push(FieldError::new("/group_by".into(), "invalid_value", why));
            UsageBy::Day
        }
    };
    if from > to {
        errors.push(FieldError::new("/from".into(), "invalid_value", "it must not be after `to`"));
    }
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    let after = query.after().map(str::to_owned);
    let part = Some(UsagePart { after, rows: query.size() + 1 });
    Ok(UsageFilter { from, to, tenant: None, key: None, reach, by, part, busiest: None })
}

async fn part(admin: &Admin, query: &ListQuery, filter: UsageFilter) -> JsonResult<ListPage<UsageView>> {
    let fine = match (filter.by, query.after()) {
        (_, None) | (UsageBy::Reason, _) => true,
        (UsageBy::Key, Some(id)) => uuid::Uuid::parse_str(id).is_ok(),
        (UsageBy::Day, Some(day)) => Timestamp::parse_rfc_3339(&format!("{day}T00:00:00Z")).is_some(),
    };
    if !fine {
        return Err(query.bad_token());
    }
    let by = filter.by;
    let mut rows = admin.counted(&filter).await?;
    let more = rows.len() > query.size();
    rows.truncate(query.size());
    let place = |row: &UsageRow| match by {
        UsageBy::Day => row.day.clone(),
        UsageBy::Reason => row.reason.clone(),
        UsageBy::Key => row.key.map(|key| key.0.to_string()),
    };
    let next = rows.last().filter(|_| more).and_then(place);
    Ok(Json(query.part(rows.into_iter().map(UsageView::from).collect(), next.as_deref())))
}

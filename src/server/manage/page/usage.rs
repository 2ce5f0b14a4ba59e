//! The screen of usage: requests by day, by reason and by key.

use axum::Extension;
use axum::extract::RawQuery;
use maud::{Markup, html};

use super::chart::{ByDay, DAYS, add, bars, reasons, start};
use super::failure::PageFailure;
use super::form::Form;
use super::layout::{NavEntry, page};
use super::parts::{number, table, tenant_choice};
use super::visit::{Visitor, VisitorExtension};
use crate::permission::{About, Permission, Reach};
use crate::store::DayCount;
use crate::tenant::Tenant;

/// The number of keys that are shown.
const BUSIEST: usize = 10;

/// Shows requests by day and reason and the busiest keys, of all tenants that the visitor may see or of one. Needs
/// `usage:read`.
pub(super) async fn show(
    Extension(visitor): VisitorExtension,
    RawQuery(query): RawQuery,
) -> Result<Markup, PageFailure> {
    visitor.check(Permission::UsageRead, About::Shared)?;
    let query = Form::read(query.unwrap_or_default());
    let reach = &visitor.caller.creator.authority.reach;
    let tenant = match query.get("tenant") {
        None => None,
        Some(name) => Some(visitor.admin.tenant_by_id(name).await?),
    };
    let counts = match &tenant {
        Some(tenant) => visitor.admin.requests_of_tenant(tenant.id, DAYS).await?,
        None => visitor.admin.requests_by_day(reach, DAYS).await?,
    };
    let (days, by_reason) = added_up(&counts);
    let keys = busiest(&visitor, tenant.as_ref()).await?;
    let body = html! {
        h1 { "Usage" }
        (choice(&visitor, &query).await?)
        section.card aria-labelledby="days" {
            h2 #days { "Requests by day" span.muted { " (UTC)" } }
            (bars(&days, visitor.admin.now()))
        }
        div.columns {
            @if !by_reason.is_empty() {
                section.card aria-labelledby="reasons" {
                    h2 #reasons { "By reason" }
                    (reasons(&by_reason))
                }
            }
            @if let Some(keys) = keys { (keys) }
        }
    };
    Ok(page(&visitor, NavEntry::Usage, "Usage", &body))
}

async fn choice(visitor: &Visitor, query: &Form) -> Result<Markup, PageFailure> {
    if !visitor.may(Permission::TenantsRead, About::Shared) {
        return Ok(html! {});
    }
    let tenants = tenant_choice(visitor, query).await?;
    Ok(html! {
        form.filters {
            (tenants)
            button type="submit" { "Show" }
        }
    })
}

/// Sums the requests by day, and by reason with the most frequent first.
fn added_up(counts: &[DayCount]) -> (ByDay, Vec<(String, u64)>) {
    let (mut days, mut reasons) = (ByDay::new(), std::collections::BTreeMap::<String, u64>::new());
    for count in counts {
        add(&mut days, &count.day, &count.reason, count.requests);
        *reasons.entry(count.reason.clone()).or_default() += count.requests;
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by(|(one, few), (other, many)| many.cmp(few).then(one.cmp(other)));
    (days, reasons)
}

/// Renders the busiest keys; `None` if the visitor may not see all keys that are counted.
async fn busiest(visitor: &Visitor, tenant: Option<&Tenant>) -> Result<Option<Markup>, PageFailure> {
    let sees_all = tenant.is_some() || visitor.caller.creator.authority.reach == Reach::All;
    if !sees_all || !visitor.may(Permission::KeysRead, About::Shared) {
        return Ok(None);
    }
    let since = start(visitor.admin.now());
    let rows = visitor.admin.busiest_keys(tenant.map(|tenant| tenant.id), since, BUSIEST).await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let rows = html! {
        @for row in &rows {
            @let prefix = row.key_prefix.as_deref().unwrap_or_default();
            tr {
                th scope="row" { a href={ "/keys/" (prefix) } { code { (prefix) } } }
                td.number { (number(row.requests)) }
            }
        }
    };
    Ok(Some(html! {
        section.card aria-labelledby="busiest" {
            h2 #busiest { "Busiest keys" }
            (table("Busiest keys", &["Key", "#Requests"], &rows))
        }
    }))
}

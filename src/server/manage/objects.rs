//! The handlers that read tenants, plans, routes and management keys, as in `-o json` of the command line.

use axum::extract::{Path, RawQuery, State};
use axum::{Extension, Json};
use serde::Serialize;
use uuid::Uuid;

use super::access::check;
use super::precondition::Tagged;
use super::problem::Problem;
use super::query::{ListPage, ListQuery, no_parameters};
use super::reading::{place, seen_by};
use super::{CallerExtension, JsonResult, PlaneState};
use crate::admin::view::{AdminKeyView, PlanView, TenantView, UsedPlanView};
use crate::admin::{ListedAdminKey, RouteView, version};
use crate::permission::{About, Permission};
use crate::plan::PlanName;
use crate::store::{TenantFilter, TenantPlace};
use crate::tenant::TenantId;

/// An object with its version, or a problem.
type FoundVersion<T> = Result<Tagged<T>, Problem>;

/// The caller and its current authority, which is less than was granted if the key that created it has less.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct WhoView {
    /// `null` for a trusted user of this machine, who has no key.
    id: Option<String>,
    key_prefix: Option<String>,
    name: String,
    permissions: Vec<&'static str>,
    tenants: Option<Vec<String>>,
    expires_at: Option<String>,
}

/// Returns the caller and its current authority. Needs no permission.
pub(super) async fn whoami(
    Extension(caller): CallerExtension,
    RawQuery(query): RawQuery,
) -> JsonResult<WhoView> {
    no_parameters(query.as_deref())?;
    let (key, authority) = (&caller.key, &caller.creator.authority);
    Ok(Json(WhoView {
        id: caller.creator.id.map(|id| id.0.to_string()),
        key_prefix: caller.creator.id.map(|_| key.prefix.clone()),
        name: key.name.clone(),
        permissions: authority.permissions.iter().map(Permission::as_str).collect(),
        tenants: crate::admin::view::tenants(&authority.reach),
        expires_at: authority.expires_at.map(|at| at.to_string()),
    }))
}

/// Lists the tenants that the caller may see, oldest first. Needs `tenants:read`.
pub(super) async fn tenants(
    State(plane): PlaneState,
    Extension(caller): CallerExtension,
    RawQuery(query): RawQuery,
) -> JsonResult<ListPage<TenantView>> {
    check(&caller, Permission::TenantsRead, About::Shared)?;
    let query = ListQuery::read(query.as_deref(), "tenants", &["name"])?;
    let admin = seen_by(&plane, &caller);
    let filter = TenantFilter { name: query.filter(0).map(str::to_owned), ..TenantFilter::default() };
    let after = query.after().map(|text| place(&admin, text).ok_or_else(|| query.bad_token())).transpose()?;
    let after = after.map(|(created_at, id)| TenantPlace { created_at, id: TenantId(id) });
    let part = admin.tenants_by_creation(&filter, after.as_ref(), query.size()).await?;
    let next = part.next.map(|place| format!("{} {}", place.created_at, place.id.0));
    Ok(Json(query.part(part.tenants.iter().map(TenantView::from).collect(), next.as_deref())))
}

/// Returns a tenant by id or schema. Needs `tenants:read`; 404 also for a tenant that the caller may not see.
pub(super) async fn tenant(
    State(plane): PlaneState,
    Extension(caller): CallerExtension,
    Path(reference): Path<String>,
    RawQuery(query): RawQuery,
) -> FoundVersion<TenantView> {
    check(&caller, Permission::TenantsRead, About::Shared)?;
    no_parameters(query.as_deref())?;
    let found = seen_by(&plane, &caller).tenant_by_id(&reference).await?;
    check(&caller, Permission::TenantsRead, About::Tenant(found.id))?;
    Ok(Tagged((&found).into(), version::of_tenant(&found)))
}

/// Lists all plans by name. Needs `plans:read`.
pub(super) async fn plans(
    State(plane): PlaneState,
    Extension(caller): CallerExtension,
    RawQuery(query): RawQuery,
) -> JsonResult<ListPage<PlanView>> {
    check(&caller, Permission::PlansRead, About::Shared)?;
    let query = ListQuery::read(query.as_deref(), "plans", &[])?;
    let all = plane.admin.plans().await?;
    Ok(Json(query.page(all.iter().map(|plan| (plan.name.clone(), plan.into())).collect())))
}

/// Returns a plan and the numbers of its tenants and keys. Needs `plans:read`.
pub(super) async fn plan(
    State(plane): PlaneState,
    Extension(caller): CallerExtension,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> FoundVersion<UsedPlanView> {
    check(&caller, Permission::PlansRead, About::Shared)?;
    no_parameters(query.as_deref())?;
    let name = PlanName::parse(&name).map_err(|_| Problem::not_found())?;
    let (plan, uses) = plane.admin.plan(&name).await.map_err(Problem::of_missing)?;
    Ok(Tagged(UsedPlanView::new(&plan, uses), version::of_plan(&plan)))
}

/// Lists all rules by host, path and method. Needs `routes:read`; the `ETag` is that of the whole table.
pub(super) async fn routes(
    State(plane): PlaneState,
    Extension(caller): CallerExtension,
    RawQuery(query): RawQuery,
) -> FoundVersion<ListPage<RouteView>> {
    check(&caller, Permission::RoutesRead, About::Shared)?;
    let query = ListQuery::read(query.as_deref(), "routes", &[])?;
    let rules = plane.admin.routes().await?;
    // In the order of `route list`.
    let rows = rules.iter().map(|rule| {
        let order = format!("{} {} {} {}", rule.host, rule.path, rule.method, rule.id.0);
        (order, RouteView::from(rule))
    });
    // The version is that of the whole table, even if this is one page of it, because PUT replaces the whole table.
    Ok(Tagged(query.page(rows.collect()), version::of_routes(&rules)))
}

/// Returns a rule by id. Needs `routes:read`.
pub(super) async fn route(
    State(plane): PlaneState,
    Extension(caller): CallerExtension,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> FoundVersion<RouteView> {
    check(&caller, Permission::RoutesRead, About::Shared)?;
    no_parameters(query.as_deref())?;
    let id = Uuid::parse_str(&id).map_err(|_| Problem::not_found())?;
    let rules = plane.admin.routes().await?;
    let found = rules.iter().find(|rule| rule.id.0 == id).ok_or_else(Problem::not_found)?;
    Ok(Tagged(found.into(), version::of_route(found)))
}

/// Lists the management keys that have no more authority than the caller, oldest first. Needs `admin_keys:read`.
pub(super) async fn admin_keys(
    State(plane): PlaneState,
    Extension(caller): CallerExtension,
    RawQuery(query): RawQuery,
) -> JsonResult<ListPage<AdminKeyView>> {
    check(&caller, Permission::AdminKeysRead, About::Shared)?;
    let query = ListQuery::read(query.as_deref(), "admin_keys", &[])?;
    let keys = plane.admin.admin_keys(&caller.creator).await?;
    let order = |listed: &ListedAdminKey| format!("{} {}", listed.key.created_at, listed.key.id.0);
    Ok(Json(query.page(keys.iter().map(|listed| (order(listed), listed.into())).collect())))
}

/// Returns a management key by id or prefix. Needs `admin_keys:read`; 404 also for a key that has more authority than
/// the caller.
pub(super) async fn admin_key(
    State(plane): PlaneState,
    Extension(caller): CallerExtension,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> FoundVersion<AdminKeyView> {
    check(&caller, Permission::AdminKeysRead, About::Shared)?;
    no_parameters(query.as_deref())?;
    let uuid = Uuid::parse_str(&id).ok();
    let named = |listed: &&ListedAdminKey| Some(listed.key.id.0) == uuid || listed.key.prefix == id;
    let keys = plane.admin.admin_keys(&caller.creator).await?;
    let found = keys.iter().find(named).ok_or_else(Problem::not_found)?;
    Ok(Tagged(found.into(), version::of_admin_key(&found.key)))
}

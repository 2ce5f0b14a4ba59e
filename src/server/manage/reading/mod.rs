//! The handlers that read keys, usage, the audit log and servers.

mod asked;
mod audit;
mod keys;
mod usage;

use axum::Json;
use axum::extract::{RawQuery, State};
use serde::Serialize;

pub use self::asked::{ExplainFn, ExplainedRequest};
pub(super) use self::asked::{explain, test_route};
pub(super) use self::audit::audit;
pub(super) use self::keys::place;
pub(super) use self::keys::{ImpactView, impact, key, keys, keys_of_tenant};
pub(super) use self::usage::{usage, usage_of_key};
use super::query::{ListPage, ListQuery};
use super::{JsonResult, Plane, PlaneState};
use crate::admin::{Admin, Caller, ChangeOrigin};

/// Returns the use cases as the caller sees them.
pub(super) fn seen_by(plane: &Plane, caller: &Caller) -> Admin {
    plane.admin.on_behalf(caller, &ChangeOrigin::default())
}

/// A server that has announced itself.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct ReplicaView {
    id: String,
    name: String,
    seen_at: String,
    /// When the server stops accepting keys, unless it polls the database again.
    serves_until: String,
}

/// Lists the servers, ordered by name. Needs no permission.
pub(super) async fn replicas(
    State(plane): PlaneState,
    RawQuery(query): RawQuery,
) -> JsonResult<ListPage<ReplicaView>> {
    let query = ListQuery::read(query.as_deref(), "replicas", &[])?;
    let views = plane.admin.replicas().await?.into_iter().map(|replica| {
        let view = ReplicaView {
            id: replica.id.to_string(),
            name: replica.name,
            seen_at: replica.seen_at.to_string(),
            serves_until: replica.serves_until.to_string(),
        };
        (format!("{} {}", view.name, view.id), view)
    });
    Ok(Json(query.page(views.collect())))
}

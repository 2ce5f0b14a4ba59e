//! Checks what a proven key may do.
//!
//! Profiles, plans and rules were parsed when the snapshot was built, so this only looks them up. The client's
//! address is parsed only for keys that have networks.

use std::net::IpAddr;

use crate::decision::Access;
use crate::network::Networks;
use crate::plan::PlanName;
use crate::policy::Routing;
use crate::replica::{Interned, KeyEntry, PlanEntry, ResponseParts, Snapshot};
use crate::scope::{Granted, Scopes};
use crate::tenant::Tenant;

/// The data for the response to a proven key that is not in its row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms<'v> {
    /// The granted scopes; `None` grants everything.
    pub scopes: Option<&'v Scopes>,
    /// Its plan, or else its tenant's.
    pub plan: Option<&'v PlanEntry>,
    /// The cached response fragment for the scopes, if there is one.
    pub cache: Option<&'v ResponseParts<1>>,
    /// The name of the route.
    pub route: Option<&'v str>,
}

/// Checks a key against its profile and the rule of the request. Also returns its terms.
#[must_use]
pub fn access<'v>(
    snapshot: &'v Snapshot,
    routing: &Routing<'v>,
    (entry, tenant): (&KeyEntry, Option<&'v Tenant>),
    address: &dyn Fn() -> Option<IpAddr>,
) -> (Access<'v>, Terms<'v>) {
    let interned = snapshot.profile(entry.profile());
    let Ok(profile) = interned.profile() else {
        let access = Access { sound: false, rule: routing.rule, ..Access::FREE };
        return (access, Terms { route: routing.name(), ..Terms::default() });
    };
    let named = profile.plan.as_ref().map(PlanName::as_str);
    let named = named.or_else(|| tenant.and_then(|tenant| tenant.plan.as_deref()));
    let plan = named.map(|name| snapshot.plan(name).filter(|plan| plan.plan().is_ok()));
    let here = |networks: &Networks| address().is_some_and(|address| networks.contains(address));
    let access = Access {
        sound: plan.is_none_or(|plan| plan.is_some()),
        from_here: profile.networks.as_ref().is_none_or(here),
        rule: routing.rule,
        lacking: routing.lacking(granted(interned)),
    };
    let (scopes, cache) = (profile.scopes.as_ref(), Some(interned.responses()));
    (access, Terms { scopes, cache, plan: plan.flatten(), route: routing.name() })
}

fn granted(interned: &Interned) -> Option<(&Scopes, &Granted)> {
    interned.profile().ok()?.scopes.as_ref().zip(interned.granted())
}

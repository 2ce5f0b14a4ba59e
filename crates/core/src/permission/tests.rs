//! Tests of the authority of management keys.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::clock::Timestamp;

const NOW: Timestamp = Timestamp(1_000);

fn tenant(number: u128) -> TenantId {
    TenantId(Uuid::from_u128(number))
}

fn some(tenants: &[u128]) -> Reach {
    Reach::Some(tenants.iter().copied().map(tenant).collect())
}

fn authority_of(permissions: &str, reach: Reach, expires_at: Option<i64>) -> Authority {
    let permissions = Permissions::parse(permissions).unwrap();
    Authority { permissions, reach, expires_at: expires_at.map(Timestamp) }
}

fn key(id: u128, creator: Option<u128>, given: Authority) -> AdminKey {
    AdminKey {
        id: AdminKeyId(Uuid::from_u128(id)),
        prefix: format!("llma_{id}"),
        name: id.to_string(),
        given,
        created_by: creator.map(|id| AdminKeyId(Uuid::from_u128(id))),
        created_at: Timestamp(0),
        last_used_at: None,
        revoked_at: None,
    }
}

#[test]
fn names_are_parsed_from_their_text() {
    for permission in Permission::ALL {
        assert_eq!(Permission::parse(permission.as_str()), Ok(permission));
        assert_eq!(Permissions::parse(permission.as_str()), Ok(Permissions::of(&[permission])));
    }
    for role in Role::ALL {
        assert_eq!(Role::parse(role.as_str()), Ok(role));
        assert_eq!(Permissions::parse(&role.permissions().to_string()), Ok(role.permissions()));
    }
    assert!(
        Permission::parse("keys:*")
            .unwrap_err()
            .to_string()
            .contains("tenants:read, tenants:write, keys:read")
    );
    let both = Permissions::of(&[Permission::KeysWrite, Permission::KeysRead]);
    assert_eq!(
        (both.to_string(), format!("{both:?}")),
        ("keys:read keys:write".into(), "{KeysRead, KeysWrite}".into())
    );
    assert_eq!(Permissions::parse(" keys:read\tkeys:write keys:read "), Ok(both));
    assert!(Role::parse("root").is_err() && Permissions::parse("keys:read,keys:write").is_err());
}

#[test]
fn roles_have_these_permissions() {
    let names = |role: Role| role.permissions().to_string();
    assert_eq!(names(Role::Viewer), "tenants:read keys:read routes:read plans:read usage:read audit:read");
    assert_eq!(
        names(Role::Operator),
        "tenants:read tenants:write keys:read keys:write keys:revoke routes:read routes:write plans:read plans:write \
         usage:read audit:read"
    );
    assert_eq!(names(Role::Owner), names(Role::Operator) + " admin_keys:read admin_keys:write");
}

#[test]
fn requests_are_allowed_by_permission_and_visible_tenants() {
    use Permission::{KeysRead, KeysRevoke, PlansRead, PlansWrite, RoutesWrite, TenantsWrite};
    use Permitted::{Lacks, NotThere, OnlyForAllTenants, Yes};
    let all = authority_of("keys:read plans:write routes:write tenants:write", Reach::All, None);
    let few = Authority { reach: some(&[1]), ..all.clone() };
    let none = Authority { reach: some(&[]), ..all.clone() };
    let (own, foreign) = (About::Tenant(tenant(1)), About::Tenant(tenant(2)));
    for (who, what, about, verdict) in [
        (&all, KeysRead, own, Yes),
        (&all, KeysRead, foreign, Yes),
        (&all, KeysRevoke, own, Lacks(KeysRevoke)),
        (&all, PlansWrite, About::Shared, Yes),
        (&all, TenantsWrite, About::NewTenant, Yes),
        (&all, PlansRead, About::Shared, Lacks(PlansRead)),
        (&few, KeysRead, own, Yes),
        (&few, KeysRead, foreign, NotThere),
        (&few, KeysRead, About::Shared, Yes),
        // Without the permission, the verdict does not reveal whether the key sees the tenant.
        (&few, KeysRevoke, foreign, Lacks(KeysRevoke)),
        (&few, PlansWrite, About::Shared, OnlyForAllTenants(PlansWrite)),
        (&few, RoutesWrite, About::Shared, OnlyForAllTenants(RoutesWrite)),
        (&few, TenantsWrite, own, Yes),
        (&few, TenantsWrite, foreign, NotThere),
        (&few, TenantsWrite, About::NewTenant, OnlyForAllTenants(TenantsWrite)),
        (&none, KeysRead, own, NotThere),
        (&none, KeysRead, About::Shared, Yes),
    ] {
        assert_eq!(may(who, what, about), verdict, "{who:?} {what:?} {about:?}");
    }
}

#[test]
fn a_key_ends_when_any_of_its_creators_ends() {
    let given = authority_of("keys:read", Reach::All, None);
    let chain =
        || vec![key(3, Some(2), given.clone()), key(2, Some(1), given.clone()), key(1, None, given.clone())];
    assert_eq!(authority(&chain(), NOW), Ok(given.clone()));
    for (at, own) in [(0, true), (1, false), (2, false)] {
        let mut revoked = chain();
        revoked[at].revoked_at = Some(Timestamp(1));
        let ended = authority(&revoked, NOW).unwrap_err();
        assert_eq!(ended, if own { Ended::Revoked } else { Ended::WithItsCreator });
        let mut expired = chain();
        expired[at].given.expires_at = Some(NOW);
        let ended = authority(&expired, NOW).unwrap_err();
        assert_eq!(ended, if own { Ended::Expired } else { Ended::WithItsCreator });
    }
    for gap in [1, 2] {
        let mut chain = chain();
        chain.remove(gap);
        assert_eq!(authority(&chain, NOW), Err(Ended::WithItsCreator));
    }
    assert_eq!(authority(&[], NOW), Err(Ended::WithItsCreator));
    let names = [Ended::Revoked, Ended::Expired, Ended::WithItsCreator].map(Ended::as_str);
    assert_eq!(names, ["revoked", "expired", "ended_with_maker"]);
}

#[test]
fn a_key_has_at_most_the_current_authority_of_its_creators() {
    let child = key(2, Some(1), authority_of("keys:read keys:write", some(&[1, 2]), Some(3_000)));
    let creator = key(1, None, authority_of("keys:read tenants:read", some(&[2, 3]), Some(2_000)));
    assert_eq!(authority(&[child, creator], NOW), Ok(authority_of("keys:read", some(&[2]), Some(2_000))));
}

#[test]
fn a_key_delegates_at_most_its_own_authority() {
    let creator = authority_of("keys:read keys:write admin_keys:write", some(&[1, 2]), Some(5_000));
    let write = Permissions::of(&[Permission::PlansWrite]);
    for (wish, excess) in [
        (creator.clone(), vec![]),
        (authority_of("keys:read", some(&[1]), Some(4_000)), vec![]),
        (authority_of("keys:read plans:write", some(&[1]), Some(5_000)), vec![Excess::Permissions(write)]),
        (authority_of("keys:read", some(&[3]), Some(5_000)), vec![Excess::Tenants]),
        (authority_of("keys:read", Reach::All, Some(5_000)), vec![Excess::Tenants]),
        (authority_of("keys:read", some(&[1]), Some(5_001)), vec![Excess::Expiry(Timestamp(5_000))]),
        (
            authority_of("plans:write", Reach::All, None),
            vec![Excess::Permissions(write), Excess::Tenants, Excess::Expiry(Timestamp(5_000))],
        ),
    ] {
        assert_eq!(delegate(&creator, &wish), excess, "{wish:?}");
    }
    assert!(delegate(&Authority::whole(), &creator).is_empty());
    assert!(delegate(&Authority::whole(), &Authority::whole()).is_empty());
}

#[test]
fn a_key_may_not_touch_keys_with_more_authority() {
    let ours = authority_of("keys:read keys:write", some(&[1, 2]), Some(5_000));
    assert!(may_touch(&ours, &ours));
    assert!(may_touch(&ours, &authority_of("keys:read", some(&[1]), None)));
    assert!(!may_touch(&ours, &authority_of("keys:revoke", some(&[1]), None)));
    assert!(!may_touch(&ours, &authority_of("keys:read", some(&[3]), None)));
    assert!(!may_touch(&ours, &authority_of("keys:read", Reach::All, None)));
}

fn any_authority() -> impl Strategy<Value = Authority> {
    let reach = prop::option::of(prop::collection::btree_set(0_u128..4, 0..4));
    (0_u16..1 << Permission::ALL.len(), reach, prop::option::of(1_i64..5)).prop_map(|(bits, reach, end)| {
        let reach = reach.map_or(Reach::All, |all| Reach::Some(all.into_iter().map(tenant).collect()));
        Authority { permissions: Permissions(bits), reach, expires_at: end.map(Timestamp) }
    })
}

proptest! {
    /// No key may do what one of its creators may not, whatever the keys of the chain were created with.
    #[test]
    fn no_chain_adds_authority(chain in prop::collection::vec(any_authority(), 1..5), about in 0_u128..5) {
        let last = chain.len() - 1;
        let keys: Vec<_> = chain.iter().enumerate().map(|(at, given)| {
            key(at as u128, (at < last).then_some(at as u128 + 1), given.clone())
        }).collect();
        let have = authority(&keys, Timestamp(0)).unwrap();
        let about = if about == 4 { About::NewTenant } else { About::Tenant(tenant(about)) };
        for permission in Permission::ALL {
            if may(&have, permission, about) == Permitted::Yes {
                for given in &chain {
                    prop_assert_eq!(may(given, permission, about), Permitted::Yes);
                    prop_assert!(delegate(given, &have).is_empty());
                }
            }
        }
    }
}

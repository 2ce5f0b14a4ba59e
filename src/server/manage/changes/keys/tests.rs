//! Tests that changes of keys follow merge patch (RFC 7396).

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::record::KeyTerms;
use crate::tenant::TenantId;

/// Applies a merge patch as in RFC 7396, section 2.
fn merged(target: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut object = if let Value::Object(object) = target { object } else { Map::new() };
    for (name, value) in patch {
        if value.is_null() {
            object.remove(name);
        } else {
            let before = object.remove(name).unwrap_or_default();
            object.insert(name.clone(), merged(before, value));
        }
    }
    Value::Object(object)
}

fn key() -> KeyDetails {
    KeyDetails {
        id: KeyId(uuid::Uuid::nil()),
        prefix: "llmk_a".into(),
        name: None,
        tenant_id: TenantId(uuid::Uuid::nil()),
        created_at: Timestamp(0),
        expires_at: None,
        last_used_at: None,
        revoked_at: None,
        revocation_reason: None,
        replaced_by: None,
        memo: None,
        disabled_at: None,
        terms: KeyTerms::default(),
        unreadable: None,
    }
}

/// The fields of a key that a patch can change, without those that are not set.
fn shown(key: &KeyDetails) -> Value {
    let whole = serde_json::to_value(KeyView::at(key, Timestamp(0))).unwrap();
    let fields = ["name", "expires_at", "not_before", "scopes", "networks", "plan", "labels"];
    let set = fields.iter().map(|name| ((*name).to_owned(), whole[*name].clone()));
    Value::Object(set.filter(|(_, value)| !value.is_null()).collect())
}

fn patched(key: &mut KeyDetails, patch: Value) -> Result<(), Problem> {
    let mut fields = Fields::of(patch)?;
    let update = update(&mut fields);
    fields.finish()?;
    update.apply(key, Timestamp(0)).map_err(|_| Problem::not_found())
}

fn patch() -> impl Strategy<Value = Value> {
    static INSTANTS: [&str; 2] = ["2030-01-01T00:00:00.000000Z", "2031-05-06T07:08:09.123456Z"];
    static LATER: [&str; 2] = ["2040-01-01T00:00:00.000000Z", "2041-05-06T07:08:09.123456Z"];
    let or_null = |values: &'static [&'static str]| {
        prop_oneof![Just(Value::Null), prop::sample::select(values).prop_map(Value::from)]
    };
    let labels = prop::collection::btree_map("[a-c]", or_null(&["1", "2", ""]), 0..4);
    let labels = labels.prop_map(|members| Value::Object(members.into_iter().collect()));
    let fields = (
        prop::option::of(or_null(&["a", "Söhne"])),
        prop::option::of(prop_oneof![
            Just(Value::Null),
            prop::sample::select(&LATER[..]).prop_map(Value::from)
        ]),
        prop::option::of(prop_oneof![
            Just(Value::Null),
            prop::sample::select(&INSTANTS[..]).prop_map(Value::from)
        ]),
        prop::option::of(or_null(&["", "a b.*", "x:y"])),
        prop::option::of(or_null(&["192.0.2.0/24", "2001:db8::/32 192.0.2.1/32"])),
        prop::option::of(or_null(&["gold", "blue"])),
        prop::option::of(prop_oneof![Just(Value::Null), labels]),
    );
    fields.prop_map(|(name, expires_at, not_before, scopes, networks, plan, labels)| {
        let names = ["name", "expires_at", "not_before", "scopes", "networks", "plan", "labels"];
        let values = [name, expires_at, not_before, scopes, networks, plan, labels];
        let said = names.into_iter().zip(values).filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Value::Object(said.collect())
    })
}

proptest! {
    /// After any sequence of patches, the key is as the standard defines.
    #[test]
    fn changes_are_merge_patches(patches in prop::collection::vec(patch(), 1..6)) {
        let mut key = key();
        for patch in patches {
            let mut wanted = merged(shown(&key), &patch);
            // A key without labels shows none, which means the same as an empty object.
            if wanted["labels"] == json!({}) || wanted["labels"].is_null() {
                wanted.as_object_mut().unwrap().remove("labels");
            }
            patched(&mut key, patch).unwrap();
            prop_assert_eq!(shown(&key), wanted);
        }
    }

    /// A patch is idempotent.
    #[test]
    fn a_patch_that_is_sent_again_changes_nothing(before in patch(), patch in patch()) {
        let mut key = key();
        patched(&mut key, before).unwrap();
        patched(&mut key, patch.clone()).unwrap();
        let once = key.clone();
        patched(&mut key, patch).unwrap();
        prop_assert_eq!(key, once);
    }
}

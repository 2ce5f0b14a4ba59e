//! Tests of bodies.

use axum::http::HeaderValue;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn headers(media: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(media))])
}

fn parsed(text: &str) -> Result<Value, Problem> {
    parse(&headers("application/json"), text.as_bytes(), BodyForm::Json)
}

#[test]
fn a_body_needs_the_media_type_of_its_form() {
    for (media, form, fine) in [
        ("application/json", BodyForm::Json, true),
        ("Application/JSON; charset=utf-8", BodyForm::Json, true),
        ("application/merge-patch+json", BodyForm::MergePatch, true),
        ("application/json", BodyForm::MergePatch, true),
        ("application/merge-patch+json", BodyForm::Json, false),
        ("application/x-www-form-urlencoded", BodyForm::Json, false),
        ("text/plain", BodyForm::MergePatch, false),
        ("application/jsonx", BodyForm::JsonOrEmpty, false),
    ] {
        assert_eq!(parse(&headers(media), b"{}", form).is_ok(), fine, "{media} {form:?}");
    }
    assert!(parse(&HeaderMap::new(), b"{}", BodyForm::Json).is_err(), "without a media type");
    assert!(parse(&HeaderMap::new(), b"", BodyForm::Json).is_err());
    assert_eq!(parse(&HeaderMap::new(), b"", BodyForm::JsonOrEmpty).unwrap(), json!({}));
}

#[test]
fn invalid_json_and_duplicate_members_are_rejected() {
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    for bad in ["", "{", "nul", "{} {}", "{\"a\":1,\"a\":1}", "[{\"a\":{\"b\":1,\"b\":2}}]", "1e999", &deep] {
        let shown = format!("{:?}", parsed(bad).unwrap_err());
        assert!(shown.contains("not valid JSON") && shown.len() < 1_000, "{shown}");
    }
    assert!(parse(&headers("application/json"), b"\"\xff\"", BodyForm::Json).is_err());
}

#[test]
fn all_errors_are_reported_with_their_pointers() {
    let body =
        json!({ "name": 7, "a/b~c": 1, "labels": { "x": [], "y": null }, "list": ["a", 1], "on": "yes" });
    let mut fields = Fields::of(body).unwrap();
    assert_eq!(fields.text("name", |text| Ok::<_, String>(text.to_owned())), FieldValue::Absent);
    assert_eq!(fields.text_needed("path", |text| Ok::<_, String>(text.to_owned())), None);
    assert_eq!(fields.members("labels"), FieldValue::Value(vec![("y".into(), None)]));
    assert_eq!(fields.texts("list"), FieldValue::Value(vec!["a".into()]));
    assert_eq!(fields.flag("on"), None);
    fields.conflict("name", "a word");
    let shown = format!("{:?}", fields.finish().unwrap_err());
    for pointer in ["\"/name\"", "\"/path\"", "\"/labels/x\"", "\"/list/1\"", "\"/on\"", "\"/a~1b~0c\""] {
        assert!(shown.contains(pointer), "{pointer}: {shown}");
    }
    assert!(!shown.contains("conflicting"), "errors of single fields come first: {shown}");
    for other in [json!([]), json!("x"), json!(null), json!(1)] {
        assert!(Fields::of(other).is_err());
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("[a-z/~]{0,3}", inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    /// The parser agrees with `serde_json`.
    #[test]
    fn a_value_is_read_as_it_was_written(value in value()) {
        prop_assert_eq!(parsed(&value.to_string()).unwrap(), value);
    }

    /// In any object, each field that is not taken is reported as an error, and nothing panics.
    #[test]
    fn every_field_that_is_not_taken_is_an_error(value in value()) {
        let Value::Object(object) = value.clone() else { return Ok(()) };
        let mut fields = Fields::of(value).unwrap();
        let text = fields.text("a", |text| Ok::<_, String>(text.to_owned()));
        prop_assert_eq!(matches!(text, FieldValue::Value(_)), matches!(object.get("a"), Some(Value::String(_))));
        let wrong = usize::from(object.get("a").is_some_and(|value| !value.is_string() && !value.is_null()));
        let (errors, conflicts) = fields.into_errors();
        prop_assert_eq!(errors.len(), object.keys().filter(|name| *name != "a").count() + wrong);
        prop_assert!(conflicts.is_empty());
    }
}

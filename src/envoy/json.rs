//! Finds values in foreign JSON.

use serde_json::Value;

/// Calls `with` for every object in a value, including the value itself.
pub(super) fn for_each_object<'a>(value: &'a Value, with: &mut dyn FnMut(&'a Value)) {
    match value {
        Value::Object(fields) => {
            with(value);
            fields.values().for_each(|value| for_each_object(value, with));
        }
        Value::Array(items) => items.iter().for_each(|value| for_each_object(value, with)),
        _ => {}
    }
}

/// Returns every object of a type, by the end of its `@type`.
pub(super) fn of_type<'a>(value: &'a Value, end: &str) -> Vec<&'a Value> {
    let mut found = Vec::new();
    for_each_object(value, &mut |object| {
        if is_of_type(object, end) {
            found.push(object);
        }
    });
    found
}

/// Returns whether an object is of a type, by the end of its `@type`.
pub(super) fn is_of_type(object: &Value, end: &str) -> bool {
    object["@type"].as_str().is_some_and(|name| name.rsplit('.').next() == Some(end))
}

/// Returns the items of an array; none if there is no array.
pub(super) fn items<'a>(value: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(path).and_then(Value::as_array).into_iter().flatten()
}

/// Returns the text at a path.
pub(super) fn text<'a>(value: &'a Value, path: &str) -> Option<&'a str> {
    value.pointer(path).and_then(Value::as_str)
}

/// Returns whether the value at a path is true; defaults to false.
pub(super) fn is_true(value: &Value, path: &str) -> bool {
    value.pointer(path).and_then(Value::as_bool).unwrap_or(false)
}

/// Parses a duration of protobuf's JSON (`0.250s`), in seconds.
pub(super) fn seconds(value: &Value, path: &str) -> Option<f64> {
    text(value, path)?.strip_suffix('s')?.parse().ok()
}

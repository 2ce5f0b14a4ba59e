//! Reads the bodies of requests: one JSON object of at most 1 MiB, and all that is wrong with it at once.
//!
//! An object that has the same member twice is refused: another reader could take the other one (RFC 8259, section 4).

use std::fmt;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::problem::{FieldError, Problem};
use crate::clock::Timestamp;

/// The largest body.
const MOST: usize = 1 << 20;

/// How much of a larger body is read and dropped, so that a client that writes before it reads gets its answer.
const DROPPED: usize = 8 << 20;

/// The most unknown fields that are named: the answer to a body of a mebibyte stays short.
const MOST_ERRORS: usize = 100;

/// The media type of bodies.
const JSON: &str = "application/json";

/// The media type of a change of an object (RFC 7396).
const MERGE_PATCH: &str = "application/merge-patch+json";

/// What a body must be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Form {
    /// JSON.
    Json,
    /// JSON, or nothing.
    JsonOrEmpty,
    /// A merge-patch, which may be called JSON.
    MergePatch,
}

/// Reads a whole body.
pub(super) async fn read(mut body: Body) -> Result<Bytes, Problem> {
    let (mut whole, mut size) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::bad_body("the body ended early"))?;
        let Ok(data) = frame.into_data() else { continue };
        size += data.len();
        if size <= MOST {
            whole.extend_from_slice(&data);
        } else if size > DROPPED {
            break;
        }
    }
    if size > MOST { Err(Problem::too_large()) } else { Ok(whole.into()) }
}

/// Parses a body of this form.
pub(super) fn parse(headers: &HeaderMap, bytes: &[u8], form: Form) -> Result<Value, Problem> {
    if bytes.is_empty() && form == Form::JsonOrEmpty {
        return Ok(Value::Object(Map::new()));
    }
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(media), None) = (types.next(), types.next()) else { return Err(Problem::media_type(form)) };
    let media = media.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let patch = form == Form::MergePatch && media.eq_ignore_ascii_case(MERGE_PATCH);
    if !patch && !media.eq_ignore_ascii_case(JSON) {
        return Err(Problem::media_type(form));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let read = Strict.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    read.map_err(|error| Problem::bad_body(format!("the body is not valid JSON: {error}")))
}

/// The fields of an object, of which each is taken once; those that are left are unknown.
#[derive(Debug)]
pub(super) struct Fields {
    /// The pointer to the object.
    at: String,
    object: Map<String, Value>,
    /// What has a wrong type or form.
    errors: Vec<FieldError>,
    /// What makes no sense together.
    conflicts: Vec<FieldError>,
}

/// What is said of a field.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Said<T> {
    /// It is absent, or wrong.
    Nothing,
    /// It is `null`.
    Null,
    /// It is this.
    Value(T),
}

impl<T> Said<T> {
    /// The value; absent and `null` are the same.
    pub(super) fn value(self) -> Option<T> {
        if let Self::Value(value) = self { Some(value) } else { None }
    }
}

impl Fields {
    /// The fields of a body.
    pub(super) fn of(body: Value) -> Result<Self, Problem> {
        Self::at(String::new(), body).map_err(|error| Problem::invalid(vec![error]))
    }

    /// The fields of an object at a pointer.
    pub(super) fn at(at: String, value: Value) -> Result<Self, FieldError> {
        match value {
            Value::Object(object) => Ok(Self { at, object, errors: Vec::new(), conflicts: Vec::new() }),
            other => {
                Err(FieldError::new(at, "wrong_type", format!("expected an object, not {}", kind(&other))))
            }
        }
    }

    fn pointer(&self, name: &str) -> String {
        format!("{}/{}", self.at, escaped(name))
    }

    /// Notes that a field is wrong.
    pub(super) fn wrong(&mut self, name: &str, code: &'static str, detail: impl Into<String>) {
        let error = FieldError::new(self.pointer(name), code, detail);
        self.errors.push(error);
    }

    /// Notes that a field makes no sense beside another one.
    pub(super) fn conflict(&mut self, name: &str, detail: impl Into<String>) {
        let error = FieldError::new(self.pointer(name), "conflicting_fields", detail);
        self.conflicts.push(error);
    }

    /// Whether the object has a field of this name that was not taken.
    pub(super) fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    /// Whether a field that was not taken is `null`.
    pub(super) fn is_null(&self, name: &str) -> bool {
        self.object.get(name).is_some_and(Value::is_null)
    }

    /// Takes a field, whatever it is.
    pub(super) fn take(&mut self, name: &str) -> Said<Value> {
        match self.object.remove(name) {
            None => Said::Nothing,
            Some(Value::Null) => Said::Null,
            Some(value) => Said::Value(value),
        }
    }

    fn wrong_type(&mut self, name: &str, expected: &str, found: &Value) {
        self.wrong(name, "wrong_type", format!("expected {expected}, not {}", kind(found)));
    }

    /// Takes a text.
    pub(super) fn text<T, E: fmt::Display>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Said<T> {
        match self.take(name) {
            Said::Nothing => Said::Nothing,
            Said::Null => Said::Null,
            Said::Value(Value::String(text)) => match read(&text) {
                Ok(value) => Said::Value(value),
                Err(error) => {
                    self.wrong(name, "invalid_value", error.to_string());
                    Said::Nothing
                }
            },
            Said::Value(other) => {
                self.wrong_type(name, "a text", &other);
                Said::Nothing
            }
        }
    }

    /// Takes a text that cannot be unset.
    pub(super) fn text_or_absent<T, E: fmt::Display>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        match self.text(name, read) {
            Said::Null => {
                self.wrong_type(name, "a text", &Value::Null);
                None
            }
            said => said.value(),
        }
    }

    /// Takes a text that must be there.
    pub(super) fn text_needed<T, E: fmt::Display>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        if !self.has(name) {
            self.wrong(name, "required", "this field is required");
        }
        self.text_or_absent(name, read)
    }

    /// Takes a truth value; `null` counts as absent.
    pub(super) fn flag(&mut self, name: &str) -> Option<bool> {
        match self.take(name) {
            Said::Value(Value::Bool(flag)) => Some(flag),
            Said::Value(other) => {
                self.wrong_type(name, "true or false", &other);
                None
            }
            Said::Nothing | Said::Null => None,
        }
    }

    /// Takes a list of texts that is not empty.
    pub(super) fn texts(&mut self, name: &str) -> Said<Vec<String>> {
        let list = match self.take(name) {
            Said::Nothing => return Said::Nothing,
            Said::Null => return Said::Null,
            Said::Value(Value::Array(list)) => list,
            Said::Value(other) => {
                self.wrong_type(name, "an array of texts", &other);
                return Said::Nothing;
            }
        };
        if list.is_empty() {
            self.wrong(name, "invalid_value", "expected at least one");
        }
        let mut texts = Vec::with_capacity(list.len());
        for (at, value) in list.into_iter().enumerate() {
            match value {
                Value::String(text) => texts.push(text),
                other => {
                    let pointer = format!("{}/{at}", self.pointer(name));
                    let detail = format!("expected a text, not {}", kind(&other));
                    self.errors.push(FieldError::new(pointer, "wrong_type", detail));
                }
            }
        }
        Said::Value(texts)
    }

    /// Takes an object of texts, whose members can be `null`.
    pub(super) fn members(&mut self, name: &str) -> Said<Vec<(String, Option<String>)>> {
        let object = match self.take(name) {
            Said::Nothing => return Said::Nothing,
            Said::Null => return Said::Null,
            Said::Value(Value::Object(object)) => object,
            Said::Value(other) => {
                self.wrong_type(name, "an object of texts", &other);
                return Said::Nothing;
            }
        };
        let mut members = Vec::with_capacity(object.len());
        for (member, value) in object {
            match value {
                Value::String(text) => members.push((member, Some(text))),
                Value::Null => members.push((member, None)),
                other => {
                    let pointer = format!("{}/{}", self.pointer(name), escaped(&member));
                    let detail = format!("expected a text, not {}", kind(&other));
                    self.errors.push(FieldError::new(pointer, "wrong_type", detail));
                }
            }
        }
        Said::Value(members)
    }

    /// Notes what is wrong with a member of an object.
    pub(super) fn wrong_member(&mut self, name: &str, member: &str, detail: impl Into<String>) {
        let pointer = format!("{}/{}", self.pointer(name), escaped(member));
        self.errors.push(FieldError::new(pointer, "invalid_value", detail));
    }

    /// Everything that is wrong, fields that were not taken among it; the second part makes no sense together.
    pub(super) fn into_errors(mut self) -> (Vec<FieldError>, Vec<FieldError>) {
        let left: Vec<_> = self.object.keys().take(MOST_ERRORS).cloned().collect();
        for name in left {
            self.wrong(&name, "unknown_field", "there is no such field");
        }
        (self.errors, self.conflicts)
    }

    /// Refuses the body if anything is wrong with it.
    pub(super) fn finish(self) -> Result<(), Problem> {
        let (errors, conflicts) = self.into_errors();
        refuse(errors, conflicts)
    }
}

/// Refuses a body with errors.
pub(super) fn refuse(errors: Vec<FieldError>, conflicts: Vec<FieldError>) -> Result<(), Problem> {
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    if conflicts.is_empty() { Ok(()) } else { Err(Problem::unprocessable(conflicts)) }
}

/// An instant of a field or parameter.
pub(super) fn instant(text: &str) -> Result<Timestamp, &'static str> {
    Timestamp::parse_rfc_3339(text).ok_or("expected an instant of RFC 3339, such as 2027-01-31T00:00:00Z")
}

/// As RFC 6901 writes a name.
pub(super) fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Reads a JSON value whose objects have each member once. The parser limits the depth.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(flag.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(Self)? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom(format!("the member {name:?} is there twice")));
            }
            object.insert(name, members.next_value_seed(Self)?);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests;

//! Reads the bodies of requests, which are JSON of at most 1 MiB, and reports all errors at once.
//!
//! An object with a duplicate member is rejected, because another parser could use the other one (RFC 8259, section 4).

mod strict;

use std::fmt;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde::de::DeserializeSeed as _;
use serde_json::{Map, Value};

use self::strict::Strict;
use super::problem::{FieldError, Problem};
use crate::clock::Timestamp;

/// The maximum size of a body, in bytes.
const MAX_BODY_BYTES: usize = 1 << 20;

/// How many bytes of a larger body are read and discarded, so that a client that writes before it reads gets its
/// response.
const DROPPED: usize = 8 << 20;

/// The maximum number of unknown fields in a response, so that the response to a body of a mebibyte stays short.
pub(super) const MOST_ERRORS: usize = 100;

/// The media type of bodies.
const JSON: &str = "application/json";

/// The media type of a merge patch (RFC 7396).
const MERGE_PATCH: &str = "application/merge-patch+json";

/// The expected form of a body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum BodyForm {
    /// JSON.
    Json,
    /// JSON, or an empty body.
    JsonOrEmpty,
    /// A merge patch, whose media type may also be that of JSON.
    MergePatch,
}

impl BodyForm {
    /// Returns the expected media type, for the error.
    fn expected(self) -> &'static str {
        match self {
            Self::Json | Self::JsonOrEmpty => "expected a body with Content-Type: application/json",
            Self::MergePatch => {
                "expected a body with Content-Type: application/merge-patch+json or application/json"
            }
        }
    }
}

/// Reads a whole body.
pub(super) async fn read(mut body: Body) -> Result<Bytes, Problem> {
    let (mut whole, mut size) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::bad_body("the body ended early"))?;
        let Ok(data) = frame.into_data() else { continue };
        size += data.len();
        if size <= MAX_BODY_BYTES {
            whole.extend_from_slice(&data);
        } else if size > DROPPED {
            break;
        }
    }
    if size > MAX_BODY_BYTES { Err(Problem::too_large()) } else { Ok(whole.into()) }
}

/// Parses a body of this form.
pub(super) fn parse(headers: &HeaderMap, bytes: &[u8], form: BodyForm) -> Result<Value, Problem> {
    if bytes.is_empty() && form == BodyForm::JsonOrEmpty {
        return Ok(Value::Object(Map::new()));
    }
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(media), None) = (types.next(), types.next()) else {
        return Err(Problem::media_type(form.expected()));
    };
    if headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return Err(Problem::media_type("expected a body without Content-Encoding"));
    }
    let mut parts = media.to_str().unwrap_or_default().split(';').map(str::trim);
    let media = parts.next().unwrap_or_default();
    let charset =
        parts.find_map(|part| part.split_once('=').filter(|(name, _)| name.eq_ignore_ascii_case("charset")));
    if charset.is_some_and(|(_, charset)| !charset.trim_matches('"').eq_ignore_ascii_case("utf-8")) {
        return Err(Problem::media_type("expected a body in UTF-8"));
    }
    let patch = form == BodyForm::MergePatch && media.eq_ignore_ascii_case(MERGE_PATCH);
    if !patch && !media.eq_ignore_ascii_case(JSON) {
        return Err(Problem::media_type(form.expected()));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let read = Strict.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    read.map_err(|error| Problem::bad_body(format!("the body is not valid JSON: {error}")))
}

/// The fields of an object. Handlers take each field that they know; the others are reported as unknown.
#[derive(Debug)]
pub(super) struct Fields {
    /// The JSON pointer to the object.
    at: String,
    object: Map<String, Value>,
    /// Errors of single fields.
    errors: Vec<FieldError>,
    /// Fields that exclude each other.
    conflicts: Vec<FieldError>,
}

/// The content of a field.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum FieldValue<T> {
    /// The field is absent or invalid.
    Absent,
    /// The field is `null`.
    Null,
    /// The value of the field.
    Value(T),
}

impl<T> FieldValue<T> {
    /// Returns the value; `None` if the field is absent, invalid or `null`.
    pub(super) fn value(self) -> Option<T> {
        if let Self::Value(value) = self { Some(value) } else { None }
    }
}

impl Fields {
    /// Returns the fields of a body.
    pub(super) fn of(body: Value) -> Result<Self, Problem> {
        Self::at(String::new(), body).map_err(|error| Problem::invalid(vec![error]))
    }

    /// Returns the fields of an object at a pointer.
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

    /// Records an error of a field.
    pub(super) fn wrong(&mut self, name: &str, code: &'static str, detail: impl Into<String>) {
        let error = FieldError::new(self.pointer(name), code, detail);
        self.errors.push(error);
    }

    /// Records that a field excludes another one.
    pub(super) fn conflict(&mut self, name: &str, detail: impl Into<String>) {
        let error = FieldError::new(self.pointer(name), "conflicting_fields", detail);
        self.conflicts.push(error);
    }

    /// Returns whether the object has a field of this name that was not taken.
    pub(super) fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    /// Returns whether a field that was not taken is `null`.
    pub(super) fn is_null(&self, name: &str) -> bool {
        self.object.get(name).is_some_and(Value::is_null)
    }

    /// Takes a field of any type.
    pub(super) fn take(&mut self, name: &str) -> FieldValue<Value> {
        match self.object.remove(name) {
            None => FieldValue::Absent,
            Some(Value::Null) => FieldValue::Null,
            Some(value) => FieldValue::Value(value),
        }
    }

    fn wrong_type(&mut self, name: &str, expected: &str, found: &Value) {
        self.wrong(name, "wrong_type", format!("expected {expected}, not {}", kind(found)));
    }

    /// Takes a text and parses it with `read`.
    pub(super) fn text<T, E: fmt::Display>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> FieldValue<T> {
        match self.take(name) {
            FieldValue::Absent => FieldValue::Absent,
            FieldValue::Null => FieldValue::Null,
            FieldValue::Value(Value::String(text)) => match read(&text) {
                Ok(value) => FieldValue::Value(value),
                Err(error) => {
                    self.wrong(name, "invalid_value", error.to_string());
                    FieldValue::Absent
                }
            },
            FieldValue::Value(other) => {
                self.wrong_type(name, "a text", &other);
                FieldValue::Absent
            }
        }
    }

    /// Takes a text that may be absent, but not `null`.
    pub(super) fn text_or_absent<T, E: fmt::Display>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        match self.text(name, read) {
            FieldValue::Null => {
                self.wrong_type(name, "a text", &Value::Null);
                None
            }
            said => said.value(),
        }
    }

    /// Takes a text that is required.
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

    /// Takes a boolean. `null` counts as absent.
    pub(super) fn flag(&mut self, name: &str) -> Option<bool> {
        match self.take(name) {
            FieldValue::Value(Value::Bool(flag)) => Some(flag),
            FieldValue::Value(other) => {
                self.wrong_type(name, "true or false", &other);
                None
            }
            FieldValue::Absent | FieldValue::Null => None,
        }
    }

    /// Takes a list of texts that is not empty.
    pub(super) fn texts(&mut self, name: &str) -> FieldValue<Vec<String>> {
        let list = match self.take(name) {
            FieldValue::Absent => return FieldValue::Absent,
            FieldValue::Null => return FieldValue::Null,
            FieldValue::Value(Value::Array(list)) => list,
            FieldValue::Value(other) => {
                self.wrong_type(name, "an array of texts", &other);
                return FieldValue::Absent;
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
        FieldValue::Value(texts)
    }

    /// Takes an object of texts, whose members can be `null`.
    pub(super) fn members(&mut self, name: &str) -> FieldValue<Vec<(String, Option<String>)>> {
        let object = match self.take(name) {
            FieldValue::Absent => return FieldValue::Absent,
            FieldValue::Null => return FieldValue::Null,
            FieldValue::Value(Value::Object(object)) => object,
            FieldValue::Value(other) => {
                self.wrong_type(name, "an object of texts", &other);
                return FieldValue::Absent;
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
        FieldValue::Value(members)
    }

    /// Records an error of a member of an object.
    pub(super) fn wrong_member(&mut self, name: &str, member: &str, detail: impl Into<String>) {
        let pointer = format!("{}/{}", self.pointer(name), escaped(member));
        self.errors.push(FieldError::new(pointer, "invalid_value", detail));
    }

    /// Returns all errors, including one for each unknown field, and the conflicts between fields.
    pub(super) fn into_errors(mut self) -> (Vec<FieldError>, Vec<FieldError>) {
        let left: Vec<_> = self.object.keys().take(MOST_ERRORS).cloned().collect();
        for name in left {
            self.wrong(&name, "unknown_field", "there is no such field");
        }
        (self.errors, self.conflicts)
    }

    /// Rejects the body if it has errors or conflicts.
    pub(super) fn finish(self) -> Result<(), Problem> {
        let (errors, conflicts) = self.into_errors();
        refuse(errors, conflicts)
    }
}

/// Rejects a body with errors (400) or conflicts (422).
pub(super) fn refuse(errors: Vec<FieldError>, conflicts: Vec<FieldError>) -> Result<(), Problem> {
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    if conflicts.is_empty() { Ok(()) } else { Err(Problem::unprocessable(conflicts)) }
}

/// Parses an instant.
pub(super) fn instant(text: &str) -> Result<Timestamp, &'static str> {
    Timestamp::parse_rfc_3339(text).ok_or("expected an RFC 3339 instant, such as 2027-01-31T00:00:00Z")
}

/// Escapes a name for a JSON pointer (RFC 6901).
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

#[cfg(test)]
mod tests;

//! Labels of keys: names with values, by which people and the API filter keys. They never affect a decision.

use std::collections::BTreeMap;
use std::fmt;

use crate::invalid::Invalid;

/// The most labels of a key.
pub const MAX_LABELS: usize = 32;

const MAX_NAME_BYTES: usize = 63;
const MAX_VALUE_CHARS: usize = 255;

/// The labels of a key, sorted by name. At most [`MAX_LABELS`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Parses `api_keys.labels`, a JSON object of strings.
    ///
    /// # Errors
    ///
    /// Returns the position where `text` stops being such an object, or the first label that is invalid.
    pub fn parse_json(text: &str) -> Result<Self, Invalid> {
        const WHAT: &str = "object of labels";
        let shape = || "a JSON object of strings, such as {\"team\":\"billing\"}";
        let object: BTreeMap<String, serde_json::Value> = serde_json::from_str(text)
            .map_err(|error| Invalid::new(WHAT, offset(text, error.line(), error.column()), shape()))?;
        let mut labels = Self::default();
        for (name, value) in object {
            let at = text.find(&format!("\"{name}\"")).unwrap_or(0);
            let serde_json::Value::String(value) = value else {
                return Err(Invalid::new(WHAT, at, format!("a string as the value of {name:?}")));
            };
            labels.insert(&name, &value).map_err(|error| Invalid::new(WHAT, at, error.expected()))?;
        }
        Ok(labels)
    }

    /// Reads `api_keys.labels`, which another program may have written. Ignores what [`Labels::parse_json`] rejects, and
    /// keeps the other labels.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let object: BTreeMap<String, serde_json::Value> = serde_json::from_str(text).unwrap_or_default();
        let mut labels = Self::default();
        for (name, value) in object {
            // An invalid label has no effect on requests, and the next change of the labels removes it.
            let _ = value.as_str().map(|value| labels.insert(&name, value));
        }
        labels
    }

    /// Adds a label, given as `name=value`. Replaces the value of a label with the same name.
    ///
    /// # Errors
    ///
    /// Returns why the name or the value is invalid, or that there are already 32 labels.
    pub fn add(&mut self, text: &str) -> Result<(), Invalid> {
        let (name, value) = parse_label(text)?;
        self.insert(name, value).map_err(|fault| Invalid::new(WHAT_ONE, 0, fault.expected()))
    }

    /// Removes a label. Returns whether it existed.
    pub fn remove(&mut self, name: &str) -> bool {
        self.0.remove(name).is_some()
    }

    /// Returns whether the label `name` has this value.
    #[must_use]
    pub fn has(&self, name: &str, value: &str) -> bool {
        self.0.get(name).is_some_and(|own| own == value)
    }

    /// Returns names and values, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Returns whether there are no labels.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn insert(&mut self, name: &str, value: &str) -> Result<(), LabelFault> {
        check_name(name)?;
        check_value(value)?;
        if self.0.len() == MAX_LABELS && !self.0.contains_key(name) {
            return Err(LabelFault::TooMany);
        }
        self.0.insert(name.to_owned(), value.to_owned());
        Ok(())
    }
}

const WHAT_ONE: &str = "label";

/// Parses `name=value` into name and value.
///
/// # Errors
///
/// Returns why the name or the value is invalid.
pub fn parse_label(text: &str) -> Result<(&str, &str), Invalid> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| Invalid::new(WHAT_ONE, text.len(), "name=value, such as team=billing"))?;
    let checked = check_name(name).and_then(|()| check_value(value));
    checked.map_err(|fault| Invalid::new(WHAT_ONE, fault.at(name.len() + 1), fault.expected()))?;
    Ok((name, value))
}

/// Why a label is invalid, with the offset in its name or value.
enum LabelFault {
    Name(usize),
    NameLength(usize),
    Value(usize),
    ValueLength(usize),
    TooMany,
}

impl LabelFault {
    /// Returns the offset in `name=value`, whose value starts at offset `value`.
    fn at(&self, value: usize) -> usize {
        match self {
            Self::Name(at) | Self::NameLength(at) => *at,
            Self::Value(at) | Self::ValueLength(at) => value + at,
            Self::TooMany => 0,
        }
    }

    fn expected(&self) -> &'static str {
        match self {
            Self::Name(_) => "a name of lower-case letters, digits and . _ / -",
            Self::NameLength(_) => "a name of 1 to 63 characters",
            Self::Value(_) => "a value without control characters",
            Self::ValueLength(_) => "a value of at most 255 characters",
            Self::TooMany => "at most 32 labels",
        }
    }
}

fn check_name(name: &str) -> Result<(), LabelFault> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._/-".contains(&b);
    match name.bytes().position(|byte| !good(byte)) {
        Some(at) => Err(LabelFault::Name(at)),
        None if name.is_empty() || name.len() > MAX_NAME_BYTES => {
            Err(LabelFault::NameLength(name.len().min(MAX_NAME_BYTES)))
        }
        None => Ok(()),
    }
}

fn check_value(value: &str) -> Result<(), LabelFault> {
    match (value.find(char::is_control), value.char_indices().nth(MAX_VALUE_CHARS)) {
        (Some(at), _) => Err(LabelFault::Value(at)),
        (None, Some((at, _))) => Err(LabelFault::ValueLength(at)),
        (None, None) => Ok(()),
    }
}

/// Converts a line and a column, which count from 1, to an offset in bytes.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    before + column.saturating_sub(1)
}

/// A JSON object, with its names sorted.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(&self.0).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_parsed_and_shown_sorted_by_name() {
        for (text, shown) in [
            ("{}", "{}"),
            (r#" {"b":"2", "a/x.y_z-0":""} "#, r#"{"a/x.y_z-0":"","b":"2"}"#),
            (r#"{"q":"a \"quoted\" é"}"#, r#"{"q":"a \"quoted\" é"}"#),
        ] {
            let labels = Labels::parse_json(text).unwrap();
            assert_eq!(labels.to_string(), shown);
            assert_eq!(Labels::parse_json(shown), Ok(labels));
        }
    }

    #[test]
    fn reading_keeps_the_valid_labels_of_an_object() {
        for (text, shown) in [
            (r#"{"a":1,"b":"x"}"#, r#"{"b":"x"}"#),
            (r#"{"A":"x","b":"\n","c":""}"#, r#"{"c":""}"#),
            ("[]", "{}"),
            ("no", "{}"),
        ] {
            assert_eq!(Labels::read(text).to_string(), shown);
        }
    }

    #[test]
    fn an_invalid_object_is_rejected_with_a_position() {
        let long = format!(r#"{{"a":"{}"}}"#, "é".repeat(256));
        let many = (0..33).map(|n| format!(r#""n{n}":"""#)).collect::<Vec<_>>().join(",");
        for (text, at, expected) in [
            ("", 1, "a JSON object"),
            ("[]", 1, "a JSON object"),
            ("null", 4, "a JSON object"),
            (r#"{"a":"1" "b"}"#, 10, "a JSON object"),
            ("{\n\"a\":\"1\"\n \"b\"}", 12, "a JSON object"),
            (r#"{"a":"1","b":2}"#, 10, "a string as the value of \"b\""),
            (r#"{"A":"1"}"#, 2, "lower-case letters"),
            (r#"{"":"1"}"#, 2, "1 to 63 characters"),
            (r#"{"a":"\n"}"#, 2, "control characters"),
            (&long, 2, "at most 255"),
            (&format!("{{{many}}}"), 0, "at most 32"),
        ] {
            let error = Labels::parse_json(text).unwrap_err();
            assert!(at == 0 || error.position() == at, "{text}: {error}");
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn labels_are_added_replaced_and_removed() {
        let mut labels = Labels::default();
        assert!(labels.is_empty());
        for text in ["team=a", "team=b=c", "env="] {
            labels.add(text).unwrap();
        }
        assert_eq!(labels.iter().collect::<Vec<_>>(), [("env", ""), ("team", "b=c")]);
        assert!(labels.has("team", "b=c") && !labels.has("team", "a") && !labels.has("x", ""));
        assert!(labels.remove("env") && !labels.remove("env") && !labels.is_empty());
        for n in 0..31 {
            labels.add(&format!("n{n}=")).unwrap();
        }
        labels.add("team=again").unwrap();
        assert!(labels.add("one=more").unwrap_err().to_string().contains("at most 32"));
    }

    #[test]
    fn an_invalid_label_is_rejected_with_a_position() {
        for (text, at) in [
            ("team", 5),
            ("=x", 1),
            ("Team=x", 1),
            ("te am=x", 3),
            ("a=b\u{7}", 4),
            (&format!("{}=x", "n".repeat(64)), 64),
            (&format!("a={}", "x".repeat(256)), 258),
        ] {
            assert_eq!(parse_label(text).unwrap_err().position(), at, "{text}");
            assert_eq!(Labels::default().add(text).unwrap_err().position(), at, "{text}");
        }
        assert_eq!(parse_label("a=b"), Ok(("a", "b")));
        let longest = (&*"n".repeat(63), &*"é".repeat(255));
        assert_eq!(parse_label(&format!("{}={}", longest.0, longest.1)), Ok(longest));
    }
}

//! Labels of keys: for people, filters and the API. Requests are never judged by them.

use std::collections::BTreeMap;
use std::fmt;

use crate::invalid::Invalid;

/// The most labels of a key.
pub const MAX_LABELS: usize = 32;

const MAX_NAME_BYTES: usize = 63;
const MAX_VALUE_CHARS: usize = 255;

/// Labels by name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Parses a JSON object of strings, as `api_keys.labels` has it.
    ///
    /// # Errors
    ///
    /// What is not such an object, or the first label that is not one.
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

    /// Adds `name=value`. The value replaces that of a label of the same name.
    ///
    /// # Errors
    ///
    /// What is wrong with the name or the value, or that there are 32 already.
    pub fn add(&mut self, text: &str) -> Result<(), Invalid> {
        let (name, value) = parse_label(text)?;
        let after = name.len() + 1;
        self.insert(name, value).map_err(|fault| Invalid::new(WHAT_ONE, fault.at(after), fault.expected()))
    }

    /// Removes a label. Returns whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        self.0.remove(name).is_some()
    }

    /// Whether a label of this name has this value.
    #[must_use]
    pub fn has(&self, name: &str, value: &str) -> bool {
        self.0.get(name).is_some_and(|own| own == value)
    }

    /// The labels, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn insert(&mut self, name: &str, value: &str) -> Result<(), Fault> {
        check_name(name)?;
        check_value(value)?;
        if self.0.len() == MAX_LABELS && !self.0.contains_key(name) {
            return Err(Fault::TooMany);
        }
        self.0.insert(name.to_owned(), value.to_owned());
        Ok(())
    }
}

const WHAT_ONE: &str = "label";

/// Splits and checks `name=value`, as a filter has it.
///
/// # Errors
///
/// What is wrong with the name or the value.
pub fn parse_label(text: &str) -> Result<(&str, &str), Invalid> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| Invalid::new(WHAT_ONE, text.len(), "name=value, such as team=billing"))?;
    let checked = check_name(name).and_then(|()| check_value(value));
    checked.map_err(|fault| Invalid::new(WHAT_ONE, fault.at(name.len() + 1), fault.expected()))?;
    Ok((name, value))
}

/// What is wrong with a label, and where in its part.
enum Fault {
    Name(usize),
    NameLength(usize),
    Value(usize),
    ValueLength(usize),
    TooMany,
}

impl Fault {
    /// The offset in `name=value`, whose value starts at `value`.
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

fn check_name(name: &str) -> Result<(), Fault> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._/-".contains(&b);
    match name.bytes().position(|byte| !good(byte)) {
        Some(at) => Err(Fault::Name(at)),
        None if name.is_empty() || name.len() > MAX_NAME_BYTES => {
            Err(Fault::NameLength(name.len().min(MAX_NAME_BYTES)))
        }
        None => Ok(()),
    }
}

fn check_value(value: &str) -> Result<(), Fault> {
    match (value.find(char::is_control), value.char_indices().nth(MAX_VALUE_CHARS)) {
        (Some(at), _) => Err(Fault::Value(at)),
        (None, Some((at, _))) => Err(Fault::ValueLength(at)),
        (None, None) => Ok(()),
    }
}

/// The offset of a line and column, which both count from 1.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    before + column.saturating_sub(1)
}

/// The JSON object, with its names sorted.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(&self.0).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_read_and_shown_with_its_names_sorted() {
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
    fn a_bad_object_is_refused_with_a_position() {
        let long = format!(r#"{{"a":"{}"}}"#, "é".repeat(256));
        let many = (0..33).map(|n| format!(r#""n{n}":"""#)).collect::<Vec<_>>().join(",");
        for (text, at, expected) in [
            ("", 1, "a JSON object"),
            ("[]", 1, "a JSON object"),
            ("null", 4, "a JSON object"),
            (r#"{"a":"1" "b"}"#, 10, "a JSON object"),
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
    fn a_bad_label_is_refused_with_a_position() {
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
    }
}

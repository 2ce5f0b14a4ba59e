//! Reads forms and query strings.

use std::borrow::Cow;

use super::failure::PageFailure;

/// The fields of a form or a query string.
#[derive(Debug, Default)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    /// Parses the body of a form, or a query string. Replaces NUL, which Postgres does not accept in a text.
    pub(super) fn read(text: impl AsRef<[u8]>) -> Self {
        let fields = form_urlencoded::parse(text.as_ref());
        let replaced = |text: Cow<'_, str>| text.replace('\0', "\u{fffd}");
        Self(fields.map(|(name, value)| (replaced(name), replaced(value))).collect())
    }

    /// Creates a form with these values.
    pub(super) fn of(fields: &[(&str, &str)]) -> Self {
        Self(fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    /// Returns a field without surrounding spaces; `None` if it is absent or empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(field, _)| field == name);
        found.map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
    }

    /// Returns a field to show it again; empty if it is missing.
    pub(super) fn shown(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// Returns a field; an error if it is missing or empty.
    pub(super) fn need(&self, name: &str, label: &str) -> Result<&str, PageFailure> {
        self.get(name).ok_or_else(|| PageFailure::invalid(format!("{label} is missing.")))
    }

    /// Returns the fields as a query string, with `name` set to `value`.
    pub(super) fn with(&self, name: &str, value: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (field, value) in self.0.iter().filter(|(field, value)| field != name && !value.is_empty()) {
            query.append_pair(field, value);
        }
        query.append_pair(name, value).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_trimmed_and_written_again() {
        let form = Form::read("q=a%20b+&state=&p=1&p=2&x=%3Cb%3E");
        assert_eq!((form.get("q"), form.get("state"), form.get("none")), (Some("a b"), None, None));
        assert_eq!(form.shown("x"), "<b>");
        assert_eq!(Form::read("q=a%00b").get("q"), Some("a\u{fffd}b"));
        assert_eq!(Form::read("q=a&after=1").with("after", "2&3"), "q=a&after=2%263");
        assert!(form.need("state", "State").is_err());
    }
}

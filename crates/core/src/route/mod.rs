//! Rules for routes: which requests they match, and what those need.
//!
//! A rule has a *shape* (host, method and path), which determines the requests that it matches, and attributes (mode,
//! needs, shadow), which apply to them. If several rules match, the one with the most specific shape wins
//! ([`table`]). Two rules with the same shape are rejected when they are written.
//!
//! A row may be damaged if another program wrote it. [`RouteRow::compile`] returns which part is.

pub mod context;
pub mod host;
pub mod lint;
pub mod table;
pub mod template;

use std::fmt;

use uuid::Uuid;

use crate::invalid::{self, Invalid};
use crate::scope::Needs;

pub use self::context::Context;
pub use self::host::HostPattern;
pub use self::table::{RouteEntry, RouteTable};
pub use self::template::PathTemplate;

/// The id of a rule: `tenantgate_route.id`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RouteId(pub Uuid);

/// The method that a rule matches.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Method {
    /// `*`: every method.
    Any,
    /// This method; `GET` also matches `HEAD`.
    Named(Box<str>),
}

impl Method {
    /// Parses `tenantgate_route.method`: `*`, or 1 to 32 characters.
    ///
    /// # Errors
    ///
    /// Returns the first character that is not allowed in a method, or that the length is wrong.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        const WHAT: &str = "method";
        if text == "*" {
            return Ok(Self::Any);
        }
        let good = |(at, b): (usize, u8)| {
            b.is_ascii_uppercase() || at > 0 && (b == b'-' || b == b'_' || b.is_ascii_digit())
        };
        if let Some(at) = text.bytes().enumerate().position(|byte| !good(byte)) {
            return Err(Invalid::new(WHAT, at, "a method in capitals, such as GET, or *"));
        }
        if text.is_empty() || text.len() > 32 {
            return Err(Invalid::new(WHAT, text.len().min(32), "a method of 1 to 32 characters, or *"));
        }
        Ok(Self::Named(text.into()))
    }

    /// Returns whether it matches requests with `method`.
    #[must_use]
    pub fn covers(&self, method: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Named(name) => name.as_bytes() == method || &**name == "GET" && method == b"HEAD",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "*",
            Self::Named(name) => name,
        })
    }
}

/// Whether a request needs a key.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum RouteMode {
    /// It needs one.
    #[default]
    Required,
    /// It may come without one; a key that comes must be valid.
    Optional,
    /// It needs none, and a key that comes is ignored.
    Public,
}

impl RouteMode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Required, Self::Optional, Self::Public];

    /// Parses `tenantgate_route.mode`.
    ///
    /// # Errors
    ///
    /// Returns the list of modes if `text` is none of them.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let known = Self::ALL.into_iter().find(|mode| mode.as_str() == text);
        known.ok_or_else(|| Invalid::new("mode", 0, "required, optional or public"))
    }

    /// Returns the mode as `tenantgate_route.mode` stores it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Optional => "optional",
            Self::Public => "public",
        }
    }
}

/// The requests that a rule matches.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shape {
    /// `host`.
    pub host: HostPattern,
    /// `method`.
    pub method: Method,
    /// `path`.
    pub path: PathTemplate,
}

impl Shape {
    /// Returns whether both shapes match the same requests, so that neither rule would win. The names of `{name}`
    /// segments may differ.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.host == other.host && self.method == other.method && self.path.is_same(&other.path)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.host, self.method, self.path)
    }
}

/// A valid rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// `id`.
    pub id: RouteId,
    /// `name`.
    pub name: Option<Box<str>>,
    /// The requests that it matches.
    pub shape: Shape,
    /// `mode`.
    pub mode: RouteMode,
    /// `scopes`.
    pub needs: Option<Needs>,
    /// `shadow`: requests whose key lacks the needed scopes are allowed, and recorded.
    pub shadow: bool,
}

/// A part of a row that can be damaged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RoutePart {
    /// `host`.
    Host,
    /// `method`.
    Method,
    /// `path`.
    Path,
    /// `mode`.
    Mode,
    /// `scopes`.
    Scopes,
    /// `name`.
    Name,
    /// Host, method and path together are those of another rule.
    Shape,
}

impl RoutePart {
    /// Returns the name of the column, or `shape`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Method => "method",
            Self::Path => "path",
            Self::Mode => "mode",
            Self::Scopes => "scopes",
            Self::Name => "name",
            Self::Shape => "shape",
        }
    }
}

/// Why a row is not a valid rule.
pub type Damage = invalid::Damage<RoutePart>;

/// An unparsed row of `tenantgate_route`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RouteRow {
    /// `id`.
    pub id: RouteId,
    /// `name`; unique.
    pub name: Option<String>,
    /// `host`.
    pub host: String,
    /// `method`.
    pub method: String,
    /// `path`.
    pub path: String,
    /// `mode`.
    pub mode: String,
    /// `scopes`.
    pub scopes: Option<String>,
    /// `shadow`.
    pub shadow: bool,
}

/// The most characters of a rule's name.
const MAX_NAME_CHARS: usize = 255;

impl RouteRow {
    /// Parses the row.
    ///
    /// # Errors
    ///
    /// Returns the first damaged part, in the order host, method, path, mode, scopes, name.
    pub fn compile(&self) -> Result<Rule, Damage> {
        let shape = self.shape()?;
        let mode = RouteMode::parse(&self.mode).map_err(damage(RoutePart::Mode))?;
        let needs =
            self.scopes.as_deref().map(Needs::parse).transpose().map_err(damage(RoutePart::Scopes))?;
        if mode == RouteMode::Public && needs.is_some() {
            let error = Invalid::new("needs", 0, "no scopes, because a rule of mode public ignores keys");
            return Err(Damage { part: RoutePart::Scopes, error });
        }
        let name = self.name.as_deref().map(parse_name).transpose().map_err(damage(RoutePart::Name))?;
        Ok(Rule { id: self.id, name: name.map(Into::into), shape, mode, needs, shadow: self.shadow })
    }

    /// Parses host, method and path.
    ///
    /// # Errors
    ///
    /// Returns the first of them that is damaged.
    pub fn shape(&self) -> Result<Shape, Damage> {
        Ok(Shape {
            host: HostPattern::parse(&self.host).map_err(damage(RoutePart::Host))?,
            method: Method::parse(&self.method).map_err(damage(RoutePart::Method))?,
            path: PathTemplate::parse(&self.path).map_err(damage(RoutePart::Path))?,
        })
    }
}

impl From<&Rule> for RouteRow {
    fn from(rule: &Rule) -> Self {
        Self {
            id: rule.id,
            name: rule.name.as_deref().map(str::to_owned),
            host: rule.shape.host.to_string(),
            method: rule.shape.method.to_string(),
            path: rule.shape.path.to_string(),
            mode: rule.mode.as_str().to_owned(),
            scopes: rule.needs.as_ref().map(ToString::to_string),
            shadow: rule.shadow,
        }
    }
}

fn damage(part: RoutePart) -> impl Fn(Invalid) -> Damage {
    move |error| Damage { part, error }
}

/// Checks the name of a rule: 1 to 255 characters, none of them a control character. Returns it.
///
/// # Errors
///
/// Returns the first control character, or that the length is wrong.
pub fn parse_name(text: &str) -> Result<&str, Invalid> {
    const WHAT: &str = "name of a rule";
    if let Some(at) = text.find(char::is_control) {
        return Err(Invalid::new(WHAT, at, "no control characters"));
    }
    match text.char_indices().nth(MAX_NAME_CHARS) {
        None if !text.is_empty() => Ok(text),
        beyond => Err(Invalid::new(WHAT, beyond.map_or(0, |(at, _)| at), "1 to 255 characters")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Makes a row with the name `r<number>`, mode `required` and no needs, for tests.
    pub(crate) fn row(number: u128, host: &str, method: &str, path: &str) -> RouteRow {
        RouteRow {
            id: RouteId(Uuid::from_u128(number)),
            name: Some(format!("r{number}")),
            host: host.into(),
            method: method.into(),
            path: path.into(),
            mode: "required".into(),
            scopes: None,
            shadow: false,
        }
    }

    #[test]
    fn a_row_is_compiled_to_a_rule_and_back() {
        let mut row = row(1, "*.Example.com", "GET", "/a/{id}/**");
        row.scopes = Some("a  b|c".into());
        let rule = row.compile().unwrap();
        let back = RouteRow { host: "*.example.com".into(), scopes: Some("a b | c".into()), ..row };
        assert_eq!(RouteRow::from(&rule), back);
        assert_eq!(rule.shape.to_string(), "*.example.com GET /a/{id}/**");
    }

    #[test]
    fn compile_returns_the_damaged_part_of_a_row() {
        let good = row(1, "*", "GET", "/a");
        for (bad, part) in [
            (RouteRow { host: "a b".into(), ..good.clone() }, "host"),
            (RouteRow { method: "get".into(), ..good.clone() }, "method"),
            (RouteRow { path: "a".into(), ..good.clone() }, "path"),
            (RouteRow { mode: "off".into(), ..good.clone() }, "mode"),
            (RouteRow { scopes: Some(String::new()), ..good.clone() }, "scopes"),
            (RouteRow { scopes: Some("a".into()), mode: "public".into(), ..good.clone() }, "scopes"),
            (RouteRow { name: Some("a\n".into()), ..good.clone() }, "name"),
            (RouteRow { name: Some(String::new()), ..good.clone() }, "name"),
        ] {
            let damage = bad.compile().unwrap_err();
            assert_eq!(damage.part.as_str(), part, "{damage}");
            assert!(damage.to_string().contains(": expected "), "{damage}");
        }
        assert!(good.compile().is_ok());
        assert_eq!(parse_name(&"é".repeat(256)).unwrap_err().position(), 511);
    }

    #[test]
    fn a_method_is_in_capitals_and_get_matches_head() {
        for good in ["*", "GET", "M-SEARCH", "X_1", &"A".repeat(32)] {
            assert_eq!(Method::parse(good).unwrap().to_string(), good);
        }
        for (bad, at) in
            [("", 1), ("get", 1), ("GET ", 4), ("GET,HEAD", 4), ("**", 1), ("-A", 1), (&"A".repeat(33), 33)]
        {
            assert_eq!(Method::parse(bad).unwrap_err().position(), at, "{bad}");
        }
        for (rule, request, expected) in [
            ("*", "get", true),
            ("GET", "GET", true),
            ("GET", "HEAD", true),
            ("HEAD", "GET", false),
            ("GET", "get", false),
        ] {
            assert_eq!(Method::parse(rule).unwrap().covers(request.as_bytes()), expected, "{rule} {request}");
        }
        assert!(!Method::parse("POST").unwrap().covers(b"HEAD"));
    }

    #[test]
    fn every_mode_is_parsed_from_its_text() {
        for mode in RouteMode::ALL {
            assert_eq!(RouteMode::parse(mode.as_str()), Ok(mode));
        }
        assert!(RouteMode::parse("").is_err());
    }
}

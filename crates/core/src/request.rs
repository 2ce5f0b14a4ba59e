//! Reads a request: what is asked for, and the credential that it carries.
//!
//! Everything ambiguous is settled here: a key that is there twice, in two
//! places, or with something odd around it is [`Credential::Malformed`], because
//! whoever reads the request next might read it differently. A credential that
//! is not ours (another scheme, another kind of bearer token) is no error: it is
//! not there.
//!
//! Header names arrive in lower case, as HTTP/2 has them, and are compared so.
//! Which names to read is told by [`Options`]; what Envoy calls things is not
//! known here.

use crate::key::PresentedKey;
use crate::key::format::{SCHEME, parse};
use crate::route::Context;

/// The header a key travels in, unless another is asked for.
pub const DEFAULT_KEY_HEADER: &str = "x-llmcore-api-key";

/// Where a bearer key travels (RFC 6750 §2.1).
pub const AUTHORIZATION: &str = "authorization";

/// How requests are read.
#[derive(Clone, Debug)]
pub struct Options {
    /// The header that carries the key, in lower case.
    pub key_header: String,
    /// Whether `Authorization: Bearer llmk_…` counts too.
    pub accept_bearer: bool,
    /// What needs no key.
    pub public: PublicPaths,
    /// Whether a CORS preflight needs none.
    pub preflight: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            key_header: DEFAULT_KEY_HEADER.into(),
            accept_bearer: false,
            public: PublicPaths::default(),
            preflight: false,
        }
    }
}

/// The headers that make `OPTIONS` a CORS preflight (<https://fetch.spec.whatwg.org/#cors-preflight-fetch>).
pub const PREFLIGHT_HEADERS: [&str; 2] = ["origin", "access-control-request-method"];

/// The requests that need no key: exact methods and exact paths, case-sensitive, never normalised. A path may end in
/// `/*`: everything below it, and not the path itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PublicPaths {
    rules: Vec<(String, String)>,
    /// Whether one of them ends in `/*`.
    patterns: bool,
}

impl Default for PublicPaths {
    fn default() -> Self {
        let paths = ["/", "/health", "/docs"];
        let rules = paths.iter().flat_map(|p| ["GET", "HEAD"].map(|m| (m.into(), (*p).into()))).collect();
        Self { rules, patterns: false }
    }
}

impl PublicPaths {
    /// Nothing is public.
    #[must_use]
    pub fn none() -> Self {
        Self { rules: Vec::new(), patterns: false }
    }

    /// Adds `METHOD /path`.
    ///
    /// # Errors
    ///
    /// What is wrong with it, for the operator who wrote it.
    pub fn add(&mut self, rule: &str) -> Result<(), &'static str> {
        let (method, path) = rule.split_once(' ').ok_or("is not METHOD /path, such as GET /health")?;
        if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
            return Err("needs a method in capitals, such as GET");
        }
        if !path.starts_with('/') || path.bytes().any(|b| !b.is_ascii_graphic() || b == b'?' || b == b'#') {
            return Err("needs a path that starts with / and has no query, fragment or blank");
        }
        if path.strip_suffix("/*").unwrap_or(path).contains('*') {
            return Err("may have * only at its end, as in GET /assets/*");
        }
        self.patterns |= path.ends_with("/*");
        self.rules.push((method.into(), path.into()));
        Ok(())
    }

    /// The methods and paths.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.rules.iter().map(|(method, path)| (method.as_str(), path.as_str()))
    }

    /// Whether a path ends in `/*`. Then ambiguous paths have to be refused first.
    #[must_use]
    pub fn has_patterns(&self) -> bool {
        self.patterns
    }

    /// Whether a request is public. The query does not count.
    #[must_use]
    pub fn contains(&self, method: &[u8], path: &[u8]) -> bool {
        let path = path.split(|&b| b == b'?').next().unwrap_or_default();
        let fits = |pattern: &[u8]| match pattern.strip_suffix(b"*") {
            Some(folder) => path.len() > folder.len() && path.starts_with(folder),
            None => pattern == path,
        };
        self.rules.iter().any(|(m, p)| m.as_bytes() == method && fits(p.as_bytes()))
    }
}

/// What a request says about the one who makes it.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub enum Credential<'a> {
    /// Something that claims to be a key and is not, or more than one.
    Malformed,
    /// Nothing of ours.
    Missing,
    /// One key.
    Presented(PresentedKey<'a>),
}

/// Whether an option lets a request pass without a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Waived {
    /// None does.
    No,
    /// `--public` does.
    Public,
    /// `--public-preflight` does.
    Preflight,
}

/// A request, as far as it concerns us.
#[derive(Clone, Copy, Debug)]
pub struct AccessRequest<'a> {
    /// Whether an option says that it needs no key.
    pub waived: Waived,
    /// Whether an option has a pattern, so that ambiguous paths are refused.
    pub patterns: bool,
    /// The method.
    pub method: &'a [u8],
    /// The host, as it came.
    pub host: &'a [u8],
    /// The path, query and all.
    pub path: &'a [u8],
    /// What Envoy says of the route.
    pub context: Context<'a>,
    /// The key it carries.
    pub credential: Credential<'a>,
    /// Whether `Authorization` carries something of ours, which no upstream may see.
    pub bearer: bool,
}

/// Reads a request header by header.
#[derive(Debug)]
pub struct Reader<'o, 'a> {
    options: &'o Options,
    key: Slot<'a>,
    bearer: Slot<'a>,
    ours: bool,
    context: Context<'a>,
    /// Which of [`PREFLIGHT_HEADERS`] came.
    preflight: [bool; 2],
}

/// The values seen of one header.
#[derive(Clone, Copy, Debug)]
enum Slot<'a> {
    Empty,
    One(&'a [u8]),
    Many,
}

impl<'a> Slot<'a> {
    fn put(&mut self, value: &'a [u8]) {
        *self = match self {
            Self::Empty => Self::One(value),
            Self::One(_) | Self::Many => Self::Many,
        };
    }
}

impl<'o, 'a> Reader<'o, 'a> {
    /// Starts to read a request.
    #[must_use]
    pub fn new(options: &'o Options) -> Self {
        let (context, preflight) = (Context::default(), [false; 2]);
        Self { options, key: Slot::Empty, bearer: Slot::Empty, ours: false, context, preflight }
    }

    /// Takes note of a header. Call it once for each that the request has, in any order.
    #[inline]
    pub fn header(&mut self, name: &[u8], value: &'a [u8]) {
        if name == self.options.key_header.as_bytes() {
            self.key.put(value);
        } else if self.options.accept_bearer && name == AUTHORIZATION.as_bytes() {
            self.bearer.put(value);
            self.ours |= value.split(|&b| b == b',').any(claims_a_key);
        } else if self.options.preflight {
            for (seen, known) in self.preflight.iter_mut().zip(PREFLIGHT_HEADERS) {
                *seen |= name == known.as_bytes();
            }
        }
    }

    /// Takes note of what Envoy's configuration says of the route.
    pub fn context(&mut self, name: &[u8], value: &'a [u8]) {
        self.context.put(name, value);
    }

    /// What all the headers together mean.
    #[must_use]
    pub fn finish(self, method: &'a [u8], host: &'a [u8], path: &'a [u8]) -> AccessRequest<'a> {
        let preflight = self.preflight == [true; 2] && method == b"OPTIONS";
        let waived = if preflight {
            Waived::Preflight
        } else if self.options.public.contains(method, path) {
            Waived::Public
        } else {
            Waived::No
        };
        AccessRequest {
            waived,
            patterns: self.options.public.has_patterns(),
            method,
            host,
            path,
            context: self.context,
            credential: self.credential(),
            bearer: self.ours,
        }
    }

    fn credential(&self) -> Credential<'a> {
        let bearer = match (self.ours, self.bearer) {
            (false, _) | (true, Slot::Empty) => None,
            (true, Slot::One(value)) => Some(bearer_token(value)),
            (true, Slot::Many) => return Credential::Malformed,
        };
        match (self.key, bearer) {
            (Slot::Empty | Slot::One([]), None) => Credential::Missing,
            (Slot::One(value), None) | (Slot::Empty | Slot::One([]), Some(Some(value))) => {
                parse(value).map_or(Credential::Malformed, Credential::Presented)
            }
            (Slot::Many, _) | (_, Some(_)) => Credential::Malformed,
        }
    }
}

/// The token of `Bearer <token>`: the scheme in any case (RFC 9110 §11.1), exactly one blank.
fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(BEARER.len())?;
    scheme.eq_ignore_ascii_case(BEARER).then_some(rest)?.strip_prefix(b" ")
}

const BEARER: &[u8] = b"bearer";

/// Whether one of the comma-separated parts of an `Authorization` value is a bearer token with `llmk_` at the
/// start of a word: ours, though perhaps not a key.
///
/// A word starts after a byte that no token has (RFC 6750 §2.1, `b64token`), so a JWT that
/// happens to contain the five letters stays somebody else's.
fn claims_a_key(part: &[u8]) -> bool {
    let Some((scheme, rest)) = part.trim_ascii().split_at_checked(BEARER.len()) else { return false };
    if !scheme.eq_ignore_ascii_case(BEARER) {
        return false;
    }
    let starts_word = |at: usize| at.checked_sub(1).is_none_or(|before| !is_token_byte(rest[before]));
    rest.windows(SCHEME.len()).enumerate().any(|(at, word)| word == SCHEME.as_bytes() && starts_word(at))
}

fn is_token_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "llmk_demo_secret123";

    fn read<'a>(options: &Options, headers: &[(&str, &'a [u8])]) -> AccessRequest<'a> {
        let mut reader = Reader::new(options);
        for (name, value) in headers {
            reader.header(name.as_bytes(), value);
        }
        reader.finish(b"GET", b"", b"/v1")
    }

    fn kind(credential: Credential<'_>) -> &'static str {
        match credential {
            Credential::Malformed => "malformed",
            Credential::Missing => "missing",
            Credential::Presented(_) => "presented",
        }
    }

    #[test]
    fn one_key_header_is_read_and_anything_else_is_not_guessed_at() {
        let options = Options::default();
        let joined = format!("{KEY},{KEY}");
        for (headers, expected) in [
            (vec![], "missing"),
            (vec![("x-llmcore-api-key", KEY)], "presented"),
            (vec![("x-llmcore-api-key", "")], "missing"),
            (vec![("X-LLMCore-API-Key", KEY)], "missing"),
            (vec![("x-other", KEY)], "missing"),
            (vec![("x-llmcore-api-key", KEY), ("x-llmcore-api-key", KEY)], "malformed"),
            (vec![("x-llmcore-api-key", ""), ("x-llmcore-api-key", KEY)], "malformed"),
            (vec![("x-llmcore-api-key", &joined)], "malformed"),
            (vec![("x-llmcore-api-key", "Bearer llmk_demo_secret123")], "malformed"),
            (vec![("authorization", "Bearer llmk_demo_secret123")], "missing"),
        ] {
            let bytes: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_bytes())).collect();
            assert_eq!(kind(read(&options, &bytes).credential), expected, "{headers:?}");
        }
    }

    #[test]
    fn a_bearer_key_counts_if_asked_for_and_other_tokens_are_left_alone() {
        let options = Options { accept_bearer: true, ..Options::default() };
        for (values, expected, ours) in [
            (vec!["Bearer llmk_demo_secret123"], "presented", true),
            (vec!["bEARER llmk_demo_secret123"], "presented", true),
            (vec!["Bearer  llmk_demo_secret123"], "malformed", true),
            (vec!["Bearer\tllmk_demo_secret123"], "malformed", true),
            (vec!["Bearer llmk_demo_secret123 "], "malformed", true),
            (vec!["Bearer \"llmk_demo_secret123\""], "malformed", true),
            (vec!["Bearer <llmk_demo_secret123>"], "malformed", true),
            (vec!["Bearerllmk_demo_secret123"], "malformed", true),
            (vec!["Bearer llmk_demo"], "malformed", true),
            (vec!["Bearer eyJ.x.y,Bearer llmk_demo_secret123"], "malformed", true),
            (vec!["Bearer eyJ.x.y", "Bearer llmk_demo_secret123"], "malformed", true),
            (vec!["Bearer llmk_demo_secret123", "Basic eDp5"], "malformed", true),
            (vec!["Basic eDp5", "Basic eDp5"], "missing", false),
            (vec!["Basic eDp5"], "missing", false),
            (vec!["Bearer"], "missing", false),
            (vec!["Bearer "], "missing", false),
            (vec![""], "missing", false),
            (vec!["Bearer eyJallmk_demo_secret123"], "missing", false),
            (vec!["Bearer LLMK_demo_secret123"], "missing", false),
            (vec!["Token llmk_demo_secret123"], "missing", false),
            (vec!["llmk_demo_secret123"], "missing", false),
        ] {
            let headers: Vec<_> = values.iter().map(|v| ("authorization", v.as_bytes())).collect();
            let request = read(&options, &headers);
            assert_eq!((kind(request.credential), request.bearer), (expected, ours), "{values:?}");
        }
    }

    #[test]
    fn a_key_in_both_places_is_malformed_and_a_foreign_token_beside_it_is_not() {
        let options = Options { accept_bearer: true, ..Options::default() };
        for (key, authorization, expected) in [
            (KEY, "Bearer llmk_demo_secret123", "malformed"),
            (KEY, "Bearer llmk_other", "malformed"),
            (KEY, "Bearer eyJ.x.y", "presented"),
            ("", "Bearer llmk_demo_secret123", "presented"),
            ("x", "Bearer eyJ.x.y", "malformed"),
        ] {
            let headers =
                [("x-llmcore-api-key", key.as_bytes()), ("authorization", authorization.as_bytes())];
            assert_eq!(kind(read(&options, &headers).credential), expected, "{key} {authorization}");
        }
    }

    #[test]
    fn public_paths_are_exact() {
        let public = PublicPaths::default();
        for (method, path) in [("GET", "/"), ("HEAD", "/health"), ("GET", "/docs?x=/../y")] {
            assert!(public.contains(method.as_bytes(), path.as_bytes()), "{method} {path}");
        }
        for (method, path) in [
            ("POST", "/docs"),
            ("get", "/docs"),
            ("GET", ""),
            ("GET", "/docs/"),
            ("GET", "//docs"),
            ("GET", "/docs/../x"),
            ("GET", "/%64ocs"),
            ("GET", "/Docs"),
            ("GET", "/docs#x"),
            ("GET", "/docs;x"),
        ] {
            assert!(!public.contains(method.as_bytes(), path.as_bytes()), "{method} {path}");
        }
        assert!(!PublicPaths::none().contains(b"GET", b"/"));
    }

    #[test]
    fn a_pattern_is_for_what_is_below_it_and_not_for_itself() {
        let mut public = PublicPaths::none();
        public.add("GET /a").unwrap();
        assert!(!public.has_patterns());
        public.add("GET /assets/*").unwrap();
        assert!(public.has_patterns());
        for (method, path, expected) in [
            ("GET", "/assets/x", true),
            ("GET", "/assets/x/y?z", true),
            ("GET", "/assets", false),
            ("GET", "/assets/", false),
            ("GET", "/assets/?x", false),
            ("GET", "/assetsx", false),
            ("GET", "/x/assets/y", false),
            ("POST", "/assets/x", false),
        ] {
            assert_eq!(public.contains(method.as_bytes(), path.as_bytes()), expected, "{method} {path}");
        }
        public.add("GET /*").unwrap();
        assert!(public.contains(b"GET", b"/x") && !public.contains(b"GET", b"/"));
    }

    #[test]
    fn a_public_rule_that_cannot_match_is_refused() {
        let mut public = PublicPaths::none();
        assert_eq!(public.add("OPTIONS /a,b"), Ok(()));
        assert!(public.contains(b"OPTIONS", b"/a,b"));
        for bad in [
            "",
            "GET",
            "/health",
            "get /health",
            "GET health",
            "GET /a?b",
            "GET  /a",
            " /a",
            "GET /a*",
            "GET /*/a",
            "GET /a/*/*",
            "GET /a/**",
            "* /a",
        ] {
            assert!(public.add(bad).is_err(), "{bad:?}");
        }
    }
}

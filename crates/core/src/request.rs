//! Parses a request: its method, host and path, and its credential.
//!
//! A key that occurs twice, in two places, or with other text around it is [`Credential::Malformed`], because another
//! program might choose a different part of it. Credentials of other kinds (another scheme, another bearer token) are
//! ignored.
//!
//! Header names must be in lower case, as in HTTP/2. [`RequestOptions`] names the headers to read. This module does not
//! know Envoy's messages.

use crate::key::PresentedKey;
use crate::key::format::{SCHEME, parse};
pub use crate::public::PublicPaths;
use crate::route::Context;

/// The default name of the header that carries the key.
pub const DEFAULT_KEY_HEADER: &str = "x-llmcore-api-key";

/// The header that carries a bearer token (RFC 6750 §2.1).
pub const AUTHORIZATION: &str = "authorization";

/// How requests are parsed.
#[derive(Clone, Debug)]
pub struct RequestOptions {
    /// The header that carries the key, in lower case.
    pub key_header: String,
    /// Whether a key in `Authorization: Bearer llmk_…` is accepted, too.
    pub accept_bearer: bool,
    /// The requests that need no key.
    pub public: PublicPaths,
    /// Whether CORS preflights need no key.
    pub preflight: bool,
}

impl Default for RequestOptions {
    fn default() -> Self {
        Self {
            key_header: DEFAULT_KEY_HEADER.into(),
            accept_bearer: false,
            public: PublicPaths::default(),
            preflight: false,
        }
    }
}

/// The headers that make an `OPTIONS` request a CORS preflight.
///
/// Source: <https://fetch.spec.whatwg.org/#cors-preflight-fetch>
pub const PREFLIGHT_HEADERS: [&str; 2] = ["origin", "access-control-request-method"];

/// The credential of a request.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub enum Credential<'a> {
    /// A text that looks like a key but is invalid, or more than one key.
    Malformed,
    /// No key.
    Missing,
    /// One key with a valid grammar.
    Presented(PresentedKey<'a>),
}

/// Which option exempts a request from needing a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Waived {
    /// None.
    No,
    /// `--public`.
    Public,
    /// `--public-preflight`.
    Preflight,
}

/// The parts of a request that a decision needs.
#[derive(Clone, Copy, Debug)]
pub struct AccessRequest<'a> {
    /// Which option exempts it from needing a key.
    pub waived: Waived,
    /// Whether `--public` has a path that ends in `/*`, so that ambiguous paths are rejected.
    pub patterns: bool,
    /// The method.
    pub method: &'a [u8],
    /// The host, unchanged.
    pub host: &'a [u8],
    /// The path with its query, unchanged.
    pub path: &'a [u8],
    /// Envoy's context extensions for the route.
    pub context: Context<'a>,
    /// The credential.
    pub credential: Credential<'a>,
    /// Whether `Authorization` contains a key or an attempt at one. The upstream must not see it.
    pub bearer: bool,
}

/// Parses a request header by header.
#[derive(Debug)]
pub struct RequestReader<'o, 'a> {
    options: &'o RequestOptions,
    key: HeaderSlot<'a>,
    bearer: HeaderSlot<'a>,
    ours: bool,
    context: Context<'a>,
    /// Which of [`PREFLIGHT_HEADERS`] the request has.
    preflight: [bool; 2],
}

/// The values of one header.
#[derive(Clone, Copy, Debug)]
enum HeaderSlot<'a> {
    Empty,
    One(&'a [u8]),
    Many,
}

impl<'a> HeaderSlot<'a> {
    fn put(&mut self, value: &'a [u8]) {
        *self = match self {
            Self::Empty => Self::One(value),
            Self::One(_) | Self::Many => Self::Many,
        };
    }
}

impl<'o, 'a> RequestReader<'o, 'a> {
    /// Starts to parse a request.
    #[must_use]
    pub fn new(options: &'o RequestOptions) -> Self {
        let (context, preflight) = (Context::default(), [false; 2]);
        Self { options, key: HeaderSlot::Empty, bearer: HeaderSlot::Empty, ours: false, context, preflight }
    }

    /// Adds a header. Must be called once for each header of the request, in any order.
    #[expect(clippy::inline_always, reason = "a call for each header costs 1 % of a check")]
    #[inline(always)]
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

    /// Adds a context extension, which comes from Envoy's configuration of the route.
    pub fn context(&mut self, name: &[u8], value: &'a [u8]) {
        self.context.put(name, value);
    }

    /// Returns the parsed request.
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
            (false, _) | (true, HeaderSlot::Empty) => None,
            (true, HeaderSlot::One(value)) => Some(bearer_token(value)),
            (true, HeaderSlot::Many) => return Credential::Malformed,
        };
        match (self.key, bearer) {
            (HeaderSlot::Empty | HeaderSlot::One([]), None) => Credential::Missing,
            (HeaderSlot::One(value), None) | (HeaderSlot::Empty | HeaderSlot::One([]), Some(Some(value))) => {
                parse(value).map_or(Credential::Malformed, Credential::Presented)
            }
            (HeaderSlot::Many, _) | (_, Some(_)) => Credential::Malformed,
        }
    }
}

/// Returns the token of `Bearer <token>`. The scheme is case-insensitive (RFC 9110 §11.1) and followed by exactly one
/// space.
fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(BEARER.len())?;
    scheme.eq_ignore_ascii_case(BEARER).then_some(rest)?.strip_prefix(b" ")
}

const BEARER: &[u8] = b"bearer";

/// Returns whether `part`, one of the comma-separated parts of an `Authorization` value, is a bearer token with
/// `llmk_` at the start of a word. Such a token claims to be a key, but may be malformed.
///
/// A word starts after a byte that tokens cannot have (RFC 6750 §2.1, `b64token`), so a JWT that contains these five
/// characters by chance is not taken for a key.
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

    fn read<'a>(options: &RequestOptions, headers: &[(&str, &'a [u8])]) -> AccessRequest<'a> {
        let mut reader = RequestReader::new(options);
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
    fn one_key_header_is_accepted_and_several_are_malformed() {
        let options = RequestOptions::default();
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
    fn a_bearer_key_is_accepted_if_enabled_and_other_tokens_are_ignored() {
        let options = RequestOptions { accept_bearer: true, ..RequestOptions::default() };
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
    fn keys_in_both_headers_are_malformed_and_another_bearer_token_is_ignored() {
        let options = RequestOptions { accept_bearer: true, ..RequestOptions::default() };
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
    fn public_paths_are_compared_exactly() {
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
    fn a_pattern_matches_what_is_below_it_but_not_the_path_itself() {
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
    fn an_invalid_public_rule_is_rejected() {
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

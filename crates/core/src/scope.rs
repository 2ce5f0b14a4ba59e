//! Scopes: the ones that a key is granted, and the ones that a route needs.
//!
//! ```text
//! granted   models.read invoices:*       a list; `*` as the last part grants everything longer below it
//! needed    a b | c                      (a and b) or c
//! ```
//!
//! A key whose scopes are `NULL` is granted everything. The caller represents that as `Option::None`, not as a state of
//! [`Scopes`]; an empty list grants nothing.

use std::fmt;

use crate::invalid::{Invalid, InvalidValue, words};

/// The most bytes of a scope.
pub const MAX_SCOPE_BYTES: usize = 64;

/// The most scopes of a key.
pub const MAX_SCOPES: usize = 64;

/// The most terms of needs.
pub const MAX_TERMS: usize = 4;

/// The most scopes of one term.
pub const MAX_TERM_SCOPES: usize = 16;

fn is_scope_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_.:/-".contains(&byte)
}

/// Checks the grammar of a scope. `wild` allows `*` as the last part.
fn check(what: &'static str, scope: &str, wild: bool) -> Result<(), Invalid> {
    let plain = match scope.strip_suffix('*') {
        Some(before) if wild && (before.is_empty() || before.ends_with(['.', ':', '/'])) => before,
        _ => scope,
    };
    if let Some(at) = plain.bytes().position(|byte| !is_scope_byte(byte)) {
        let star = plain.as_bytes()[at] == b'*';
        return Err(Invalid::new(
            what,
            at,
            match (star, wild) {
                (true, true) => "* only as the last part, alone or after one of . : /",
                (true, false) => "a scope without *",
                (false, _) => "letters, digits or one of _ . : / -",
            },
        ));
    }
    if scope.len() > MAX_SCOPE_BYTES {
        return Err(Invalid::new(what, MAX_SCOPE_BYTES, "the end of a scope of at most 64 characters"));
    }
    Ok(())
}

/// Returns whether a granted scope, which may end in `*`, covers a needed one.
fn covers(granted: &str, needed: &str) -> bool {
    match granted.strip_suffix('*') {
        Some(below) => needed.len() > below.len() && needed.starts_with(below),
        None => granted == needed,
    }
}

/// The scopes that a key is granted: at most 64 distinct ones, in the order of the text.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Scopes(Box<str>);

impl Scopes {
    /// Parses `api_keys.scopes`: scopes with spaces between them. Skips repeated ones.
    ///
    /// # Errors
    ///
    /// Returns the first scope that is invalid, or the first one above 64.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        const WHAT: &str = "list of scopes";
        let mut kept: Vec<&str> = Vec::new();
        for (at, scope) in words(text) {
            check(WHAT, scope, true).map_err(|error| error.moved(at))?;
            if kept.contains(&scope) {
                continue;
            }
            if kept.len() == MAX_SCOPES {
                return Err(Invalid::new(WHAT, at, "the end of a list of at most 64 scopes"));
            }
            kept.push(scope);
        }
        Ok(Self(kept.join(" ").into()))
    }

    /// Parses exactly one scope, which may end in `*`.
    ///
    /// # Errors
    ///
    /// Returns that the scope is invalid, or that there is not exactly one.
    pub fn parse_one(text: &str) -> Result<String, InvalidValue> {
        let scopes = Self::parse(text).map_err(|error| error.to_string())?;
        let mut all = scopes.iter();
        match (all.next(), all.next()) {
            (Some(one), None) => Ok(one.to_owned()),
            _ => Err("expected one scope".into()),
        }
    }

    /// Returns the scopes, in the order of the text.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split(' ').filter(|scope| !scope.is_empty())
    }

    /// Returns whether `scope` is granted.
    #[must_use]
    pub fn grants(&self, scope: &str) -> bool {
        self.iter().any(|granted| covers(granted, scope))
    }

    /// Returns the scopes with single spaces between them.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Scopes that are needed together: 1 to 16 distinct ones.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Term(Box<str>);

impl Term {
    /// Returns the scopes.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split(' ')
    }

    /// Returns the scopes with single spaces between them.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The scopes that a route needs: 1 to 4 distinct terms, of which a key must meet one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Needs(Box<[Term]>);

impl Needs {
    /// Parses `tenantgate_route.scopes`, or Envoy's context extension `tenantgate.scopes`. Skips repeated scopes and
    /// terms.
    ///
    /// # Errors
    ///
    /// Returns the first scope that is invalid, the first scope or term above its limit, or a term without scopes.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        const WHAT: &str = "needs";
        let mut terms: Vec<Term> = Vec::new();
        let mut start = 0;
        for part in text.split('|') {
            let mut kept: Vec<&str> = Vec::new();
            for (at, scope) in words(part) {
                check(WHAT, scope, false).map_err(|error| error.moved(start + at))?;
                if kept.contains(&scope) {
                    continue;
                }
                if kept.len() == MAX_TERM_SCOPES {
                    return Err(Invalid::new(WHAT, start + at, "at most 16 scopes between two |"));
                }
                kept.push(scope);
            }
            if kept.is_empty() {
                return Err(Invalid::new(WHAT, start + part.len(), "a scope, as in `a b | c`"));
            }
            let term = Term(kept.join(" ").into());
            if !terms.contains(&term) {
                if terms.len() == MAX_TERMS {
                    return Err(Invalid::new(WHAT, start, "at most 4 terms with | between them"));
                }
                terms.push(term);
            }
            start += part.len() + 1;
        }
        Ok(Self(terms.into()))
    }

    /// Returns the terms, in the order of the text.
    #[must_use]
    pub fn terms(&self) -> &[Term] {
        &self.0
    }

    /// Returns the first term, which the response names if the key does not meet the needs.
    #[must_use]
    pub fn first_term(&self) -> &str {
        self.0.first().map(Term::as_str).unwrap_or_default()
    }

    /// Returns whether `granted` has all scopes of one of the terms.
    #[must_use]
    pub fn are_met_by(&self, granted: &Scopes) -> bool {
        self.0.iter().any(|term| term.iter().all(|scope| granted.grants(scope)))
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, term) in self.0.iter().enumerate() {
            write!(f, "{}{}", if number > 0 { " | " } else { "" }, term.as_str())?;
        }
        Ok(())
    }
}

/// [`Needs`] as a checked text that is borrowed from a request.
///
/// Envoy sends the needs of its own configuration with every request. They are short, so parsing them each time
/// costs less than a shared, bounded cache of parsed ones.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NeedsText<'a>(&'a str);

impl<'a> NeedsText<'a> {
    /// Checks a text by the rules of [`Needs::parse`]. `None` if it is invalid.
    #[must_use]
    pub fn read(text: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut terms = 0;
        for (number, term) in text.split('|').enumerate() {
            let mut scopes = 0;
            for (at, (_, scope)) in words(term).enumerate() {
                check("needs", scope, false).ok()?;
                scopes += usize::from(!words(term).take(at).any(|(_, before)| before == scope));
            }
            if scopes == 0 || scopes > MAX_TERM_SCOPES {
                return None;
            }
            terms += usize::from(!text.split('|').take(number).any(|before| words_equal(before, term)));
        }
        (terms <= MAX_TERMS).then_some(Self(text))
    }

    /// Returns the whole text.
    #[must_use]
    pub fn as_str(self) -> &'a str {
        self.0
    }

    /// Returns the first term, with the spaces of the text.
    #[must_use]
    pub fn first_term(self) -> &'a str {
        self.0.split('|').next().unwrap_or_default()
    }

    /// Returns whether `granted` has all scopes of one of the terms.
    #[must_use]
    pub fn are_met_by(self, granted: &Scopes) -> bool {
        self.0.split('|').any(|term| words(term).all(|(_, scope)| granted.grants(scope)))
    }
}

/// Returns whether two terms are equal apart from repeated scopes and spaces.
fn words_equal(one: &str, other: &str) -> bool {
    let first = |term| {
        words(term).enumerate().filter(move |(at, (_, word))| !words(term).take(*at).any(|(_, w)| w == *word))
    };
    first(one).map(|(_, (_, word))| word).eq(first(other).map(|(_, (_, word))| word))
}

/// Numbers for the scopes that rules need, so that checking a scope means testing a bit.
///
/// The scopes are sorted, so a granted `*` covers a range of numbers.
#[derive(Clone, Debug, Default)]
pub struct ScopeNumbers(Box<[Box<str>]>);

impl ScopeNumbers {
    /// Numbers the scopes of `needs`.
    #[must_use]
    pub fn of<'n>(needs: impl IntoIterator<Item = &'n Needs>) -> Self {
        let terms = needs.into_iter().flat_map(Needs::terms);
        let mut all: Vec<&str> = terms.flat_map(Term::iter).collect();
        all.sort_unstable();
        all.dedup();
        Self(all.into_iter().map(Into::into).collect())
    }

    /// Returns the scopes, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }

    fn number(&self, scope: &str) -> Option<usize> {
        self.0.binary_search_by(|known| (**known).cmp(scope)).ok()
    }

    /// Compiles the granted scopes of a key.
    #[must_use]
    pub fn granted(&self, scopes: &Scopes) -> Granted {
        let mut bits = vec![0_u64; self.0.len().div_ceil(64)];
        for scope in scopes.iter() {
            let range = if let Some(below) = scope.strip_suffix('*') {
                let start = self.0.partition_point(|known| **known <= *below);
                let more = self.0[start..].iter().take_while(|known| known.starts_with(below)).count();
                start..start + more
            } else {
                self.number(scope).map_or(0..0, |number| number..number + 1)
            };
            for number in range {
                bits[number / 64] |= 1 << (number % 64);
            }
        }
        Granted(bits.into())
    }

    /// Compiles needs. A scope without a number is never granted.
    #[must_use]
    pub fn needed(&self, needs: &Needs) -> Needed {
        let number = |scope| self.number(scope).and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX);
        Needed(needs.terms().iter().map(|term| term.iter().map(number).collect()).collect())
    }
}

/// The needed scopes that a key is granted, as a bit set indexed by [`ScopeNumbers`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Granted(Box<[u64]>);

impl Granted {
    fn has(&self, number: u32) -> bool {
        let number = number as usize;
        self.0.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }
}

/// [`Needs`] in compiled form: the numbers of the scopes of each term.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Needed(Box<[Box<[u32]>]>);

impl Needed {
    /// Returns whether `granted` has all scopes of one of the terms.
    #[must_use]
    pub fn are_met_by(&self, granted: &Granted) -> bool {
        self.0.iter().any(|term| term.iter().all(|scope| granted.has(*scope)))
    }
}

#[cfg(test)]
mod tests;

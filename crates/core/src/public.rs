//! The requests that need no key, by `--public`.

/// The requests that need no key, as methods and paths.
///
/// Both are compared exactly: case-sensitively, and without normalization. A path that ends in `/*` matches everything
/// below it, but not the path itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PublicPaths {
    rules: Vec<(String, String)>,
    /// Whether a path ends in `/*`.
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
    /// Creates an empty list: no request is public.
    #[must_use]
    pub fn none() -> Self {
        Self { rules: Vec::new(), patterns: false }
    }

    /// Adds a rule, given as `METHOD /path`.
    ///
    /// # Errors
    ///
    /// Returns why the rule is invalid, as the end of a sentence.
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

    /// Returns whether a path ends in `/*`. If so, ambiguous paths must be rejected before matching.
    #[must_use]
    pub fn has_patterns(&self) -> bool {
        self.patterns
    }

    /// Returns whether a request is public. Ignores the query.
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

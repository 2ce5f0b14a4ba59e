//! Parses the `context_extensions` of a Check, which Envoy's configuration sets for a route.

use super::RouteMode;
use crate::scope::NeedsText;

/// The prefix of the names that tenantgate reads.
pub const CONTEXT_PREFIX: &str = "tenantgate.";

/// Envoy's context extensions for the route of a request. Clients cannot set them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Context<'a> {
    /// `tenantgate.mode`: overrides the modes of rules and options.
    pub mode: Option<RouteMode>,
    /// `tenantgate.scopes`: needed in addition to those of a rule.
    pub needs: Option<NeedsText<'a>>,
    /// `tenantgate.route`: the name of the route for metadata.
    pub route: Option<&'a str>,
    /// Whether any of them is invalid: an unknown or repeated name, or an empty or invalid value.
    pub bad: bool,
    /// Which of them is the first invalid one, for people.
    pub fault: Option<&'static str>,
    /// Whether only Checks decide on the route, by the configuration of the module inside Envoy.
    pub left_by_module: bool,
}

impl<'a> Context<'a> {
    /// Adds an extension. Ignores names without [`CONTEXT_PREFIX`].
    pub fn put(&mut self, name: &[u8], value: &'a [u8]) {
        let Some(name) = name.strip_prefix(CONTEXT_PREFIX.as_bytes()) else { return };
        let good = match name {
            b"mode" => {
                let mode = std::str::from_utf8(value).ok().and_then(|text| RouteMode::parse(text).ok());
                mode.is_some() && self.mode.replace(mode.unwrap_or_default()).is_none()
            }
            b"scopes" => {
                let needs = NeedsText::read(value);
                needs.is_some_and(|needs| self.needs.replace(needs).is_none())
            }
            b"route" => {
                let route = std::str::from_utf8(value).ok().filter(|text| super::parse_name(text).is_ok());
                route.is_some_and(|route| self.route.replace(route).is_none())
            }
            _ => false,
        };
        if !good {
            self.bad = true;
            self.fault = self.fault.or(Some(match name {
                b"mode" => "tenantgate.mode",
                b"scopes" => "tenantgate.scopes",
                b"route" => "tenantgate.route",
                _ => "a name that begins with tenantgate. and is not mode, scopes or route",
            }));
        }
    }

    /// Returns whether the Check has context extensions of tenantgate.
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self != Self { left_by_module: self.left_by_module, ..Self::default() }
    }

    /// Returns whether it counts as a rule: it has a mode or needed scopes.
    #[must_use]
    pub fn is_a_rule(&self) -> bool {
        self.mode.is_some() || self.needs.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'a>(pairs: &[(&str, &'a str)]) -> Context<'a> {
        let mut context = Context::default();
        for (name, value) in pairs {
            context.put(name.as_bytes(), value.as_bytes());
        }
        context
    }

    #[test]
    fn extensions_are_parsed_and_those_with_other_prefixes_ignored() {
        let context = read(&[
            ("tenantgate.mode", "optional"),
            ("tenantgate.scopes", "a b | c"),
            ("tenantgate.route", "orders é"),
            ("virtual_host", ""),
            ("tenantgate", "x"),
        ]);
        assert_eq!(
            (context.mode, context.route, context.bad),
            (Some(RouteMode::Optional), Some("orders é"), false)
        );
        assert_eq!(context.needs.map(NeedsText::first_term), Some("a b "));
        assert!(context.is_a_rule() && read(&[("tenantgate.mode", "required")]).is_a_rule());
        assert!(!read(&[("tenantgate.route", "x")]).is_a_rule() && !read(&[]).is_a_rule());
        assert!(read(&[("tenantgate.route", "x")]).is_set() && read(&[("tenantgate.x", "x")]).is_set());
        assert!(!read(&[("other", "x")]).is_set());
        assert!(!Context { left_by_module: true, ..Context::default() }.is_set());
    }

    #[test]
    fn invalid_extensions_are_bad() {
        for bad in [
            &[("tenantgate.mode", "")][..],
            &[("tenantgate.mode", "off")],
            &[("tenantgate.mode", "Public")],
            &[("tenantgate.scopes", "")],
            &[("tenantgate.scopes", "a.*")],
            &[("tenantgate.scopes", "a |")],
            &[("tenantgate.route", "")],
            &[("tenantgate.route", "a\n")],
            &[("tenantgate.", "x")],
            &[("tenantgate.scope", "a")],
            &[("tenantgate.mode", "public"), ("tenantgate.mode", "public")],
            &[("tenantgate.scopes", "a"), ("tenantgate.scopes", "a")],
            &[("tenantgate.route", "a"), ("tenantgate.route", "a")],
        ] {
            assert!(read(bad).bad, "{bad:?}");
        }
        let mut context = Context::default();
        context.put(b"tenantgate.route", b"\xff");
        context.put(b"tenantgate.mode", b"");
        assert_eq!((context.bad, context.fault), (true, Some("tenantgate.route")));
    }
}

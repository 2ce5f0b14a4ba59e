//! What Envoy's own configuration says of a route: `context_extensions` of the call.

use super::RouteMode;
use crate::scope::NeedsText;

/// The beginning of the names that are meant for us.
pub const CONTEXT_PREFIX: &str = "tenantgate.";

/// What Envoy says of the route of a request. No client can write it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Context<'a> {
    /// `tenantgate.mode`: it beats the modes of rules and options.
    pub mode: Option<RouteMode>,
    /// `tenantgate.scopes`: they are needed besides those of a rule.
    pub needs: Option<NeedsText<'a>>,
    /// `tenantgate.route`: a name for metadata.
    pub route: Option<&'a str>,
    /// Whether anything of it cannot be read: an unknown name, a name that is there twice, an empty or bad value.
    pub bad: bool,
}

impl<'a> Context<'a> {
    /// Takes note of an extension. Those of others are not ours to judge.
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
        self.bad |= !good;
    }

    /// Whether it says what a request needs, as a rule does.
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
    fn what_envoy_says_is_read_and_other_extensions_are_not_ours() {
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
    }

    #[test]
    fn what_cannot_be_read_is_bad() {
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
        assert!(context.bad);
    }
}

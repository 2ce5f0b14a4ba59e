//! The cookie of a session.

use axum::http::header::COOKIE;
use axum::http::{HeaderMap, HeaderValue};

use super::origin::is_on_this_machine;
use crate::verify::token::RandomToken;

/// Because of this prefix, a browser accepts the cookie only over TLS, from exactly this host, and for all its paths.
const SECURE: &str = "__Host-tenantgate";

/// The name over plain HTTP, which is used only on the same machine.
const PLAIN: &str = "tenantgate";

fn name(headers: &HeaderMap) -> &'static str {
    if is_on_this_machine(headers) { PLAIN } else { SECURE }
}

/// Returns the value of the session cookie; `None` if there is no cookie or more than one, because an attacker may have
/// added one.
pub(super) fn read(headers: &HeaderMap) -> Option<&str> {
    let name = name(headers);
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let mut values = pairs.filter(|(other, _)| *other == name).map(|(_, value)| value);
    values.next().filter(|value| !value.is_empty() && values.next().is_none())
}

/// Returns the header that sets the session cookie. The cookie expires after 12 hours.
pub(super) fn set(headers: &HeaderMap, token: &RandomToken) -> Option<HeaderValue> {
    line(headers, token.expose(), crate::admin::LONGEST.as_secs())
}

/// Returns the header that removes the session cookie.
pub(super) fn clear(headers: &HeaderMap) -> Option<HeaderValue> {
    line(headers, "", 0)
}

fn line(headers: &HeaderMap, value: &str, seconds: u64) -> Option<HeaderValue> {
    let name = name(headers);
    let secure = if name == SECURE { "; Secure" } else { "" };
    let text = format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use axum::http::header::HOST;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;

    fn headers(host: &'static str, cookies: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static(host));
        for cookie in cookies {
            headers.append(COOKIE, HeaderValue::from_static(cookie));
        }
        headers
    }

    #[test]
    fn the_cookie_is_for_this_host_only_and_hidden_from_scripts() {
        let token = RandomToken::issue_with(&mut SmallRng::seed_from_u64(1)).unwrap();
        let value = token.expose();
        let here = set(&headers("127.0.0.1:9465", &[]), &token).unwrap();
        let flags = "Path=/; Max-Age=43200; HttpOnly; SameSite=Strict";
        assert_eq!(here.to_str().unwrap(), format!("tenantgate={value}; {flags}"));
        let there = set(&headers("gate.example", &[]), &token).unwrap();
        assert_eq!(there.to_str().unwrap(), format!("__Host-tenantgate={value}; {flags}; Secure"));
        let gone = clear(&headers("gate.example", &[])).unwrap();
        assert!(gone.to_str().unwrap().starts_with("__Host-tenantgate=; Path=/; Max-Age=0;"));
    }

    #[test]
    fn one_cookie_of_the_right_name_is_read() {
        for (host, cookies, value) in [
            ("gate.example", &["__Host-tenantgate=a"][..], Some("a")),
            ("gate.example", &["x=1; __Host-tenantgate=a;y=2"], Some("a")),
            ("gate.example", &["tenantgate=a"], None),
            ("gate.example", &["__Host-tenantgate=a; __Host-tenantgate=b"], None),
            ("gate.example", &["__Host-tenantgate=a", "__Host-tenantgate=b"], None),
            ("gate.example", &["__Host-tenantgate="], None),
            ("localhost", &["tenantgate=a"], Some("a")),
            ("localhost", &["__Host-tenantgate=a"], None),
            ("localhost", &[], None),
        ] {
            assert_eq!(read(&headers(host, cookies)), value, "{host} {cookies:?}");
        }
    }
}

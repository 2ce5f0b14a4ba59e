//! Distinguishes requests of the page itself from those that another site makes a browser send.

use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Returns whether the page itself sent a changing request: `Sec-Fetch-Site` is `same-origin`, `Origin` matches the
/// host of the request, and neither contradicts. Without both headers the sender is unknown, and the request is
/// rejected.
///
/// Because of `Referrer-Policy: no-referrer`, the page sends `Origin: null` with its own forms. Other sites can do so,
/// too, so `Sec-Fetch-Site` decides then.
pub(super) fn is_same_origin(headers: &HeaderMap) -> bool {
    match (SingleHeader::of(headers, &SEC_FETCH_SITE), SingleHeader::of(headers, &ORIGIN)) {
        (SingleHeader::One(site), SingleHeader::Absent | SingleHeader::One("null")) => site == "same-origin",
        (SingleHeader::One(site), SingleHeader::One(origin)) => {
            site == "same-origin" && is_of_host(origin, headers)
        }
        (SingleHeader::Absent, SingleHeader::One(origin)) => is_of_host(origin, headers),
        (SingleHeader::Absent, SingleHeader::Absent)
        | (SingleHeader::Unclear, _)
        | (_, SingleHeader::Unclear) => false,
    }
}

/// A header that may occur at most once.
enum SingleHeader<'h> {
    Absent,
    One(&'h str),
    /// It occurs more than once, or is not text.
    Unclear,
}

impl<'h> SingleHeader<'h> {
    fn of(headers: &'h HeaderMap, name: &HeaderName) -> Self {
        let mut values = headers.get_all(name).iter();
        match (values.next().map(|value| value.to_str()), values.next()) {
            (None, _) => Self::Absent,
            (Some(Ok(value)), None) => Self::One(value),
            (Some(_), _) => Self::Unclear,
        }
    }
}

/// Returns whether an origin has the host and port of the request. The scheme cannot be compared, because a proxy may
/// terminate TLS.
fn is_of_host(origin: &str, headers: &HeaderMap) -> bool {
    let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    let SingleHeader::One(host) = SingleHeader::of(headers, &HOST) else { return false };
    authority.is_some_and(|authority| !authority.is_empty() && authority.eq_ignore_ascii_case(host))
}

/// Returns whether the browser addresses this server by a loopback name, so that the connection is assumed to be plain
/// HTTP.
pub(super) fn is_on_this_machine(headers: &HeaderMap) -> bool {
    let SingleHeader::One(host) = SingleHeader::of(headers, &HOST) else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, "gate.example:8443".parse().unwrap());
        for (name, value) in list {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_requests_of_the_page_itself_are_accepted() {
        for (list, ours) in [
            (&[][..], false),
            (&[("sec-fetch-site", "same-origin")], true),
            (&[("sec-fetch-site", "same-origin"), ("origin", "https://gate.example:8443")], true),
            (&[("sec-fetch-site", "same-origin"), ("origin", "null")], true),
            (&[("origin", "https://gate.example:8443")], true),
            (&[("origin", "http://Gate.Example:8443")], true),
            (&[("origin", "null")], false),
            (&[("origin", "https://gate.example")], false),
            (&[("origin", "https://gate.example:8443.evil.example")], false),
            (&[("origin", "https://evil.example")], false),
            (&[("origin", "gate.example:8443")], false),
            (&[("sec-fetch-site", "same-site")], false),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("sec-fetch-site", "cross-site"), ("origin", "https://gate.example:8443")], false),
            (&[("sec-fetch-site", "same-origin"), ("origin", "https://evil.example")], false),
            (&[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")], false),
            (
                &[("sec-fetch-site", "same-origin"), ("origin", "null"), ("origin", "https://evil.example")],
                false,
            ),
        ] {
            assert_eq!(is_same_origin(&headers(list)), ours, "{list:?}");
        }
    }

    #[test]
    fn all_loopback_names_are_this_machine() {
        for (host, here) in [
            ("localhost:9465", true),
            ("127.0.0.1:9465", true),
            ("127.8.9.1", true),
            ("[::1]:9465", true),
            ("gate.example", false),
            ("localhost.evil.example", false),
            ("[2001:db8::1]:1", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            assert_eq!(is_on_this_machine(&headers), here, "{host}");
        }
    }
}

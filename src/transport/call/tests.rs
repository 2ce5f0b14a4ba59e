//! Tests of calls.

use super::*;

#[test]
fn grpc_timeouts_are_parsed_as_the_protocol_defines_them() {
    for (text, expected) in [
        ("200m", Some(Duration::from_millis(200))),
        ("1S", Some(Duration::from_secs(1))),
        ("99999999H", Some(Duration::from_hours(99_999_999))),
        ("5M", Some(Duration::from_mins(5))),
        ("7u", Some(Duration::from_micros(7))),
        ("7n", Some(Duration::from_nanos(7))),
        ("", None),
        ("m", None),
        ("123456789m", None),
        ("-1m", None),
        ("1.5S", None),
        ("5", None),
        ("5é", None),
    ] {
        assert_eq!(grpc_timeout(text), expected, "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_is_before_grpc_timeout_and_within_the_limit() {
    let due = |timeout: Option<&'static str>| {
        let mut headers = HeaderMap::new();
        timeout.map(|timeout| headers.insert("grpc-timeout", HeaderValue::from_static(timeout)));
        (deadline(&headers, Duration::from_secs(10)) - Instant::now()).as_millis()
    };
    for (timeout, expected) in [
        (None, 10_000),
        (Some("soon"), 10_000),
        (Some("1H"), 10_000),
        (Some("2S"), 1_500),
        (Some("200m"), 150),
        (Some("100m"), 75),
        (Some("10m"), 5),
        (Some("1m"), 0),
    ] {
        assert_eq!(due(timeout), expected, "{timeout:?}");
    }
}

#[test]
fn the_size_of_a_header_list_is_computed_as_http_2_defines_it() {
    let mut headers = HeaderMap::new();
    headers.append("tracestate", HeaderValue::from_static("0123456789"));
    headers.append("tracestate", HeaderValue::from_static(""));
    assert_eq!((within(&headers, 94), within(&headers, 93)), (Ok(()), Err(94)));
}

#[test]
fn a_grpc_call_is_a_post_with_its_content_type() {
    let mut headers = HeaderMap::new();
    assert_eq!(is_grpc(&Method::POST, &headers), Err(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    for (kind, fine) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc;charset=utf-8", true),
        ("application/grpc-web", false),
        ("application/json", false),
    ] {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        assert_eq!(is_grpc(&Method::POST, &headers).is_ok(), fine, "{kind}");
        let why = if fine { StatusCode::METHOD_NOT_ALLOWED } else { StatusCode::UNSUPPORTED_MEDIA_TYPE };
        assert_eq!(is_grpc(&Method::GET, &headers), Err(why), "{kind}");
    }
}

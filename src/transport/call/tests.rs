//! Tests of calls.

use super::*;

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

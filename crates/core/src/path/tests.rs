//! Tests of paths.

use proptest::prelude::*;

use super::*;

const KEEP: PathOptions = PathOptions { keep_encoded_slash: true, keep_parameters: true };

fn read(path: &str, options: PathOptions) -> Option<String> {
    let path = Path::read(path.as_bytes(), options).ok()?;
    let segments = path.segments().flat_map(|segment| [b"/", segment].concat());
    Some(String::from_utf8_lossy(&segments.collect::<Vec<_>>()).into_owned())
}

#[test]
fn paths_are_normalized() {
    for (path, form) in [
        ("/", ""),
        ("/a", "/a"),
        ("/a/", "/a"),
        ("/a/b?x=//../%2f", "/a/b"),
        ("/?x", ""),
        ("/%61dmin", "/admin"),
        ("/a%2Db%5Fc%7ed%2E", "/a-b_c~d."),
        ("/v1/x%3agenerate", "/v1/x:generate"),
        ("/a%2Bb%2a", "/a+b*"),
        ("/a%20b/%c3%a9", "/a%20b/%C3%A9"),
        ("/%25%36%31", "/%2561"),
        ("/a%3f%23", "/a%3F%23"),
        ("/...", "/..."),
        ("/.a/..b", "/.a/..b"),
        ("/A", "/A"),
        ("/a|b\"<>^`{}[]", "/a%7Cb%22%3C%3E%5E%60%7B%7D%5B%5D"),
        ("/v2/x[1]/%7e", "/v2/x%5B1%5D/~"),
    ] {
        assert_eq!(read(path, PathOptions::default()).as_deref(), Some(form), "{path}");
    }
}

#[test]
fn paths_that_programs_interpret_differently_are_ambiguous() {
    for path in [
        "",
        "a",
        "*",
        "?",
        "http://h/a",
        "//",
        "//a",
        "/a//",
        "/a//b",
        "/.",
        "/..",
        "/a/.",
        "/a/./b",
        "/a/../b",
        "/a/..",
        "/%2e",
        "/%2E%2e/a",
        "/.%2e",
        "/a\\b",
        "/a%5cb",
        "/a%5Cb",
        "/a%2fb",
        "/a%2Fb",
        "/%00",
        "/a%",
        "/a%2",
        "/a%2/",
        "/a%zz",
        "/a%+1",
        "/a;b",
        "/a%3bb",
        "/a%3Bb",
        "/;",
        "/a#b",
        "/a b",
        "/a\tb",
        "/a\x7f",
        "/é",
        "/%c3",
        "/%c0%af",
        "/%c3/%a9",
        "/%c3a",
        "/%ff",
        "/%ed%a0%80",
        "/%c3%a9%c3",
    ] {
        assert_eq!(read(path, PathOptions::default()), None, "{path:?}");
    }
}

#[test]
fn an_ambiguous_path_is_rejected_with_its_position() {
    let slash = PathOptions { keep_encoded_slash: true, ..PathOptions::default() };
    for (path, options, expected) in [
        ("ab", PathOptions::default(), "no slash at the start at position 1"),
        ("/ab//c", PathOptions::default(), "an empty segment at position 4"),
        ("/ab/../c", PathOptions::default(), "a dot segment at position 6"),
        ("/ab/..", PathOptions::default(), "a dot segment at position 6"),
        ("/ab#", PathOptions::default(), "a character that paths may not have at position 4"),
        ("/%61b#", PathOptions::default(), "a character that paths may not have at position 6"),
        ("/ab;", PathOptions::default(), "a path parameter at position 4"),
        ("/ab%2", PathOptions::default(), "an incomplete escape at position 4"),
        ("/ab%2fc", PathOptions::default(), "an escaped slash, backslash or NUL at position 4"),
        ("/ab%ffc", PathOptions::default(), "escapes that are not UTF-8 at position 6"),
        ("/%61/./c", PathOptions::default(), "a dot segment at position 6"),
        ("/%61/..", PathOptions::default(), "a dot segment at position 7"),
        ("/ab/..%2Fc", slash, "a dot segment at position 6"),
    ] {
        let error = Path::read(path.as_bytes(), options).unwrap_err();
        assert_eq!(error.to_string(), expected, "{path}");
    }
}

#[test]
fn a_kept_encoded_slash_hides_neither_dots_nor_empty_segments() {
    let slash = PathOptions { keep_encoded_slash: true, ..PathOptions::default() };
    for (path, form) in [
        ("/a%2fb", Some("/a%2Fb")),
        ("/a%2Fb/c", Some("/a%2Fb/c")),
        ("/a%2F", Some("/a%2F")),
        ("/a%2F/", None),
        ("/a%2F/b", None),
        ("/%2Fa", None),
        ("/a%2F%2Fb", None),
        ("/a%2F..", None),
        ("/..%2Fa", None),
        ("/a%2F%2e/b", None),
        ("/a%5cb", None),
        ("/a;b", None),
    ] {
        assert_eq!(read(path, slash).as_deref(), form, "{path}");
    }
}

#[test]
fn kept_parameters_hide_no_dots() {
    let parameters = PathOptions { keep_parameters: true, ..PathOptions::default() };
    for (path, form) in [
        ("/a;b", Some("/a;b")),
        ("/a%3Bb", Some("/a;b")),
        ("/;", Some("/;")),
        ("/..;/a", None),
        ("/.;x=1", None),
        ("/%2e%2e%3bx", None),
        ("/...;x", Some("/...;x")),
        ("/a%2Fb", None),
    ] {
        assert_eq!(read(path, parameters).as_deref(), form, "{path}");
    }
}

#[test]
fn all_spellings_of_a_byte_are_the_same_segment() {
    for byte in 0..=u8::MAX {
        let spellings = [
            [&b"/a"[..], &[byte], b"b"].concat(),
            format!("/a%{byte:02X}b").into_bytes(),
            format!("/a%{byte:02x}b").into_bytes(),
        ];
        // Whether a slash is escaped makes a difference. Both spellings are judged, and dots between slashes too.
        let read = |raw: &Vec<u8>| Some(Path::read(raw, KEEP).ok()?.0.into_owned());
        let mut forms: Vec<_> =
            spellings.iter().filter(|_| !b"/?".contains(&byte)).filter_map(read).collect();
        forms.dedup();
        assert!(forms.len() <= 1, "{byte:#x}: {forms:?}");
    }
}

#[test]
fn a_path_without_escapes_is_borrowed() {
    let borrowed = |path: &str| matches!(Path::read(path.as_bytes(), KEEP), Ok(Path(Cow::Borrowed(_))));
    assert!(borrowed("/v1/models/x:generate?a=%20") && !borrowed("/%61"));
}

/// A slow model that applies the rules one after the other.
fn slow(raw: &str, options: PathOptions) -> Option<Vec<String>> {
    let path = raw.split('?').next()?;
    let segments = path.strip_prefix('/')?;
    if raw.bytes().take(path.len()).any(|b| b <= 0x20 || b >= 0x7f || b == b'\\' || b == b'#') {
        return None;
    }
    let mut pieces = Vec::new();
    let mut rest = segments;
    while let Some(c) = rest.chars().next() {
        let length = if c == '%' { 3 } else { 1 };
        let piece = rest.get(..length)?;
        if c == '%' && !piece.bytes().skip(1).all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        pieces.push(if c == '%' { u8::from_str_radix(&piece[1..], 16).ok()? } else { c as u8 });
        rest = &rest[length..];
    }
    // After decoding everything, as an upstream may, the path must be UTF-8 without empty segments and dots.
    let decoded = String::from_utf8(pieces).ok()?;
    if decoded.contains('\0') || decoded.contains('\\') {
        return None;
    }
    let lower = segments.to_ascii_lowercase();
    if lower.contains("%2f") && !options.keep_encoded_slash
        || decoded.contains(';') && !options.keep_parameters
    {
        return None;
    }
    let parts: Vec<_> = decoded.split('/').collect();
    for (at, part) in parts.iter().enumerate() {
        let name = part.split(';').next().unwrap();
        if name == "." || name == ".." || part.is_empty() && at + 1 < parts.len() {
            return None;
        }
    }
    let cut = segments.strip_suffix('/').unwrap_or(segments);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,=:@;".contains(c);
    let form = |segment: &str| {
        let mut form = String::new();
        let mut rest = segment;
        while let Some(c) = rest.chars().next() {
            if c == '%' {
                let byte = u8::from_str_radix(&rest[1..3], 16).unwrap();
                let c = char::from(byte);
                let shown = if c.is_ascii() && plain(c) { c.to_string() } else { format!("%{byte:02X}") };
                form.push_str(&shown);
                rest = &rest[3..];
            } else {
                let shown = if plain(c) { c.to_string() } else { format!("%{:02X}", u32::from(c)) };
                form.push_str(&shown);
                rest = &rest[1..];
            }
        }
        form
    };
    Some(cut.split('/').filter(|_| !cut.is_empty()).map(form).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn parsing_agrees_with_the_model(
        parts in proptest::collection::vec(proptest::sample::select(vec![
            "/", "/", "/", "a", "b", ".", "..", ";", "%2f", "%2F", "%2e", "%61", "%3b", "%5c", "%c3%a9", "%c3", "%a9", "%00",
            "%", "%20", "%25", "%3A", ":", "?", "#", " ", "\\", "é", "[", "%5B", "%5b", "|", "`", "{", "%7b", "~", "%7e",
        ]), 0..9),
        keep_encoded_slash: bool,
        keep_parameters: bool,
    ) {
        let raw = format!("/{}", parts.concat());
        let options = PathOptions { keep_encoded_slash, keep_parameters };
        let read = Path::read(raw.as_bytes(), options).ok();
        let read = read.map(|p| p.segments().map(|s| String::from_utf8(s.to_vec()).unwrap()).collect::<Vec<_>>());
        prop_assert_eq!(read, slow(&raw, options), "{}", raw);
    }

    #[test]
    fn normalizing_twice_changes_nothing(raw in "/[a/.;%0-9A-F:\\[|]{0,20}") {
        if let Some(form) = read(&raw, KEEP) {
            let again = if form.is_empty() { "/" } else { &form };
            prop_assert_eq!(read(again, KEEP), Some(form.clone()), "{}", raw);
        }
    }

    #[test]
    fn no_bytes_cause_a_panic(raw in proptest::collection::vec(any::<u8>(), 0..40)) {
        let _ = Path::read(&raw, KEEP);
    }
}

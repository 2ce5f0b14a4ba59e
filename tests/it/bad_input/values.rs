//! Values that cannot be read.

/// Values that cannot be read, by what they are to be.
pub(super) fn bad() -> Vec<(&'static str, String)> {
    [of_scopes_and_networks(), of_other_values(), of_rules()].concat()
}

fn of(what: &'static str, values: &[&str]) -> Vec<(&'static str, String)> {
    values.iter().map(|value| (what, (*value).to_owned())).collect()
}

fn long(what: &'static str, value: String) -> Vec<(&'static str, String)> {
    vec![(what, value)]
}

/// Different words, each of which begins with `word`.
fn many(word: &str, number: usize) -> String {
    (0..number).map(|n| format!("{word}{n}")).collect::<Vec<_>>().join(" ")
}

/// Scopes and networks.
fn of_scopes_and_networks() -> Vec<(&'static str, String)> {
    let networks = (0..33).map(|n| format!("10.0.{n}.0/24")).collect::<Vec<_>>().join(" ");
    [
        of(
            "scopes",
            &["a,b", "a b*", "a*", "*a", "a.*.b", "a.**", "a é", "a\u{a0}b", "a\tb", "a\nb", "a;b", "ａ"],
        ),
        long("scopes", "a".repeat(65)),
        long("scopes", many("s", 65)),
        of(
            "networks",
            &[
                "",
                "  ",
                "x",
                "10.0.0.0/8 x",
                "10.0.0.1/8",
                "192.0.2.7/0",
                "10.0.0.0/",
                "10.0.0.0/33",
                "10.0.0.0/08",
                "10.0.0.0/+8",
                "10.0.0.0/-1",
                "10.0.0.0/8/8",
                "10.0.0/8",
                "010.0.0.0/8",
                "0x0a.0.0.0/8",
                "167772160",
                "10.0.0.0/8,192.0.2.0/24",
                "10.0.0.0/8\t192.0.2.0/24",
                "10.0.0.0-10.0.0.9",
                "10.0.0.*",
                "example.com",
                "2001:db8::1/32",
                "2001:db8::/129",
                "2001:db8::g/128",
                "2001:db8:::/32",
                "[2001:db8::]/32",
                "fe80::1%eth0",
                "fe80::%1/64",
                "::ffff:192.0.2.0/120",
                "::ffff:192.0.2.7/128",
                "192.0.2.7:80",
                "１92.0.2.7",
            ],
        ),
        long("networks", networks),
    ]
    .concat()
}

/// Plans, limits, labels and instants.
fn of_other_values() -> Vec<(&'static str, String)> {
    [
        of("plan", &["", "Gold", "gold plan", "gold/1", "göld", "gold\n"]),
        long("plan", "g".repeat(65)),
        of(
            "limit",
            &[
                "",
                "5",
                "/DAY",
                "5/",
                "5/day",
                "5/Day",
                "5/DAYS",
                "5/WEEK",
                "5/DAY ",
                " 5/DAY",
                "-1/DAY",
                "+5/DAY",
                "05/DAY",
                "5.7/DAY",
                "5e9/DAY",
                "4294967296/DAY",
                "99999999999999999999/DAY",
                "5/1",
                "5//DAY",
                "٥/DAY",
            ],
        ),
        of("label", &["", "team", "=x", "Team=x", "te am=x", "tëam=x", "team=a\nb"]),
        long("label", format!("{}=x", "a".repeat(64))),
        long("label", format!("a={}", "x".repeat(256))),
        of(
            "not_before",
            &[
                "",
                "tomorrow",
                "2099-01-01",
                "2099-01-01T00:00:00",
                "2099-02-30T00:00:00Z",
                "2099-01-01T25:00:00Z",
                "1d",
            ],
        ),
    ]
    .concat()
}

/// Parts of rules.
fn of_rules() -> Vec<(&'static str, String)> {
    [
        of(
            "needs",
            &[
                "",
                "|",
                "a |",
                "| a",
                "a || b",
                "a.*",
                "*",
                "a & b",
                "a,b",
                "(a)",
                "é",
                "a | b | c | d | e",
                "a\tb",
            ],
        ),
        long("needs", many("s", 17)),
        long("needs", "a".repeat(65)),
        of(
            "host",
            &[
                "",
                "a b",
                "a..b",
                "a.",
                ".a",
                "*.",
                "*a",
                "a.*",
                "*.*.a",
                "a:80",
                "a/b",
                "ex%61mple",
                "münchen.example",
                "[2001:db8::1",
                "[2001:db8::1]:443",
                "[fe80::1%eth0]",
                "http://a",
            ],
        ),
        long("host", "a".repeat(254)),
        of("method", &["", "get", "GET POST", "GET,POST", "GÉT", "G*"]),
        long("method", "G".repeat(33)),
        of(
            "path",
            &[
                "",
                "a",
                "a/b",
                "//",
                "/a//b",
                "/a//",
                "/./a",
                "/a/..",
                "/a/.",
                "/a/*",
                "/*/a",
                "/a*",
                "/**/a",
                "/a/***",
                "/{}",
                "/{X}",
                "/{1a}",
                "/a{b}",
                "/{a",
                "/a}",
                "/{a}/{a}",
                "/{a}b",
                "/a b",
                "/a?b",
                "/a#b",
                "/a;b",
                "/a\\b",
                "/é",
                "/%61",
                "/%2f",
                "/%2",
                "/%",
                "/%zz",
                "/%2E",
                "/a%2F..",
                "/%C3%A9",
                "/a\u{7f}",
                "http://a/b",
                "/{naïve}",
            ],
        ),
        long("path", format!("/{{{}}}", "a".repeat(33))),
        long("path", format!("/{}", "a".repeat(1024))),
        of("mode", &["", "off", "Public", "public "]),
    ]
    .concat()
}

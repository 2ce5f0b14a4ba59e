//! Places of a key: where, how often, when, and beside what.

use super::{MALFORMED, MISMATCH, MISSING, OK, Request, Rows, UNKNOWN, authorization, key, longest};
use crate::support::World;
use crate::support::ask::KEY_HEADER;

/// Places of a key, repetitions, and other headers beside it.
pub(super) fn places(world: &World) -> Rows {
    let (live, other) = (world.live.text.as_str(), longest());
    let bearer = format!("Bearer {live}");
    let scheme = |scheme: &str| authorization(OK, &[&format!("{scheme} {live}")]);
    let both = |of: &str| {
        let mut request = authorization(MALFORMED, &[&format!("Bearer {of}")]);
        request.headers.push((KEY_HEADER, live.as_bytes().to_vec()));
        request
    };
    let twice = |second: &str| {
        let lines = [live, second].map(|value| (KEY_HEADER, value.as_bytes().to_vec()));
        Request::of(MALFORMED, lines.to_vec())
    };
    let elsewhere =
        |name: &'static str, value: String| Request::of(MISSING, vec![(name, value.into_bytes())]);
    vec![
        (1, "no credential", vec![Request::of(MISSING, Vec::new())]),
        (
            2,
            "an empty one",
            vec![
                key(MISSING, ""),
                key(MALFORMED, "Bearer"),
                authorization(MISSING, &["Bearer"]),
                authorization(MISSING, &["Bearer "]),
                authorization(MISSING, &[""]),
            ],
        ),
        (
            3,
            "a scheme in any case",
            vec![scheme("Bearer"), scheme("bearer"), scheme("BEARER"), scheme("bEaReR")],
        ),
        (
            4,
            "blanks around it",
            vec![
                authorization(MALFORMED, &[&format!("Bearer  {live}")]),
                authorization(MALFORMED, &[&format!("Bearer\t{live}")]),
                authorization(MALFORMED, &[&format!("Bearer {live} ")]).becomes(OK),
                authorization(MALFORMED, &[&format!(" Bearer {live}")]).becomes(OK),
                key(MALFORMED, format!("{live} ")).becomes(OK),
                key(MALFORMED, format!("\t{live}")).becomes(OK),
                key(MALFORMED, " ").becomes(MISSING),
            ],
        ),
        (
            5,
            "another scheme",
            ["Basic dXNlcjpwYXNz", "Digest username=\"x\"", "Token llmk_live_12345678", "Negotiate YII="]
                .map(|value| authorization(MISSING, &[value]))
                .into(),
        ),
        (
            6,
            "two lines",
            vec![
                authorization(MALFORMED, &[&bearer, &bearer]),
                authorization(MALFORMED, &[&bearer, "Basic dXNlcjpwYXNz"]),
                authorization(MALFORMED, &["Basic dXNlcjpwYXNz", &bearer]),
                authorization(MALFORMED, &[&format!("{bearer},{bearer}")]),
                twice(live),
                twice(&other),
                twice(""),
                twice("sesame"),
                key(MALFORMED, format!("{live},{other}")),
            ],
        ),
        (7, "two places", vec![both(live), both(&other), both("llmk_x")]),
        (
            8,
            "another place",
            vec![
                Request::of(MISSING, Vec::new())
                    .at("GET", &format!("/v1?api_key={live}&{KEY_HEADER}={live}")),
                Request::of(MISSING, Vec::new()).at("GET", &format!("/{live}")),
                elsewhere("cookie", format!("{KEY_HEADER}={live}")),
                elsewhere("x-api-key", live.to_owned()),
                elsewhere("proxy-authorization", bearer.clone()),
            ],
        ),
    ]
}

/// A valid secret at the wrong time.
pub(super) fn states(world: &World) -> Rows {
    let inactive = [&world.of_sleepy, &world.of_newborn, &world.of_gone];
    let guesses = inactive.map(|of| key(MISMATCH, of.with_wrong_secret()));
    vec![
        (
            24,
            "expired",
            vec![key("401 expired", &world.expired.text), key(MISMATCH, world.expired.with_wrong_secret())],
        ),
        (
            25,
            "revoked",
            vec![key("401 revoked", &world.revoked.text), key(MISMATCH, world.revoked.with_wrong_secret())],
        ),
        (
            26,
            "of a tenant that is not active",
            inactive.iter().map(|of| key("403 tenant_inactive", &of.text)).chain(guesses).collect(),
        ),
    ]
}

/// Other parts of a request.
pub(super) fn surroundings(world: &World) -> Rows {
    let live = || key(OK, &world.live.text);
    let nobody = || Request::of(MISSING, Vec::new());
    let forged = |mut request: Request| {
        let names =
            ["x-llmcore-tenant-id", "x-llmcore-tenant-name", "x-llmcore-tenant-schema", "x-llmcore-key-id"];
        let others =
            ["x-tenant-id", "x-db-schema", "x-envoy-original-path", "x-envoy-auth-failure-mode-allowed"];
        let made_up = names.into_iter().chain(others).map(|name| (name, b"forged".to_vec()));
        request.headers.extend(made_up);
        request
    };
    let odd_paths = [
        "/v1/../docs/../v1",
        "/v1/%2e%2e/v1",
        "/v1;/docs",
        "//v1",
        "/v1/.",
        "/docs/",
        "/v1?/docs",
        "/%76%31",
    ];
    vec![
        (
            30,
            "names that are not the client's to give",
            vec![
                forged(live()),
                forged(nobody()),
                forged(key(UNKNOWN, "llmk_nobody_12345678")),
                forged(key("403 tenant_inactive", &world.of_sleepy.text)),
            ],
        ),
        (
            39,
            "a pre-flight of CORS",
            ["/v1", "/docs", "/"]
                .map(|path| {
                    let asks = [
                        ("origin", &b"https://evil.example"[..]),
                        ("access-control-request-method", b"GET"),
                        ("access-control-request-headers", KEY_HEADER.as_bytes()),
                    ];
                    Request::of(MISSING, asks.map(|(name, value)| (name, value.to_vec())).to_vec())
                        .at("OPTIONS", path)
                })
                .into(),
        ),
        (
            40,
            "an odd path, which decides nothing",
            odd_paths
                .into_iter()
                .flat_map(|path| [live().at("GET", path), nobody().at("GET", path)])
                .collect(),
        ),
    ]
}

//! Spellings of a key.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tenantgate::key::format::checksum;

use super::{Http, MALFORMED, MISMATCH, OK, Rows, UNKNOWN, key, keys, longest};
use crate::support::World;

/// How a key is spelled.
pub(super) fn spellings(world: &World) -> Rows {
    let live = world.live.text.as_str();
    let long = |length: usize| format!("llmk_live_{}", "s".repeat(length - "llmk_live_".len()));
    vec![
        (
            9,
            "another family",
            keys(
                MALFORMED,
                [
                    "LLMK_live_12345678",
                    "Llmk_live_12345678",
                    "llmk-live-12345678",
                    "llm_live_12345678",
                    "sk-1234567890abcdef",
                ],
            ),
        ),
        (
            10,
            "parts are missing",
            keys(MALFORMED, ["llmk_", "llmk__", "llmk_x", "llmk_x_", "llmk__12345678", "llmk"]),
        ),
        (12, "too long", {
            let short = keys(MALFORMED, [72, 73, 128, 129, 8 * 1024].map(long));
            // More than the limit of all headers.
            short.into_iter().chain([key(MALFORMED, long(60 * 1024)).refused(431)]).collect()
        }),
        (
            18,
            "wrapped",
            keys(
                MALFORMED,
                [
                    live.replace('_', "%5F"),
                    live.replace('l', "%6C"),
                    BASE64_STANDARD.encode(live),
                    format!("\"{live}\""),
                    format!("'{live}'"),
                    format!("<{live}>"),
                    format!("{live};q=1"),
                    format!("key={live}"),
                ],
            ),
        ),
        (
            29,
            "code in other languages",
            keys(
                MALFORMED,
                [
                    "llmk_' OR 1=1--_12345678",
                    "llmk_live_'; DROP TABLE api_keys;--",
                    "llmk_*)(uid=*_12345678",
                    "llmk_${jndi:ldap://x/a}_12345678",
                    "llmk_live_${jndi:ldap://x/a}",
                    "llmk_%s%n%x_12345678",
                    "llmk_live_{{7*7}}12345",
                    "llmk_live_$(id)12345678",
                    "llmk_live_../../../../etc/passwd",
                    "llmk_live_<script>alert(1)</script>",
                ],
            ),
        ),
    ]
}

/// Bytes that cannot occur in a key.
pub(super) fn bytes(world: &World) -> Rows {
    let live = world.live.text.as_str();
    let (start, end) = live.split_at(12);
    let around = |odd: &[u8]| {
        let whole = live.as_bytes();
        [[odd, whole].concat(), [start.as_bytes(), odd, end.as_bytes()].concat(), [whole, odd].concat()]
    };
    let control = |odd: &str, at_ends: Http, within: Http| {
        let [one, two, three] = around(odd.as_bytes()).map(|value| key(MALFORMED, value));
        [one.http(at_ends), two.http(within), three.http(at_ends)]
    };
    let (no, never) = (Http::Refused(400), Http::Unsayable);
    let look_alikes = ["\u{456}", "\u{ff3f}", "\u{301}", "\u{200b}", "\u{feff}", "\u{ad}"];
    vec![
        (
            15,
            "ends of lines and other control bytes",
            [
                // Envoy removes a lone CR from a value, and the rest is a key.
                control("\r", never, Http::Becomes(OK)),
                control("\n", never, no),
                control("\r\n", never, no),
                control("\0", no, no),
                control("\x7f", no, no),
                control("\x1b", no, no),
            ]
            .into_iter()
            .flatten()
            .collect(),
        ),
        (16, "bytes that are no text", {
            let bytes = [&b"\x80"[..], b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\xa1\xa1\xa1\xa1"];
            bytes.into_iter().flat_map(around).map(|value| key(MALFORMED, value)).collect()
        }),
        (17, "what looks alike or cannot be seen", {
            let odd = look_alikes
                .into_iter()
                .flat_map(|odd| around(odd.as_bytes()))
                .map(|value| key(MALFORMED, value));
            let swapped =
                [live.replace('i', "\u{456}"), live.replace('e', "\u{435}"), live.replace('_', "\u{ff3f}")];
            odd.chain(keys(MALFORMED, swapped)).collect()
        }),
    ]
}

/// Well-formed keys.
pub(super) fn values(world: &World) -> Rows {
    let (live, issued, longest) = (world.live.text.as_str(), world.issued.text.as_str(), longest());
    let secret = &live[world.live.prefix.len() + 1..];
    let flipped = |text: &str, at: usize, mask: u8| {
        let mut bytes = text.as_bytes().to_vec();
        bytes[at] ^= mask;
        bytes
    };
    let summed = |body: String| [body.as_bytes(), &checksum(body.as_bytes())[..]].concat();
    let random = "4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7PgA";
    let of_issued = &issued[world.issued.prefix.len() + 1..];
    let last = live.len() - 1;
    let other_digit = if issued.ends_with('0') { '1' } else { '0' };
    let wrong_sum = format!("{}{other_digit}", &issued[..issued.len() - 1]);
    vec![
        (
            11,
            "one more and one less",
            vec![
                key(UNKNOWN, format!("{}1_{secret}", world.live.prefix)),
                key(UNKNOWN, format!("{}_{secret}", &world.live.prefix[..world.live.prefix.len() - 1])),
                key(MISMATCH, format!("{live}0")),
                key(MISMATCH, &live[..last]),
                key(MISMATCH, format!("{}_0{secret}", world.live.prefix)),
                key(MISMATCH, format!("{}_{}", world.live.prefix, &secret[1..])),
            ],
        ),
        (
            13,
            "a right one with a tail",
            vec![
                key(MISMATCH, format!("{live}x")),
                key(MALFORMED, format!("{longest}x")),
                key(MALFORMED, format!("{longest}{}", "x".repeat(100))),
                key(MISMATCH, &longest[..70]),
                key(MISMATCH, flipped(&longest, 70, 1)),
                key(MALFORMED, format!("{live}\0{live}")).refused(400),
                key(MALFORMED, format!("{live}{live}{live}")),
            ],
        ),
        (
            19,
            "a right prefix and a secret that is nearly right",
            vec![
                key(MISMATCH, flipped(live, last, 1)),
                key(MISMATCH, flipped(live, world.live.prefix.len() + 1, 0x20)),
                key(MISMATCH, flipped(live, live.len() - 15, 0x20)),
                key(MISMATCH, world.live.with_wrong_secret()),
            ],
        ),
        (
            20,
            "a prefix of nobody",
            keys(
                UNKNOWN,
                [
                    "llmk_nobody_12345678",
                    "llmk_Live_live-Secret-0123456789",
                    "llmk_liv_e_live-Secret-0123456789",
                ],
            ),
        ),
        (
            21,
            "the prefix of one and the secret of another",
            vec![
                key(MISMATCH, format!("{}_{of_issued}", world.live.prefix)),
                key(MISMATCH, format!("{}_{secret}", world.issued.prefix)),
                key(MISMATCH, format!("{}_revoked-Secret-0123456789", world.live.prefix)),
            ],
        ),
        (22, "a wrong checksum: no security, and not looked at", vec![key(MISMATCH, wrong_sum)]),
        (
            23,
            "a right checksum on a secret that is wrong",
            vec![
                key(MISMATCH, summed(format!("{}_{random}", world.issued.prefix))),
                key(MISMATCH, summed(format!("{}_{random}", world.live.prefix))),
                key(UNKNOWN, summed(format!("llmk_nobody12345678_{random}"))),
            ],
        ),
    ]
}

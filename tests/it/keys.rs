//! Tests the format of keys: as issued, and texts that are rejected before any look-up.

use crate::support::world::{quick_hash, string};
use crate::support::{Ask, Backend, Database, PATIENCE, Server, World, on_every_store};

/// The digits of base 62, the most significant first.
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

on_every_store![a_key_of_71_bytes_is_proven_to_its_last_byte, the_secret_is_stored_nowhere];

#[test]
fn an_issued_key_has_the_documented_format() {
    let database = Database::empty(Backend::Sqlite).expect("SQLite is always there");
    let names = [
        ("acme", "acme"),
        ("Acme Corp", "acmecorp"),
        ("a-very-long-tenant-name", "averylongten"),
        ("42 Ünïcode!", "42ncode"),
        ("日本", ""),
        ("…", ""),
    ];
    for (number, (name, start)) in names.into_iter().enumerate() {
        let schema = format!("schema_{number}");
        let tenant = database.json(&["tenant", "create", name, "--schema", &schema]);
        let made = database.json(&["key", "create", &string(&tenant, "id")]);
        let (key, prefix) = (string(&made, "key"), string(&made, "key_prefix"));
        let tail = prefix
            .strip_prefix("llmk_")
            .and_then(|rest| rest.strip_prefix(start))
            .expect("the prefix begins with the name of the tenant");
        assert_eq!(tail.len(), 8, "eight random ones: {prefix}");
        let secret =
            key.strip_prefix(&prefix).and_then(|rest| rest.strip_prefix('_')).expect("prefix, then secret");
        assert_eq!(secret.len(), 32 + 6, "{key}");
        assert!(tail.bytes().chain(secret.bytes()).all(|byte| BASE62.contains(&byte)), "base 62: {key}");
        assert_eq!(secret[32..], checksum(&key[..key.len() - 6]), "{key}");
        assert!(key.len() <= 71, "{key}");
    }
}

#[test]
fn issued_keys_are_never_the_same() {
    let world = World::somewhere();
    let keys: std::collections::BTreeSet<String> =
        (0..4).map(|_| string(&world.db.json(&["key", "create", &world.acme.id]), "key")).collect();
    assert_eq!(keys.len(), 4);
}

fn the_secret_is_stored_nowhere(world: &World) {
    let hashed = world
        .db
        .text(&format!("SELECT hashed_key FROM api_keys WHERE key_prefix = '{}'", world.issued.prefix));
    let hashed = hashed.expect("never null");
    assert!(hashed.starts_with("$2b$12$") && hashed.len() == 60, "the default cost is 12: {hashed}");
    assert!(
        bcrypt::non_truncating_verify(&world.issued.text, &hashed).expect("a hash"),
        "over the whole key"
    );
    let secret = world.issued.text.rsplit_once('_').expect("a secret").1;
    let stored = match world.db.backend {
        Backend::Sqlite => {
            let files = std::fs::read_dir(world.db.dir()).expect("a directory").flatten();
            files.flat_map(|file| std::fs::read(file.path()).expect("readable")).collect()
        }
        Backend::Postgres => world.db.everything().into_bytes(),
    };
    assert!(!contains(&stored, secret.as_bytes()), "the secret is in the database");
    assert!(contains(&stored, world.issued.prefix.as_bytes()), "and the search covered the database");
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn a_key_of_71_bytes_is_proven_to_its_last_byte(world: &World) {
    let prefix = "llmk_seventy1";
    let key = format!("{prefix}_{}", "s".repeat(57));
    assert_eq!(key.len(), 71);
    world.db.sql(&format!(
        "UPDATE api_keys SET hashed_key = '{}', key_prefix = '{prefix}' WHERE key_prefix = '{}'",
        quick_hash(&key),
        world.live.prefix
    ));
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&key)), "200 ok");
    assert_eq!(
        server.row(Ask::with_key(&format!("{}x", &key[..70]))),
        "401 mismatch",
        "the last byte counts"
    );
    assert_eq!(server.row(Ask::with_key(&key[..70])), "401 mismatch");
    assert_eq!(server.row(Ask::with_key(&format!("{key}s"))), "401 malformed", "72 bytes are too many");
    assert_eq!(server.row(Ask::with_key(&format!("{key}{key}"))), "401 malformed");
}

#[test]
fn the_grammar_is_exact() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let key = |prefix: usize, secret: usize| format!("llmk_{}_{}", "p".repeat(prefix), "s".repeat(secret));
    let shapes = [
        (key(1, 8), "401 unknown"),
        (key(1, 7), "401 malformed"),
        (key(0, 8), "401 malformed"),
        (key(48, 8), "401 unknown"),
        (key(49, 8), "401 malformed"),
        (key(48, 17), "401 unknown"),
        (key(48, 18), "401 malformed"),
        (key(8, 57), "401 unknown"),
        (key(9, 57), "401 malformed"),
        (key(7, 58), "401 malformed"),
        (key(1, 57), "401 unknown"),
        (key(1, 58), "401 malformed"),
        ("llmk_-_12345678".to_owned(), "401 unknown"),
        ("llmk_A-b9_aZ09_-xy".to_owned(), "401 unknown"),
        ("llmk_a__2345678".to_owned(), "401 unknown"),
        ("llmk_a________".to_owned(), "401 malformed"),
        ("llmk_a_________".to_owned(), "401 unknown"),
        ("llmk_a_--------".to_owned(), "401 unknown"),
    ];
    for (key, wanted) in shapes {
        assert_eq!(server.row(Ask::with_key(&key)), wanted, "{} bytes: {key:?}", key.len());
    }
}

#[test]
fn malformed_keys_are_rejected_without_bcrypt() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let key = &world.live.text;
    let bad: Vec<String> = [
        "llmk_",
        "llmk__",
        "llmk_x",
        "llmk_x_",
        "llmk",
        "l",
        "_",
        "__",
        "-",
        "!",
        "k",
        "LLMK_live_12345678",
        "Llmk_live_12345678",
        "llmk-live-12345678",
        "llm_live_12345678",
        "sk-1234567890abcdef",
        "llmk_live.1_12345678",
        "llmk_live_1234567=",
        "llmk_live_1234567+",
        "llmk_live_1234567/",
        "llmk_li ve_12345678",
        "llmk_' OR 1=1--_12345678",
        "llmk_${jndi:ldap://x}_12345678",
        "llmk_%s%n_12345678",
        "llmk_*)(uid=*_12345678",
        "bGxta19saXZlX2xpdmUtU2VjcmV0",
        "Bearer llmk_live_12345678",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain(
        [
            " ", "\t", "\n", "\r", "\r\n", "\0", "\u{7f}", "!", ",", ";", "\"", "'", "%", "=", "\u{200b}",
            "\u{feff}", "\u{301}", "é",
        ]
        .into_iter()
        .flat_map(|odd| {
            let (start, end) = key.split_at(12);
            [format!("{odd}{key}"), format!("{key}{odd}"), format!("{start}{odd}{end}")]
        }),
    )
    .chain([
        format!("\"{key}\""),
        format!("<{key}>"),
        format!("{key}, {key}"),
        key.replace('_', "%5F"),
        key.replace('_', "\u{ff3f}"),
        key.replace('i', "\u{456}"),
        key.replace('e', "е"),
    ])
    .chain(
        [72, 73, 128, 129, 8 * 1024, 60 * 1024]
            .map(|length| format!("llmk_live_{}", "s".repeat(length - 10))),
    )
    .collect();
    for key in &bad {
        assert_eq!(server.row(Ask::with_key(key)), "401 malformed", "{:?}", key.get(..200).unwrap_or(key));
    }
    assert_eq!(server.bcrypts(), 0, "refused before any hash");
}

#[test]
fn a_nearly_correct_key_is_rejected() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let (live, other, issued) = (&world.live, &world.other, &world.issued);
    let flipped = |text: &str, at: usize| {
        let mut bytes = text.as_bytes().to_vec();
        bytes[at] ^= if bytes[at].is_ascii_alphabetic() { 0x20 } else { 0x01 };
        String::from_utf8(bytes).expect("ASCII")
    };
    let secret_of = |text: &str| text.splitn(3, '_').nth(2).expect("a secret").to_owned();
    let rows = [
        (format!("{}x", live.text), "401 mismatch"),
        (live.text[..live.text.len() - 1].to_owned(), "401 mismatch"),
        (flipped(&live.text, live.text.len() - 1), "401 mismatch"),
        (flipped(&live.text, live.prefix.len() + 1), "401 mismatch"),
        (live.text.to_uppercase().replacen("LLMK", "llmk", 1), "401 unknown"),
        (format!("{}_{}", live.prefix, secret_of(&other.text)), "401 mismatch"),
        (format!("{}_{}", live.prefix, secret_of(&issued.text)), "401 mismatch"),
        (flipped(&issued.text, issued.text.len() - 1), "401 mismatch"),
        (format!("{}1_{}", live.prefix, secret_of(&live.text)), "401 unknown"),
        (format!("{}_{}", &live.prefix[..live.prefix.len() - 1], secret_of(&live.text)), "401 unknown"),
        (format!("llmk_nobody_{}", secret_of(&live.text)), "401 unknown"),
    ];
    for (key, wanted) in rows {
        assert_eq!(server.row(Ask::with_key(&key)), wanted, "{key}");
    }
    server.row_becomes("200 ok", PATIENCE, Ask::with_key(&live.text));
}

#[test]
fn unknown_keys_cost_no_bcrypt() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    for number in 0..200 {
        assert_eq!(server.row(Ask::with_key(&format!("llmk_nobody{number}_12345678"))), "401 unknown");
    }
    assert_eq!(server.bcrypts(), 0);
}

/// CRC32 (IEEE) of a text in six digits of base 62: what a secret scanner computes.
fn checksum(text: &str) -> String {
    let crc = !text.bytes().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    });
    let digit = |power: u32| char::from(BASE62[(crc / 62_u32.pow(power) % 62) as usize]);
    (0..6).rev().map(digit).collect()
}

#[test]
fn the_checksum_of_these_tests_is_the_well_known_crc32() {
    assert_eq!(checksum("123456789"), "3jZRME");
    assert_eq!(checksum("llmk_acmeAbCdEf01_0123456789abcdefghijABCDEFGHIJ01"), "1qbzJ4");
}

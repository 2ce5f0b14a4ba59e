//! Checks that the parser accepts exactly the grammar.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenantgate::key::format::{MAX_KEY_BYTES, is_stored_prefix, parse};
use tenantgate_fuzz::{model, seeds};

fuzz_target!(init: seeds::plant("key"), |bytes: &[u8]| {
    let wanted = model::key(bytes);
    match (parse(bytes), &wanted) {
        (Ok(key), Some((text, prefix))) => {
            assert_eq!((key.expose(), key.prefix()), (text.as_bytes(), prefix.as_str()));
            assert!(is_stored_prefix(key.prefix()) && bytes.len() <= MAX_KEY_BYTES);
            let plain = key.to_plain();
            assert_eq!((plain.expose(), plain.as_presented().prefix()), (text.as_str(), prefix.as_str()));
            let bits = key.secret_bits();
            assert!((0.0..=6.0 * MAX_KEY_BYTES as f64).contains(&bits), "{bits}");
            let secret = &text[prefix.len() + 1..];
            assert!(!format!("{key:?} {plain:?}").contains(secret) || prefix.contains(secret));
        }
        (Err(_), None) => {}
        (ours, theirs) => panic!("{}: {ours:?}, not {theirs:?}", bytes.escape_ascii()),
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        // A valid stored prefix is the prefix of some key.
        assert_eq!(
            is_stored_prefix(text),
            model::key(format!("{text}_12345678").as_bytes()).is_some_and(|key| key.1 == text)
        );
    }
});

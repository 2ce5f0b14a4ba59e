//! Does shared memory that is damaged in any way harm its reader, or make it say what is not true?
//!
//! The first byte chooses what the bytes are: the whole memory, or words that are written over a sound one.
#![no_main]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use tenantgate_fuzz::seeds;
use tenantgate_snapshot::{
    Answer, Found, MemoryKey, Proven, Reader, Report, Settings, State, Writer, words_for,
};

type Words = Arc<[AtomicU64]>;

const NOW: u64 = 10_000;
const SLOTS: u32 = 3;

fn key() -> MemoryKey {
    MemoryKey::from([7; 32])
}

fn proven(prefix: &str, revoked: bool) -> Proven {
    Proven {
        prefix: prefix.into(),
        digest: key().digest(prefix.as_bytes()),
        tenant_status: "active".into(),
        expires_at: i64::MAX,
        not_before: i64::MIN,
        revoked,
        set: vec![("x-tenant".into(), "a".into())],
        ..Proven::default()
    }
}

fn settings() -> Settings {
    let answer = Answer { reason: "missing".into(), status: 401, ..Answer::default() };
    Settings {
        key_header: "x-key".into(),
        public: vec!["GET /".into()],
        answers: vec![answer],
        ..Settings::default()
    }
}

/// A memory with a live key, one that was revoked, and one that is not proven.
static SOUND: LazyLock<Vec<u64>> = LazyLock::new(|| {
    let memory: Words = (0..words_for(SLOTS, 200)).map(|_| AtomicU64::new(0)).collect();
    let mut writer =
        Writer::new(Arc::clone(&memory), key(), SLOTS, &settings(), 1_000).expect("there is room");
    let (live, once, now) =
        (proven("llmk_live", false), proven("llmk_gone", false), proven("llmk_gone", true));
    writer
        .change(|change| {
            change.open(true);
            change.set("llmk_live", State::Absent, State::Proven(&live))?;
            change.set("llmk_gone", State::Absent, State::Proven(&once))?;
            change.set("llmk_cold", State::Absent, State::Known)
        })
        .expect("there is room");
    writer
        .change(|change| change.set("llmk_gone", State::Proven(&once), State::Proven(&now)))
        .expect("there is room");
    writer.beat(NOW, Some(-5));
    memory.iter().map(|word| word.load(Ordering::Relaxed)).collect()
});

fuzz_target!(init: seeds::plant("mapping"), |bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let sound = kind % 2 == 1;
    let mut words: Vec<u64> = if sound { SOUND.clone() } else { bytes.chunks(8).map(number).collect() };
    if sound {
        // Two bytes for the place, one for how, eight for the word.
        for patch in bytes.chunks_exact(11) {
            let at = usize::try_from(number(&patch[..2])).expect("two bytes") % words.len();
            let value = number(&patch[3..]);
            words[at] = match patch[2] % 4 {
                0 => value,
                1 => words[at] ^ 1 << (value % 64),
                2 => words[at].wrapping_add(value % 4_096),
                _ => words[usize::try_from(value % words.len() as u64).expect("small")],
            };
        }
    }
    let memory: Words = words.into_iter().map(AtomicU64::new).collect();
    if let Some(reader) = Reader::new(memory, key()) {
        let _ = (reader.is_fresh(NOW), reader.database_clock());
        if let Some(found) = reader.settings() {
            assert_eq!(found, settings(), "settings that nobody wrote");
        }
        for (prefix, revoked) in [("llmk_live", false), ("llmk_gone", true), ("llmk_cold", false), ("llmk_none", false)] {
            if let Found::Proven(found) = reader.find(NOW, prefix.as_bytes(), &mut Vec::new()) {
                assert!(sound && ["llmk_live", "llmk_gone"].contains(&prefix), "{prefix}: a record that nobody wrote");
                assert_eq!(*found, proven(prefix, revoked).borrowed(), "what is not true any more");
                assert!(reader.is_of(&found, prefix.as_bytes()) && !reader.is_of(&found, b"other"));
            }
        }
    }
    // What comes over the socket.
    let mut received = bytes.to_vec();
    while let Ok(Some(reports)) = Report::take(&mut received) {
        let short = |report: &Report| report.prefix.len() < 1_000 && report.reason.len() < 1_000;
        if reports.iter().all(short) {
            let (mut frames, mut again) = (Report::frames(&reports), Vec::new());
            while let Ok(Some(some)) = Report::take(&mut frames) {
                again.extend(some);
            }
            assert_eq!(again, reports);
        }
    }
});

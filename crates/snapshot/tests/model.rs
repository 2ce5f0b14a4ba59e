//! Compares writer and reader with a map in memory, and checks that damage never forges a record.
#![cfg(not(feature = "loom"))]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use tenantgate_snapshot::{
    Answer, Found, Memory, MemoryKey, Proven, Reader, Settings, State, Writer, words_for,
};

type Words = Arc<[AtomicU64]>;

fn memory(slots: u32, room: usize) -> Words {
    (0..words_for(slots, room)).map(|_| AtomicU64::new(0)).collect()
}

fn key() -> MemoryKey {
    MemoryKey::from([7; 32])
}

fn settings() -> Settings {
    let answer = |reason: &str, status| Answer {
        reason: reason.into(),
        status,
        headers: vec![("x-id".into(), String::new())],
        body: "{}".into(),
    };
    let answers = vec![answer("missing", 401), answer("tenant_inactive", 403)];
    let (key_header, public) = ("x-key".into(), vec!["GET /".into()]);
    Settings { key_header, accept_bearer: true, preflight: false, public, answers }
}

fn proven(prefix: &str, change: u8) -> Proven {
    Proven {
        prefix: prefix.into(),
        digest: key().digest(prefix.as_bytes()),
        key_id: [change; 16],
        tenant_id: [3; 16],
        tenant_status: "active".into(),
        expires_at: i64::MAX,
        not_before: i64::MIN,
        revoked: change.is_multiple_of(3),
        disabled: change.is_multiple_of(5),
        set: vec![("x-tenant".into(), "a".repeat(usize::from(change)))],
        remove: vec!["x-key".into()],
        metadata: vec![("key_id".into(), "k".into())],
    }
}

const NOW: u64 = 10_000;

fn open(memory: &Words, slots: u32) -> (Writer<Words>, Reader<Words>) {
    let mut writer =
        Writer::new(Arc::clone(memory), key(), slots, &settings(), 1_000).expect("there is room");
    writer
        .change(|change| {
            change.open(true);
            Ok(())
        })
        .expect("there is room");
    writer.beat(NOW, Some(-5));
    let reader = Reader::new(Arc::clone(memory), key()).expect("there is room");
    (writer, reader)
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stands {
    Known,
    Proven(u8),
}

/// The changes of one step: the prefix and its new state.
fn step() -> impl Strategy<Value = Vec<(u8, Option<Stands>)>> {
    let next = prop_oneof![
        Just(None),
        Just(Some(Stands::Known)),
        any::<u8>().prop_map(|change| Some(Stands::Proven(change))),
    ];
    proptest::collection::vec((0_u8..12, next), 0..6)
}

proptest! {
    #[test]
    fn a_reader_finds_what_a_map_holds(steps in proptest::collection::vec(step(), 0..20)) {
        let memory = memory(8, 20_000);
        let (mut writer, reader) = open(&memory, 8);
        let mut model = BTreeMap::new();
        for step in steps {
            let made = writer.change(|change| {
                for (n, next) in &step {
                    let prefix = format!("llmk_{n}");
                    let record = |stands: Option<&Stands>| match stands {
                        Some(Stands::Proven(change)) => Some(proven(&prefix, *change)),
                        _ => None,
                    };
                    let (old, new) = (record(model.get(n)), record(next.as_ref()));
                    let state = |stands: Option<&Stands>, proven| match (stands, proven) {
                        (None, _) => State::Absent,
                        (Some(_), Some(proven)) => State::Proven(proven),
                        (Some(_), None) => State::Known,
                    };
                    change.set(&prefix, state(model.get(n), old.as_ref()), state(next.as_ref(), new.as_ref()))?;
                    match next {
                        None => model.remove(n),
                        Some(next) => model.insert(*n, *next),
                    };
                }
                Ok(())
            });
            if made.is_err() {
                // Only if no free slot is left. Then readers give no answer.
                prop_assert!(writer.is_nearly_full());
                let mut bytes = Vec::new();
                prop_assert_eq!(reader.find(NOW, b"llmk_1", &mut bytes), Found::Doubt);
                return Ok(());
            }
            for n in 0..12 {
                let prefix = format!("llmk_{n}");
                let row = model.get(&n).and_then(|stands| match stands {
                    Stands::Known => None,
                    Stands::Proven(change) => Some(proven(&prefix, *change)),
                });
                let expected = match (model.get(&n), &row) {
                    (None, _) => Found::Absent,
                    (Some(_), None) => Found::Known,
                    (Some(_), Some(row)) => Found::Proven(Box::new(row.borrowed())),
                };
                let mut bytes = Vec::new();
                prop_assert_eq!(reader.find(NOW, prefix.as_bytes(), &mut bytes), expected);
            }
        }
    }

    #[test]
    fn damage_makes_no_record(
        hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u64>(), 0_u8..64), 1..40),
    ) {
        let memory = memory(3, 400);
        let (mut writer, _) = open(&memory, 3);
        let rows = [proven("llmk_a", 1), proven("llmk_b", 3)];
        writer
            .change(|change| {
                change.set("llmk_c", State::Absent, State::Known)?;
                rows.iter().try_for_each(|row| change.set(&row.prefix, State::Absent, State::Proven(row)))
            })
            .unwrap();
        for (at, value, bit) in hits {
            let word = at.get(memory.words());
            // Flips one bit of some words, and all bits of others.
            if bit < 48 { word.fetch_xor(1 << bit, Ordering::Relaxed) } else { word.swap(value, Ordering::Relaxed) };
        }
        let Some(reader) = Reader::new(Arc::clone(&memory), key()) else { return Ok(()) };
        let read = reader.settings();
        prop_assert!(read.is_none_or(|read| read == settings()));
        for prefix in ["llmk_a", "llmk_b", "llmk_c", "llmk_d"] {
            if let Found::Proven(found) = reader.find(NOW, prefix.as_bytes(), &mut Vec::new()) {
                prop_assert!(rows.iter().any(|row| row.borrowed() == *found) && found.prefix == prefix);
            }
        }
    }

    #[test]
    fn any_bytes_at_all_are_no_record(words in proptest::collection::vec(any::<u64>(), 0..200), slots in 0_u64..5) {
        let mut words = words;
        // The header of a valid snapshot, so that the reader continues with the rest.
        let head = [u64::from_le_bytes(*b"tgsnap\0\0"), 1, slots, 0, 2, NOW, 0, u64::from_le_bytes(*b"decides\0")];
        words.iter_mut().zip(head).for_each(|(word, head)| *word = head);
        let memory: Words = words.into_iter().map(AtomicU64::new).collect();
        if let Some(reader) = Reader::new(memory, key()) {
            prop_assert!(reader.settings().is_none());
            prop_assert!(!matches!(reader.find(NOW, b"llmk_a", &mut Vec::new()), Found::Proven(_)));
        }
    }

    #[test]
    fn bytes_are_read_as_they_were_written_or_not_at_all(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Some(proven) = Proven::decode(&bytes) {
            prop_assert_eq!(proven.encode(), bytes.clone());
        }
        if let Some(settings) = Settings::decode(&bytes) {
            prop_assert_eq!(settings.encode(), bytes);
        }
    }
}

#[test]
fn there_is_no_answer_before_the_first_heartbeat_nor_after_a_second_nor_once_closed() {
    let memory = memory(3, 400);
    let mut writer = Writer::new(Arc::clone(&memory), key(), 3, &settings(), 5_000).unwrap();
    let reader = Reader::new(Arc::clone(&memory), key()).unwrap();
    assert_eq!(reader.settings(), Some(settings()));
    let stands = |now, expected| reader.find(now, b"llmk_a", &mut Vec::new()) == expected;
    assert!(stands(0, Found::Doubt));
    writer.beat(NOW, None);
    assert!(stands(NOW, Found::Doubt), "not open");
    let open = |writer: &mut Writer<_>, open| {
        writer
            .change(|change| {
                change.open(open);
                Ok(())
            })
            .unwrap();
    };
    open(&mut writer, true);
    assert_eq!(reader.database_clock(), None);
    for (now, fresh) in
        [(NOW, true), (NOW + 1_000, true), (NOW + 1_001, false), (NOW - 1, false), (u64::MAX, false)]
    {
        assert_eq!(stands(now, Found::Absent), fresh, "{now}");
        assert_eq!(reader.is_fresh(now), fresh, "{now}");
    }
    writer.beat(NOW + 500, Some(7));
    assert!(stands(NOW + 1_500, Found::Absent));
    assert_eq!(reader.database_clock(), Some(7));
    open(&mut writer, false);
    assert!(stands(NOW + 500, Found::Doubt));
    open(&mut writer, true);
    writer.close();
    assert!(stands(NOW + 500, Found::Doubt));
}

#[test]
fn a_stricter_bound_of_the_server_counts() {
    let memory = memory(3, 400);
    let mut writer = Writer::new(Arc::clone(&memory), key(), 3, &settings(), 200).unwrap();
    writer
        .change(|change| {
            change.open(true);
            Ok(())
        })
        .unwrap();
    writer.beat(NOW, None);
    let reader = Reader::new(memory, key()).unwrap();
    assert!(reader.is_fresh(NOW + 200) && !reader.is_fresh(NOW + 201));
}

#[test]
fn a_reader_with_another_key_finds_no_record() {
    let memory = memory(3, 400);
    let (mut writer, reader) = open(&memory, 3);
    let row = proven("llmk_a", 1);
    writer.change(|change| change.set("llmk_a", State::Absent, State::Proven(&row))).unwrap();
    assert_eq!(reader.find(NOW, b"llmk_a", &mut Vec::new()), Found::Proven(Box::new(row.borrowed())));
    let other = Reader::new(memory, MemoryKey::from([8; 32])).unwrap();
    assert_eq!(other.settings(), None);
    assert!(!matches!(other.find(NOW, b"llmk_a", &mut Vec::new()), Found::Proven(_)));
}

#[test]
fn without_room_a_writer_leaves_its_readers_without_answers() {
    let memory = memory(3, 120);
    let (mut writer, reader) = open(&memory, 3);
    let rows: Vec<_> = (1..9).map(|n| proven(&format!("llmk_{n}"), n)).collect();
    let made = writer.change(|change| {
        rows.iter().try_for_each(|row| change.set(&row.prefix, State::Absent, State::Proven(row)))
    });
    assert!(made.is_err() && writer.is_nearly_full());
    assert_eq!(reader.find(NOW, b"llmk_1", &mut Vec::new()), Found::Doubt);
    assert!(writer.change(|_| Ok(())).is_err(), "it does not recover");
}

#[test]
fn a_record_that_was_true_once_cannot_be_found_again() {
    let memory = memory(4, 400);
    let (mut writer, reader) = open(&memory, 4);
    let (old, new) = (proven("llmk_a", 1), proven("llmk_a", 3));
    writer.change(|change| change.set("llmk_a", State::Absent, State::Proven(&old))).unwrap();
    let mut slots = 16..32;
    let slot = slots.find(|at| memory[*at].load(Ordering::Relaxed) != 0).unwrap();
    let before = memory[slot].load(Ordering::Relaxed);
    writer.change(|change| change.set("llmk_a", State::Proven(&old), State::Proven(&new))).unwrap();
    assert_eq!(reader.find(NOW, b"llmk_a", &mut Vec::new()), Found::Proven(Box::new(new.borrowed())));
    // The old value of the same slot: one damaged word that no seal covers.
    memory[slot].store(before, Ordering::Relaxed);
    assert_eq!(reader.find(NOW, b"llmk_a", &mut Vec::new()), Found::Doubt);
}

#[test]
fn a_row_that_is_too_long_does_not_fit() {
    assert!(proven("llmk_a", 1).fits());
    for len in [8_000, 9_000, 70_000] {
        let set = vec![("x-tenant".to_owned(), "a".repeat(len))];
        assert_eq!(Proven { set, ..proven("llmk_a", 1) }.fits(), len == 8_000, "{len}");
    }
}

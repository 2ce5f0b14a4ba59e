//! Checks all interleavings of a writer and a reader in the memory model of loom.
#![cfg(feature = "loom")]

use std::sync::Arc;

use loom::sync::atomic::AtomicU64;
use loom::thread;
use tenantgate_snapshot::{Found, MemoryKey, Proven, Reader, Settings, State, Writer, words_for};

type Words = Arc<[AtomicU64]>;

fn row(revoked: bool) -> Proven {
    Proven { prefix: "p".into(), revoked, ..Proven::default() }
}

fn start(slots: u32) -> (Writer<Words>, Reader<Words>) {
    let memory: Words = (0..words_for(slots, 60)).map(|_| AtomicU64::new(0)).collect();
    let key = MemoryKey::from([1; 32]);
    let mut writer = Writer::new(Arc::clone(&memory), key.clone(), slots, &Settings::default(), 1_000)
        .expect("there is room");
    writer
        .change(|change| {
            change.open(true);
            change.set("p", State::Absent, State::Proven(&row(false)))
        })
        .expect("there is room");
    writer.beat(5_000, None);
    (writer, Reader::new(memory, key).expect("there is room"))
}

#[test]
fn a_reader_that_sees_a_heartbeat_sees_the_revocation_before_it() {
    loom::model(|| {
        let (mut writer, reader) = start(1);
        let write = thread::spawn(move || {
            writer
                .change(|change| change.set("p", State::Proven(&row(false)), State::Proven(&row(true))))
                .unwrap();
            writer.beat(7_000, None);
        });
        // At this uptime only the second heartbeat is fresh.
        match reader.find(7_000, b"p", &mut Vec::new()) {
            Found::Doubt => {}
            Found::Proven(found) => assert!(found.revoked),
            other => panic!("{other:?}"),
        }
        write.join().unwrap();
    });
}

#[test]
fn a_record_is_seen_whole_and_of_one_step() {
    loom::model(|| {
        let (mut writer, reader) = start(1);
        let write = thread::spawn(move || {
            // Between the two changes the key is absent, which no reader may see.
            writer
                .change(|change| {
                    change.set("p", State::Proven(&row(false)), State::Known)?;
                    change.set("p", State::Known, State::Proven(&row(true)))
                })
                .unwrap();
        });
        match reader.find(5_000, b"p", &mut Vec::new()) {
            Found::Doubt => {}
            Found::Proven(found) => {
                assert!([false, true].iter().any(|revoked| *found == row(*revoked).borrowed()))
            }
            other => panic!("{other:?}"),
        }
        write.join().unwrap();
    });
}

#[test]
fn a_change_that_closes_the_memory_and_replaces_a_key_is_not_read_by_halves() {
    loom::model(|| {
        let (mut writer, reader) = start(1);
        let write = thread::spawn(move || {
            // One step closes the snapshot for readers and replaces the key.
            writer
                .change(|change| {
                    change.open(false);
                    change.set("p", State::Proven(&row(false)), State::Proven(&row(true)))
                })
                .unwrap();
        });
        match reader.find(5_000, b"p", &mut Vec::new()) {
            Found::Doubt => {}
            Found::Proven(found) => assert!(!found.revoked, "the new row is not to be decided by"),
            other => panic!("{other:?}"),
        }
        write.join().unwrap();
    });
}

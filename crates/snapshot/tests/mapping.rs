//! Checks that the kernel enforces the seals of a mapping.
#![cfg(not(feature = "loom"))]

use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use tenantgate_snapshot::{Found, Mapping, MemoryKey, Reader, Settings, State, Writer, words_for};

fn create() -> Mapping {
    Mapping::create(words_for(4, 1_000)).expect("a kernel with memfd")
}

#[test]
fn another_mapping_sees_what_is_written_and_cannot_change_it() {
    let key = MemoryKey::from([1; 32]);
    let mut writer = Writer::new(create(), key.clone(), 4, &Settings::default(), 1_000).unwrap();
    let file = writer.memory().file().try_clone_to_owned().unwrap();
    let reader = Reader::new(Mapping::open(file).unwrap(), key).unwrap();
    assert_eq!(reader.find(5, b"llmk_a", &mut Vec::new()), Found::Doubt);
    writer
        .change(|change| {
            change.open(true);
            change.set("llmk_a", State::Absent, State::Known)
        })
        .unwrap();
    writer.beat(5, None);
    assert_eq!(reader.find(5, b"llmk_a", &mut Vec::new()), Found::Known);
    assert_eq!(reader.find(5, b"llmk_b", &mut Vec::new()), Found::Absent);
    let file = writer.memory().file();
    assert_eq!(rustix::fs::ftruncate(file, 0), Err(Errno::PERM));
    assert_eq!(rustix::fs::ftruncate(file, 1 << 20), Err(Errno::PERM));
    assert_eq!(rustix::io::pwrite(file, b"x", 0), Err(Errno::PERM));
    assert_eq!(rustix::fs::fcntl_add_seals(file, SealFlags::WRITE), Err(Errno::PERM));
    drop(writer);
    assert_eq!(reader.find(5, b"llmk_a", &mut Vec::new()), Found::Known, "the memory outlives its writer");
}

#[test]
fn a_file_that_could_shrink_or_is_no_snapshot_is_not_mapped() {
    let unsealed = rustix::fs::memfd_create(c"x", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&unsealed, 4_096).unwrap();
    assert!(Mapping::open(unsealed).unwrap_err().to_string().contains("not sealed"));
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    assert!(Mapping::open(pipe).is_err());
    for (len, mapped) in [(0, false), (12, false), (8, true)] {
        let file = rustix::fs::memfd_create(c"x", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&file, len).unwrap();
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE)
            .unwrap();
        let mapping = Mapping::open(file);
        assert_eq!(mapping.is_ok(), mapped, "{len}");
        assert!(mapping.ok().and_then(|mapping| Reader::new(mapping, MemoryKey::from([1; 32]))).is_none());
    }
}

#[test]
fn readers_never_see_a_half_made_change() {
    // Two rows change together, as fast as possible. If they differ, the reader has seen a part of a step.
    let key = MemoryKey::from([1; 32]);
    let mapping = Mapping::create(words_for(4, 4_000_000)).unwrap();
    let mut writer = Writer::new(mapping, key.clone(), 4, &Settings::default(), 1_000).unwrap();
    let row = |prefix: &str, revoked| tenantgate_snapshot::Proven {
        prefix: prefix.into(),
        revoked,
        key_id: [u8::from(revoked); 16],
        ..Default::default()
    };
    let states = [false, true].map(|revoked| row("llmk_a", revoked));
    writer
        .change(|change| {
            change.open(true);
            change.set("llmk_a", State::Absent, State::Proven(&states[0]))
        })
        .unwrap();
    writer.beat(5, None);
    let file = writer.memory().file().try_clone_to_owned().unwrap();
    let reader = Arc::new(Reader::new(Mapping::open(file).unwrap(), key).unwrap());
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (reader, done) = (Arc::clone(&reader), Arc::clone(&done));
            scope.spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    match reader.find(5, b"llmk_a", &mut Vec::new()) {
                        Found::Proven(found) => assert_eq!(found.key_id, [u8::from(found.revoked); 16]),
                        Found::Doubt => {}
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
        for round in 1..20_000 {
            let (old, new) = (&states[(round + 1) % 2], &states[round % 2]);
            writer.change(|change| change.set("llmk_a", State::Proven(old), State::Proven(new))).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

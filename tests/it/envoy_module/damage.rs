//! A publisher whose memory is damaged or foreign: only a record that was written lets a request pass.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering::Relaxed;

use tenantgate::clock::{Clock as _, SystemClock};
use tenantgate_snapshot::{
    Answer, Hello, Mapping, Memory as _, MemoryKey as Seal, Proven, Settings, State, Writer, words_for,
};

use super::*;
use crate::model::dice::Dice;
use crate::oracle::variable;
use crate::support::tell;

/// Keys that the server does not know: only the publisher of this file says that the first one is right.
const PUBLISHED: &str = "llmk_damaged_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Pg";
const OTHER: &str = "llmk_another_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Pg";

const SLOTS: u32 = 3;

fn seal(byte: u8) -> Seal {
    Seal::from([byte; 32])
}

/// A memory in which one key is right.
fn memory(seal: &Seal) -> Writer<Mapping> {
    let answer = |reason: &str| Answer { reason: reason.into(), status: 401, ..Answer::default() };
    let settings = Settings {
        key_header: KEY_HEADER.into(),
        answers: ["missing", "malformed", "unknown", "revoked"].map(answer).into(),
        ..Settings::default()
    };
    let memory = Mapping::create(words_for(SLOTS, 1_000)).expect("memory");
    let mut writer = Writer::new(memory, seal.clone(), SLOTS, &settings, 1_000).expect("there is room");
    let row = Proven {
        prefix: "llmk_damaged".into(),
        digest: seal.digest(PUBLISHED.as_bytes()),
        key_id: [1; 16],
        tenant_id: [2; 16],
        tenant_status: "active".into(),
        expires_at: i64::MAX,
        not_before: i64::MIN,
        set: vec![("x-llmcore-tenant-id".into(), "as-written".into())],
        remove: vec![KEY_HEADER.into()],
        metadata: vec![("key_prefix".into(), "llmk_damaged".into())],
        ..Proven::default()
    };
    let made = writer.change(|change| {
        change.open(true);
        change.set("llmk_damaged", State::Absent, State::Proven(&row))
    });
    made.expect("there is room");
    beat(&writer);
    writer
}

fn beat(writer: &Writer<Mapping>) {
    let uptime = SystemClock.uptime().as_millis();
    writer.beat(u64::try_from(uptime).expect("not that long"), None);
}

/// Hands a memory to the module, which comes again after each that it does not take.
fn offer(listener: &UnixListener, seal: &Seal, memory: BorrowedFd<'_>) -> UnixStream {
    let (stream, _) = listener.accept().expect("the module comes");
    Hello { key: seal.clone() }.send(&stream, memory).expect("sent");
    stream
}

#[test]
fn damage_of_the_memory_lets_no_request_pass() {
    let world = World::somewhere();
    let (server, _, directory) = publishing(&world, &[]);
    let socket = directory.path().join("damaged.sock");
    let listener = UnixListener::bind(&socket).expect("bound");
    let Some(envoy) = with_module(&server, &socket).workers(2).start() else { return };
    let rounds = variable("TENANTGATE_DAMAGE_ROUNDS").unwrap_or(25);
    let seed = variable("TENANTGATE_DAMAGE_SEED").unwrap_or_else(|| SystemClock.now().0.unsigned_abs());
    let (mut allowed, mut refused, mut asked) = (0, 0, 0);
    for round in 0..rounds {
        let seal = seal(u8::try_from(round % 251).expect("small"));
        let writer = memory(&seal);
        let stream = offer(&listener, &seal, writer.memory().file());
        eventually("the module decides", PATIENCE, || {
            beat(&writer);
            let (outcome, said) = ask(&envoy, &path(), &[(KEY_HEADER, PUBLISHED.as_bytes())]);
            if outcome.page.status == 200 { Ok(()) } else { Err(said) }
        });
        let (mut dice, words) = (Dice::of(seed, round, 0), writer.memory().words());
        for _ in 0..=dice.below(20) {
            // The first words are the header, the slots and the records.
            let most = words.len().min(if dice.one_in(2) { 32 } else { 200 });
            let hit = &words[usize::try_from(dice.below(most as u64)).expect("small")];
            if dice.one_in(3) {
                hit.store(dice.number(), Relaxed);
            } else {
                hit.fetch_xor(1 << dice.below(64), Relaxed);
            }
        }
        if dice.one_in(2) {
            beat(&writer);
        }
        for key in [Some(PUBLISHED), Some(OTHER), None] {
            let headers: Vec<_> = key.iter().map(|key| (KEY_HEADER, key.as_bytes())).collect();
            let (outcome, said) = ask(&envoy, &path(), &headers);
            let what = format!("seed {seed}, round {round}, {key:?}: {outcome:?} {said}");
            match outcome.page.status {
                200 => {
                    assert_eq!((key, said["via"].as_str()), (Some(PUBLISHED), Some("module")), "{what}");
                    let upstream = outcome.seen.as_ref().expect("it arrives");
                    assert_eq!(upstream.values("x-llmcore-tenant-id"), ["as-written"], "{what}");
                    assert!(upstream.values(KEY_HEADER).is_empty(), "{what}");
                    allowed += 1;
                }
                401 if said["via"] == "module" => refused += 1,
                401 => asked += 1,
                _ => panic!("{what}"),
            }
        }
        drop(stream);
    }
    tell(&format!(
        "damage: seed {seed}, {rounds} rounds; the module allowed {allowed} and refused {refused}, the server was asked for {asked}"
    ));
    assert!(asked > 0 && refused + allowed > 0, "{asked} {refused} {allowed}");
    assert_eq!(envoy.stat("dynamicmodulescustom.tenantgate_panics"), 0);
}

#[test]
fn forged_shared_memory_is_rejected() {
    let world = World::somewhere();
    let (server, _, directory) = publishing(&world, &[]);
    let socket = directory.path().join("foreign.sock");
    let listener = UnixListener::bind(&socket).expect("bound");
    let Some(envoy) = with_module(&server, &socket).start() else { return };
    let right = memory(&seal(1));
    let closed = memory(&seal(1));
    closed.close();
    // A file can be shrunk while it is mapped, which would kill Envoy.
    let file = directory.path().join("plain");
    std::fs::write(&file, vec![0; 1 << 16]).expect("written");
    let file = std::fs::File::open(&file).expect("open");
    let sizes = [8, 4_096].map(|words| Mapping::create(words).expect("memory"));
    let foreign: [(&str, u8, BorrowedFd<'_>); 5] = [
        ("a file that is not sealed", 1, file.as_fd()),
        ("another key", 2, right.memory().file()),
        ("a memory that has ended", 1, closed.memory().file()),
        ("a memory that is too small", 1, sizes[0].file()),
        ("an empty memory", 1, sizes[1].file()),
    ];
    for (what, byte, memory) in foreign {
        let mut stream = offer(&listener, &seal(byte), memory);
        if what != "a memory that has ended" {
            assert_eq!(stream.read(&mut [0]).expect("an end"), 0, "{what}: the module hangs up");
        }
        for (key, status) in [(PUBLISHED, 401), (OTHER, 401), (&*world.live.text, 200)] {
            let (outcome, said) = ask(&envoy, &path(), &[(KEY_HEADER, key.as_bytes())]);
            assert_eq!((outcome.page.status, &said["via"]), (status, &Value::Null), "{what}");
        }
        drop(stream);
    }
    // The right one is: the checks above could not see it otherwise.
    let _stream = offer(&listener, &seal(1), right.memory().file());
    eventually("the module decides", PATIENCE, || {
        beat(&right);
        let (outcome, said) = ask(&envoy, &path(), &[(KEY_HEADER, PUBLISHED.as_bytes())]);
        if outcome.page.status == 200 { Ok(()) } else { Err(said) }
    });
}

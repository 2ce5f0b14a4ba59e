//! Checks that no bytes sent to the port can stop the server, stall it, or make it reveal a tenant to a client without
//! its key.
//!
//! The first byte selects what precedes the rest: nothing, the preface of HTTP/2, or the preface and the head of a
//! Check, so that the rest is in the position of messages.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tenantgate_fuzz::fixtures::{KEYS, TENANTS};
use tenantgate_fuzz::seeds;
use tenantgate_fuzz::server::Served;
use tenantgate_fuzz::wire;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;
use uuid::Uuid;

/// A timeout that only a hanging server reaches.
const PATIENCE: Duration = Duration::from_secs(20);

static SERVED: LazyLock<Served> = LazyLock::new(Served::start);

fuzz_target!(init: seeds::plant("grpc"), |bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let sent = match kind % 4 {
        0 => rest.to_vec(),
        1 => [wire::PREFACE, &wire::SETTINGS, rest].concat(),
        2 => [wire::PREFACE, &wire::SETTINGS, &wire::check_head(1), rest].concat(),
        _ => wire::call(rest),
    };
    let exchange = async { timeout(PATIENCE, exchange(&sent)).await.expect("an end") };
    let answer = SERVED.runtime.block_on(exchange);
    let holds = |what: &[u8], text: &[u8]| what.windows(text.len()).any(|window| window == text);
    for (at, tenant) in TENANTS.iter().enumerate() {
        let id = Uuid::from_u128(tenant.id).to_string();
        let has_key = KEYS.iter().any(|key| key.tenant == at && holds(&sent, key.text.as_bytes()));
        assert!(has_key || !holds(&answer, id.as_bytes()), "the response names {}", tenant.name);
    }
});

/// Sends everything, closes the writing side, and reads to the end.
async fn exchange(sent: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(&SERVED.socket).await.expect("it listens");
    let (mut from, mut to) = stream.split();
    let mut answer = Vec::new();
    let write = async {
        // The server may close the connection before it has read everything.
        let _ = to.write_all(sent).await;
        let _ = to.shutdown().await;
    };
    // A reset counts as an end.
    let (_, _) = tokio::join!(write, from.read_to_end(&mut answer));
    answer
}

//! What does a check allocate? The buffer of its answer, and nothing else.
//!
//! What HTTP/2 takes for a stream is its own; here the whole decision is counted, from the
//! message as it came to the frame as it goes.

use std::sync::Arc;

use tenantgate::clock::SystemClock;
use tenantgate::ext_authz::service::{AuthorizationService, Options};
use tenantgate::gate::{self, Gate};
use tenantgate::grpc::Unary as _;
use tenantgate::memos::{self, Memos};
use tenantgate::replica::Replica;
use tenantgate::replica::sync::{self, Sync};
use tenantgate::shadow::{self, Report};
use tenantgate::store::Store;
use tenantgate::store::sqlite::SqliteStore;
use tenantgate::usage::Usage;
use tenantgate::verify::memo::{Keyring, Peppers};
use tenantgate::verify::{self, Verifier};
use tokio::time::Instant;

use crate::support::{Ask, Backend, PATIENCE, World, runtime, wait};

/// The service as a server has it, on a replica of the world.
fn service(world: &World) -> AuthorizationService {
    let (clock, replica) = (Arc::new(SystemClock), Replica::default());
    let store: Arc<dyn Store> = Arc::new(SqliteStore::new(world.db.url()).unwrap());
    let sync = Sync::new(replica.clone(), store, Arc::<SystemClock>::clone(&clock), sync::Options::default());
    runtime().spawn(sync.run());
    wait(replica.generation().wait_for(|generation| *generation > 0)).unwrap();
    let peppers = Peppers::default();
    let verifier =
        Verifier::start(verify::Options::default(), Keyring::new(peppers.clone()).unwrap()).unwrap();
    let memos = Memos::new(peppers, memos::Options::default());
    let ours = Arc::<SystemClock>::clone(&clock);
    let gate = Gate::new(replica, verifier, Usage::default(), memos, ours, gate::Options::default());
    let speech = tenantgate::ext_authz::translate::Speech {
        key_header: tenantgate::request::DEFAULT_KEY_HEADER.to_owned(),
        ..Default::default()
    };
    AuthorizationService::new(
        Arc::new(gate),
        clock,
        Report::new(shadow::Options::default()),
        Options { speech, ..Options::default() },
    )
}

#[test]
fn a_check_allocates_its_answer_and_nothing_else() {
    let world = World::on(Backend::Sqlite).unwrap();
    let service = service(&world);
    let asks = [
        ("a live key", Ask::with_key(&world.live.text)),
        ("a wrong secret", Ask::with_key(&world.live.with_wrong_secret())),
        ("a revoked key", Ask::with_key(&world.revoked.text)),
        ("a suspended tenant", Ask::with_key(&world.of_sleepy.text)),
        ("an unknown key", Ask::with_key("llmk_nobody_0123456789")),
        ("no key", Ask::get("/v1")),
        ("no key that could be one", Ask::with_key("llmk_!")),
        ("a public path", Ask::get("/docs")),
    ];
    for (what, ask) in asks {
        let message = ask.header("user-agent", "Mozilla/5.0").header("cookie", &"c".repeat(300)).bytes();
        // The first time a key is proven, and its tenant said.
        wait(service.answer(message.clone().into(), Instant::now() + PATIENCE, None)).unwrap();
        let answer = || service.answer_now(&message, None).unwrap().unwrap();
        drop(answer());
        let counted = allocation_counter::measure(|| drop(answer()));
        assert_eq!(counted.count_total, 1, "{what}");
        assert_eq!(counted.bytes_current, 0, "{what}: nothing stays");
    }
}

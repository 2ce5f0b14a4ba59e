//! Checks that a decision allocates only the buffer of its answer.
//!
//! Allocations of HTTP/2 streams do not count: the decision is measured from the message as received to the frame as
//! sent.

use std::sync::Arc;

use http::HeaderMap;
use tenantgate::clock::SystemClock;
use tenantgate::transport::Unary as _;
use tokio::time::Instant;

use crate::support::service::Service;
use crate::support::{Ask, Backend, PATIENCE, World, wait};

#[test]
fn a_check_allocates_its_answer_and_nothing_else() {
    let world = World::on(Backend::Sqlite).unwrap();
    let service = Service::new(Arc::new(SystemClock));
    service.load(&world);
    let service = service.authorization;
    let metadata = HeaderMap::new();
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
        // Warm-up: proves the key and renders its tenant.
        wait(service.answer(message.clone().into(), &metadata, Instant::now() + PATIENCE)).unwrap();
        let answer = || service.answer_now(&message, &metadata).unwrap().unwrap();
        drop(answer());
        let counted = allocation_counter::measure(|| drop(answer()));
        assert_eq!(counted.count_total, 1, "{what}");
        assert_eq!(counted.bytes_current, 0, "{what}: no memory is kept");
    }
}

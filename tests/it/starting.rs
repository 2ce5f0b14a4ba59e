//! Tests answers before the first load: requests wait for it, up to their own timeout.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::HeaderMap;
use prost::Message as _;
use tenantgate::clock::{ManualClock, SystemClock};
use tenantgate::ext_authz::proto::envoy::service::auth::v3::CheckResponse;
use tenantgate::transport::{CallFailure, Frame, Unary as _};
use tokio::time::Instant;

use crate::support::service::Service;
use crate::support::{Ask, Backend, PATIENCE, World, wait};

type Outcome = Result<Frame, CallFailure>;

/// Returns the reason in the metadata of an answer.
fn reason(outcome: &Outcome) -> String {
    let response = CheckResponse::decode(outcome.as_ref().unwrap().message()).unwrap();
    let reason = &response.dynamic_metadata.unwrap().fields["reason"];
    format!("{:?}", reason.kind.as_ref().unwrap())
}

fn is(outcome: &Outcome, expected: &str) -> bool {
    reason(outcome).contains(&format!("{expected:?}"))
}

#[test]
fn requests_to_a_starting_process_wait_for_the_first_load() {
    let world = World::on(Backend::Sqlite).unwrap();
    let service = Service::new(Arc::new(SystemClock));
    let metadata = HeaderMap::new();
    let message = Ask::with_key(&world.live.text).bytes();
    assert!(service.authorization.answer_now(&message, &metadata).is_none(), "the answer is not immediate");
    let public = service.authorization.answer_now(&Ask::get("/docs").bytes(), &metadata).unwrap();
    assert!(is(&public, "public"), "what needs no key does not wait");
    let mut answer =
        Box::pin(service.authorization.answer(message.into(), &metadata, Instant::now() + PATIENCE));
    wait(async {
        assert!(matches!(answer.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending));
        service.follow(&world);
        assert!(is(&answer.await.map(|(frame, _)| frame), "ok"));
    });
}

#[test]
fn requests_that_cannot_wait_for_the_first_load_are_answered_in_time() {
    let service = Service::new(Arc::new(SystemClock));
    let metadata = HeaderMap::new();
    let message = Ask::with_key("llmk_demo_0123456789abcdef").bytes();
    let deadline = Duration::from_millis(20);
    let outcome = wait(async {
        service.authorization.answer(message.into(), &metadata, Instant::now() + deadline).await
    });
    assert!(is(&outcome.map(|(frame, _)| frame), "unavailable"));
}

#[test]
fn without_a_load_no_request_waits_forever() {
    let clock = Arc::new(ManualClock::default());
    let service = Service::new(Arc::<ManualClock>::clone(&clock));
    let metadata = HeaderMap::new();
    let message = Ask::with_key("llmk_demo_0123456789abcdef").bytes();
    assert!(service.authorization.answer_now(&message, &metadata).is_none());
    clock.advance(Duration::from_secs(2));
    assert!(is(&service.authorization.answer_now(&message, &metadata).unwrap(), "unavailable"));
}

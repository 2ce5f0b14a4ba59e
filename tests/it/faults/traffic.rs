//! Callers that send Checks continuously and record the answers.
//!
//! Each presents one key after the other and waits for the answer before the next, over one of two connections, like
//! two Envoys. The answers of one caller are therefore in order.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tenantgate::ext_authz::proto::envoy::service::auth::v3::CheckRequest;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Status;

use super::checker::Entry;
use crate::support::{Ask, Client, PATIENCE, runtime, wait};

const CALLERS: usize = 4;

/// The pause between two Checks of a caller: at most 800 Checks a second.
const PACE: Duration = Duration::from_millis(5);

/// The limit of log entries, for a play that does not end.
const AT_MOST: usize = 40_000;

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    log: Mutex<Vec<Entry>>,
}

/// Whether the client's HTTP/2 gave up a call because the server had announced the end of the connection (RFC 9113
/// §6.8): it was never processed, and may be sent again.
fn refused_by_goaway(status: &Status) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = status.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
        }
        cause = error.source();
    }
    false
}

impl Shared {
    /// Sends one Check and records its answer.
    async fn ask(&self, client: &Client, start: Instant, key: &'static str, request: CheckRequest) {
        let sent = start.elapsed();
        let row = match client.ask(request).await {
            Ok(answer) => answer.row(),
            Err(status) if refused_by_goaway(&status) => "grpc refused by GOAWAY".to_owned(),
            Err(status) => format!("grpc {:?}: {}", status.code(), status.message()),
        };
        let entry = Entry { key, sent, received: start.elapsed(), row };
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(log.len() < AT_MOST, "more answers than a play has");
        log.push(entry);
    }
}

/// The callers; they stop when this is dropped.
pub(super) struct Traffic {
    shared: Arc<Shared>,
    callers: JoinSet<()>,
    address: String,
    start: Instant,
}

impl Traffic {
    /// Starts callers that present all of these keys; instants count from `start`.
    pub(super) fn to(address: &str, start: Instant, asks: &[(&'static str, Ask)]) -> Self {
        let shared = Arc::<Shared>::default();
        let clients = [Client::to(address), Client::to(address)];
        let asks: Vec<(&str, CheckRequest)> = asks.iter().map(|(key, ask)| (*key, ask.request())).collect();
        let mut callers = JoinSet::new();
        for number in 0..CALLERS {
            let mut asks = asks.clone();
            let first = number * asks.len() / CALLERS;
            asks.rotate_left(first);
            let (client, shared) = (clients[number % clients.len()].clone(), Arc::clone(&shared));
            callers.spawn_on(go_on_asking(client, shared, start, asks), runtime().handle());
        }
        Self { shared, callers, address: address.to_owned(), start }
    }

    /// Sends many concurrent Checks of one key on a separate connection.
    pub(super) fn burst(&mut self, key: &'static str, ask: &Ask, callers: usize) {
        let (client, start) = (Client::to(&self.address), self.start);
        for _ in 0..callers {
            let (client, shared, request) = (client.clone(), Arc::clone(&self.shared), ask.request());
            let question = async move { shared.ask(&client, start, key, request).await };
            self.callers.spawn_on(question, runtime().handle());
        }
    }

    /// Returns the number of answers so far.
    pub(super) fn count(&self) -> usize {
        self.shared.log.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether the log contains such an entry.
    pub(super) fn has(&self, wanted: impl Fn(&Entry) -> bool) -> bool {
        let log = self.shared.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().rev().any(wanted)
    }

    /// Waits for the last answers. Returns all of them.
    pub(super) fn end(mut self) -> Vec<Entry> {
        self.shared.over.store(true, Relaxed);
        let last = async { while let Some(Ok(())) = self.callers.join_next().await {} };
        wait(async { timeout(PATIENCE, last).await }).expect("every call is answered");
        assert!(self.callers.is_empty(), "a caller panicked: an answer that keeps no contract?");
        std::mem::take(&mut *self.shared.log.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn go_on_asking(
    client: Client,
    shared: Arc<Shared>,
    start: Instant,
    asks: Vec<(&'static str, CheckRequest)>,
) {
    for (key, request) in asks.iter().cycle() {
        if shared.over.load(Relaxed) {
            return;
        }
        shared.ask(&client, start, key, request.clone()).await;
        sleep(PACE).await;
    }
}

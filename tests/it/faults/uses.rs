//! Checks that no request waits, and no use is lost, while uses of keys cannot be written.
//!
//! The server runs inside the test process, with a flush interval of 100 ms instead of half a minute.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tenantgate::batch_writer::Schedule;
use tenantgate::server::{ListenAddress, ServeError, ServerSettings, serve};
use tenantgate::store::postgres::PostgresStore;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::checker::judge;
use super::history::History;
use super::traffic::Traffic;
use crate::support::link::free_port;
use crate::support::{Ask, Backend, Client, PATIENCE, World, eventually, runtime, tell, wait};

/// The flush interval in these tests.
const OFTEN: Duration = Duration::from_millis(100);

/// A server that stops when this is dropped.
struct Inside {
    address: String,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<Result<(), ServeError>>,
}

impl Inside {
    fn on(world: &World) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let mut settings = ServerSettings::on(Arc::new(PostgresStore::new(world.db.url()).unwrap()));
        settings.listen.listen = vec![ListenAddress::Tcp(address.clone())];
        "127.0.0.1:0".clone_into(&mut settings.ops_listen);
        settings.last_used = Schedule::every(OFTEN);
        let (stop, stopped) = oneshot::channel::<()>();
        let server = runtime().spawn(serve(settings, async move {
            let _ = stopped.await;
        }));
        Self { address, stop: Some(stop), server }
    }

    fn goes(mut self) {
        drop(self.stop.take());
        wait(&mut self.server).expect("no panic").expect("it stops gracefully");
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Returns `last_used_at` of a key in microseconds.
fn last_use(world: &World, prefix: &str) -> i64 {
    let sql = format!(
        "SELECT (extract(epoch FROM coalesce(last_used_at, 'epoch')) * 1e6)::bigint::text FROM api_keys
         WHERE key_prefix = '{prefix}'"
    );
    world.db.text(&sql).and_then(|micros| micros.parse().ok()).expect("a number")
}

/// Uses `other` once during a fault, waits a while, ends the fault, and waits until the use is written.
fn a_use_outlives(world: &World, client: &Client, hinder: impl FnOnce(), clear: impl FnOnce()) {
    let before = last_use(world, &world.other.prefix);
    hinder();
    assert_eq!(client.check(Ask::with_key(&world.other.text)).row(), "200 ok");
    // Long enough for several failed attempts.
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(last_use(world, &world.other.prefix), before, "the write was attempted and failed");
    clear();
    eventually("the use is written", PATIENCE, || match last_use(world, &world.other.prefix) {
        used if used > before => Ok(()),
        used => Err(used),
    });
}

#[test]
fn rows_are_locked_and_the_database_is_read_only() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let server = Inside::on(&world);
    let client = Client::to(&server.address);
    eventually("it is ready", PATIENCE, || {
        match wait(client.ask(Ask::with_key(&world.live.text))).map(|answer| answer.row()) {
            Ok(row) if row == "200 ok" => Ok(()),
            seen => Err(seen),
        }
    });
    let rows = [("live", "200 ok"), ("nobody", "401 unknown"), ("revoked", "401 revoked")];
    let asks = [
        ("live", Ask::with_key(&world.live.text)),
        ("nobody", Ask::with_key("llmk_nobody_12345678")),
        ("revoked", Ask::with_key(&world.revoked.text)),
    ];
    let changes = || world.db.text("SELECT count(*)::text FROM tenantgate_change");
    let logged = changes();
    let traffic = Traffic::to(&server.address, Instant::now(), &asks);

    let (mut holder, mut admin) = (world.db.session(), world.db.session());
    let lock = format!("BEGIN; SELECT 1 FROM api_keys WHERE id = '{}' FOR UPDATE", world.other.id);
    let mut free = world.db.session();
    let end_the_holder = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'idle in transaction'";
    a_use_outlives(&world, &client, || holder.sql(&lock), || free.sql(end_the_holder));
    let read_only =
        |on| format!("ALTER DATABASE {} SET default_transaction_read_only = {on}", world.db.name());
    a_use_outlives(&world, &client, || admin.sql(&read_only("on")), || free.sql(&read_only("off")));

    let log = traffic.end();
    let wrong = judge(&History::of(Duration::from_mins(5), &rows), &log);
    assert!(wrong.is_empty(), "{} of {} answers are wrong: {wrong:#?}", wrong.len(), log.len());
    assert_eq!(changes(), logged, "a use is not a change of the key");
    tell(&format!("faults: uses that cannot be written down: {} answers, none wrong", log.len()));
    server.goes();
}

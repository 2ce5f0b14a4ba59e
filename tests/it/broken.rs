//! Checks that a panic in a request gives 503, and that other requests are served.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tenantgate::clock::{Clock, SystemClock, Timestamp};
use tenantgate::server::{ListenAddress, ServerSettings, serve};
use tenantgate::store::sqlite::SqliteStore;
use tokio::sync::oneshot;

use crate::support::link::free_port;
use crate::support::{Ask, Backend, Client, PATIENCE, World, eventually, runtime, wait};

/// A clock that panics a number of times on worker threads.
#[derive(Default)]
struct BrittleClock(AtomicUsize);

impl BrittleClock {
    fn look(&self) {
        let serves = std::thread::current().name().is_some_and(|name| name.starts_with("worker-"));
        let breaks = serves && self.0.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        assert!(!breaks, "a panic of the test");
    }
}

impl Clock for BrittleClock {
    fn now(&self) -> Timestamp {
        self.look();
        SystemClock.now()
    }

    fn uptime(&self) -> Duration {
        self.look();
        SystemClock.uptime()
    }
}

#[test]
fn a_panic_while_answering_is_a_503_and_the_next_request_is_answered() {
    let world = World::on(Backend::Sqlite).unwrap();
    let clock = Arc::new(BrittleClock::default());
    let address = format!("127.0.0.1:{}", free_port());
    let mut settings = ServerSettings::on(Arc::new(SqliteStore::new(world.db.url()).unwrap()));
    settings.listen.listen = vec![ListenAddress::Tcp(address.clone())];
    "127.0.0.1:0".clone_into(&mut settings.ops_listen);
    settings.clock = Arc::<BrittleClock>::clone(&clock);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = runtime().spawn(serve(settings, async move { drop(stopped.await) }));
    let client = Client::to(&address);
    let row = |key: &str| wait(client.ask(Ask::with_key(key))).map(|answer| answer.row());
    eventually("it serves", PATIENCE, || match row(&world.live.text) {
        Ok(row) if row == "200 ok" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // Synchronously, and on a separate task: the first proof of a key.
    for key in [&world.live.text, &world.other.text] {
        clock.0.store(1, SeqCst);
        assert_eq!(row(key).unwrap(), "503 unavailable");
        assert_eq!(row(key).unwrap(), "200 ok");
    }
    // If responding to a panic panics, too, there is no answer, and the request does not pass.
    clock.0.store(2, SeqCst);
    assert!(row(&world.live.text).is_err());
    assert_eq!(row(&world.live.text).unwrap(), "200 ok");
    drop(stop);
    wait(server).unwrap().unwrap();
}

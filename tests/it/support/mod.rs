//! The test support that all suites share.
//!
//! A test gets a `World` (a database of its own with known tenants and keys), starts a `Server` (the real binary) on
//! it, sends Checks over the network and gets a `VerifiedResponse`, which is already verified against the
//! documentation. The interface is synchronous; one runtime works underneath.
//!
//! ```text
//! Backend ──► Database ──► World (tenants, keys)
//!                │              │
//!                ├─ cli(args) ──┴─► Run      (exit code, stdout, stderr)
//!                └─ Server::on(..).start() ─► check(Ask) ─► VerifiedResponse
//! ```
//!
//! There are no fixed waiting times: every wait is `eventually`, level-triggered, with a deadline and a sentence that
//! names what did not happen.

pub(crate) mod ask;
pub(crate) mod browser;
pub(crate) mod cli;
pub(crate) mod client;
pub(crate) mod collector;
pub(crate) mod database;
pub(crate) mod envoy;
pub(crate) mod frames;
pub(crate) mod http;
pub(crate) mod link;
pub(crate) mod pooler;
pub(crate) mod postgres;
pub(crate) mod prometheus;
pub(crate) mod rate_limit;
pub(crate) mod region;
pub(crate) mod server;
pub(crate) mod service;
pub(crate) mod table;
pub(crate) mod transcript;
pub(crate) mod verified_response;
pub(crate) mod wire;
pub(crate) mod world;

use std::fmt::Debug;
use std::future::Future;
use std::io::Write as _;
use std::sync::{LazyLock, Once};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

pub(crate) use ask::Ask;
pub(crate) use client::Client;
pub(crate) use database::{Backend, Database};
pub(crate) use region::Region;
pub(crate) use server::Server;
pub(crate) use verified_response::VerifiedResponse;
pub(crate) use world::World;

/// The deadline of waits in tests. It is generous, because a passing test never reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime for the tests")
});

/// The runtime that all tests of the process share.
pub(crate) fn runtime() -> &'static Runtime {
    &RUNTIME
}

/// Runs a future until it ends.
pub(crate) fn wait<F: Future>(work: F) -> F::Output {
    RUNTIME.block_on(work)
}

/// Repeats `probe` until it succeeds, and panics with its last error after the deadline.
pub(crate) fn eventually<T, E: Debug>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<T, E>,
) -> T {
    let start = Instant::now();
    loop {
        let seen = match probe() {
            Ok(value) => return value,
            Err(seen) => seen,
        };
        assert!(start.elapsed() < deadline, "{what}: not within {deadline:?}; last seen: {seen:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether no suite may be omitted (`TENANTGATE_TEST_REQUIRE=all`).
pub(crate) fn nothing_may_be_missing() -> bool {
    std::env::var_os("TENANTGATE_TEST_REQUIRE").is_some_and(|wanted| wanted == "all")
}

/// Whether this program may be missing, because the caller lists it (`TENANTGATE_TEST_WITHOUT=one,other`).
pub(crate) fn excused(program: &str) -> bool {
    let without = std::env::var_os("TENANTGATE_TEST_WITHOUT").unwrap_or_default();
    without.to_string_lossy().split(',').any(|name| name == program)
}

/// Prints once, past libtest's capture, that a suite is omitted; fails if nothing may be missing.
pub(crate) fn left_out(once: &Once, suite: &str, why: &str) {
    assert!(
        !nothing_may_be_missing(),
        "{suite}: {why}, but TENANTGATE_TEST_REQUIRE=all requires every suite"
    );
    once.call_once(|| tell(&format!("\n!!! LEFT OUT: {suite}: {why}\n")));
}

/// Prints a line past libtest's capture.
pub(crate) fn tell(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).expect("stderr takes the line");
}

/// Makes two tests of each listed function `fn name(world: &World)`: `name::on_sqlite` and `name::on_postgres`.
macro_rules! on_every_store {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            use crate::support::{Backend, World};

            #[test]
            fn on_sqlite() {
                if let Some(world) = World::on(Backend::Sqlite) {
                    super::$name(&world);
                }
            }

            #[test]
            fn on_postgres() {
                if let Some(world) = World::on(Backend::Postgres) {
                    super::$name(&world);
                }
            }
        }
    )+};
}

pub(crate) use on_every_store;

//! Checks that clients do not notice a rolling restart.
//!
//! Two servers use one database behind a real Envoy with `envoy/envoy.yaml`. Clients send requests all the time while
//! one server restarts, then the other. Every client must get the answer for its key, every time, with Envoy's retries
//! only.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::{JoinHandle, spawn};

use crate::support::ask::KEY_HEADER;
use crate::support::envoy::Envoy;
use crate::support::{Backend, PATIENCE, Server, World, eventually};

/// The number of clients.
const CLIENTS: usize = 8;

/// The minimum number of answers between two steps of the restart.
const BETWEEN: usize = 400;

/// Counts of answers by `wanted got`.
type Answers = BTreeMap<(u16, u16), usize>;

/// Clients that send requests until they are stopped.
struct Load {
    asked: Arc<AtomicUsize>,
    enough: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Answers>>,
}

impl Load {
    fn on(envoy: &Arc<Envoy>, world: &World) -> Self {
        let (asked, enough) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let questions = [
            (Some(world.live.text.clone()), 200),
            (Some(world.live.with_wrong_secret()), 401),
            (Some(world.other.text.clone()), 200),
            (None, 401),
            (Some(world.of_sleepy.text.clone()), 403),
        ];
        let clients = (0..CLIENTS).map(|client| {
            let (envoy, questions) = (Arc::clone(envoy), questions.clone());
            let (asked, enough) = (Arc::clone(&asked), Arc::clone(&enough));
            spawn(move || {
                let mut answers = Answers::new();
                for (key, wanted) in questions.iter().cycle().skip(client) {
                    if enough.load(Relaxed) {
                        break;
                    }
                    *answers.entry((*wanted, ask(&envoy, key.as_deref()))).or_default() += 1;
                    asked.fetch_add(1, Relaxed);
                }
                answers
            })
        });
        let clients = clients.collect();
        Self { asked, enough, clients }
    }

    /// Waits for this number of further answers.
    #[track_caller]
    fn goes_on(&self) {
        let before = self.asked.load(Relaxed);
        eventually("clients get answers", PATIENCE, || match self.asked.load(Relaxed) - before {
            answers if answers >= BETWEEN => Ok(()),
            answers => Err(answers),
        });
    }

    fn end(self) -> Answers {
        self.enough.store(true, Relaxed);
        let mut all = Answers::new();
        for client in self.clients {
            for (row, count) in client.join().expect("a client gets answers until the end") {
                *all.entry(row).or_default() += count;
            }
        }
        all
    }
}

fn ask(envoy: &Envoy, key: Option<&str>) -> u16 {
    let headers: Vec<_> = key.iter().map(|key| (KEY_HEADER, key.as_bytes())).collect();
    let mut answer = BufReader::new(envoy.open("GET", "/v1/rolling", &headers, "close"));
    let mut line = String::new();
    answer.read_line(&mut line).expect("an answer");
    answer.read_to_end(&mut Vec::new()).expect("the whole response");
    line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{line:?}"))
}

/// A server at a separate loopback address, so that no other program can use the port during its restart.
fn replica(world: &World, address: &str) -> Server {
    Server::on(&world.db).args(&["--listen", address]).start()
}

/// Restarts one server after the other with this signal under load.
#[track_caller]
fn nobody_notices(hosts: [&str; 2], signal: &str, code: Option<i32>) {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let mut replicas = hosts.map(|host| replica(&world, &format!("{host}:0")));
    let addresses = [0, 1].map(|n: usize| replicas[n].grpc[0].clone());
    let Some(envoy) = Envoy::before_each_of(&[&addresses[0], &addresses[1]]).start() else { return };
    let envoy = Arc::new(envoy);
    let load = Load::on(&envoy, &world);
    load.goes_on();
    for (server, address) in replicas.iter_mut().zip(&addresses) {
        server.signal(signal);
        assert_eq!(server.exit_code(PATIENCE), code);
        load.goes_on();
        *server = replica(&world, address);
        envoy.finds(address, true);
        load.goes_on();
    }
    let answers = load.end();
    assert!(answers.keys().all(|(wanted, got)| wanted == got), "(wanted, got) and how often: {answers:?}");
    assert_eq!(answers.len(), 3, "{answers:?}");
}

#[test]
fn a_rolling_restart_is_not_noticed() {
    nobody_notices(["127.0.50.1", "127.0.50.2"], "TERM", Some(0));
}

#[test]
fn a_crash_is_not_noticed_while_another_server_is_there() {
    nobody_notices(["127.0.51.1", "127.0.51.2"], "KILL", None);
}

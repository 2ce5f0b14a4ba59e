//! Serves the shared memory of the publisher over a Unix socket, and receives reports of decisions.
//!
//! A client of this socket gets the descriptor of the shared memory and the key to it. It may belong to the same user
//! as this process, to root, or to a user of `--unix-peer-uid`; the socket has the mode of `--unix-mode`, as all
//! sockets of the server.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::ServerSettings;
use crate::clock::Clock;
use crate::decision::Decision;
use crate::ext_authz::plain::plain;
use crate::ext_authz::translate::{ResponseContent, ResponseOptions};
use crate::gate::Terms;
use crate::publisher::{Publisher, Render, Rendered};
use crate::rate_limited_log::RateLimitedLog;
use crate::tenant::Mode;

/// The maximum number of connected modules. Each configured filter of an Envoy is one, twice while Envoy restarts.
const MOST_MODULES: usize = 256;

/// The pause after a failure to accept: without a file descriptor, accepting fails until another one is closed.
const PAUSE: Duration = Duration::from_millis(50);

/// The size of the read buffer, in bytes.
const CHUNK: usize = 1 << 16;

impl Render for ResponseOptions {
    fn render(&self, decision: &Decision<'_>, terms: Terms<'_>) -> Option<Rendered> {
        plain(&ResponseContent { terms, ..ResponseContent::of(decision) }, self)
    }
}

/// Returns the options of the publisher for these settings, with a new random key.
pub(super) fn options(settings: &ServerSettings, key: [u8; 32]) -> crate::publisher::Options {
    let (request, gate) = (&settings.ext_authz.request, &settings.gate);
    let only_keys =
        !request.public.has_patterns() && !gate.policy.deny_unmatched && gate.mode == Mode::Enforce;
    crate::publisher::Options {
        settings: tenantgate_snapshot::Settings {
            key_header: request.key_header.clone(),
            accept_bearer: request.accept_bearer,
            preflight: request.preflight,
            public: request.public.iter().map(|(method, path)| format!("{method} {path}")).collect(),
            answers: Vec::new(),
        },
        only_keys,
        max_staleness: gate.max_staleness,
        key,
        render: Arc::new(settings.ext_authz.response.clone()),
    }
}

/// The listening socket for modules.
#[derive(Clone)]
pub(super) struct ModuleListener {
    publisher: Publisher,
    /// Shared with the next run after a panic.
    listener: Arc<Mutex<UnixListener>>,
    peers: Arc<[u32]>,
    /// One warning for all modules that retry.
    log: Arc<RateLimitedLog>,
}

impl ModuleListener {
    pub(super) fn new(
        publisher: Publisher,
        listener: UnixListener,
        peers: &[u32],
        clock: Arc<dyn Clock>,
    ) -> Self {
        let own = rustix::process::geteuid().as_raw();
        let peers = peers.iter().copied().chain([own, 0]).collect();
        let log = Arc::new(RateLimitedLog::new(clock, 1));
        Self { publisher, listener: Arc::new(Mutex::new(listener)), peers, log }
    }

    /// Serves modules until the future is dropped.
    pub(super) async fn run(self) {
        let listener = self.listener.lock().await;
        let mut modules = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) if self.admits(&stream, modules.len()) => {
                        modules.spawn(serve(self.publisher.clone(), stream));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        self.log.write(|left_out| {
                            warn!(%error, left_out, "a module could not be accepted: raise the limit of open files");
                        });
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                Some(_) = modules.join_next() => {}
            }
        }
    }

    fn admits(&self, stream: &UnixStream, connections: usize) -> bool {
        if connections >= MOST_MODULES {
            self.log.write(|left_out| {
                warn!(
                    connections,
                    left_out,
                    "a module is refused, so Checks decide there: configure it once per listener, in fewer listeners"
                );
            });
            return false;
        }
        let uid = stream.peer_cred().map(|peer| peer.uid());
        let admitted = uid.as_ref().is_ok_and(|uid| self.peers.contains(uid));
        if !admitted {
            let uid = uid.ok();
            self.log.write(|left_out| {
                warn!(uid, left_out, "a module of another user is refused: allow it by --unix-peer-uid");
            });
        }
        admitted
    }
}

async fn serve(publisher: Publisher, stream: UnixStream) {
    if let Err(error) = converse(&publisher, &stream).await {
        debug!(%error, "a module is gone");
    }
}

async fn converse(publisher: &Publisher, stream: &UnixStream) -> io::Result<()> {
    let mut handles = publisher.handles();
    handles.mark_changed();
    let (mut received, mut chunk) = (Vec::new(), vec![0; CHUNK]);
    loop {
        tokio::select! {
            changed = handles.changed() => {
                changed.map_err(io::Error::other)?;
                let handle = handles.borrow_and_update().clone();
                if let Some(handle) = handle {
                    stream.async_io(Interest::WRITABLE, || handle.send(stream)).await?;
                }
            }
            ready = stream.readable() => {
                ready?;
                match stream.try_read(&mut chunk) {
                    Ok(0) => return Ok(()),
                    Ok(n) => received.extend_from_slice(&chunk[..n]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(error) => return Err(error),
                }
                loop {
                    match tenantgate_snapshot::Report::take(&mut received) {
                        Ok(Some(reports)) => publisher.account(reports),
                        Ok(None) => break,
                        Err(_) => return Err(io::ErrorKind::InvalidData.into()),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream as Client;
    use std::path::PathBuf;

    use tenantgate_snapshot::{Found, Hello, Mapping, Reader, Report};
    use tokio::task::{JoinHandle, spawn_blocking};

    use super::*;
    use crate::batch_writer::Schedule;
    use crate::clock::{ManualClock, Timestamp};
    use crate::last_used::LastUsed;
    use crate::replica::Replica;
    use crate::stats::Counter;

    /// A publisher with its socket.
    struct House {
        publisher: Publisher,
        clock: Arc<ManualClock>,
        path: PathBuf,
        directory: tempfile::TempDir,
        peers: Arc<[u32]>,
        work: Vec<JoinHandle<()>>,
    }

    impl House {
        fn new(peers: &[u32]) -> Self {
            let clock = Arc::new(ManualClock::at(Timestamp(1_000_000_000)));
            clock.advance(Duration::from_secs(9));
            let replica = Replica::default();
            replica.sees(Vec::new(), clock.as_ref());
            let last_used = LastUsed::new(Schedule::every(Duration::from_secs(30)));
            let options = crate::publisher::Options {
                settings: tenantgate_snapshot::Settings::default(),
                only_keys: true,
                max_staleness: Duration::from_secs(5),
                key: [3; 32],
                render: Arc::new(ResponseOptions::default()),
            };
            let same = Arc::<ManualClock>::clone(&clock);
            let publisher = Publisher::new(replica, last_used, None, same, options);
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("publish.sock");
            let mut house = Self { publisher, clock, path, directory, peers: peers.into(), work: Vec::new() };
            house.start();
            house
        }

        fn start(&mut self) {
            let _ = std::fs::remove_file(&self.path);
            let listener = Arc::new(Mutex::new(UnixListener::bind(&self.path).unwrap()));
            let log = Arc::new(RateLimitedLog::new(Arc::<ManualClock>::clone(&self.clock), 1));
            let (publisher, peers) = (self.publisher.clone(), Arc::clone(&self.peers));
            let modules = ModuleListener { publisher: publisher.clone(), listener, peers, log };
            self.work = vec![tokio::spawn(modules.run()), tokio::spawn(publisher.run())];
        }

        async fn stop(&mut self) {
            for work in self.work.drain(..) {
                work.abort();
                let _ = work.await;
            }
        }

        /// Connects as a module does.
        async fn module(&self) -> io::Result<(Client, Reader<Mapping>)> {
            let path = self.path.clone();
            let connect = move || {
                let client = Client::connect(path)?;
                let (hello, file) = Hello::receive(&client)?;
                let reader = Reader::new(Mapping::open(file)?, hello.key);
                Ok((client, reader.ok_or(io::ErrorKind::InvalidData)?))
            };
            spawn_blocking(connect).await.unwrap()
        }

        fn own() -> u32 {
            rustix::process::geteuid().as_raw()
        }

        async fn counted(&self, expected: u64) {
            let stats = self.publisher.stats();
            let counted = || stats.denied.iter().map(Counter::value).sum::<u64>();
            while counted() != expected {
                tokio::task::yield_now().await;
                assert!(counted() <= expected);
            }
        }
    }

    fn missing(requests: u64) -> Vec<u8> {
        Report::frames(&[Report { prefix: String::new(), reason: "missing".into(), requests, at: 5 }])
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_module_of_another_user_gets_nothing() {
        let mut house = House::new(&[House::own() + 1]);
        assert_eq!(house.module().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        house.stop().await;
        house.peers = [House::own()].into();
        house.start();
        assert!(house.module().await.is_ok());
        house.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn several_envoys_get_the_same_memory_and_their_reports_add_up() {
        let mut house = House::new(&[House::own()]);
        let mut modules = Vec::new();
        for _ in 0..5 {
            modules.push(house.module().await.unwrap());
        }
        for (client, reader) in &mut modules {
            assert_eq!(reader.find(9_000, b"llmk_a", &mut Vec::new()), Found::Absent);
            io::Write::write_all(client, &missing(2)).unwrap();
        }
        house.counted(10).await;
        // A module that disconnects and connects again.
        drop(modules.remove(0));
        let (mut again, _) = house.module().await.unwrap();
        io::Write::write_all(&mut again, &missing(1)).unwrap();
        house.counted(11).await;
        house.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_that_starts_again_offers_another_memory_and_ends_the_first() {
        let mut house = House::new(&[House::own()]);
        let (mut client, first) = house.module().await.unwrap();
        assert_eq!(first.find(9_000, b"llmk_a", &mut Vec::new()), Found::Absent);
        house.stop().await;
        assert_eq!(first.find(9_000, b"llmk_a", &mut Vec::new()), Found::Doubt);
        let ended = spawn_blocking(move || client.read(&mut [0; 8]).unwrap_or(0)).await.unwrap();
        assert_eq!(ended, 0, "the module notices at once");
        assert!(house.module().await.is_err());
        house.start();
        // It may receive the closed memory first, and then the new one.
        let mut second = house.module().await.unwrap();
        while second.1.find(9_000, b"llmk_a", &mut Vec::new()) != Found::Absent {
            second = house.module().await.unwrap();
        }
        house.stop().await;
        assert!(house.directory.path().exists());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn invalid_reports_end_one_connection_and_a_module_that_does_not_read_delays_no_other() {
        let mut house = House::new(&[House::own()]);
        // This module stops reading, and sends half a frame.
        let (mut half, _) = house.module().await.unwrap();
        io::Write::write_all(&mut half, &missing(7)[..6]).unwrap();
        let (mut wrong, _) = house.module().await.unwrap();
        io::Write::write_all(&mut wrong, &[0xff; 64]).unwrap();
        let ended = spawn_blocking(move || wrong.read(&mut [0; 8]).unwrap_or(0)).await.unwrap();
        assert_eq!(ended, 0);
        let (mut right, _) = house.module().await.unwrap();
        io::Write::write_all(&mut right, &missing(3)).unwrap();
        house.counted(3).await;
        house.stop().await;
    }
}

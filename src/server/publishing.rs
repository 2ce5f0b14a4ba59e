//! Hands out what is published, over a Unix socket, and takes reports of decisions.
//!
//! A client of this socket gets the descriptor of the shared memory and the key to it. It may belong to the same user as
//! this process, to root, or to a user of `--unix-peer-uid`; the mode of the socket is that of all our sockets.

use std::io;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::Settings;
use crate::clock::Clock;
use crate::decision::Decision;
use crate::ext_authz::plain::plain;
use crate::ext_authz::translate::{Answer, Speech};
use crate::gate::Terms;
use crate::publisher::{Publisher, Render, Rendered};
use crate::rate_limited_log::RateLimitedLog;
use crate::tenant::Mode;

/// Modules at a time. An Envoy has one, and a second one while it restarts.
const MOST_MODULES: usize = 64;

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 16;

impl Render for Speech {
    fn render(&self, decision: &Decision<'_>, terms: Terms<'_>) -> Option<Rendered> {
        let said = plain(&Answer { terms, ..Answer::of(decision) }, self)?;
        let (status, body) = (said.status, said.body);
        Some(Rendered { status, set: said.set, remove: said.remove, body, metadata: said.metadata })
    }
}

/// Options of the publisher by the settings of the server, with a random key.
pub(super) fn options(settings: &Settings, key: [u8; 32]) -> crate::publisher::Options {
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
        render: Arc::new(settings.ext_authz.speech.clone()),
    }
}

/// The socket on which modules are served.
#[derive(Clone)]
pub(super) struct Handout {
    publisher: Publisher,
    /// Shared with the next run after a panic.
    listener: Arc<Mutex<UnixListener>>,
    peers: Arc<[u32]>,
    /// A module tries again and again.
    log: Arc<RateLimitedLog>,
}

impl Handout {
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

    /// Serves modules until it is dropped.
    pub(super) async fn run(self) {
        let listener = self.listener.lock().await;
        let mut modules = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) if self.admits(&stream) && modules.len() < MOST_MODULES => {
                        modules.spawn(serve(self.publisher.clone(), stream));
                    }
                    Ok(_) => {}
                    Err(error) => warn!(%error, "a module cannot be served"),
                },
                Some(_) = modules.join_next() => {}
            }
        }
    }

    fn admits(&self, stream: &UnixStream) -> bool {
        let uid = stream.peer_cred().map(|peer| peer.uid());
        let admitted = uid.as_ref().is_ok_and(|uid| self.peers.contains(uid));
        if !admitted {
            let uid = uid.ok();
            self.log.write(|_| {
                warn!(uid, "a module of another user is refused: allow it by --unix-peer-uid");
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
    let mut offers = publisher.offers();
    offers.mark_changed();
    let (mut received, mut chunk) = (Vec::new(), vec![0; CHUNK]);
    loop {
        tokio::select! {
            changed = offers.changed() => {
                changed.map_err(io::Error::other)?;
                let offer = offers.borrow_and_update().clone();
                if let Some(offer) = offer {
                    stream.async_io(Interest::WRITABLE, || offer.send(stream)).await?;
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

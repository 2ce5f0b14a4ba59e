//! Publishes proven keys, so that a module inside Envoy can decide about them without a call.
//!
//! ```text
//! gate ── proven ──► Publisher ──► PublishedKeys ──► shared memory ──► module in Envoy
//! replica ── generation ──────────►  │                             │
//! usage, last_used, counters ◄───────┴────── reports ◄─────────────┘
//! ```
//!
//! A module only repeats verdicts of the server. A key is published with a digest after a Check has proven it here. The
//! digest is keyed with a random key that lives as long as this process. Other keys are published only as existing, and
//! the module asks the server about them; `docs/guides/inside-envoy.md` lists them. Once Envoy has sent
//! `context_extensions` of a route that the module may decide on, the module asks about every request.
//!
//! The heartbeat in the memory is that of the replica. It is stored after all changes that the replica had seen by
//! then.
//!
//! Depends on: the replica, the gate. Responses are rendered by the caller ([`Render`]), which also owns the
//! connections.

mod published_keys;

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tenantgate_snapshot::{Hello, Mapping, MemoryKey, Report, Settings};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::{error, info, warn};

use self::published_keys::PublishedKeys;
use crate::clock::{Clock, Timestamp};
use crate::decision::{Decision, Grant, Reason};
use crate::gate::{ProofSink, Terms};
use crate::key::PresentedKey;
use crate::last_used::LastUsed;
use crate::replica::{KeyEntry, Replica, STALE_AFTER, Synced};
use crate::stats::Counter;
use crate::usage::{NOBODY, Usage};
use crate::verify::memo::LEAST_BITS;

/// The answer of a module, without its per-decision fields: the response to a client, or the changes to a request that
/// passes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rendered {
    /// The HTTP status; 0 for a request that passes.
    pub status: u16,
    /// The headers to set, of the request or of the rejection. An empty value stands for the id of the decision.
    pub set: Vec<(String, String)>,
    /// The headers to remove from a request that passes.
    pub remove: Vec<String>,
    /// The body of the rejection.
    pub body: String,
    /// The metadata without `decision`, `decision_id` and `reason`.
    pub metadata: Vec<(String, String)>,
}

/// Renders the same answers as for a Check.
pub trait Render: Send + Sync {
    /// Returns an answer as texts; `None` if it cannot be expressed as texts.
    fn render(&self, decision: &Decision<'_>, terms: Terms<'_>) -> Option<Rendered>;
}

/// The options of the publisher: what a module may decide, and how it reads requests.
pub struct Options {
    /// How the module reads requests. The answers are rendered here.
    pub settings: Settings,
    /// Whether only keys decide about a request: no patterns, no `--route-default deny`, no shadow mode.
    pub only_keys: bool,
    /// The maximum age of the last successful poll.
    pub max_staleness: Duration,
    /// The random key for the digests and seals in the memory.
    pub key: [u8; 32],
    /// Renders answers.
    pub render: Arc<dyn Render>,
}

/// Counters of decisions that modules made.
#[derive(Debug, Default)]
pub struct Stats {
    /// Allowed as a tenant.
    pub ok: Counter,
    /// Denied, in the order of [`Reason::ALL`].
    pub denied: [Counter; Reason::ALL.len()],
}

/// The shared memory, and the message that makes a module map it.
#[derive(Debug)]
pub struct SharedMemoryHandle {
    hello: Hello,
    memory: OwnedFd,
}

impl SharedMemoryHandle {
    /// Sends it to a module.
    ///
    /// # Errors
    ///
    /// Fails if the socket cannot send a message with a file descriptor, for example because the module has closed it.
    pub fn send(&self, socket: impl std::os::fd::AsFd) -> std::io::Result<()> {
        self.hello.send(socket, std::os::fd::AsFd::as_fd(&self.memory))
    }
}

/// Publishes proven keys. Cheap to clone.
#[derive(Clone)]
pub struct Publisher(Arc<Shared>);

struct Shared {
    options: Options,
    key: MemoryKey,
    replica: Replica,
    last_used: LastUsed,
    usage: Option<Usage>,
    clock: Arc<dyn Clock>,
    /// The keys that were proven since the task last ran, with their digests.
    proven: Mutex<Vec<(Arc<KeyEntry>, [u8; 32])>>,
    /// Wakes the task.
    news: Notify,
    /// Whether Envoy has sent `context_extensions` of a route, which a module cannot see.
    route_context: AtomicBool,
    handle: watch::Sender<Option<Arc<SharedMemoryHandle>>>,
    stats: Arc<Stats>,
}

/// The interval of heartbeats. The replica polls every 50 ms, and a module trusts a heartbeat for one second.
const BEAT: Duration = Duration::from_millis(20);

/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// The maximum number of proofs that wait for the task. Further ones are dropped; they are published at the latest
/// after the row of their key changes.
const MOST_WAITING: usize = 1 << 16;

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

impl Publisher {
    /// Creates a publisher for this replica. `usage` is `None` if usage is not counted.
    #[must_use]
    pub fn new(
        replica: Replica,
        last_used: LastUsed,
        usage: Option<Usage>,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Self {
        let key = MemoryKey::from(options.key);
        let (proven, news, route_context) = (Mutex::default(), Notify::new(), AtomicBool::new(false));
        let (handle, stats) = (watch::Sender::new(None), Arc::default());
        Self(Arc::new(Shared {
            options,
            key,
            replica,
            last_used,
            usage,
            clock,
            proven,
            news,
            route_context,
            handle,
            stats,
        }))
    }

    /// Returns the counters of decisions that modules made.
    #[must_use]
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.0.stats)
    }

    /// Returns a channel with the current shared memory; `None` while there is none.
    #[must_use]
    pub fn handles(&self) -> watch::Receiver<Option<Arc<SharedMemoryHandle>>> {
        self.0.handle.subscribe()
    }

    /// Keeps the memory equal to the replica until the future is dropped. After that, modules ask the server.
    pub async fn run(self) {
        let mut generation = self.0.replica.generation();
        let mut published: Option<PublishedKeys<Mapping>> = None;
        let mut failed = false;
        loop {
            if let Some(Synced { uptime_ms, database_clock, snapshot }) = self.0.replica.synced() {
                let proven = std::mem::take(&mut *self.proven());
                let may_decide = self.0.options.only_keys && !self.0.route_context.load(Relaxed);
                let next = match published.take() {
                    Some(published) => published.follow(snapshot, proven, may_decide),
                    None => self.begin(snapshot, proven, may_decide),
                };
                match next {
                    Ok((next, renewed)) => {
                        next.beat(uptime_ms, database_clock);
                        if renewed {
                            self.announce(&next);
                        }
                        published = Some(next);
                        failed = false;
                    }
                    Err(error) => {
                        if !failed {
                            error!(%error, "cannot publish proven keys; Envoy sends a Check for every request");
                        }
                        self.0.handle.send_replace(None);
                        failed = true;
                        // This allocates memory and may fail.
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
            let news = async {
                tokio::select! {
                    _ = generation.changed() => {}
                    () = self.0.news.notified() => {}
                }
            };
            // Without changes, the current heartbeat of the replica is repeated.
            let _ = timeout(BEAT, news).await;
        }
    }

    fn begin(
        &self,
        snapshot: Arc<crate::replica::Snapshot>,
        proven: Vec<(Arc<KeyEntry>, [u8; 32])>,
        may_decide: bool,
    ) -> std::io::Result<(PublishedKeys<Mapping>, bool)> {
        let fresh = STALE_AFTER.min(self.0.options.max_staleness);
        let shared = Arc::clone(&self.0);
        let render =
            move |decision: &Decision<'_>, terms: Terms<'_>| shared.options.render.render(decision, terms);
        let settings = self.0.options.settings.clone();
        let mut published = PublishedKeys::new(self.0.key.clone(), settings, fresh, Box::new(render));
        published.remember(proven);
        Ok((published.renewed(snapshot, may_decide)?, true))
    }

    fn announce(&self, published: &PublishedKeys<Mapping>) {
        let Some(memory) = published.memory() else { return };
        match memory.file().try_clone_to_owned() {
            Ok(memory) => {
                let hello = Hello { key: self.0.key.clone() };
                self.0.handle.send_replace(Some(Arc::new(SharedMemoryHandle { hello, memory })));
                info!("publishing proven keys to the module inside Envoy");
            }
            Err(error) => warn!(%error, "cannot send the shared memory to a module"),
        }
    }

    /// Counts decisions that a module reports, as if they were made here.
    pub fn account(&self, reports: Vec<Report>) {
        let (now, snapshot) = (self.0.clock.now(), self.0.replica.snapshot());
        for Report { prefix, reason, requests, at } in reports {
            // The module has the clock of this machine, so its time cannot be in the future.
            let at = Timestamp(at.max(0)).min(now);
            let entry = snapshot.key(&prefix);
            let key = entry.map_or(NOBODY, |entry| entry.record().id);
            let ok = Grant::OK;
            let reason = if reason == ok {
                self.0.stats.ok.add(requests);
                if let Some(entry) = entry {
                    self.0.last_used.touch(entry, at);
                }
                ok
            } else if let Some(n) = Reason::ALL.iter().position(|known| known.as_str() == reason) {
                self.0.stats.denied[n].add(requests);
                Reason::ALL[n].as_str()
            } else {
                continue;
            };
            if let Some(usage) = &self.0.usage {
                usage.add(key, reason, requests, at);
            }
        }
    }

    fn proven(&self) -> std::sync::MutexGuard<'_, Vec<(Arc<KeyEntry>, [u8; 32])>> {
        self.0.proven.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProofSink for Publisher {
    fn proven(&self, entry: &Arc<KeyEntry>, presented: PresentedKey<'_>) {
        if presented.secret_bits() < LEAST_BITS {
            return;
        }
        let digest = self.0.key.digest(presented.expose());
        let mut waiting = Publisher::proven(self);
        if waiting.len() < MOST_WAITING {
            waiting.push((Arc::clone(entry), digest));
        }
        drop(waiting);
        self.0.news.notify_one();
    }

    fn route_context(&self) {
        if !self.0.route_context.swap(true, Relaxed) {
            warn!(
                "the module inside Envoy decides nothing until serve restarts: a route has context_extensions, but the \
                 module may decide on it"
            );
            self.0.news.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;

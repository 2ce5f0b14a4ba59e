//! The published state of each key, and the shared memory that contains it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tenantgate_snapshot::{
    Answer, Full, Mapping, Memory, MemoryKey, Proven, Settings, State, Writer, words_for,
};

use super::Rendered;
use crate::decision::{Decision, Denial, Grant, Reason};
use crate::gate::{self, Terms};
use crate::policy::{self, Routing};
use crate::record::{KeyRecord, SecretHash};
use crate::replica::{KeyEntry, Snapshot, TenantEntry};
use crate::request::{self, RequestReader};
use crate::tenant::{Mode, TenantId};

/// Renders an answer.
pub(super) type Renderer = Box<dyn Fn(&Decision<'_>, Terms<'_>) -> Option<Rendered> + Send + Sync>;

/// The reasons for which a module rejects a request itself.
const REFUSED: [Reason; 8] = [
    Reason::Missing,
    Reason::Malformed,
    Reason::Unknown,
    Reason::Revoked,
    Reason::Disabled,
    Reason::Expired,
    Reason::NotYetValid,
    Reason::TenantInactive,
];

/// A proof, and the row that it is about.
#[derive(Clone, Debug)]
struct Proof {
    digest: [u8; 32],
    record: (crate::key::KeyId, TenantId, Option<SecretHash>),
}

fn subject(record: &KeyRecord) -> (crate::key::KeyId, TenantId, Option<SecretHash>) {
    (record.id, record.tenant_id, record.hash)
}

/// The published state of all keys.
pub(super) struct PublishedKeys<M: Memory> {
    key: MemoryKey,
    settings: Settings,
    fresh: Duration,
    render: Renderer,
    /// The state of each key, by prefix.
    proofs: BTreeMap<Box<str>, Proof>,
    /// The prefixes that are in the memory as proven.
    standing: BTreeSet<Box<str>>,
    /// The snapshot that the memory equals.
    snapshot: Option<Arc<Snapshot>>,
    open: bool,
    writer: Option<Writer<M>>,
}

impl<M: Memory> Drop for PublishedKeys<M> {
    /// Closes the memory: modules ask the server from now on.
    fn drop(&mut self) {
        if let Some(writer) = &self.writer {
            writer.close();
        }
    }
}

impl PublishedKeys<Mapping> {
    pub(super) fn new(key: MemoryKey, mut settings: Settings, fresh: Duration, render: Renderer) -> Self {
        settings.answers = REFUSED.iter().filter_map(|reason| refusal(&render, *reason)).collect();
        let (proofs, standing, snapshot) = (BTreeMap::new(), BTreeSet::new(), None);
        Self { key, settings, fresh, render, proofs, standing, snapshot, open: false, writer: None }
    }

    /// Returns the memory, for modules.
    pub(super) fn memory(&self) -> Option<&Mapping> {
        self.writer.as_ref().map(Writer::memory)
    }

    /// Returns the same content in a new, larger memory.
    pub(super) fn renewed(mut self, snapshot: Arc<Snapshot>, may_decide: bool) -> io::Result<Self> {
        let keys = snapshot.key_count();
        let slots = (keys * 2).next_power_of_two().trailing_zeros().max(10);
        // Pages cost nothing before they are written, so the size allows several changes of every key.
        let memory = Mapping::create(words_for(slots, (1 << 20) + keys * 256))?;
        let fresh = u64::try_from(self.fresh.as_millis()).unwrap_or(u64::MAX);
        let new = Writer::new(memory, self.key.clone(), slots, &self.settings, fresh);
        if let Some(old) = self.writer.replace(new.map_err(io::Error::other)?) {
            old.close();
        }
        (self.standing, self.snapshot, self.open) = (BTreeSet::new(), None, false);
        self.apply(snapshot, &BTreeSet::new(), may_decide).map_err(io::Error::other)?;
        Ok(self)
    }

    /// Applies changes of the replica and new proofs. Returns whether they are in a new memory, because the old one had
    /// no room.
    pub(super) fn follow(
        mut self,
        snapshot: Arc<Snapshot>,
        proven: Vec<(Arc<KeyEntry>, [u8; 32])>,
        may_decide: bool,
    ) -> io::Result<(Self, bool)> {
        let told = self.remember(proven);
        let full = self.writer.as_ref().is_none_or(Writer::is_nearly_full);
        if full || self.apply(Arc::clone(&snapshot), &told, may_decide).is_err() {
            return Ok((self.renewed(snapshot, may_decide)?, true));
        }
        Ok((self, false))
    }
}

impl<M: Memory> PublishedKeys<M> {
    /// Records proofs. Returns the prefixes of their keys.
    pub(super) fn remember(&mut self, proven: Vec<(Arc<KeyEntry>, [u8; 32])>) -> BTreeSet<Box<str>> {
        let mut told = BTreeSet::new();
        for (entry, digest) in proven {
            let prefix: Box<str> = (*entry.record().prefix).into();
            self.proofs.insert(prefix.clone(), Proof { digest, record: subject(entry.record()) });
            told.insert(prefix);
        }
        told
    }

    /// Writes a heartbeat: see [`Writer::beat`].
    pub(super) fn beat(&self, uptime_ms: i64, database_clock: Option<i64>) {
        if let (Some(writer), Ok(uptime_ms)) = (&self.writer, u64::try_from(uptime_ms)) {
            writer.beat(uptime_ms, database_clock);
        }
    }

    /// Makes the memory equal to a snapshot and to the proofs.
    fn apply(
        &mut self,
        snapshot: Arc<Snapshot>,
        told: &BTreeSet<Box<str>>,
        may_decide: bool,
    ) -> Result<(), Full> {
        let before = self.snapshot.clone();
        let same = before.as_ref().is_some_and(|before| before.generation == snapshot.generation);
        let open = may_decide && snapshot.routes().is_empty();
        if same && told.is_empty() && open == self.open {
            return Ok(());
        }
        let changed = self.changed(before.as_deref(), &snapshot, told);
        let mut writer = self.writer.take().ok_or(Full)?;
        let mut standing = Vec::new();
        let made = writer.change(|change| {
            change.open(open);
            for prefix in &changed {
                let entry = snapshot.key(prefix);
                let next = entry.and_then(|entry| self.proven(&snapshot, entry));
                let stood = self.standing.contains(&**prefix);
                let known = before.as_ref().is_some_and(|before| before.key(prefix).is_some());
                let none = Proven::default();
                let old = match (stood, known) {
                    (true, _) => State::Proven(&none),
                    (false, true) => State::Known,
                    (false, false) => State::Absent,
                };
                let new = match (&next, entry) {
                    (Some(next), _) => State::Proven(next),
                    (None, Some(_)) => State::Known,
                    (None, None) => State::Absent,
                };
                change.set(prefix, old, new)?;
                standing.push((prefix.clone(), next.is_some(), entry.is_some()));
            }
            Ok(())
        });
        self.writer = Some(writer);
        made?;
        for (prefix, stands, exists) in standing {
            if !exists {
                self.proofs.remove(&prefix);
            }
            if stands {
                self.standing.insert(prefix);
            } else {
                self.standing.remove(&prefix);
            }
        }
        (self.snapshot, self.open) = (Some(snapshot), open);
        Ok(())
    }

    /// Returns the prefixes whose published state may have to change.
    fn changed(
        &self,
        before: Option<&Snapshot>,
        snapshot: &Snapshot,
        told: &BTreeSet<Box<str>>,
    ) -> BTreeSet<Box<str>> {
        let mut changed = told.clone();
        let Some(before) = before else {
            changed.extend(snapshot.keys().map(|entry| Box::from(&*entry.record().prefix)));
            return changed;
        };
        let difference = snapshot.since(before);
        changed.extend(difference.keys.into_iter().map(Box::from));
        if difference.policy || !difference.tenants.is_empty() {
            let of_tenant = |prefix: &str| {
                let tenant = snapshot.key(prefix).map(|entry| entry.record().tenant_id);
                difference.policy || tenant.is_none_or(|tenant| difference.tenants.contains(&tenant))
            };
            // A proven key that could not be published because of its tenant may be publishable now.
            changed.extend(self.proofs.keys().filter(|prefix| of_tenant(prefix)).cloned());
        }
        changed
    }

    /// Returns the published state of a key; `None` if modules must ask the server.
    fn proven(&self, snapshot: &Snapshot, entry: &KeyEntry) -> Option<Proven> {
        let record = entry.record();
        let proof = self.proofs.get(&*record.prefix).filter(|proof| proof.record == subject(record))?;
        // If memos are required, a key without one must not stay proven.
        let usable = entry.is_proven() && !record.is_damaged();
        let tenant = snapshot.tenant(record.tenant_id).map(TenantEntry::tenant).filter(|_| usable)?;
        if !tenant.is_sound() || tenant.mode == Some(Mode::Shadow) {
            return None;
        }
        let profile = snapshot.profile(entry.profile()).profile().ok()?;
        if profile.networks.is_some() {
            return None;
        }
        let options = request::RequestOptions::default();
        let request = RequestReader::new(&options).finish(b"", b"", b"");
        let routing = Routing::of(snapshot.routes(), policy::PolicyOptions::default(), &request);
        let (access, terms) = gate::access(snapshot, &routing, (entry, Some(tenant)), &|| None);
        // Rendered for a key that passes, because the rejection of its holder contains a part of it.
        let rendered = (self.render)(&Decision::Allow(Grant::Tenant(record, tenant)), terms);
        let Rendered { set, remove, metadata, .. } = rendered.filter(|_| access.sound)?;
        let proven = Proven {
            prefix: record.prefix.to_string(),
            digest: proof.digest,
            key_id: *record.id.0.as_bytes(),
            tenant_id: *record.tenant_id.0.as_bytes(),
            tenant_status: tenant.status.as_str().to_owned(),
            expires_at: record.expires_at.at().map_or(i64::MAX, |at| at.0),
            not_before: record.not_before.0,
            revoked: record.revoked,
            disabled: record.disabled,
            set,
            remove,
            metadata,
        };
        // SQLite does not limit the length of a name.
        proven.fits().then_some(proven)
    }
}

/// Returns the response to a rejected client, which is the same for all clients.
fn refusal(render: &Renderer, reason: Reason) -> Option<Answer> {
    let decision = Decision::Deny(Denial { reason, identity: None, needs: None });
    let Rendered { status, set, body, .. } = render(&decision, Terms::default())?;
    Some(Answer { reason: reason.as_str().to_owned(), status, headers: set, body })
}

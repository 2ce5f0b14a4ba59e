//! A database that subscribes to another one: a region with a replica set of its own.
//!
//! Rows are changed in the origin, and the servers under test read the copy. All regions share two clusters unless a
//! test needs its own.

use std::sync::LazyLock;

use super::postgres::Cluster;
use super::{Database, PATIENCE, eventually};

/// What a cluster needs to publish to many tests at once.
const PUBLISHES: &str = "-c wal_level=logical -c max_replication_slots=40 -c max_wal_senders=40";

/// What a cluster needs to subscribe for many tests at once. A worker that ended is started again soon.
const SUBSCRIBES: &str = "-c max_logical_replication_workers=40 -c max_worker_processes=60 -c max_replication_slots=40 \
    -c wal_retrieve_retry_interval=200ms";

static PUBLISHER: LazyLock<Option<Cluster>> = LazyLock::new(|| with(PUBLISHES));
static SUBSCRIBER: LazyLock<Option<Cluster>> = LazyLock::new(|| with(SUBSCRIBES));

/// A cluster with these options.
fn with(options: &str) -> Option<Cluster> {
    let cluster = Cluster::private()?;
    cluster.restart_with(options);
    Some(cluster)
}

/// A database and its subscriber, which are removed with this value.
pub(crate) struct Region {
    pub(crate) origin: Database,
    pub(crate) copy: Database,
    name: String,
}

impl Region {
    /// Two empty databases of tenantgate in the shared clusters; `None` with a message if the machine has no Postgres.
    pub(crate) fn shared() -> Option<Self> {
        Some(Self::between(Self::publisher()?, Database::postgres(SUBSCRIBER.as_ref()?, "template1")))
    }

    /// An empty database in the shared cluster that publishes.
    pub(crate) fn publisher() -> Option<Database> {
        Some(Database::postgres(PUBLISHER.as_ref()?, "template1"))
    }

    /// An empty database in the shared cluster that subscribes.
    pub(crate) fn subscriber() -> Option<Database> {
        Some(Database::postgres(SUBSCRIBER.as_ref()?, "template1"))
    }

    /// A cluster of the caller's own that can subscribe.
    pub(crate) fn cluster_that_subscribes() -> Option<Cluster> {
        with(SUBSCRIBES)
    }

    /// Migrates both databases and subscribes the second to the first.
    pub(crate) fn between(origin: Database, copy: Database) -> Self {
        origin.cli(&["migrate", "--publication"]).ok();
        copy.cli(&["migrate"]).ok();
        let id = format!("region_{}", uuid::Uuid::new_v4().simple());
        let region = Self { origin, copy, name: id };
        subscribe(&region.copy, &region.origin, &region.name, "tenantgate");
        region
    }

    /// The name of the subscription and of its slot.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Ends the subscription without its publisher: the region is promoted.
    pub(crate) fn promote(&self) {
        self.copy.sql(&dropped(&self.name));
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // A cluster of the test's own may be stopped, and the region may be promoted.
        if self.copy.answers() {
            let _ = self.copy.session().run(&dropped(&self.name));
        }
        if !self.origin.answers() {
            return;
        }
        let slot = format!("FROM pg_replication_slots WHERE slot_name = '{}'", self.name);
        let mut session = self.origin.session();
        for _ in 0..1_000 {
            let _ = session.run(&format!("SELECT pg_terminate_backend(active_pid) {slot} AND active"));
            if session.run(&format!("SELECT pg_drop_replication_slot(slot_name) {slot}")).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

fn dropped(name: &str) -> String {
    format!(
        "ALTER SUBSCRIPTION {name} DISABLE; ALTER SUBSCRIPTION {name} SET (slot_name = NONE); DROP SUBSCRIPTION {name}"
    )
}

/// Subscribes one database to a publication of another, and waits until its rows are copied.
///
/// The apply worker commits synchronously: by default a commit is visible before it is durable, so a crash could take
/// back what a server has read.
pub(crate) fn subscribe(copy: &Database, origin: &Database, name: &str, publication: &str) {
    copy.sql(&format!(
        "CREATE SUBSCRIPTION {name} CONNECTION '{}' PUBLICATION {publication} WITH (synchronous_commit = on)",
        origin.url()
    ));
    eventually("the rows are copied", PATIENCE, || {
        let tables =
            copy.texts("SELECT srrelid::regclass::text FROM pg_subscription_rel WHERE srsubstate <> 'r'");
        if tables.is_empty() { Ok(()) } else { Err(tables) }
    });
}

//! Where a play takes place: in one database, or in a region.
//!
//! In a region, the acts are committed at the publisher, and the server reads the subscriber. Everything that a fault
//! promises holds there as well: the checker is the same, and a commit counts from when the subscriber has it.
//!
//! These plays have no second stage, because replication is no part of them:
//!
//! - `processes::the_server_is_told_to_go_under_load`: the database stays as it is;
//! - `uses::rows_are_locked_and_the_database_is_read_only`: uses are written where the server reads, and not published;
//! - `transactions::a_table_is_locked`: what holds the lock also commits the revocation; a lock that holds up the
//!   subscription is [`super::regions`]';
//! - `clusters::a_standby_takes_over_without_the_last_revocation`: a publisher sends nothing twice, so that a
//!   subscriber which lost a row must be made again; `docs/guides/moving-databases.md` says so.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::support::{Backend, Database, PATIENCE, Region, World, eventually};

/// The databases of a play.
pub(super) enum Stage {
    /// Everything happens in one database.
    One(Box<World>),
    /// The server reads a subscriber.
    Region(Box<Region>),
}

impl Stage {
    /// One database; `None` with a message if the machine has no Postgres.
    pub(super) fn one() -> Option<Self> {
        World::on(Backend::Postgres).map(|world| Self::One(Box::new(world)))
    }

    /// A publisher and its subscriber.
    pub(super) fn region() -> Option<Self> {
        Region::shared().map(|region| Self::Region(Box::new(region)))
    }

    /// The database that the server reads.
    pub(super) fn here(&self) -> &Database {
        match self {
            Self::One(world) => &world.db,
            Self::Region(region) => &region.copy,
        }
    }

    /// The database whose tenants and keys are changed.
    pub(super) fn origin(&self) -> &Database {
        match self {
            Self::One(world) => &world.db,
            Self::Region(region) => &region.origin,
        }
    }
}

/// The way from the database that is changed to the one that is read.
pub(super) struct Way<'a> {
    pub(super) origin: &'a Database,
    pub(super) here: &'a Database,
}

impl<'a> Way<'a> {
    pub(super) fn between(origin: &'a Database, here: &'a Database) -> Self {
        Self { origin, here }
    }

    pub(super) fn of(stage: &'a Stage) -> Self {
        Self::between(stage.origin(), stage.here())
    }

    /// Waits until everything that is committed can be read: transactions arrive in their order, so the last one tells.
    pub(super) fn arrives(&self) {
        static SENT: AtomicU32 = AtomicU32::new(0);
        if self.origin.url() == self.here.url() {
            return;
        }
        let name = format!("sent-{}", SENT.fetch_add(1, Ordering::Relaxed));
        self.origin.sql(&format!("INSERT INTO tenantgate_plan (name) VALUES ('{name}')"));
        let there = format!("SELECT count(*)::text FROM tenantgate_plan WHERE name = '{name}'");
        let mut session = self.here.session();
        eventually("the subscriber has it", PATIENCE, || match session.texts(&there).remove(0) {
            Some(count) if count == "1" => Ok(()),
            count => Err(count),
        });
    }
}

/// Makes two tests of each listed function `fn name(stage: &Stage)`: `name::in_one_database` and `name::in_a_region`.
macro_rules! on_each_stage {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            use crate::faults::stage::Stage;

            #[test]
            fn in_one_database() {
                if let Some(stage) = Stage::one() {
                    super::$name(&stage);
                }
            }

            #[test]
            fn in_a_region() {
                if let Some(stage) = Stage::region() {
                    super::$name(&stage);
                }
            }
        }
    )+};
}

pub(super) use on_each_stage;

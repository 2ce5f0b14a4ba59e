//! The service without the server, for properties that are not visible from outside.

use std::sync::Arc;

use tenantgate::batch_writer::Schedule;
use tenantgate::clock::{Clock, SystemClock};
use tenantgate::ext_authz::service::{AuthorizationOptions, AuthorizationService};
use tenantgate::ext_authz::translate::ResponseOptions;
use tenantgate::gate::{self, Gate};
use tenantgate::last_used::{self, LastUsed};
use tenantgate::memo_writer::{self, MemoWriter};
use tenantgate::replica::Replica;
use tenantgate::replica::sync::{self, Sync};
use tenantgate::request::DEFAULT_KEY_HEADER;
use tenantgate::shadow::{self, ShadowReport};
use tenantgate::store::Store;
use tenantgate::store::sqlite::SqliteStore;
use tenantgate::usage::{self, Usage};
use tenantgate::verify::memo::{Keyring, Peppers};
use tenantgate::verify::{self, Verifier};

use super::{World, runtime, wait};

/// A service with an empty replica.
pub(crate) struct Service {
    pub(crate) authorization: AuthorizationService,
    replica: Replica,
}

impl Service {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let (peppers, replica) = (Peppers::default(), Replica::default());
        let keyring = Keyring::new(peppers.clone()).expect("randomness");
        let verifier = Verifier::start(verify::VerifyOptions::default(), keyring).expect("threads");
        let memos = MemoWriter::new(peppers, Schedule::every(memo_writer::INTERVAL));
        let (ours, options) = (Arc::clone(&clock), gate::GateOptions::default());
        let gate = Gate::new(
            replica.clone(),
            verifier,
            LastUsed::new(Schedule::every(last_used::INTERVAL)),
            memos,
            ours,
            options,
        );
        let gate = gate.counting(Some(Usage::new(Schedule::every(usage::INTERVAL))));
        let response =
            ResponseOptions { key_header: DEFAULT_KEY_HEADER.to_owned(), ..ResponseOptions::default() };
        let report = ShadowReport::new(Schedule::every(shadow::INTERVAL));
        let options = AuthorizationOptions { response, ..AuthorizationOptions::default() };
        Self { authorization: AuthorizationService::new(Arc::new(gate), clock, report, options), replica }
    }

    /// Starts to poll the world's database, which must be SQLite.
    pub(crate) fn follow(&self, world: &World) {
        let store: Arc<dyn Store> = Arc::new(SqliteStore::new(world.db.url()).expect("an address"));
        let sync =
            Sync::new(self.replica.clone(), store, Arc::new(SystemClock), sync::SyncOptions::default());
        runtime().spawn(sync.run());
    }

    /// Polls it, and returns once it is loaded.
    pub(crate) fn load(&self, world: &World) {
        self.follow(world);
        wait(self.replica.generation().wait_for(|generation| *generation > 0)).expect("it stays");
    }
}

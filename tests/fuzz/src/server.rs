//! The real modules of tenantgate on a small, real database, for the targets.

use std::sync::Arc;
use std::time::Duration;

use bcrypt::non_truncating_hash;
use tempfile::TempDir;
use tenantgate::audit::{Action, Actor};
use tenantgate::batch_writer::Schedule;
use tenantgate::clock::{ManualClock, SystemClock, Timestamp};
use tenantgate::config;
use tenantgate::ext_authz::translate::{ResponseContent, ResponseOptions, read, write_response};
use tenantgate::gate::{self, Gate, View};
use tenantgate::key::KeyId;
use tenantgate::last_used::LastUsed;
use tenantgate::memo_writer::MemoWriter;
use tenantgate::record::{KeyDetails, KeyTerms};
use tenantgate::replica::Replica;
use tenantgate::replica::TenantEntry;
use tenantgate::replica::sync::{self, Sync};
use tenantgate::request;
use tenantgate::store::{Management, NewKey, NewTenant};
use tenantgate::tenant::{TenantId, TenantStatus};
use tenantgate::verify::memo::{Keyring, Peppers};
use tenantgate::verify::{self, Verifier};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use uuid::Uuid;

use crate::fixtures::{KEYS, State, TENANTS};
use crate::model::KEY_HEADER;

/// The lowest cost of bcrypt.
const COST: u32 = 4;

/// A database with all tenants and keys, in a directory that is removed with this value.
pub struct Database {
    pub store: Arc<dyn Management>,
    pub directory: TempDir,
}

impl Database {
    /// Creates it.
    pub async fn furnished() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let url = format!("sqlite://{}", directory.path().join("fuzz.db").display());
        let store = config::management(&config::Database::at(&url), Actor::default()).expect("a store");
        store.migrate().await.expect("tables");
        for tenant in &TENANTS {
            let id = TenantId(Uuid::from_u128(tenant.id));
            let (name, schema) = (tenant.name.to_owned(), tenant.schema.to_owned());
            let status = TenantStatus::parse(tenant.status);
            store
                .insert_tenant(&NewTenant { id, name, schema, status, plan: None }, Action::TenantCreate)
                .await
                .expect("a tenant");
        }
        for key in &KEYS {
            let new = NewKey {
                id: KeyId(Uuid::from_u128(key.id)),
                prefix: key.prefix().to_owned(),
                hash: non_truncating_hash(key.text, COST).expect("a hash"),
                tenant_id: TenantId(Uuid::from_u128(key.tenant().id)),
                name: None,
                created_at: Timestamp(0),
                expires_at: (key.state == State::Expired).then_some(Timestamp(1)),
                memo: None,
                terms: KeyTerms::default(),
            };
            store.insert_key(&new, Action::KeyCreate).await.expect("a key");
            if key.state == State::Revoked {
                let revoke = |key: &mut KeyDetails| {
                    key.revoked_at = Some(Timestamp(1));
                    Ok(())
                };
                store.change_keys(&[new.id], Action::KeyRevoke, &revoke).await.expect("revoked");
            }
        }
        Self { store, directory }
    }
}

/// A timeout that no proof of these keys reaches.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads, decides and answers as the server does, without the server.
pub struct House {
    runtime: Runtime,
    gate: Gate,
    request: request::RequestOptions,
    response: ResponseOptions,
}

impl House {
    /// Assembles it and loads the database. Its clock does not advance, so the snapshot never gets stale.
    pub fn build() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let database = runtime.block_on(Database::furnished());
        let clock = Arc::new(ManualClock::at(Timestamp(1_800_000_000_000_000)));
        let replica = Replica::default();
        runtime.block_on(async {
            let mut loaded = replica.generation();
            let sync = Sync::new(
                replica.clone(),
                database.store.clone(),
                clock.clone(),
                sync::SyncOptions::default(),
            );
            tokio::select! {
                error = sync.run() => panic!("{error}"),
                _ = loaded.changed() => {}
            }
        });
        let keyring = Keyring::new(Peppers::default()).expect("randomness");
        let verifier = Verifier::start(verify::VerifyOptions::default(), keyring).expect("threads");
        let memos = MemoWriter::new(Peppers::default(), Schedule::every(Duration::from_secs(1)));
        let gate = Gate::new(
            replica,
            verifier,
            LastUsed::new(Schedule::every(Duration::from_secs(30))),
            memos,
            clock,
            gate::GateOptions::default(),
        );
        Self { runtime, gate, request: reading(), response: response_options() }
    }

    /// Returns the bytes of the answer; `None` if the message is not a valid `CheckRequest`. Synchronous if possible,
    /// as the server does, and then also asynchronous, with the same result.
    pub fn check(&self, message: &[u8]) -> Option<Vec<u8>> {
        let asked = read(message, &self.request).ok()?;
        let respond = |view: &View<'_>| {
            let verdict = view.judge(&asked, &|| None).ok()?;
            let (mut bytes, cache) = (Vec::new(), verdict.tenant.map(TenantEntry::responses));
            let said = ResponseContent { decision: &verdict.decision, terms: verdict.terms, cache };
            write_response(&mut bytes, &said, Uuid::nil(), asked.bearer, &self.response);
            self.gate.record(&verdict, view.started());
            Some(bytes)
        };
        let now = respond(&self.gate.view());
        let then = self.runtime.block_on(async {
            respond(&self.gate.wait_for_verdict(&asked, &|| None, Instant::now() + PATIENCE).await)
                .expect("a settled view has a verdict")
        });
        assert!(now.is_none_or(|now| now == then), "the synchronous answer differs");
        Some(then)
    }
}

/// Reads both places of keys.
pub fn reading() -> request::RequestOptions {
    request::RequestOptions {
        key_header: KEY_HEADER.into(),
        accept_bearer: true,
        ..request::RequestOptions::default()
    }
}

/// The format of answers.
pub fn response_options() -> ResponseOptions {
    ResponseOptions { key_header: KEY_HEADER.into(), ..ResponseOptions::default() }
}

/// A whole server, with a listener on a Unix socket.
pub struct Served {
    pub socket: std::path::PathBuf,
    pub runtime: Runtime,
    _directory: TempDir,
}

impl Served {
    /// Starts it and waits until it has loaded everything.
    pub fn start() -> Self {
        use tenantgate::server::{ListenAddress, ServerSettings, serve};
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let Database { store, directory } = runtime.block_on(Database::furnished());
        let socket = directory.path().join("grpc.sock");
        let mut settings = ServerSettings::on(store);
        settings.listen.listen = vec![ListenAddress::Unix(socket.clone())];
        settings.ops_listen = "127.0.0.1:0".into();
        settings.ext_authz.request = reading();
        settings.ext_authz.response = response_options();
        settings.clock = Arc::new(SystemClock);
        runtime.spawn(async move {
            let ended = serve(settings, std::future::pending()).await;
            panic!("the server ended: {ended:?}");
        });
        // Rust's start code ignores SIGPIPE, libFuzzer's does not: a closed connection must be an error, not the end of
        // the process.
        let pipe = {
            let _in_runtime = runtime.enter();
            signal(SignalKind::pipe()).expect("a handler")
        };
        drop(pipe);
        runtime.block_on(async {
            let up = async {
                while tokio::net::UnixStream::connect(&socket).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), up).await.expect("it listens");
        });
        Self { socket, runtime, _directory: directory }
    }
}

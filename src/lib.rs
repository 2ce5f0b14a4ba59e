//! Tenant-aware API keys for everything behind Envoy.
//!
//! This page is the map of the code for developers. Users start at the README.
//!
//! # Layers
//!
//! | layer | modules |
//! |---|---|
//! | 5 wiring | `main` `lib` `cli` `config` `server` `health` `telemetry` |
//! | 4 adapters | `ext_authz` (Envoy's messages) `envoy` (Envoy's configuration) `publisher` (for the module inside Envoy) `store/sql` `store/postgres` `store/sqlite` `store/migrations` `store/errors` `store/schema_spec` |
//! | 3 use cases | `gate` (the path of a Check) `admin` (the path of a change) `explain` `last_used` `memo_writer` `refusals` `shadow` `usage` |
//! | 2 mechanisms | `store` (the traits) `transport` (gRPC over HTTP/2) `replica` (the rows in memory) `verify` (bcrypt, memos, peppers) `batch_writer` `supervise` `client_tls` |
//! | 1 judgement | `decision` `policy` `permission` |
//! | 0 vocabulary | `key` `tenant` `record` `request` `scope` `network` `plan` `profile` `labels` `path` `route` `public` `client_address` `invalid` `clock` `random` `duration` `stats` `audit` `trace` `diagnostics` `rate_limited_log` |
//!
//! The first paragraph of a module says what its files are for. The test `tests/it/architecture.rs` holds the code to this
//! table.
//!
//! The parts of layers 0 and 1 that need no operating system are the crate `tenantgate-core`, and are re-exported here
//! under the same names. A module inside Envoy can use that crate alone, with what [`publisher`] writes into the memory of
//! the crate `tenantgate-snapshot`. That crate and the module hold the only `unsafe` code.
//!
//! A module uses earlier modules of its own layer and the layers below, never a layer
//! above. Adapters do not know each other.
//!
//! # Two paths
//!
//! Each crosses the layers in one direction.
//!
//! ```text
//! a request   Envoy → server::listen → transport::call → ext_authz::service → translate → gate → replica lookup → verify → decision → translate → Envoy
//! a change    CLI, admin, or SQL of any client → change log in the same transaction → replica::sync → next snapshot
//! ```
//!
//! # Where a line belongs
//!
//! Each foreign vocabulary has one place:
//! SQL in `store/`; Envoy's messages, HTTP status numbers and outgoing header
//! names in `ext_authz/`; Envoy's configuration in `envoy/`; bcrypt in `verify/bcrypt`; flags and variables in
//! `config` and `cli`; the operating system's clocks in `clock`; printing and
//! exit codes in `cli`; the names of metrics in `telemetry`. The test
//! `tests/it/architecture.rs` checks the code against this list.
//!
//! # Rules
//!
//! - `decision` does no I/O, is not async, reads no clock, and knows neither HTTP nor Envoy. Allow, Deny and
//!   Unable are three separate outcomes.
//! - Nothing on the request path awaits the database or holds a lock across an await.
//! - A key implements neither `Display` nor `Serialize`, and its `Debug` shows the prefix. The plain text
//!   leaves the program only through [`admin::Issued`].
//! - A verdict of bcrypt is stored in the row that it is about: in memory and, sealed with a pepper, in the database.
//!   There is no separate cache to invalidate, and therefore none that could accept a revoked key.
//! - No module below layer 5 knows the configuration; each mechanism has its own options.
//! - A third database needs one more adapter and no change below layer 4.

// layer 0
pub mod audit;
pub mod clock;
pub mod diagnostics;
pub mod duration;
pub mod random;
pub mod rate_limited_log;
pub mod stats;
pub mod trace;
// layers 0 and 1 of crates/core
pub use tenantgate_core::{
    client_address, decision, invalid, key, labels, network, path, permission, plan, policy, profile, record,
    request, route, scope, tenant,
};
// layer 2, with the adapters of databases
pub mod store;
pub mod supervise;
pub mod transport;
pub mod verify;
// layer 2
pub mod batch_writer;
pub mod client_tls;
pub mod replica;
// layer 3
pub mod admin;
pub mod last_used;
pub mod memo_writer;
pub mod refusals;
pub mod shadow;
pub mod usage;
// uses both
pub mod gate;
// describes what gate does
pub mod explain;
// layer 4
pub mod envoy;
pub mod ext_authz;
pub mod publisher;
// layer 5
pub mod cli;
pub mod config;
pub mod health;
pub mod server;
pub mod telemetry;

//! Tenant-aware API keys for everything behind Envoy.
//!
//! This page is the map of the house. Users start at the README; whoever changes
//! the code starts here.
//!
//! # Floors
//!
//! ```text
//! floor 5  WIRING      main  cli/  config/  server/{house, listen, ops, tls, workers}  health  telemetry/{metrics, page, panics, process, scrub, traces}
//! floor 4  DOORS       ext_authz/{proto, codec, wire, translate, service, spans, origin}      envoy/{admin, config, probe, verdict}      store/{sql, postgres, sqlite}
//! floor 3  USE CASES   gate (the check path)   admin/ (the management path)   usage (last-used)   memos (proofs)   shadow (would-be refusals)   explain (why)
//! floor 2  MACHINES    supervise   store/{management, inspect} (traits)   transport/{connection, call, failure, frame_scanner, buffered_io, memory_budget, tower_bridge}   verify/{bcrypt, memo, pepper, pool, queue, wrong}   replica/{entry, snapshot, table, sync, prune, announce, keep/file}   writing   trust
//! floor 1  JUDGEMENT   decision/{rows}   policy (pure, synchronous)
//! floor 0  WORDS       key/{format}   tenant   record   request   scope   network   plan   profile   labels   path   route   invalid   clock   stats   rate_limited_log   client_address   audit   finding   trace
//! ```
//!
//! The floors 0 and 1 are the crate `tenantgate-core` as far as they need no operating system, and stand here under the
//! same names. A module inside Envoy can use that crate alone.
//!
//! A module uses its own floor's earlier items and the floors below, never one
//! above. Doors do not know other doors.
//!
//! # Two stories
//!
//! Each crosses the house in one direction.
//!
//! ```text
//! a request   Envoy → server::listen → transport::call → ext_authz::service → translate → gate → replica lookup → verify → decision → translate → Envoy
//! a change    CLI, admin or anyone's SQL → change log in the same transaction → replica::sync → next snapshot
//! ```
//!
//! # Where a line belongs
//!
//! Where its *foreign words* are spoken, and each vocabulary has one room:
//! SQL in `store/`; Envoy's messages, HTTP status numbers and outgoing header
//! names in `ext_authz/`; Envoy's configuration in `envoy/`; bcrypt in `verify/bcrypt`; flags and variables in
//! `config` and `cli`; the operating system's clocks in `clock`; printing and
//! exit codes in `cli`; the names of metrics in `telemetry`. A test
//! (`tests/it/architecture.rs`) holds the code to this table.
//!
//! # What is not there
//!
//! - `decision` does no I/O, is not async, reads no clock, and knows neither HTTP nor Envoy. Allow, Deny and
//!   Unable are three outcomes that never share a path.
//! - Nothing on the request path awaits the database or holds a lock across an await.
//! - A key implements neither `Display` nor `Serialize`, and its `Debug` shows the prefix. A plaintext leaves
//!   through [`admin::Issued`] alone.
//! - A verdict of bcrypt is kept in the row it was on, in memory and, sealed with a pepper, in the database.
//!   There is no cache to invalidate, and so none that could bring back what was revoked.
//! - No module below floor 5 knows the configuration; each machine has its own `Options`.
//! - A third database needs a door of its own and no change below floor 4.

// floor 0
pub mod audit;
pub mod clock;
pub mod finding;
pub mod rate_limited_log;
pub mod stats;
pub mod trace;
// floors 0 and 1 of crates/core
pub use tenantgate_core::{
    client_address, decision, invalid, key, labels, network, path, plan, policy, profile, record, request,
    route, scope, tenant,
};
// floor 2, and the doors to databases
pub mod store;
pub mod supervise;
pub mod transport;
pub mod verify;
// floor 2
pub mod replica;
pub mod trust;
pub mod writing;
// floor 3
pub mod admin;
pub mod memos;
pub mod shadow;
pub mod usage;
// the one that needs both
pub mod gate;
// the one that tells what it does
pub mod explain;
// floor 4
pub mod envoy;
pub mod ext_authz;
// floor 5
pub mod cli;
pub mod config;
pub mod health;
pub mod server;
pub mod telemetry;

//! Is the contract kept? One binary, so that it links once; this list is its table of contents.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may say so")]

mod support;

mod allocations;
mod announce;
mod architecture;
mod audit;
mod broken;
mod bulk;
mod check;
mod check_command;
mod cli;
mod credentials;
mod damaged;
mod docs;
mod doctor;
mod doctor_envoy;
mod envoy;
mod explain;
mod explain_decision;
mod faults;
mod fixtures;
mod grpcurl;
mod h2spec;
mod harness;
mod hostile;
mod identity;
mod key_commands;
mod keys;
mod lifecycle;
mod listener;
mod logs;
mod memo;
mod migrate;
mod model;
mod observability;
mod outage;
mod outcomes;
mod panics;
mod protocol;
mod public;
mod reports;
mod roles;
mod rolling;
mod secrets;
mod settings;
mod shadow;
mod snapshot_file;
mod starting;
mod supply_chain;
mod sync;
mod tenants;
mod tls;
mod traces;
mod waiting;

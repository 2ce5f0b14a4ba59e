//! Checks every answer while parts of the system fail.
//!
//! Traffic runs during every fault: callers present keys that stay valid, keys that are revoked, suspended, deleted or
//! expire meanwhile, unknown keys and wrong secrets, and record each answer with its time. A history records what was
//! true when. One pure function checks every answer against the history ([`checker`]). A test of a fault contains only
//! assertions that are specific to this fault.
//!
//! ```text
//! Stage ─► Plan ─► Play (server, link, traffic) ─► acts ─► history ─┐
//!                                    └───────────► answers ─► log ──┴─► checker::judge ─► nothing
//! ```

mod checker;
mod clusters;
mod history;
mod network;
mod play;
mod poolers;
mod privileges;
mod processes;
mod pulse;
mod regions;
mod stage;
mod traffic;
mod transactions;
mod uses;

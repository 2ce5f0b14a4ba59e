//! Is every answer right while things break?
//!
//! Traffic runs through every fault: callers ask for keys that stay valid, keys that are
//! revoked, suspended, deleted or expire meanwhile, unknown keys and wrong secrets, and
//! write down what they get and when. A history says what was true when. One pure function
//! holds every answer against it ([`checker`]); what only one fault is about is asserted
//! where that fault is played.
//!
//! ```text
//! Plan ─► Play (server, wire, traffic) ─► acts ─► history ─┐
//!                           └───────────► answers ─► log ──┴─► checker::judge ─► nothing
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
mod traffic;
mod transactions;
mod uses;

//! Is the contract kept? One binary, so that it links once; this list is its table of contents.

mod support;

mod check;
mod credentials;
mod fixtures;
mod harness;
mod keys;
mod protocol;
mod public;
mod waiting;

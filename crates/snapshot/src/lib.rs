//! The shared memory in which a server publishes what is proven about keys.
//!
//! One process writes ([`Writer`]), any number of other processes read ([`Reader`]), and no reader waits for the writer
//! or for another reader. The memory is a sealed memfd ([`Mapping`]): it can neither shrink nor grow, and nobody but
//! the writer can change it.
//!
//! ```text
//! header (16 words) │ slots: 2^k words, fingerprint << 32 │ place of a record │ records, only ever appended
//! ```
//!
//! # How a reader can trust what it reads
//!
//! - Everything is words of 64 bits that are read atomically. A record is copied before it is looked at, so there is no
//!   reference into memory that another process changes. Memory with any content at all is safe to read.
//! - Every place and every length is checked against the size of the mapping.
//! - A record carries a keyed hash of its content. The key comes over the socket and is not in the memory, so damage
//!   makes a record unusable, and cannot make one.
//!   The seal of a record is taken off when another one takes its place, so that damage cannot bring back what was true once.
//! - A change of any number of rows is one step: the sequence number in the header is odd while it is being made. A
//!   reader that sees it odd, or changed, has no answer ([`Found::Doubt`]).
//! - The heartbeat says when the writer last knew that the memory is true to the database. It is stored after the
//!   changes that were seen by then. A reader that sees the heartbeat sees these changes.
//!
//! A reader that is in doubt asks the server. Nothing that can go wrong in here allows a request.
//!
//! Depends on: no other part of tenantgate.

mod atomics;
mod layout;
#[cfg(not(feature = "loom"))]
mod mapping;
mod reader;
mod record;
#[cfg(not(feature = "loom"))]
mod wire;
mod writer;

pub use self::atomics::Memory;
pub use self::layout::{FRESH_MS, Key, VERSION, words_for};
#[cfg(not(feature = "loom"))]
pub use self::mapping::Mapping;
pub use self::reader::{Found, Reader};
pub use self::record::{Answer, Proven, Settings};
#[cfg(not(feature = "loom"))]
pub use self::wire::{Hello, MOST_FRAME, Malformed, Report};
pub use self::writer::{Full, State, Transaction, Writer};

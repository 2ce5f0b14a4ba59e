//! The shared memory in which a server publishes which keys are proven.
//!
//! One process writes ([`Writer`]), any number of other processes read ([`Reader`]), and no reader waits for the writer
//! or for another reader. The memory is a sealed memfd ([`Mapping`]): it can neither shrink nor grow, and only the
//! writer can change it.
//!
//! ```text
//! header (16 words) │ slots: 2^k words, fingerprint << 32 │ place of a record │ records, only ever appended
//! ```
//!
//! # How a reader can trust what it reads
//!
//! - All data are words of 64 bits that are read atomically. A record is copied before it is parsed, so there is no
//!   reference into memory that another process changes. Reading is safe whatever the memory contains.
//! - Every place and every length is checked against the size of the mapping.
//! - A record carries a keyed hash of its content (its seal). The key comes over the socket and is not in the memory,
//!   so damage can invalidate a record, but cannot forge one. The seal is removed when the record is replaced, so that
//!   damage cannot restore an old state.
//! - A change of any number of rows is one step: the sequence number in the header is odd while it is being made. A
//!   reader that finds it odd, or changed, gives no answer ([`Found::Doubt`]).
//! - The heartbeat is the time at which the memory was last known to equal the database. It is stored after the changes
//!   until then, so a reader that sees the heartbeat also sees these changes.
//!
//! A reader without an answer asks the server. No fault of this memory can let a request pass.
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
pub use self::layout::{FRESH_MS, MemoryKey, VERSION, words_for};
#[cfg(not(feature = "loom"))]
pub use self::mapping::Mapping;
pub use self::reader::{Found, Reader};
pub use self::record::{Answer, Proven, Settings};
#[cfg(not(feature = "loom"))]
pub use self::wire::{Hello, MOST_FRAME, Malformed, Report};
pub use self::writer::{Full, State, Transaction, Writer};

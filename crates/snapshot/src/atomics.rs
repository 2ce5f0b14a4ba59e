//! Atomic words of 64 bits, or their loom model.

#[cfg(feature = "loom")]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(feature = "loom"))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};

/// The words that a writer and its readers share.
pub trait Memory {
    /// Returns the words: always the same memory.
    fn words(&self) -> &[AtomicU64];
}

impl Memory for std::sync::Arc<[AtomicU64]> {
    fn words(&self) -> &[AtomicU64] {
        self
    }
}

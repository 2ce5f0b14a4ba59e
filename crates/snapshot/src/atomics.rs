//! The atomic words that everything is made of, or their model.

#[cfg(feature = "loom")]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(feature = "loom"))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Words that a writer and its readers share.
pub trait Memory {
    /// The words. Always the same ones.
    fn words(&self) -> &[AtomicU64];
}

impl Memory for std::sync::Arc<[AtomicU64]> {
    fn words(&self) -> &[AtomicU64] {
        self
    }
}

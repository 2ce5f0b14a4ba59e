//! Memory that two processes share: the only place in this crate that needs `unsafe`.
//!
//! The file has no name. After the writer has mapped it, it is sealed: no process can shrink it (which would kill a
//! reader by SIGBUS), grow it, write to it, or map it for writing. The reader checks the seals, too, because it does
//! not know which process created the file.
#![expect(unsafe_code, reason = "maps memory")]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::atomics::Memory;

/// The seals that a file must have.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE);

/// The maximum size of a mapping in bytes: a place in it is a number of words with 32 bits.
const MOST_BYTES: u64 = 8 << 32;

/// A mapped file. It is unmapped when this is dropped.
#[derive(Debug)]
pub struct Mapping {
    file: OwnedFd,
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory is accessed by atomic words alone, and is unmapped by the owner.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Creates a file of this many words, all zero, maps it for writing and seals it. A page uses memory only after it
    /// is first written.
    ///
    /// # Errors
    ///
    /// The system has no memory or no file descriptors left, or the kernel is older than 5.1.
    pub fn create(words: usize) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create(c"tenantgate", flags)?;
        let bytes = u64::try_from(words).ok().and_then(|words| words.checked_mul(8));
        rustix::fs::ftruncate(&file, bytes.ok_or(io::ErrorKind::OutOfMemory)?)?;
        let mapping = Self::map(file, ProtFlags::READ | ProtFlags::WRITE)?;
        rustix::fs::fcntl_add_seals(&mapping.file, SEALS | SealFlags::SEAL)?;
        Ok(mapping)
    }

    /// Maps a file of another process for reading.
    ///
    /// # Errors
    ///
    /// The file is not sealed or does not contain whole words, or the system cannot map it.
    pub fn open(file: OwnedFd) -> io::Result<Self> {
        // A file that could still shrink must not be mapped.
        if !rustix::fs::fcntl_get_seals(&file)?.contains(SEALS) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the shared memory is not sealed"));
        }
        Self::map(file, ProtFlags::READ)
    }

    /// Returns the file, for another process.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn map(file: OwnedFd, access: ProtFlags) -> io::Result<Self> {
        let bytes = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        let len = usize::try_from(bytes)
            .ok()
            .filter(|len| *len > 0 && len.is_multiple_of(8) && bytes <= MOST_BYTES);
        let len =
            len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a size of shared memory"))?;
        // SAFETY: a new mapping at a place that the kernel chooses overlaps no other memory.
        let start = unsafe { rustix::mm::mmap(ptr::null_mut(), len, access, MapFlags::SHARED, &file, 0)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { file, start, words: len / 8 })
    }
}

impl Memory for Mapping {
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has this many words, begins at a page, lives as long as `self`, and is accessed by atomic
        // words alone; a mapping for reading is only loaded from, since stores are the writer's. The file cannot
        // shrink: it is sealed, or `create` has made it and seals it before another process gets it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and no reference into it is left.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast::<c_void>(), self.words * 8) };
        debug_assert!(unmapped.is_ok());
    }
}

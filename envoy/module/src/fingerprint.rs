//! Checks that this Envoy has the ABI that the module is written for.
//!
//! Envoy only warns about a module for another version, and has no function that returns its own version. But its
//! executable lists the names of all functions for modules, which differ between releases. The names are hashed, and
//! only the expected hash is accepted.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The fingerprint of Envoy 1.40.
pub const EXPECTED: u64 = 0xc7f3_19e7_7744_0fa6;

/// The prefix of the names of Envoy's functions for modules.
const START: &[u8] = b"envoy_dynamic_module_callback_";

/// The type of a section of texts, such as names of symbols (ELF, `SHT_STRTAB`).
const TEXTS: u32 = 3;

/// The flag of sections that are loaded with the program (ELF, `SHF_ALLOC`).
const LOADED: u64 = 2;

/// The maximum size of a section of names, in bytes.
const MAX_SECTION_BYTES: u64 = 64 << 20;

/// Returns whether this process is an Envoy with the expected ABI.
pub(crate) fn is_expected() -> bool {
    fingerprint(Path::new("/proc/self/exe")).is_ok_and(|ours| ours == EXPECTED)
}

/// Returns a hash of the names of all functions that an Envoy has for modules.
///
/// # Errors
///
/// The file cannot be read, or is not a program for 64-bit Linux.
pub fn fingerprint(program: &Path) -> io::Result<u64> {
    let file = File::open(program)?;
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "not a 64-bit ELF file");
    let head = read(&file, 0, 64)?;
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return Err(invalid());
    }
    let (start, size, count) = (number(&head, 40, 8), number(&head, 58, 2), number(&head, 60, 2));
    let mut names = Vec::new();
    for n in 0..count {
        let section = read(&file, start.checked_add(n * size).ok_or_else(invalid)?, 64)?;
        let (kind, flags) = (number(&section, 4, 4), number(&section, 8, 8));
        if kind == u64::from(TEXTS) && flags & LOADED != 0 {
            let len = number(&section, 32, 8).min(MAX_SECTION_BYTES);
            let texts = read(&file, number(&section, 24, 8), len)?;
            names.extend(
                texts.split(|byte| *byte == 0).filter(|name| name.starts_with(START)).map(<[u8]>::to_vec),
            );
        }
    }
    names.sort_unstable();
    names.dedup();
    Ok(names.iter().fold(0xcbf2_9ce4_8422_2325, |hash, name| hash_of(hash, name)))
}

/// Adds a text and its end to a hash: FNV-1a with 64 bits.
fn hash_of(start: u64, text: &[u8]) -> u64 {
    text.iter().chain([&0]).fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn read(file: &File, at: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::InvalidData)?];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// Parses a little-endian number of `len` bytes.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes.iter().skip(at).take(len).rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

//! Reads files of keys or tenants.
//!
//! The format is CSV with a header, or one JSON object a line. Rows come one by one with their line number. An invalid
//! row is returned as an error of its own; an invalid file ends the import. A record has at most 1 MiB, so that an
//! unclosed quote does not read the whole file into memory.
//!
//! Depends on: nothing that validates keys or tenants.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use clap::ValueEnum;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::super::Failure;
use super::super::rows::unguard;
use crate::audit::hex;
use crate::invalid::InvalidValue;
use crate::telemetry::scrub::scrub;

/// The format of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(in crate::cli) enum FileFormat {
    /// Comma-separated values with a header (RFC 4180)
    Csv,
    /// One JSON object a line
    Jsonl,
}

impl FileFormat {
    /// Returns the format that the extension of a file name implies.
    pub(super) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "csv" => Some(Self::Csv),
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            _ => None,
        }
    }
}

/// The line number of a row, and the row or why it is invalid.
pub(super) type ReadRow<R> = (u64, Result<R, InvalidValue>);

/// The maximum size of a record in bytes; a usual row has some hundred.
const MAX_RECORD: usize = 1 << 20;

/// A reader that limits the size of a record and hashes everything that is read.
struct Bounded {
    inner: Box<dyn Read>,
    /// Bytes since the last record.
    since: Rc<Cell<usize>>,
    digest: Rc<RefCell<Sha256>>,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.since.get() > MAX_RECORD {
            let why = "a record is longer than 1 MiB: is a quote not closed, or a line end missing?";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let read = self.inner.read(buffer)?;
        self.since.set(self.since.get() + read);
        self.digest.borrow_mut().update(&buffer[..read]);
        Ok(read)
    }
}

enum Records {
    Csv { reader: Box<csv::Reader<BufReader<Bounded>>>, header: csv::StringRecord },
    Jsonl { reader: BufReader<Bounded>, line: u64, bytes: u64 },
}

/// A file that is read row by row.
pub(super) struct FileRows {
    name: PathBuf,
    records: Records,
    since: Rc<Cell<usize>>,
    digest: Rc<RefCell<Sha256>>,
}

impl FileRows {
    /// Opens a file, or standard input for `-`.
    pub(super) fn open(
        path: &Path,
        format: FileFormat,
        columns: &[&str],
        needed: &[&[&str]],
    ) -> Result<Self, Failure> {
        let inner: Box<dyn Read> =
            if is_stream(path) { Box::new(io::stdin()) } else { Box::new(open(path)?) };
        let (since, digest) = (Rc::default(), Rc::new(RefCell::new(Sha256::new())));
        let bounded = Bounded { inner, since: Rc::clone(&since), digest: Rc::clone(&digest) };
        let mut reader = BufReader::with_capacity(1 << 16, bounded);
        let start = reader.fill_buf().map_err(|error| unreadable(path, &error))?;
        if start.starts_with(&[0x1f, 0x8b]) {
            return Err(Failure::refused(format!(
                "{} is compressed: unpack it first, as in `gzip -dc FILE | tenantgate … import --format csv -`",
                path.display()
            )));
        }
        // Skips a byte order mark, which has no meaning in UTF-8.
        if start.starts_with(b"\xef\xbb\xbf") {
            reader.consume(3);
        }
        let records = match format {
            FileFormat::Csv => csv(path, reader, columns, needed)?,
            FileFormat::Jsonl => Records::Jsonl { reader, line: 0, bytes: 0 },
        };
        Ok(Self { name: path.to_owned(), records, since, digest })
    }

    /// Returns the next row; `None` at the end of the file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or a record is too long.
    pub(super) fn next<R: DeserializeOwned>(&mut self) -> Result<Option<ReadRow<R>>, Failure> {
        let row = match &mut self.records {
            Records::Csv { reader, header } => next_csv(reader, header),
            Records::Jsonl { reader, line, bytes } => next_jsonl(reader, line, bytes),
        };
        self.since.set(0);
        let row = row.map_err(|error| unreadable(&self.name, &error))?;
        Ok(row.map(|(line, row)| (line, row.map_err(|why| scrub(&why.to_string()).into_owned().into()))))
    }

    /// Returns the number of bytes of the rows so far.
    pub(super) fn position(&self) -> u64 {
        match &self.records {
            Records::Csv { reader, .. } => reader.position().byte(),
            Records::Jsonl { bytes, .. } => *bytes,
        }
    }

    /// Returns the SHA-256 digest of everything that was read so far.
    pub(super) fn sha256(&self) -> String {
        hex(&self.digest.borrow().clone().finalize())
    }
}

/// Returns whether the input is standard input, which can be read only once.
pub(super) fn is_stream(path: &Path) -> bool {
    path == Path::new("-")
}

/// Returns the size of a file and its SHA-256 digest; `None` for streams, which can be read only once.
pub(super) fn measure(path: &Path) -> Result<Option<(u64, String)>, Failure> {
    if is_stream(path) {
        return Ok(None);
    }
    let mut file = open(path)?;
    let metadata = file.metadata().map_err(|error| unreadable(path, &error))?;
    if !metadata.is_file() {
        return Ok(None);
    }
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(|error| unreadable(path, &error))? {
            0 => return Ok(Some((metadata.len(), hex(&digest.finalize())))),
            read => digest.update(&buffer[..read]),
        }
    }
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::refused(format!("{} cannot be read: {error}", path.display()))
}

fn csv(
    path: &Path,
    reader: BufReader<Bounded>,
    columns: &[&str],
    needed: &[&[&str]],
) -> Result<Records, Failure> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(reader);
    let wrong = |why: String| Failure::refused(format!("{}: {why}", path.display()));
    let all = || columns.join(", ");
    let header = match reader.headers() {
        Ok(header) => header.clone(),
        Err(error) if error.is_io_error() => return Err(wrong(io::Error::from(error).to_string())),
        Err(_) => return Err(wrong("the first line is not UTF-8: save the file as UTF-8".into())),
    };
    let header: csv::StringRecord = header.iter().map(str::trim).collect();
    for (at, name) in header.iter().enumerate() {
        if !columns.contains(&name) {
            let name = scrub(name);
            return Err(wrong(format!(
                "unknown column {name:?}: the first line must name the columns, which can be {}",
                all()
            )));
        }
        if header.iter().take(at).any(|before| before == name) {
            return Err(wrong(format!("the column {name} is given twice")));
        }
    }
    if header.is_empty() {
        return Err(wrong(format!(
            "the file is empty: the first line must name the columns, which can be {}",
            all()
        )));
    }
    for any in needed {
        if !any.iter().any(|name| header.iter().any(|column| column == *name)) {
            return Err(wrong(format!("the first line must name a column {}", any.join(" or "))));
        }
    }
    Ok(Records::Csv { reader: Box::new(reader), header })
}

fn next_csv<R: DeserializeOwned>(
    reader: &mut csv::Reader<BufReader<Bounded>>,
    header: &csv::StringRecord,
) -> io::Result<Option<ReadRow<R>>> {
    let mut record = csv::ByteRecord::new();
    if !reader.read_byte_record(&mut record)? {
        return Ok(None);
    }
    let line = record.position().map_or(0, csv::Position::line);
    Ok(Some((line, csv_row(record, header))))
}

fn csv_row<R: DeserializeOwned>(
    record: csv::ByteRecord,
    header: &csv::StringRecord,
) -> Result<R, InvalidValue> {
    if record.len() != header.len() {
        return Err(format!("has {} fields where the first line has {}", record.len(), header.len()).into());
    }
    let record = csv::StringRecord::from_byte_record(record).map_err(|_| "is not UTF-8")?;
    let record: csv::StringRecord = record.iter().map(unguard).collect();
    record.deserialize(Some(header)).map_err(|error| error.to_string().into())
}

fn next_jsonl<R: DeserializeOwned>(
    reader: &mut BufReader<Bounded>,
    line: &mut u64,
    bytes: &mut u64,
) -> io::Result<Option<ReadRow<R>>> {
    let mut text = Vec::new();
    loop {
        text.clear();
        let read = reader.read_until(b'\n', &mut text)?;
        if read == 0 {
            return Ok(None);
        }
        *line += 1;
        *bytes += read as u64;
        if !text.trim_ascii().is_empty() {
            break;
        }
    }
    Ok(Some((*line, json_row(&text))))
}

fn json_row<R: DeserializeOwned>(text: &[u8]) -> Result<R, InvalidValue> {
    let text = std::str::from_utf8(text).map_err(|_| "is not UTF-8")?;
    serde_json::from_str(text).map_err(|error| {
        let error = error.to_string();
        let why = error.split(" at line ").next().unwrap_or_default();
        format!("is not a valid JSON object of a row: {why}").into()
    })
}

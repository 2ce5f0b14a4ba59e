//! The command `pepper new`: creates a pepper and shows it, or adds it to a file.
//!
//! In a file the new pepper goes to the top: it writes memos from then on, and the old ones are still accepted. The
//! file is replaced as a whole and is readable only by its owner; comments in it stay.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};

use serde::Serialize;
use zeroize::Zeroizing;

use super::Failure;
use super::view::Text;
use crate::verify::pepper::Pepper;

/// A pepper to show.
#[derive(Serialize)]
pub(super) struct ShownView {
    id: String,
    pepper: String,
}

impl Text for ShownView {
    fn text(&self) -> String {
        self.pepper.clone()
    }
}

/// A pepper that was added to a file.
#[derive(Serialize)]
pub(super) struct WrittenView {
    id: String,
    file: PathBuf,
    peppers: usize,
}

impl Text for WrittenView {
    fn text(&self) -> String {
        let Self { id, file, peppers } = self;
        format!("pepper {id} is the first of {peppers} in {} and writes memos from now on", file.display())
    }
}

/// Creates a pepper to show.
pub(super) fn show() -> Result<ShownView, Failure> {
    let pepper = random()?;
    Ok(ShownView { id: pepper.id().to_string(), pepper: pepper.expose_line().to_string() })
}

/// Creates a pepper and adds it to the top of a file.
pub(super) fn put_on_top(file: &Path) -> Result<WrittenView, Failure> {
    let refused = |why: &dyn std::fmt::Display| Failure::refused(format!("{}: {why}", file.display()));
    let before = match fs::read_to_string(file) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Zeroizing::default(),
        Err(error) => return Err(refused(&error)),
    };
    let blank = before.trim().is_empty();
    let old = if blank { Vec::new() } else { Pepper::parse_all(&before).map_err(|why| refused(&why))? };
    let pepper = random()?;
    let id = pepper.id().to_string();
    let text = Zeroizing::new(format!("# {id}\n{}\n{}", &*pepper.expose_line(), &*before));
    replace(file, &text).map_err(|error| refused(&error))?;
    Ok(WrittenView { id, file: file.to_owned(), peppers: old.len() + 1 })
}

fn random() -> Result<Pepper, Failure> {
    Pepper::random().map_err(|e| Failure::refused(format!("the system has no randomness: {e}")))
}

/// Replaces the file; there is a complete file at every moment. If `file` is a link, its target is replaced.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let beside = file.with_added_extension("new");
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let written = new.write_all(text.as_bytes()).and_then(|()| new.sync_all()).and_then(|()| {
        // The server that could read the old file must be able to read the new one.
        if let Ok(old) = fs::metadata(&file) {
            chown(&beside, Some(old.uid()), Some(old.gid()))?;
            fs::set_permissions(&beside, old.permissions())?;
        }
        fs::rename(&beside, &file)
    });
    written.inspect_err(|_| drop(fs::remove_file(&beside)))
}

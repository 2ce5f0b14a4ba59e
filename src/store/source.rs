//! Where the address of a database comes from: the command line, a variable, or a file that is read again.

use std::path::PathBuf;

/// An address, or the file that it is in.
#[derive(Clone)]
pub enum UrlSource {
    /// The address itself.
    Text(String),
    /// A file whose first line is the address. It is read at every connect.
    File(PathBuf),
}

impl std::fmt::Debug for UrlSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl UrlSource {
    /// The address as it is now.
    ///
    /// # Errors
    ///
    /// The file cannot be read or is empty; never repeats what is in it.
    pub fn read(&self) -> Result<String, String> {
        match self {
            Self::Text(url) => Ok(url.clone()),
            Self::File(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
                let url = text.trim();
                match url.lines().count() {
                    1 => Ok(url.to_owned()),
                    0 => Err(format!("{} is empty: expected a database URL", path.display())),
                    _ => Err(format!("{} has more than one line: expected a database URL", path.display())),
                }
            }
        }
    }

    /// What to change when the password is refused.
    #[must_use]
    pub fn where_the_password_is(&self) -> String {
        match self {
            Self::Text(_) => {
                "check the password in the database URL or the password file; to change it without a \
                              restart use --database-url-file"
                    .into()
            }
            Self::File(path) => format!("put the new password into {}", path.display()),
        }
    }
}

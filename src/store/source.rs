//! The source of a database URL: a text, or a file that is read again at each connect.

use std::path::PathBuf;

use super::AddressError;

/// A database URL, or the file that contains it.
#[derive(Clone)]
pub enum UrlSource {
    /// The URL.
    Text(String),
    /// A file whose only line is the URL. It is read at each connect.
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
    /// Returns the current URL.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or does not have exactly one line. The error never contains its content.
    pub fn read(&self) -> Result<String, AddressError> {
        match self {
            Self::Text(url) => Ok(url.clone()),
            Self::File(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| AddressError::UnreadableFile { path: path.clone(), error })?;
                let url = text.trim();
                let fault = match url.lines().count() {
                    1 => return Ok(url.to_owned()),
                    0 => "is empty",
                    _ => "has more than one line",
                };
                Err(AddressError::InvalidFile { path: path.clone(), fault })
            }
        }
    }

    /// Tells the operator what to change if the database rejects the password.
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

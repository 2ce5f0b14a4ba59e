//! Parses the connection URLs of Postgres clients.
//!
//! Each form and each parameter either has the meaning that libpq gives it, or is rejected with an error that says what
//! to write instead; none is ignored. No error contains any part of a password.

mod encoding;
mod parts;
mod settings;

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use self::encoding::decoded;
use self::parts::{Parts, is_familiar};
use crate::store::AddressError;

/// Names and values of session settings.
pub(super) type SessionSettings = Vec<(String, String)>;

/// A parsed URL.
#[derive(Clone)]
pub(super) struct DatabaseUrl {
    /// The options for the driver.
    pub(super) options: PgConnectOptions,
    /// The schema of `options=-c search_path=…`, if it is given.
    pub(super) schema: Option<String>,
    /// The other settings of `options`, which are set after connecting.
    pub(super) settings: SessionSettings,
    /// `connect_timeout`, if it is given.
    pub(super) connect_timeout: Option<Duration>,
    /// Files that the driver reads at every connect, with the parameter that names them.
    files: Vec<(&'static str, String)>,
}

/// Variables of libpq whose meaning the driver does not know, and the parameters that they stand for.
const VARIABLES: [(&str, &str); 24] = [
    ("PGHOST", "host"),
    ("PGPORT", "port"),
    ("PGHOSTADDR", "PGHOSTADDR"),
    ("PGOPTIONS", "options"),
    ("PGREQUIRESSL", "requiressl"),
    ("PGSSLMINPROTOCOLVERSION", "ssl_min_protocol_version"),
    ("PGSSLMAXPROTOCOLVERSION", "ssl_max_protocol_version"),
    ("PGSSLCERTMODE", "sslcertmode"),
    ("PGSSLCRLDIR", "sslcrldir"),
    ("PGSSLCOMPRESSION", "sslcompression"),
    ("PGLOADBALANCEHOSTS", "load_balance_hosts"),
    ("PGCLIENTENCODING", "client_encoding"),
    ("PGMINPROTOCOLVERSION", "min_protocol_version"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGGSSENCMODE", "gssencmode"),
    ("PGSSLNEGOTIATION", "sslnegotiation"),
    ("PGSERVICE", "service"),
    ("PGREQUIREAUTH", "require_auth"),
    ("PGREQUIREPEER", "requirepeer"),
    ("PGSSLCRL", "sslcrl"),
];

const FORM: &str = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE";

fn invalid_form() -> AddressError {
    AddressError::Form(format!("write {FORM}").into())
}

impl DatabaseUrl {
    /// Reads a URL. What it does not say is taken from the variables of libpq.
    ///
    /// # Errors
    ///
    /// What to write instead.
    #[expect(
        clippy::disallowed_methods,
        reason = "the driver reads the variables of libpq at the same place"
    )]
    pub(super) fn parse(url: &str) -> Result<Self, AddressError> {
        Self::read(url, &|name| std::env::var(name).ok())
    }

    /// Names the file that cannot be read, which the driver does not.
    ///
    /// # Errors
    ///
    /// There is one.
    pub(super) fn files(&self) -> Result<(), AddressError> {
        for (name, file) in &self.files {
            std::fs::File::open(file).map_err(|error| AddressError::ParameterFile {
                parameter: name,
                file: file.clone(),
                error,
            })?;
        }
        Ok(())
    }

    fn read(url: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, AddressError> {
        let url = url.trim();
        if let Some(fault) = wrapped(url) {
            return Err(AddressError::Form(fault.into()));
        }
        if url.starts_with("jdbc:") {
            return Err(AddressError::rejected(format!("JDBC URLs are not supported: write {FORM}")));
        }
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(if url.contains('=') {
                AddressError::rejected(format!(
                    "connection strings of keywords (host=… dbname=…) are not supported: write {FORM}"
                ))
            } else {
                invalid_form()
            });
        };
        if scheme.starts_with("sqlite+") {
            return Err(AddressError::rejected("sqlite+… is not supported: write sqlite://FILE"));
        }
        if !matches!(scheme.split('+').next(), Some("postgres" | "postgresql")) {
            return Err(invalid_form());
        }
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let (authority, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
        raw_characters(authority, path, query)?;
        let mut parts = Parts::default();
        parts.authority(authority)?;
        if let Some(path) = path.filter(|path| !path.is_empty()) {
            parts.database = Some(decoded("the database's name", path)?);
        }
        let mut said = Vec::new();
        for pair in query.into_iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty()) {
            let Some((name, value)) = pair.split_once('=') else {
                // It may be the rest of a password.
                return Err(AddressError::rejected(
                    "a parameter has no value: write NAME=VALUE, and percent-encode & in a value as %26",
                ));
            };
            let name = decoded("a parameter's name", name)?;
            let in_password = said.iter().any(|said| said == "password")
                || (!authority.contains('@') && query.is_some_and(|query| query.contains('@')));
            if in_password && !is_familiar(&name) {
                return Err(AddressError::rejected(
                    "a parameter is not known, or the password contains a raw character: percent-encode & as %26, / as \
                     %2F and ? as %3F",
                ));
            }
            let value = decoded(if is_familiar(&name) { &name } else { "the value of a parameter" }, value)?;
            parts.parameter(&name, value)?;
            said.push(name);
        }
        if let [first, second, ..] =
            said.iter().filter(|name| ["host", "hostaddr"].contains(&name.as_str())).collect::<Vec<_>>()[..]
            && first != second
        {
            return Err(AddressError::rejected(
                "host and hostaddr together are not supported: write the host alone",
            ));
        }
        if said.iter().any(|said| said == "hostaddr") {
            said.push("PGHOSTADDR".to_owned());
        }
        if parts.host.is_some() {
            said.push("host".to_owned());
        }
        if parts.port.is_some() {
            said.push("port".to_owned());
        }
        for (name, parameter) in VARIABLES {
            let value = variable(name).filter(|value| !value.is_empty());
            if let Some(value) = value.filter(|_| !said.iter().any(|said| said == parameter)) {
                parts
                    .parameter(parameter, value)
                    .map_err(|error| AddressError::Variable { name, error: Box::new(error) })?;
            }
        }
        if parts.sslrootcert.as_deref() == Some("system") && variable("PGSSLROOTCERT").is_some() {
            return Err(AddressError::rejected(
                "the variable PGSSLROOTCERT would be read instead of the system's certificates: unset it, and \
                 write sslrootcert=system into the URL",
            ));
        }
        let address = parts.finish()?;
        address.checks_no_more_than_the_chain_of(variable)?;
        Ok(address)
    }

    /// Rejects `verify-ca` while the driver would read the system's authorities besides `sslrootcert`: they issue
    /// certificates to everybody, and `verify-ca` does not check to whom.
    fn checks_no_more_than_the_chain_of(
        &self,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(), AddressError> {
        if !matches!(self.options.get_ssl_mode(), PgSslMode::VerifyCa) {
            return Ok(());
        }
        let root = self.files.iter().find(|(name, _)| *name == "sslrootcert").map(|(_, file)| file);
        let alone = root.is_some() && variable("SSL_CERT_FILE").as_ref() == root;
        if alone && variable("SSL_CERT_DIR").is_none() {
            return Ok(());
        }
        Err(AddressError::rejected(
            "sslmode=verify-ca (require with sslrootcert means the same) would accept a certificate that a public \
             authority issued to anybody: write sslmode=verify-full, or set SSL_CERT_FILE to the file in sslrootcert \
             and unset SSL_CERT_DIR",
        ))
    }
}

/// Returns what surrounds the URL and does not belong to it.
fn wrapped(url: &str) -> Option<&'static str> {
    let name = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let assigned = url.strip_prefix("export ").unwrap_or(url).split_once('=');
    let is_url = |text: &str| {
        let scheme = text.trim_start_matches(['"', '\'']).split_once("://").map(|(scheme, _)| scheme);
        scheme.is_some_and(|scheme| scheme.starts_with("postgres") || scheme.starts_with("sqlite"))
    };
    if url.starts_with('\u{feff}') {
        Some("it begins with a byte order mark: save the file as UTF-8 without one")
    } else if url.starts_with("export ") || assigned.is_some_and(|(to, url)| name(to) && is_url(url)) {
        Some("write only the URL, without the name of a variable")
    } else if url.starts_with(['"', '\'', '`']) {
        Some("it is in quotes: remove them")
    } else {
        None
    }
}

/// Rejects a URL whose user or password contains a character that must be percent-encoded. The position of the `@`
/// shows which one it is.
fn raw_characters(authority: &str, path: Option<&str>, query: Option<&str>) -> Result<(), AddressError> {
    let encode = |raw, encoded| Err(AddressError::RawCharacter { raw, encoded });
    let end = authority.rfind('@');
    if end.is_some_and(|end| authority[..end].contains('@')) {
        return encode('@', "%40");
    }
    if end.is_none() && path.is_some_and(|path| path.contains('@')) {
        return encode('/', "%2F");
    }
    if end.is_none() && path.is_none() && query.is_some_and(|query| query.contains('@')) {
        return encode('?', "%3F");
    }
    // What looks like a port is the beginning of a password.
    let port = authority.rsplit_once(':').map(|(_, port)| port);
    let number = port.is_none_or(|port| port.is_empty() || port.bytes().all(|b| b.is_ascii_digit()));
    if end.is_none() && !number && query.is_some_and(|query| query.contains('@')) {
        return if path.is_some() { encode('/', "%2F") } else { encode('?', "%3F") };
    }
    if end.is_some_and(|end| authority[..end].matches(':').count() > 1) {
        return encode(':', "%3A");
    }
    if authority.contains('#') || path.is_some_and(|path| path.contains('#')) {
        return encode('#', "%23");
    }
    Ok(())
}

/// The name that Postgres replaces by that of the role.
const USER: &str = "$user";

/// Returns whether this is a valid name for the schema of the tables.
pub(super) fn is_schema(name: &str) -> bool {
    let fine = |c: char| !c.is_control() && !"\"'\\,".contains(c);
    (1..=63).contains(&name.len()) && name.chars().all(fine) && !name.starts_with("pg_") && name != USER
}

#[cfg(test)]
mod tests;

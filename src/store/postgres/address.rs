//! Parses the connection URLs of Postgres clients.
//!
//! Each form and each parameter either has the meaning that libpq gives it, or is rejected with an error that says what
//! to write instead; none is ignored. No error contains any part of a password.

use std::fmt::Write as _;
use std::str::FromStr as _;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// Names and values of session settings.
pub(super) type Settings = Vec<(String, String)>;

/// A parsed URL.
#[derive(Clone)]
pub(super) struct Address {
    /// The options for the driver.
    pub(super) options: PgConnectOptions,
    /// The schema of `options=-c search_path=…`, if it is given.
    pub(super) schema: Option<String>,
    /// The other settings of `options`, which are set after connecting.
    pub(super) settings: Settings,
    /// `connect_timeout`, if it is given.
    pub(super) connect_timeout: Option<Duration>,
    /// Files that the driver reads at every connect, with the parameter that names them.
    files: Vec<(&'static str, String)>,
}

/// The parts of a URL, decoded.
#[derive(Default)]
struct Parts {
    user: Option<String>,
    password: Option<String>,
    host: Option<String>,
    port: Option<u16>,
    database: Option<String>,
    sslmode: Option<String>,
    sslrootcert: Option<String>,
    sslcert: Option<String>,
    sslkey: Option<String>,
    application_name: Option<String>,
    connect_timeout: Option<Duration>,
    options: Settings,
}

/// Variables of libpq whose meaning the driver does not know, and the parameters that they stand for.
const VARIABLES: [(&str, &str); 11] = [
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

impl Address {
    /// Reads a URL. What it does not say is taken from the variables of libpq.
    ///
    /// # Errors
    ///
    /// What to write instead.
    #[expect(
        clippy::disallowed_methods,
        reason = "the driver reads the variables of libpq at the same place"
    )]
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        Self::read(url, &|name| std::env::var(name).ok())
    }

    /// Names the file that cannot be read, which the driver does not.
    ///
    /// # Errors
    ///
    /// There is one.
    pub(super) fn files(&self) -> Result<(), String> {
        for (name, file) in &self.files {
            std::fs::File::open(file).map_err(|error| format!("{name} {file}: {error}"))?;
        }
        Ok(())
    }

    fn read(url: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let url = url.trim();
        if url.starts_with("jdbc:") {
            return Err(format!("JDBC URLs are not supported: write {FORM}"));
        }
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(if url.contains('=') {
                format!("connection strings of keywords (host=… dbname=…) are not supported: write {FORM}")
            } else {
                format!("invalid database URL: write {FORM}")
            });
        };
        if !matches!(scheme.split('+').next(), Some("postgres" | "postgresql")) {
            return Err(format!("invalid database URL: write {FORM}"));
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
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decoded("a parameter's name", name)?;
            let value = decoded(&name, value)?;
            parts.parameter(&name, value)?;
            said.push(name);
        }
        if let [first, second, ..] =
            said.iter().filter(|name| ["host", "hostaddr"].contains(&name.as_str())).collect::<Vec<_>>()[..]
            && first != second
        {
            return Err("host and hostaddr together are not supported: write the host alone".into());
        }
        for (name, parameter) in VARIABLES {
            let value = variable(name).filter(|value| !value.is_empty());
            if let Some(value) = value.filter(|_| !said.iter().any(|said| said == parameter)) {
                parts.parameter(parameter, value).map_err(|why| format!("the variable {name}: {why}"))?;
            }
        }
        if parts.sslrootcert.as_deref() == Some("system") && variable("PGSSLROOTCERT").is_some() {
            return Err("the variable PGSSLROOTCERT would be read instead of the system's certificates: unset it, and \
                        write sslrootcert=system into the URL"
                .into());
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
    ) -> Result<(), String> {
        if !matches!(self.options.get_ssl_mode(), PgSslMode::VerifyCa) {
            return Ok(());
        }
        let root = self.files.iter().find(|(name, _)| *name == "sslrootcert").map(|(_, file)| file);
        let alone = root.is_some() && variable("SSL_CERT_FILE").as_ref() == root;
        if alone && variable("SSL_CERT_DIR").is_none() {
            return Ok(());
        }
        Err("sslmode=verify-ca (require with sslrootcert means the same) would accept a certificate that a public \
             authority issued to anybody: write sslmode=verify-full, or set SSL_CERT_FILE to the file in sslrootcert \
             and unset SSL_CERT_DIR"
            .into())
    }
}

/// Rejects a URL whose user or password contains a character that must be percent-encoded. The position of the `@`
/// shows which one it is.
fn raw_characters(authority: &str, path: Option<&str>, query: Option<&str>) -> Result<(), String> {
    let encode = |raw: char, as_: &str| {
        Err(format!("the password (or user) contains a raw {raw:?}: percent-encode it, as {as_}"))
    };
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
    if end.is_some_and(|end| authority[..end].matches(':').count() > 1) {
        return encode(':', "%3A");
    }
    if authority.contains('#') || path.is_some_and(|path| path.contains('#')) {
        return encode('#', "%23");
    }
    Ok(())
}

impl Parts {
    fn authority(&mut self, authority: &str) -> Result<(), String> {
        let (user, host) = authority.rsplit_once('@').map_or(("", authority), |parts| parts);
        let (user, password) = user.split_once(':').map_or((user, None), |(user, pw)| (user, Some(pw)));
        if !user.is_empty() {
            self.user = Some(decoded("the user", user)?);
        }
        if let Some(password) = password.filter(|password| !password.is_empty()) {
            self.password = Some(decoded("the password", password)?);
        }
        if host.contains(',') {
            return Err(
                "several hosts are not supported: name only the primary, or a name that resolves to it"
                    .into(),
            );
        }
        let (host, port) = match host.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or("the IPv6 address has no closing bracket")?;
                if host.parse::<std::net::Ipv6Addr>().is_err() {
                    return Err("invalid host: expected an IPv6 address between the brackets".into());
                }
                (host, after.strip_prefix(':').or((!after.is_empty()).then_some("?")))
            }
            None if host.matches(':').count() > 1 => {
                return Err("an IPv6 address needs brackets: write [::1]:5432".into());
            }
            None => host.split_once(':').map_or((host, None), |(host, port)| (host, Some(port))),
        };
        if !host.is_empty() {
            self.host = Some(decoded("the host", host)?);
        }
        if let Some(port) = port.filter(|port| !port.is_empty()) {
            self.port = Some(port_of(port)?);
        }
        Ok(())
    }

    fn parameter(&mut self, name: &str, value: String) -> Result<(), String> {
        let one_of = |words: &[&str]| {
            words
                .contains(&value.as_str())
                .then_some(())
                .ok_or_else(|| format!("invalid {name}: expected one of {}", words.join(", ")))
        };
        match name {
            // libpq tries without encryption first, and then with it; the driver would never encrypt.
            "sslmode" | "ssl-mode" | "ssl" if value == "allow" => {
                return Err(format!("{name}=allow is not supported: write {name}=prefer"));
            }
            "sslmode" | "ssl-mode" => {
                one_of(&["disable", "prefer", "require", "verify-ca", "verify-full"])?;
                self.sslmode = Some(value);
            }
            "ssl" => {
                if ["true", "1", "on", "false", "0", "off"].contains(&value.as_str()) {
                    return Err("ssl=true and ssl=false are not supported: write sslmode=verify-full, \
                                sslmode=require or sslmode=disable"
                        .into());
                }
                one_of(&["disable", "prefer", "require", "verify-ca", "verify-full"])?;
                self.sslmode = Some(value);
            }
            "sslrootcert" | "ssl-root-cert" | "ssl-ca" => self.sslrootcert = Some(value),
            "sslcert" | "ssl-cert" => self.sslcert = Some(value),
            "sslkey" | "ssl-key" => self.sslkey = Some(value),
            "host" if value.contains(',') => {
                return Err("several hosts are not supported: name only the primary".into());
            }
            "host" | "hostaddr" => {
                self.host = Some(value.trim_start_matches('[').trim_end_matches(']').to_owned());
            }
            "port" => self.port = Some(port_of(&value)?),
            "dbname" => self.database = Some(value),
            "user" => self.user = Some(value),
            "password" => self.password = Some(value),
            "application_name" => self.application_name = Some(value),
            "fallback_application_name" => {
                self.application_name.get_or_insert(value);
            }
            "connect_timeout" => {
                let seconds: u64 =
                    value.parse().map_err(|_| "invalid connect_timeout: expected seconds".to_owned())?;
                self.connect_timeout = (seconds > 0).then(|| Duration::from_secs(seconds.max(2)));
            }
            "options" => self.options.extend(settings(&value)?),
            _ if name.starts_with("options[") && name.ends_with(']') => {
                self.options.push((name["options[".len()..name.len() - 1].to_owned(), value));
            }
            "client_encoding" => {
                if !value.eq_ignore_ascii_case("utf8") && !value.eq_ignore_ascii_case("utf-8") {
                    return Err("invalid client_encoding: tenantgate always uses UTF8, remove it".into());
                }
            }
            // Sessions check for the primary in any case.
            "target_session_attrs" => match value.as_str() {
                "any" | "read-write" | "primary" => {}
                _ => {
                    return Err("invalid target_session_attrs: tenantgate needs the primary, write \
                                target_session_attrs=read-write"
                        .into());
                }
            },
            "channel_binding" => {
                match value.as_str() {
                    "prefer" | "disable" => {}
                    _ => {
                        return Err("channel_binding=require is not supported: remove it, and write sslmode=verify-full \
                                to verify the server"
                        .into());
                    }
                }
            }
            "gssencmode" => match value.as_str() {
                "prefer" | "disable" => {}
                _ => return Err("gssencmode=require is not supported: remove it, and use sslmode".into()),
            },
            "sslnegotiation" => match value.as_str() {
                "postgres" => {}
                _ => return Err("sslnegotiation=direct is not supported: remove it".into()),
            },
            _ => return Err(unknown(name)),
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Address, String> {
        let root = self.sslrootcert.take().filter(|root| !root.is_empty());
        // As in libpq: the system's authorities issue certificates for every host, so the host name must be checked.
        let system = root.as_deref() == Some("system");
        let mode = match self.sslmode.take() {
            Some(mode) if system && mode != "verify-full" => {
                return Err("sslrootcert=system needs sslmode=verify-full".into());
            }
            None if system => Some("verify-full".to_owned()),
            // As in libpq: with a root certificate, `require` verifies the chain.
            Some(mode) if mode == "require" && root.is_some() => Some("verify-ca".to_owned()),
            other => other,
        };
        let root = root.filter(|_| !system);
        let (schema, settings) = schema_of(std::mem::take(&mut self.options))?;
        let canonical = self.canonical(mode.as_deref(), root.as_deref());
        let options = PgConnectOptions::from_str(&canonical)
            .map_err(|_| format!("invalid database URL: write {FORM}"))?;
        let name =
            self.application_name.as_deref().or(options.get_application_name()).unwrap_or("tenantgate");
        let name = name.to_owned();
        // Poolers reject unknown startup parameters, so settings are set after connecting.
        let options = options.application_name(&name).extra_float_digits(None);
        let named = [("sslrootcert", root), ("sslcert", self.sslcert), ("sslkey", self.sslkey)];
        let files = named.into_iter().filter_map(|(name, file)| Some((name, file?))).collect();
        Ok(Address { options, schema, settings, connect_timeout: self.connect_timeout, files })
    }

    /// Formats the parts as a URL that the driver reads with the same meaning.
    fn canonical(&self, sslmode: Option<&str>, sslrootcert: Option<&str>) -> String {
        let mut url = format!("postgres:///{}?", self.database.as_deref().map(encoded).unwrap_or_default());
        let port = self.port.map(|port| port.to_string());
        for (name, value) in [
            ("user", self.user.as_deref()),
            ("password", self.password.as_deref()),
            ("host", self.host.as_deref()),
            ("port", port.as_deref()),
            ("sslmode", sslmode),
            ("sslrootcert", sslrootcert),
            ("sslcert", self.sslcert.as_deref()),
            ("sslkey", self.sslkey.as_deref()),
        ] {
            if let Some(value) = value {
                let _ = write!(url, "{name}={}&", encoded(value));
            }
        }
        url.pop();
        url
    }
}

/// The error for an unsupported parameter, with what to write instead.
fn unknown(name: &str) -> String {
    const INSTEAD: [(&str, &str); 13] = [
        ("currentschema", "use --database-schema"),
        ("schema", "use --database-schema"),
        ("search_path", "use --database-schema"),
        ("service", "service files are not read: write host, port, user and database into the URL"),
        ("servicefile", "service files are not read: write host, port, user and database into the URL"),
        ("passfile", "set the variable PGPASSFILE"),
        ("pgbouncer", "connect to the database itself, or to a pooler in session mode"),
        ("require_auth", "remove it, and write sslmode=verify-full to verify the server"),
        ("requirepeer", "remove it"),
        ("krbsrvname", "Kerberos is not supported"),
        ("sslcrl", "certificate revocation lists are not supported"),
        ("sslpassword", "use a key file without a password"),
        ("requiressl", "write sslmode=require"),
    ];
    const KNOWN: [&str; 14] = [
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "host",
        "hostaddr",
        "port",
        "dbname",
        "user",
        "password",
        "options",
        "application_name",
        "connect_timeout",
        "target_session_attrs",
    ];
    let lower = name.to_ascii_lowercase();
    if let Some((_, instead)) = INSTEAD.iter().find(|(known, _)| *known == lower) {
        return format!("the parameter {name} is not supported: {instead}");
    }
    let close = lower.replace(['-', '_'], "");
    match KNOWN.iter().find(|known| known.replace('_', "") == close) {
        Some(known) => format!("the parameter {name} is not supported: write {known}"),
        None => format!("the parameter {name} is not supported: remove it"),
    }
}

fn port_of(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| "invalid port: expected 1 to 65535".to_owned())
}

/// Parses `-c name=value -cname=value --name=value`. A backslash escapes the next character.
fn settings(text: &str) -> Result<Settings, String> {
    let invalid = || "invalid options: expected -c NAME=VALUE".to_owned();
    let mut words = vec![String::new()];
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => words.last_mut().ok_or_else(invalid)?.extend(characters.next()),
            c if c.is_whitespace() => words.push(String::new()),
            c => words.last_mut().ok_or_else(invalid)?.push(c),
        }
    }
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut found = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word.as_str() {
            "-c" => words.next().ok_or_else(invalid)?,
            word => word.strip_prefix("--").or(word.strip_prefix("-c")).ok_or_else(invalid)?.to_owned(),
        };
        let (name, value) = setting.split_once('=').ok_or_else(invalid)?;
        let known = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if name.is_empty() || !known {
            return Err(invalid());
        }
        found.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(found)
}

/// Separates `search_path`, which must name one schema, from the other settings.
fn schema_of(settings: Settings) -> Result<(Option<String>, Settings), String> {
    let (paths, rest): (Vec<_>, Vec<_>) =
        settings.into_iter().partition(|(name, _)| name.eq_ignore_ascii_case("search_path"));
    let Some((_, path)) = paths.last() else { return Ok((None, rest)) };
    let name = path.trim().trim_matches('"');
    if path.contains(',') || name.contains('$') || !is_schema(name) {
        return Err(
            "options sets search_path to more than one schema: name the schema of tenants and api_keys \
                    with --database-schema"
                .into(),
        );
    }
    Ok((Some(name.to_owned()), rest))
}

/// Whether this is a valid name for the schema of the tables.
pub(super) fn is_schema(name: &str) -> bool {
    let fine = |c: char| !c.is_control() && !"\"'\\,".contains(c);
    (1..=63).contains(&name.len()) && name.chars().all(fine) && !name.starts_with("pg_")
}

fn decoded(what: &str, text: &str) -> Result<String, String> {
    let invalid = || format!("{what} is not valid: write % as %25");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(invalid()) };
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| invalid())?);
    }
    String::from_utf8(bytes).map_err(|_| invalid())
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests;

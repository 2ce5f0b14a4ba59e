//! The parts of a URL, and their meaning for the driver.

use std::fmt::Write as _;
use std::str::FromStr as _;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

use super::encoding::{decoded, encoded};
use super::settings::{schema_of, settings};
use super::{DatabaseUrl, SessionSettings, invalid_form};
use crate::store::AddressError;

/// The parts of a URL, decoded.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) database: Option<String>,
    pub(super) sslmode: Option<String>,
    pub(super) sslrootcert: Option<String>,
    pub(super) sslcert: Option<String>,
    pub(super) sslkey: Option<String>,
    pub(super) application_name: Option<String>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) options: SessionSettings,
}

impl Parts {
    pub(super) fn authority(&mut self, authority: &str) -> Result<(), AddressError> {
        let (user, host) = authority.rsplit_once('@').map_or(("", authority), |parts| parts);
        let (user, password) = user.split_once(':').map_or((user, None), |(user, pw)| (user, Some(pw)));
        if !user.is_empty() {
            self.user = Some(decoded("the user", user)?);
        }
        if let Some(password) = password.filter(|password| !password.is_empty()) {
            self.password = Some(decoded("the password", password)?);
        }
        if host.contains(',') {
            return Err(AddressError::rejected(
                "several hosts are not supported: name only the primary, or a name that resolves to it",
            ));
        }
        let (host, port) = match host.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest
                    .split_once(']')
                    .ok_or(AddressError::rejected("the IPv6 address has no closing bracket"))?;
                if host.parse::<std::net::Ipv6Addr>().is_err() {
                    return Err(AddressError::invalid(
                        "host",
                        "expected an IPv6 address between the brackets",
                    ));
                }
                (host, after.strip_prefix(':').or((!after.is_empty()).then_some("?")))
            }
            None if host.matches(':').count() > 1 => {
                return Err(AddressError::rejected("an IPv6 address needs brackets: write [::1]:5432"));
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

    pub(super) fn parameter(&mut self, name: &str, value: String) -> Result<(), AddressError> {
        // As in libpq, an empty value is none.
        if value.is_empty() && ["host", "hostaddr", "port", "dbname", "user", "password"].contains(&name) {
            return Ok(());
        }
        match name {
            "sslmode" | "ssl-mode" | "ssl" => self.sslmode = Some(sslmode(name, value)?),
            "sslrootcert" | "ssl-root-cert" | "ssl-ca" => self.sslrootcert = Some(value),
            "sslcert" | "ssl-cert" => self.sslcert = Some(value),
            "sslkey" | "ssl-key" => self.sslkey = Some(value),
            "host" if value.contains(',') => {
                return Err(AddressError::rejected("several hosts are not supported: name only the primary"));
            }
            "host" | "hostaddr" => {
                self.host = Some(value.trim_start_matches('[').trim_end_matches(']').to_owned());
            }
            "port" if value.contains(',') => {
                return Err(AddressError::rejected(
                    "several hosts are not supported: name the port of the primary",
                ));
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
                    value.parse().map_err(|_| AddressError::invalid(name, "expected seconds"))?;
                self.connect_timeout = (seconds > 0).then(|| Duration::from_secs(seconds.max(2)));
            }
            "options" => self.options.extend(settings(&value)?),
            _ if name.starts_with("options[") && name.ends_with(']') => {
                self.options.push((name["options[".len()..name.len() - 1].to_owned(), value));
            }
            _ => return fixed(name, &value),
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<DatabaseUrl, AddressError> {
        let root = self.sslrootcert.take().filter(|root| !root.is_empty());
        // As in libpq: the system's authorities issue certificates for every host, so the host name must be checked.
        let system = root.as_deref() == Some("system");
        let mode = match self.sslmode.take() {
            Some(mode) if system && mode != "verify-full" => {
                return Err(AddressError::rejected("sslrootcert=system needs sslmode=verify-full"));
            }
            None if system => Some("verify-full".to_owned()),
            // As in libpq: with a root certificate, `require` verifies the chain.
            Some(mode) if mode == "require" && root.is_some() => Some("verify-ca".to_owned()),
            other => other,
        };
        let root = root.filter(|_| !system);
        let (schema, settings) = schema_of(std::mem::take(&mut self.options))?;
        let canonical = self.canonical(mode.as_deref(), root.as_deref());
        let options = PgConnectOptions::from_str(&canonical).map_err(|_| invalid_form())?;
        let name =
            self.application_name.as_deref().or(options.get_application_name()).unwrap_or("tenantgate");
        let name = name.to_owned();
        // Poolers reject unknown startup parameters, so settings are set after connecting.
        let options = options.application_name(&name).extra_float_digits(None);
        let named = [("sslrootcert", root), ("sslcert", self.sslcert), ("sslkey", self.sslkey)];
        let files = named.into_iter().filter_map(|(name, file)| Some((name, file?))).collect();
        Ok(DatabaseUrl { options, schema, settings, connect_timeout: self.connect_timeout, files })
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

/// Returns the value of `sslmode`, under one of its names.
fn sslmode(name: &str, value: String) -> Result<String, AddressError> {
    const MODES: [&str; 5] = ["disable", "prefer", "require", "verify-ca", "verify-full"];
    if MODES.contains(&value.as_str()) {
        return Ok(value);
    }
    Err(match value.as_str() {
        // libpq tries without encryption first, and then with it; the driver would never encrypt.
        "allow" => AddressError::rejected(format!("{name}=allow is not supported: write {name}=prefer")),
        "true" | "1" | "on" | "false" | "0" | "off" if name == "ssl" => AddressError::rejected(
            "ssl=true and ssl=false are not supported: write sslmode=verify-full, sslmode=require or sslmode=disable",
        ),
        _ => AddressError::invalid(name, format!("expected one of {}", MODES.join(", "))),
    })
}

/// Checks a parameter that the driver does not have: it may only ask for what the driver does anyway.
fn fixed(name: &str, value: &str) -> Result<(), AddressError> {
    let is_done = match name {
        "client_encoding" => ["utf8", "utf-8"].contains(&value.to_ascii_lowercase().as_str()),
        // rustls speaks nothing older than 1.2.
        "ssl_min_protocol_version" => ["TLSv1", "TLSv1.1", "TLSv1.2"].contains(&value),
        "ssl_max_protocol_version" => value == "TLSv1.3",
        "sslcertmode" => value == "allow",
        "sslcompression" => value == "0",
        "load_balance_hosts" => value == "disable",
        "min_protocol_version" => value == "3.0",
        // Sessions check for the primary in any case.
        "target_session_attrs" => ["any", "read-write", "primary"].contains(&value),
        "channel_binding" | "gssencmode" => ["prefer", "disable"].contains(&value),
        "sslnegotiation" => value == "postgres",
        _ => false,
    };
    if is_done {
        return Ok(());
    }
    Err(match name {
        "client_encoding" => AddressError::invalid(name, "tenantgate always uses UTF8, remove it"),
        "ssl_min_protocol_version" | "ssl_max_protocol_version" => {
            AddressError::rejected(format!("{name} is not supported: remove it, TLS 1.2 and 1.3 are used"))
        }
        "target_session_attrs" => {
            AddressError::invalid(name, "tenantgate needs the primary, write target_session_attrs=read-write")
        }
        "channel_binding" => AddressError::rejected(
            "channel_binding=require is not supported: remove it, and write sslmode=verify-full to verify the server",
        ),
        "gssencmode" => {
            AddressError::rejected("gssencmode=require is not supported: remove it, and use sslmode")
        }
        "sslnegotiation" => AddressError::rejected("sslnegotiation=direct is not supported: remove it"),
        _ => unknown(name),
    })
}

/// Parameters of other clients, and what to write instead.
const INSTEAD: [(&str, &str); 19] = [
    ("pghostaddr", "write the host into the URL, and unset it"),
    ("sslcertmode", "remove it"),
    ("sslcrldir", "certificate revocation lists are not supported"),
    ("sslcompression", "remove it"),
    ("load_balance_hosts", "remove it, and name only the primary"),
    ("min_protocol_version", "remove it"),
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

/// Supported parameters.
const KNOWN: [&str; 21] = [
    "channel_binding",
    "client_encoding",
    "fallback_application_name",
    "gssencmode",
    "ssl",
    "sslnegotiation",
    "ssl_min_protocol_version",
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

/// Returns the supported parameter whose name is spelled similarly.
fn spelled_like(name: &str) -> Option<&'static str> {
    let close = name.to_ascii_lowercase().replace(['-', '_'], "");
    KNOWN.into_iter().find(|known| known.replace('_', "") == close)
}

/// Returns whether a parameter is one of a client. Another text may be a part of a password.
pub(super) fn is_familiar(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    spelled_like(name).is_some()
        || INSTEAD.iter().any(|(known, _)| *known == lower)
        || lower.starts_with("options[")
        || ["ssl_max_protocol_version", "ssl-root-cert", "ssl-ca"].contains(&lower.as_str())
}

/// The error for an unsupported parameter, with what to write instead.
fn unknown(name: &str) -> AddressError {
    let lower = name.to_ascii_lowercase();
    if let Some((_, instead)) = INSTEAD.iter().find(|(known, _)| *known == lower) {
        return AddressError::rejected(format!("the parameter {name} is not supported: {instead}"));
    }
    AddressError::rejected(match spelled_like(name) {
        Some(known) => format!("the parameter {name} is not supported: write {known}"),
        None => format!("the parameter {name} is not supported: remove it"),
    })
}

fn port_of(text: &str) -> Result<u16, AddressError> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| AddressError::invalid("port", "expected 1 to 65535"))
}

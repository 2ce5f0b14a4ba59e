//! Values and groups of arguments that several commands have.

use std::net::IpAddr;
use std::time::Duration;

use clap::ValueEnum;

use crate::audit::Actor;
use crate::client_address::parse_address;
use crate::clock::Timestamp;
use crate::duration;
use crate::invalid::InvalidValue;

#[derive(Clone, Copy, Eq, PartialEq, ValueEnum)]
pub(super) enum Output {
    /// For human readers
    Text,
    /// For programs: one object or array
    Json,
    /// For spreadsheets; reports only
    Csv,
}

/// An instant, or a duration before now.
#[derive(Clone, Copy)]
pub(super) enum When {
    At(Timestamp),
    Ago(Duration),
}

impl When {
    pub(super) fn instant(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Ago(span) => now.before(span),
        }
    }
}

#[derive(clap::Args)]
pub(super) struct KeyRef {
    /// The id or prefix (llmk_…) of the key
    #[arg(value_name = "REF")]
    pub(super) reference: String,
}

#[derive(clap::Args)]
pub(super) struct WaitArgs {
    /// Return when every server has applied the change; after this time, name the servers that have not [default: 10s]
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true,
          default_missing_value = "10s", value_parser = long_duration)]
    pub(super) wait: Option<Duration>,
}

pub(super) fn actor(text: &str) -> Result<Actor, InvalidValue> {
    Actor::new(text)
}

pub(super) fn when(text: &str) -> Result<When, InvalidValue> {
    let instant = rfc_3339(text).map(When::At);
    instant.or_else(|_| long_duration(text).map(When::Ago)).map_err(|_| {
        "expected an RFC 3339 instant, such as 2027-01-31T00:00:00Z, or a duration, such as 7d".into()
    })
}

pub(super) fn row_hash(text: &str) -> Result<String, InvalidValue> {
    let hash = text.to_ascii_lowercase();
    let fine = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    fine.then_some(hash).ok_or_else(|| "expected the hash of a row: 64 hexadecimal digits".into())
}

pub(super) fn long_duration(text: &str) -> Result<Duration, InvalidValue> {
    let invalid = || {
        format!("invalid duration {text:?}: expected a whole number and a unit (s, m, h, d, w), such as 90d")
            .into()
    };
    duration::parse(text).ok().filter(|_| !text.ends_with("ms")).ok_or_else(invalid)
}

pub(super) fn name_and_value(text: &str) -> Result<(String, String), InvalidValue> {
    let (name, value) = text.split_once('=').unwrap_or_default();
    let fine = !name.is_empty() && !value.is_empty();
    fine.then(|| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| "expected NAME=VALUE, such as is_active=false".into())
}

pub(super) fn role_prefix(text: &str) -> Result<String, InvalidValue> {
    let tail = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let head = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    let fine = head && text.bytes().all(tail) && text.len() <= 50 && !text.starts_with("pg_");
    let invalid = || {
        format!("invalid prefix {text:?} for the names of roles: use a-z, 0-9 and _, such as tenantgate")
            .into()
    };
    fine.then(|| text.to_owned()).ok_or_else(invalid)
}

pub(super) fn pair(text: &str) -> Result<(String, String), InvalidValue> {
    let (name, value) =
        text.split_once('=').ok_or("expected NAME=VALUE, such as tenantgate.mode=optional")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(super) fn client_ip(text: &str) -> Result<IpAddr, InvalidValue> {
    parse_address(text.as_bytes())
        .ok_or_else(|| format!("invalid address {text:?}: expected IPv4 or IPv6").into())
}

pub(super) fn rfc_3339(text: &str) -> Result<Timestamp, InvalidValue> {
    // Also as Postgres writes it: `2027-01-31 00:00:00+00`.
    Timestamp::parse_zoned(text)
        .ok_or_else(|| "expected an RFC 3339 instant, such as 2027-01-31T00:00:00Z".into())
}

//! Bad HTTP requests as data: rows 1 to 41.

mod places;
mod spellings;

use std::fmt;

use crate::support::ask::KEY_HEADER;
use crate::support::world::{quick_hash, string};
use crate::support::{Ask, World};

/// A row of the catalogue.
pub(crate) struct Row {
    pub(crate) number: u8,
    pub(crate) what: &'static str,
    pub(crate) requests: Vec<Request>,
}

/// An HTTP request and its row.
pub(crate) struct Request {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) headers: Vec<(&'static str, Vec<u8>)>,
    /// The row of the contract for exactly this request.
    pub(crate) wanted: &'static str,
    pub(crate) http: Http,
}

/// The effect of Envoy on a request.
#[derive(Clone, Copy)]
pub(crate) enum Http {
    /// It arrives unchanged.
    Same,
    /// Envoy normalizes it (blanks around a value are not part of it, RFC 9110 §5.5), and it gets this row.
    Becomes(&'static str),
    /// Envoy rejects it.
    Refused(u16),
    /// It cannot be sent as HTTP, because line ends are not part of a value.
    Unsayable,
}

const MISSING: &str = "401 missing";
const MALFORMED: &str = "401 malformed";
const UNKNOWN: &str = "401 unknown";
const MISMATCH: &str = "401 mismatch";
const OK: &str = "200 ok";

impl Request {
    fn of(wanted: &'static str, headers: Vec<(&'static str, Vec<u8>)>) -> Self {
        Self { method: "GET", path: "/v1/items".to_owned(), headers, wanted, http: Http::Same }
    }

    /// Sets the request line.
    fn at(self, method: &'static str, path: &str) -> Self {
        Self { method, path: path.to_owned(), ..self }
    }

    fn http(self, http: Http) -> Self {
        Self { http, ..self }
    }

    /// Sets another row for the way through Envoy.
    fn becomes(self, row: &'static str) -> Self {
        self.http(Http::Becomes(row))
    }

    /// Envoy rejects it.
    fn refused(self, status: u16) -> Self {
        self.http(Http::Refused(status))
    }

    /// As Envoy fills `headers`: lines of one name joined by a comma, bytes outside of ASCII as `!`.
    pub(crate) fn joined(&self) -> Ask {
        let names: std::collections::BTreeSet<_> = self.headers.iter().map(|header| header.0).collect();
        names.into_iter().fold(Ask::new(self.method, &self.path), |ask, name| {
            let values = self.headers.iter().filter(|header| header.0 == name).map(|header| &header.1);
            let joined = values.cloned().collect::<Vec<_>>().join(&b","[..]);
            let text = joined.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { '!' });
            ask.header(name, &text.collect::<String>())
        })
    }

    /// As Envoy fills `header_map` under `encode_raw_headers`: line by line, byte by byte.
    pub(crate) fn raw(&self) -> Ask {
        let ask = Ask::new(self.method, &self.path).only_raw();
        self.headers.iter().fold(ask, |ask, (name, value)| ask.raw(name, value))
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)?;
        self.headers.iter().try_for_each(|(name, value)| {
            let shown = value[..value.len().min(120)].escape_ascii();
            write!(f, " | {name}: {shown} ({} bytes)", value.len())
        })
    }
}

fn key(wanted: &'static str, value: impl AsRef<[u8]>) -> Request {
    Request::of(wanted, vec![(KEY_HEADER, value.as_ref().to_vec())])
}

fn keys(wanted: &'static str, values: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Vec<Request> {
    values.into_iter().map(|value| key(wanted, value)).collect()
}

fn authorization(wanted: &'static str, values: &[&str]) -> Request {
    Request::of(wanted, values.iter().map(|value| ("authorization", value.as_bytes().to_vec())).collect())
}

/// A key of 71 bytes, the maximum, which replaces `other` of the world.
pub(crate) fn longest() -> String {
    format!("llmk_longest1_{}", &"Secret-71".repeat(7)[..57])
}

/// Prepares the world for the catalogue. Returns a key whose row was deleted.
pub(crate) fn furnish(world: &World) -> String {
    let rewrite = |prefix: &str, text: &str| {
        let new = text.rsplit_once('_').expect("a prefix").0;
        let hash = quick_hash(text);
        world.db.sql(&format!(
            "UPDATE api_keys SET key_prefix = '{new}', hashed_key = '{hash}' WHERE key_prefix = '{prefix}'"
        ));
    };
    rewrite(&world.other.prefix, &longest());
    rewrite(&world.issued.prefix, &world.issued.text);
    let gone = world.db.json(&["key", "create", &world.acme.id]);
    world.db.sql(&format!("DELETE FROM api_keys WHERE id = '{}'", string(&gone, "id")));
    string(&gone, "key")
}

/// The rows that are HTTP requests.
pub(crate) fn requests(world: &World) -> Vec<Row> {
    let rows = [
        places::places(world),
        spellings::spellings(world),
        spellings::bytes(world),
        spellings::values(world),
        places::states(world),
        places::surroundings(world),
    ];
    rows.into_iter().flatten().map(|(number, what, requests)| Row { number, what, requests }).collect()
}

type Rows = Vec<(u8, &'static str, Vec<Request>)>;

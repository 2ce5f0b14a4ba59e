//! The records, and their encoding in bytes.

use crate::layout::MOST_BYTES;

/// A proven key, with everything that an answer to its holder contains.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Proven {
    /// `llmk_<prefix>`.
    pub prefix: String,
    /// The [digest](crate::MemoryKey::digest) of the whole key.
    pub digest: [u8; 32],
    /// `api_keys.id`.
    pub key_id: [u8; 16],
    /// `tenants.id`.
    pub tenant_id: [u8; 16],
    /// `tenants.status`.
    pub tenant_status: String,
    /// In microseconds since 1970; `i64::MAX` for never.
    pub expires_at: i64,
    /// In microseconds since 1970; `i64::MIN` for no limit.
    pub not_before: i64,
    /// Whether the key is revoked.
    pub revoked: bool,
    /// Whether the key is disabled.
    pub disabled: bool,
    /// The headers to set on a request that passes.
    pub set: Vec<(String, String)>,
    /// The headers to remove from a request that passes.
    pub remove: Vec<String>,
    /// The metadata of an allowed or rejected request, without the decision, its reason and its id.
    pub metadata: Vec<(String, String)>,
}

/// The response to a rejected client.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Answer {
    /// The reason, as in metadata and metrics.
    pub reason: String,
    /// The HTTP status.
    pub status: u16,
    /// The headers. An empty value stands for the id of the decision.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

/// The options of the server: how requests are read and rejected.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Settings {
    /// The header that carries the key.
    pub key_header: String,
    /// Whether `authorization` may carry the key, too.
    pub accept_bearer: bool,
    /// Whether a CORS preflight needs no key.
    pub preflight: bool,
    /// The public requests, as `METHOD /path`.
    pub public: Vec<String>,
    /// The responses to rejected clients, by reason.
    pub answers: Vec<Answer>,
}

impl Proven {
    /// Returns the bytes of the record.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        to.text(&self.prefix);
        to.0.extend_from_slice(&self.digest);
        to.0.extend_from_slice(&self.key_id);
        to.0.extend_from_slice(&self.tenant_id);
        to.text(&self.tenant_status);
        to.0.extend_from_slice(&self.expires_at.to_le_bytes());
        to.0.extend_from_slice(&self.not_before.to_le_bytes());
        to.0.push(u8::from(self.revoked) | u8::from(self.disabled) << 1);
        to.pairs(&self.set);
        to.texts(&self.remove);
        to.pairs(&self.metadata);
        to.0
    }

    /// Returns whether the record is short enough to be published.
    #[must_use]
    pub fn fits(&self) -> bool {
        let bytes = self.encode();
        bytes.len() <= MOST_BYTES && Self::decode(&bytes).as_ref() == Some(self)
    }

    /// Parses a record; `None` if it is invalid.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Decoder(bytes);
        let mut proven = Self {
            prefix: from.text()?,
            digest: from.array()?,
            key_id: from.array()?,
            tenant_id: from.array()?,
            tenant_status: from.text()?,
            expires_at: i64::from_le_bytes(from.array()?),
            not_before: i64::from_le_bytes(from.array()?),
            ..Self::default()
        };
        let [flags] = from.array()?;
        (proven.revoked, proven.disabled) = (flags & 1 == 1, flags & 2 == 2);
        (proven.set, proven.remove, proven.metadata) = (from.pairs()?, from.texts()?, from.pairs()?);
        (flags <= 3 && from.0.is_empty()).then_some(proven)
    }
}

impl Settings {
    /// Returns the bytes of the record.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        to.text(&self.key_header);
        to.0.push(u8::from(self.accept_bearer) | u8::from(self.preflight) << 1);
        to.texts(&self.public);
        to.len(self.answers.len());
        for answer in &self.answers {
            to.text(&answer.reason);
            to.0.extend_from_slice(&answer.status.to_le_bytes());
            to.pairs(&answer.headers);
            to.text(&answer.body);
        }
        to.0
    }

    /// Parses a record; `None` if it is invalid.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Decoder(bytes);
        let key_header = from.text()?;
        let [flags] = from.array()?;
        let public = from.texts()?;
        let answers = from.list(|from| {
            let (reason, status) = (from.text()?, u16::from_le_bytes(from.array()?));
            Some(Answer { reason, status, headers: from.pairs()?, body: from.text()? })
        })?;
        let (accept_bearer, preflight) = (flags & 1 == 1, flags & 2 == 2);
        let settings = Self { key_header, accept_bearer, preflight, public, answers };
        (flags <= 3 && from.0.is_empty()).then_some(settings)
    }
}

/// Lengths have two bytes. A longer text makes the record invalid, so that no reader decides by it.
#[derive(Default)]
pub(crate) struct Encoder(pub(crate) Vec<u8>);

impl Encoder {
    fn len(&mut self, len: usize) {
        self.0.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes());
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.len(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn texts(&mut self, texts: &[String]) {
        self.len(texts.len());
        for text in texts {
            self.text(text);
        }
    }

    fn pairs(&mut self, pairs: &[(String, String)]) {
        self.len(pairs.len());
        for (name, value) in pairs {
            self.text(name);
            self.text(value);
        }
    }
}

pub(crate) struct Decoder<'b>(pub(crate) &'b [u8]);

impl Decoder<'_> {
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn len(&mut self) -> Option<usize> {
        Some(usize::from(u16::from_le_bytes(self.array()?)))
    }

    pub(crate) fn text(&mut self) -> Option<String> {
        let len = self.len()?;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        std::str::from_utf8(text).ok().map(str::to_owned)
    }

    fn list<T>(&mut self, one: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        // Collecting stops at the first missing value, so a forged length alone reserves no memory.
        (0..self.len()?).map(|_| one(self)).collect()
    }

    fn texts(&mut self) -> Option<Vec<String>> {
        self.list(Self::text)
    }

    fn pairs(&mut self) -> Option<Vec<(String, String)>> {
        self.list(|from| Some((from.text()?, from.text()?)))
    }
}

//! The records, and their encoding in bytes.

use crate::layout::MOST_BYTES;

/// A proven key, with everything that an answer to its holder contains. What a reader finds borrows its texts from the
/// copied record, because each text would otherwise be an allocation in every request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Proven<T = String> {
    /// `llmk_<prefix>`.
    pub prefix: T,
    /// The [digest](crate::MemoryKey::digest) of the whole key.
    pub digest: [u8; 32],
    /// `api_keys.id`.
    pub key_id: [u8; 16],
    /// `tenants.id`.
    pub tenant_id: [u8; 16],
    /// `tenants.status`.
    pub tenant_status: T,
    /// In microseconds since 1970; `i64::MAX` for never.
    pub expires_at: i64,
    /// In microseconds since 1970; `i64::MIN` for no limit.
    pub not_before: i64,
    /// Whether the key is revoked.
    pub revoked: bool,
    /// Whether the key is disabled.
    pub disabled: bool,
    /// The headers to set on a request that passes.
    pub set: Vec<(T, T)>,
    /// The headers to remove from a request that passes.
    pub remove: Vec<T>,
    /// The metadata of an allowed or rejected request, without the decision, its reason and its id.
    pub metadata: Vec<(T, T)>,
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

impl<T: AsRef<str>> Proven<T> {
    /// Returns the bytes of the record.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        to.text(self.prefix.as_ref());
        to.0.extend_from_slice(&self.digest);
        to.0.extend_from_slice(&self.key_id);
        to.0.extend_from_slice(&self.tenant_id);
        to.text(self.tenant_status.as_ref());
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
        bytes.len() <= MOST_BYTES && Proven::decode(&bytes).is_some_and(|decoded| decoded == self.borrowed())
    }

    /// Returns this key with borrowed texts, as a reader finds it.
    #[must_use]
    pub fn borrowed(&self) -> Proven<&str> {
        fn pairs<T: AsRef<str>>(pairs: &[(T, T)]) -> Vec<(&str, &str)> {
            pairs.iter().map(|(name, value)| (name.as_ref(), value.as_ref())).collect()
        }
        Proven {
            prefix: self.prefix.as_ref(),
            tenant_status: self.tenant_status.as_ref(),
            set: pairs(&self.set),
            remove: self.remove.iter().map(T::as_ref).collect(),
            metadata: pairs(&self.metadata),
            digest: self.digest,
            key_id: self.key_id,
            tenant_id: self.tenant_id,
            expires_at: self.expires_at,
            not_before: self.not_before,
            revoked: self.revoked,
            disabled: self.disabled,
        }
    }
}

impl<'b> Proven<&'b str> {
    /// Parses a record; `None` if it is invalid.
    #[must_use]
    pub fn decode(bytes: &'b [u8]) -> Option<Self> {
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

    /// Returns whether these bytes are a record about this prefix, without parsing the rest.
    pub(crate) fn is_about(bytes: &[u8], prefix: &[u8]) -> bool {
        Decoder(bytes).text().is_some_and(|text| text.as_bytes() == prefix)
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
        let key_header = from.text()?.to_owned();
        let [flags] = from.array()?;
        let public = from.texts()?;
        let answers = from.list(|from| {
            let (reason, status) = (from.text()?, u16::from_le_bytes(from.array()?));
            Some(Answer {
                reason: reason.to_owned(),
                status,
                headers: from.pairs()?,
                body: from.text()?.to_owned(),
            })
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

    fn texts<T: AsRef<str>>(&mut self, texts: &[T]) {
        self.len(texts.len());
        for text in texts {
            self.text(text.as_ref());
        }
    }

    fn pairs<T: AsRef<str>>(&mut self, pairs: &[(T, T)]) {
        self.len(pairs.len());
        for (name, value) in pairs {
            self.text(name.as_ref());
            self.text(value.as_ref());
        }
    }
}

pub(crate) struct Decoder<'b>(pub(crate) &'b [u8]);

impl<'b> Decoder<'b> {
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn len(&mut self) -> Option<usize> {
        Some(usize::from(u16::from_le_bytes(self.array()?)))
    }

    pub(crate) fn text(&mut self) -> Option<&'b str> {
        let len = self.len()?;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }

    fn list<T>(&mut self, one: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        // Collecting stops at the first missing value, so a forged length alone reserves no memory.
        (0..self.len()?).map(|_| one(self)).collect()
    }

    fn texts<T: From<&'b str>>(&mut self) -> Option<Vec<T>> {
        self.list(|from| Some(from.text()?.into()))
    }

    fn pairs<T: From<&'b str>>(&mut self) -> Option<Vec<(T, T)>> {
        self.list(|from| Some((from.text()?.into(), from.text()?.into())))
    }
}

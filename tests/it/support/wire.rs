//! Messages that no generated encoder writes.
//!
//! The field numbers are those of Envoy's messages, but every string is bytes and every map is a list, so that a test
//! can repeat a header or send an SNI that is not UTF-8.

use prost::Message;

#[derive(Clone, Message)]
pub(crate) struct Check {
    #[prost(message, optional, tag = "1")]
    pub(crate) attributes: Option<Attributes>,
}

#[derive(Clone, Message)]
pub(crate) struct Attributes {
    #[prost(message, optional, tag = "4")]
    pub(crate) request: Option<Request>,
    #[prost(message, optional, tag = "12")]
    pub(crate) tls_session: Option<TlsSession>,
    #[prost(message, repeated, tag = "10")]
    pub(crate) context_extensions: Vec<Entry>,
    /// A field number that Envoy does not use.
    #[prost(bytes, tag = "1000")]
    pub(crate) unheard_of: Vec<u8>,
}

#[derive(Clone, Message)]
pub(crate) struct Request {
    #[prost(message, optional, tag = "2")]
    pub(crate) http: Option<Http>,
}

#[derive(Clone, Message)]
pub(crate) struct Http {
    #[prost(bytes, tag = "1")]
    pub(crate) id: Vec<u8>,
    #[prost(bytes, tag = "2")]
    pub(crate) method: Vec<u8>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) headers: Vec<Entry>,
    #[prost(bytes, tag = "4")]
    pub(crate) path: Vec<u8>,
    #[prost(bytes, tag = "5")]
    pub(crate) host: Vec<u8>,
}

#[derive(Clone, Message)]
pub(crate) struct Entry {
    #[prost(bytes, tag = "1")]
    pub(crate) key: Vec<u8>,
    #[prost(bytes, tag = "2")]
    pub(crate) value: Vec<u8>,
}

#[derive(Clone, Message)]
pub(crate) struct TlsSession {
    #[prost(bytes, tag = "1")]
    pub(crate) sni: Vec<u8>,
}

/// A `GET /v1/items` with exactly these headers.
#[derive(Clone)]
pub(crate) struct Headers(pub(crate) Attributes);

impl Headers {
    /// These entries, in this order, duplicates included.
    pub(crate) fn of(entries: &[(&str, &[u8])]) -> Self {
        let entry =
            |(name, value): &(&str, &[u8])| Entry { key: name.as_bytes().to_vec(), value: value.to_vec() };
        let http = Http {
            method: b"GET".to_vec(),
            path: b"/v1/items".to_vec(),
            headers: entries.iter().map(entry).collect(),
            ..Http::default()
        };
        Self(Attributes { request: Some(Request { http: Some(http) }), ..Attributes::default() })
    }

    /// Encodes only the headers, as a part of a message.
    pub(crate) fn without_request_line(mut self) -> Self {
        let http = self.0.request.as_mut().and_then(|request| request.http.as_mut()).expect("made by `of`");
        http.method.clear();
        http.path.clear();
        self
    }

    /// Sets the server name of the TLS handshake.
    pub(crate) fn with_sni(mut self, sni: &[u8]) -> Self {
        self.0.tls_session = Some(TlsSession { sni: sni.to_vec() });
        self
    }

    /// Encodes the `CheckRequest`.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        Check { attributes: Some(self.0.clone()) }.encode_to_vec()
    }
}

/// Joins parts of a message, as protobuf allows: repeated messages are merged, and the last scalar counts.
pub(crate) fn in_pieces(pieces: &[Vec<u8>]) -> Vec<u8> {
    pieces.concat()
}

//! Builds a `CheckRequest` in the same way as Envoy.

use std::collections::HashMap;

use prost::Message as _;
use tenantgate::ext_authz::proto::envoy::config::core::v3::address::Address as Kind;
use tenantgate::ext_authz::proto::envoy::config::core::v3::{Address, HeaderMap, HeaderValue, SocketAddress};
use tenantgate::ext_authz::proto::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use tenantgate::ext_authz::proto::envoy::service::auth::v3::{AttributeContext, CheckRequest};

/// The default header for keys.
pub(crate) const KEY_HEADER: &str = "x-llmcore-api-key";

/// One HTTP request as Envoy describes it.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    method: String,
    path: String,
    host: String,
    headers: HashMap<String, String>,
    raw: Vec<(String, Vec<u8>)>,
    source: Option<String>,
}

impl Ask {
    /// A request with only the headers that Envoy always sends.
    pub(crate) fn new(method: &str, path: &str) -> Self {
        let told =
            [(":method", method), (":path", path), (":authority", "api.example.com"), (":scheme", "http")];
        let headers = told.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            host: "api.example.com".to_owned(),
            headers,
            raw: Vec::new(),
            source: None,
        }
    }

    /// `GET path`.
    pub(crate) fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// `GET /v1/items` with this key, as in most tests.
    pub(crate) fn with_key(key: &str) -> Self {
        Self::get("/v1/items").key(key)
    }

    /// Adds the key header.
    pub(crate) fn key(self, key: &str) -> Self {
        self.header(KEY_HEADER, key)
    }

    /// Adds an `authorization` header.
    pub(crate) fn authorization(self, value: &str) -> Self {
        self.header("authorization", value)
    }

    /// Adds an entry to `headers`.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Adds an entry to `header_map`, as Envoy does under `encode_raw_headers`.
    pub(crate) fn raw(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.raw.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// Sends it to this host.
    pub(crate) fn at(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self.header(":authority", host)
    }

    /// Sets the address of the client.
    pub(crate) fn from(mut self, address: &str) -> Self {
        self.source = Some(address.to_owned());
        self
    }

    /// Leaves `headers` empty, as Envoy does under `encode_raw_headers`.
    pub(crate) fn only_raw(mut self) -> Self {
        let told = self.headers.drain().map(|(name, value)| (name, value.into_bytes()));
        self.raw.splice(0..0, told);
        self
    }

    /// The message.
    pub(crate) fn request(&self) -> CheckRequest {
        let raw = |(key, value): &(String, Vec<u8>)| HeaderValue {
            key: key.clone(),
            raw_value: value.clone(),
            ..HeaderValue::default()
        };
        let header_map =
            (!self.raw.is_empty()).then(|| HeaderMap { headers: self.raw.iter().map(raw).collect() });
        let http = HttpRequest {
            id: "2238673397179402538".to_owned(),
            method: self.method.clone(),
            headers: self.headers.clone(),
            path: self.path.clone(),
            host: self.host.clone(),
            scheme: "http".to_owned(),
            protocol: "HTTP/1.1".to_owned(),
            header_map,
            ..HttpRequest::default()
        };
        let request = Request { http: Some(http), ..Request::default() };
        let source = self.source.as_deref().map(peer);
        let attributes = AttributeContext { request: Some(request), source, ..AttributeContext::default() };
        CheckRequest { attributes: Some(attributes) }
    }

    /// The encoded message.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.request().encode_to_vec()
    }
}

fn peer(address: &str) -> Peer {
    let socket = SocketAddress { address: address.to_owned(), ..SocketAddress::default() };
    Peer { address: Some(Address { address: Some(Kind::SocketAddress(socket)) }), ..Peer::default() }
}

impl From<Ask> for CheckRequest {
    fn from(ask: Ask) -> Self {
        ask.request()
    }
}

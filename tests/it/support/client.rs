//! A gRPC client that behaves like Envoy, and can also send what Envoy never would.

use std::time::Duration;

use bytes::{Buf, BufMut};
use prost::Message as _;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::{PATIENCE, VerifiedResponse, wait};

/// The service that Envoy calls.
pub(crate) const SERVICE: &str = "envoy.service.auth.v3.Authorization";

/// A connection to one listener.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
}

impl Client {
    /// Connects to `host:port` or `unix:/path`.
    pub(crate) fn to(address: &str) -> Self {
        let uri = if address.starts_with("unix:") { address.to_owned() } else { format!("http://{address}") };
        Self::of(Endpoint::from_shared(uri).expect("an address"))
    }

    /// Connects to `https://host:port`.
    pub(crate) fn over_tls(address: &str, tls: ClientTlsConfig) -> Self {
        let endpoint = Endpoint::from_shared(format!("https://{address}")).expect("an address");
        Self::of(endpoint.tls_config(tls).expect("a TLS configuration"))
    }

    fn of(endpoint: Endpoint) -> Self {
        // Connects lazily: without a listener, the first call fails.
        let _in_runtime = super::runtime().enter();
        Self { channel: endpoint.connect_timeout(PATIENCE).connect_lazy() }
    }

    /// Sends one Check, for asynchronous code.
    pub(crate) async fn ask(&self, request: impl Into<CheckRequest>) -> Result<VerifiedResponse, Status> {
        let mut client = AuthorizationClient::new(self.channel.clone());
        client.check(request.into()).await.map(|response| VerifiedResponse::of(response.into_inner()))
    }

    /// Sends one Check with a timeout.
    pub(crate) async fn ask_within(
        &self,
        timeout: Duration,
        request: impl Into<CheckRequest>,
    ) -> Result<VerifiedResponse, Status> {
        let mut client = AuthorizationClient::new(self.channel.clone());
        let mut request = Request::new(request.into());
        request.set_timeout(timeout);
        client.check(request).await.map(|response| VerifiedResponse::of(response.into_inner()))
    }

    /// Sends one Check with this `traceparent`.
    #[track_caller]
    pub(crate) fn check_traced(
        &self,
        traceparent: &'static str,
        request: impl Into<CheckRequest>,
    ) -> VerifiedResponse {
        self.check_with(&[("traceparent", traceparent)], request)
    }

    /// Sends one Check with this metadata.
    #[track_caller]
    pub(crate) fn check_with(
        &self,
        metadata: &[(&'static str, &'static str)],
        request: impl Into<CheckRequest>,
    ) -> VerifiedResponse {
        let mut client = AuthorizationClient::new(self.channel.clone());
        let mut request = Request::new(request.into());
        for (name, value) in metadata {
            request.metadata_mut().append(*name, MetadataValue::from_static(value));
        }
        let answer = wait(client.check(request)).expect("an answer to a Check");
        VerifiedResponse::of(answer.into_inner())
    }

    /// Sends one Check.
    #[track_caller]
    pub(crate) fn check(&self, request: impl Into<CheckRequest>) -> VerifiedResponse {
        wait(self.ask(request)).unwrap_or_else(|status| panic!("no answer to a Check: {status:?}"))
    }

    /// Sends one Check with bytes that no encoder writes.
    pub(crate) fn check_bytes(&self, bytes: Vec<u8>) -> Result<VerifiedResponse, Status> {
        let answer = self.call(&format!("/{SERVICE}/Check"), bytes)?;
        assert!(!answer.is_empty(), "an empty CheckResponse allows");
        Ok(VerifiedResponse::of(CheckResponse::decode(answer.as_slice()).expect("a CheckResponse")))
    }

    /// The connection, for other clients.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Sends any unary call, with bytes as request and response.
    pub(crate) fn call(&self, path: &str, bytes: Vec<u8>) -> Result<Vec<u8>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        wait(async {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let path = PathAndQuery::try_from(path).expect("a path");
            grpc.unary(Request::new(bytes), path, BytesCodec).await.map(tonic::Response::into_inner)
        })
    }

    /// Returns the gRPC health status of a service.
    pub(crate) fn health(&self, service: &str) -> Result<ServingStatus, Status> {
        let mut client = HealthClient::new(self.channel.clone());
        let request = HealthCheckRequest { service: service.to_owned() };
        wait(client.check(request)).map(|response| response.into_inner().status())
    }
}

impl Client {
    /// Returns the services that reflection lists.
    pub(crate) fn reflected(&self) -> Result<Vec<String>, Status> {
        let mut client = ServerReflectionClient::new(self.channel.clone());
        let list = MessageRequest::ListServices(String::new());
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
        wait(async {
            let mut answers = client.server_reflection_info(tokio_stream::once(request)).await?.into_inner();
            let answer = answers.message().await?.and_then(|answer| answer.message_response);
            let Some(MessageResponse::ListServicesResponse(list)) = answer else {
                return Err(Status::internal(format!("no list of services: {answer:?}")));
            };
            Ok(list.service.into_iter().map(|service| service.name).collect())
        })
    }
}

/// A codec that passes bytes through.
struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for BytesCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

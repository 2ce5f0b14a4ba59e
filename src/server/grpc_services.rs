//! The gRPC services beside the check: health and reflection.
//!
//! `grpc.health.v1.Health/List` is added to what the library has, because newer tools call it
//! (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>).

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tonic_health::pb::HealthCheckResponse;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tonic_prost::ProstCodec;
use tower::Service;

use super::ServeError;
use crate::ext_authz::proto::DESCRIPTORS;
use crate::ext_authz::service::SERVICE_NAME;
use crate::health::Health;

/// Creates the routes of health, and of reflection if it is enabled.
pub(super) fn routes(
    health: Health,
    reporter: &HealthReporter,
    reflection: bool,
) -> Result<Routes, ServeError> {
    let service = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
    let mut routes = Routes::new(service);
    if reflection {
        let start = |e: tonic_reflection::server::Error| ServeError::Start(e.to_string());
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        routes = routes.add_service(builder().build_v1().map_err(start)?);
        // grpcurl before 1.9 and other older tools support only this version.
        routes = routes.add_service(builder().build_v1alpha().map_err(start)?);
    }
    Ok(routes.into_axum_router().route_service("/grpc.health.v1.Health/List", ListHealth(health)).into())
}

/// `HealthListRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthListRequest {}

/// `HealthListResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthListResponse {
    /// The status of each service.
    #[prost(map = "string, message", tag = "1")]
    statuses: HashMap<String, HealthCheckResponse>,
}

/// Serves `grpc.health.v1.Health/List`.
#[derive(Clone)]
struct ListHealth(Health);

impl Service<http::Request<axum::body::Body>> for ListHealth {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<axum::body::Body>) -> Self::Future {
        let list = self.clone();
        let codec = ProstCodec::<HealthListResponse, HealthListRequest>::default();
        Box::pin(async move { Ok(tonic::server::Grpc::new(codec).unary(list, request).await) })
    }
}

impl tonic::server::UnaryService<HealthListRequest> for ListHealth {
    type Response = HealthListResponse;
    type Future = Ready<Result<Response<HealthListResponse>, Status>>;

    fn call(&mut self, _: Request<HealthListRequest>) -> Self::Future {
        let is_ready = self.0.readiness().ready;
        let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        let response = HealthCheckResponse { status: status.into() };
        let statuses = ["", SERVICE_NAME].map(|service| (service.to_owned(), response));
        ready(Ok(Response::new(HealthListResponse { statuses: statuses.into() })))
    }
}

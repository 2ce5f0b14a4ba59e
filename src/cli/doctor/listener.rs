//! Checks a server through its gRPC listener, as Envoy would call it.

use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use super::super::Failure;
use super::super::check;
use super::super::target::{Target, TlsArgs, chain, connect, host_and_port};
use super::tls::{self, PATIENCE};
use crate::clock::Clock;
use crate::diagnostics::Finding;
use crate::ext_authz::service::SERVICE_NAME;

/// A path that is not public in any sensible configuration.
const PATH: &str = "/tenantgate-doctor/is-this-refused";

/// Examines the server.
pub(super) async fn examine(
    target: &Target,
    tls: &TlsArgs,
    clock: &dyn Clock,
) -> Result<Vec<Finding>, Failure> {
    let mut findings = vec![transport(target, tls, clock).await];
    match check::probe(target, PATH, tls).await {
        Ok((_, reason)) if reason == "missing" => {
            findings
                .push(Finding::ok("listener.answers", format!("{target} rejects a request without a key")));
        }
        Ok((_, reason)) if reason == "shadow" => findings.push(Finding::warn(
            "listener.answers",
            format!("{target} is in shadow mode: it rejects no request"),
            "once `tenantgate report shadow` shows no client that must pass, restart it without --mode shadow",
        )),
        Ok((allowed, reason)) => {
            let what =
                format!("{target} answers a request without a key with allowed={allowed}, reason {reason:?}");
            findings.push(Finding::bad(
                "listener.answers",
                what,
                "check that this is tenantgate, and its --public and --mode",
            ));
        }
        Err(failure) if failure.code == 3 => {
            let remedy = "start serve there, or correct --target, --ca, --client-cert and --client-key";
            findings.push(Finding::bad("listener.answers", failure.lines.join("; "), remedy));
            return Ok(findings);
        }
        Err(failure) => return Err(failure),
    }
    let channel = match connect(target, tls).await? {
        Ok(channel) => channel,
        Err(error) => {
            let remedy = "try again: the server responded a moment ago";
            findings.push(Finding::bad("listener.health", chain(&error), remedy));
            return Ok(findings);
        }
    };
    findings.extend([health(channel.clone()).await, reflection(channel).await]);
    Ok(findings)
}

async fn transport(target: &Target, tls: &TlsArgs, clock: &dyn Clock) -> Finding {
    const CHECK: &str = "listener.tls";
    match target {
        Target::Unix(_) => Finding::ok(CHECK, "a Unix socket, protected by file permissions"),
        Target::Url(url) if url.starts_with("https://") => tls::examine(CHECK, url, tls, "h2", clock).await,
        Target::Url(url) if is_loopback(url) => {
            Finding::ok(CHECK, "not encrypted, but the traffic does not leave the machine")
        }
        Target::Url(_) => Finding::warn(
            CHECK,
            "keys are sent over the network without encryption, and any client can guess keys",
            "use --tls-cert, --tls-key and --client-ca, or a Unix socket",
        ),
    }
}

pub(super) fn is_loopback(url: &str) -> bool {
    let host = host_and_port(url).0;
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

async fn health(channel: Channel) -> Finding {
    const CHECK: &str = "listener.health";
    let request = HealthCheckRequest { service: SERVICE_NAME.into() };
    let response = HealthClient::new(channel).check(request).await;
    match response.map(|response| response.into_inner().status()) {
        Ok(ServingStatus::Serving) => Finding::ok(CHECK, "SERVING"),
        Ok(status) => {
            let what = format!("{}: Envoy does not send requests to it", status.as_str_name());
            Finding::bad(CHECK, what, "see /readyz on its ops listener: it has no database, or is draining")
        }
        Err(status) => Finding::bad(
            CHECK,
            status.message(),
            "check that this is tenantgate, which serves grpc.health.v1.Health",
        ),
    }
}

/// Checks reflection. A server without it is fine, because Envoy does not need it.
async fn reflection(channel: Channel) -> Finding {
    const CHECK: &str = "listener.reflection";
    // The timeout of the channel does not cover the messages of a stream.
    let result = timeout(PATIENCE, services(channel)).await;
    match result.unwrap_or_else(|_| Err(Status::deadline_exceeded("no response in time"))) {
        Ok(()) => Finding::ok(CHECK, "on: grpcurl needs no proto files"),
        Err(status) if status.code() == Code::Unimplemented => Finding::ok(
            CHECK,
            "off: grpcurl needs -import-path proto -proto envoy/service/auth/v3/external_auth.proto",
        ),
        Err(status) => {
            let what = format!("no answer: {}", status.message());
            Finding::warn(CHECK, what, "try again, or use grpcurl with the files in proto/")
        }
    }
}

/// Requests the list of services, as grpcurl does first.
async fn services(channel: Channel) -> Result<(), Status> {
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let requests = tokio_stream::once(request);
    let mut responses =
        ServerReflectionClient::new(channel).server_reflection_info(requests).await?.into_inner();
    responses
        .message()
        .await?
        .map(|_| ())
        .ok_or_else(|| Status::unknown("the stream ended without a message"))
}

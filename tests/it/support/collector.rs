//! A collector for trace spans that accepts OTLP over gRPC, as Envoy and tenantgate send it.

use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::{PATIENCE, eventually, runtime, wait};

/// A span and its service.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) service: String,
    pub(crate) span: Span,
}

impl Seen {
    /// The value of an attribute.
    pub(crate) fn attribute(&self, name: &str) -> Option<String> {
        text(&self.span.attributes, name)
    }

    /// The names of all attributes, in order.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.span.attributes.iter().map(|pair| pair.key.as_str()).collect();
        names.sort_unstable();
        names
    }
}

fn text(attributes: &[KeyValue], name: &str) -> Option<String> {
    let value = attributes.iter().find(|pair| pair.key == name)?.value.as_ref()?.value.as_ref()?;
    if let Value::StringValue(text) = value { Some(text.clone()) } else { Some(format!("{value:?}")) }
}

#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Vec<Seen>>>);

#[tonic::async_trait]
impl TraceService for Taken {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for of_service in request.into_inner().resource_spans {
            let service = of_service.resource.and_then(|resource| text(&resource.attributes, "service.name"));
            let spans = of_service.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let service = service.unwrap_or_default();
            all.extend(spans.map(|span| Seen { service: service.clone(), span }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A running collector.
pub(crate) struct Collector {
    pub(crate) port: u16,
    taken: Taken,
    work: JoinHandle<()>,
}

impl Collector {
    pub(crate) fn start() -> Self {
        let listener = wait(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let taken = Taken::default();
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(taken.clone()));
        let work = runtime().spawn(async move {
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("serves until aborted");
        });
        Self { port, taken, work }
    }

    /// The value for `--otlp-endpoint`.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// All spans so far.
    pub(crate) fn spans(&self) -> Vec<Seen> {
        self.taken.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a span.
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, wanted: impl Fn(&Seen) -> bool) -> Seen {
        eventually(what, PATIENCE, || {
            let spans = self.spans();
            spans.iter().find(|seen| wanted(seen)).cloned().ok_or(spans)
        })
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.work.abort();
    }
}
